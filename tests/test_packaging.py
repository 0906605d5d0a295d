"""The package as users get it: what the wheel holds, how it installs, what importing it costs."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# where each folder of the repository goes in the package
PLACES = {"hwnas": "hwnas", "export": "hwnas/export", "latency_tables": "hwnas/latency_tables"}
SHIPPED = (".py", ".j2", ".in", ".json", ".yaml")
HELP_CPU_SECONDS = 0.5  # the contract of `hwnas --help`


def _run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build writes into its source folder, and takes from it."""
    source = tmp_path_factory.mktemp("source")
    out = tmp_path_factory.mktemp("wheel")
    tracked = _run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file() and name.split("/")[0] not in ("tests", "benchmarks", "docs"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    _run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=source
    )  # fmt: skip
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment that holds the wheel, and sees this one's dependencies.

    They are seen through a path file, which adds the folder but runs none of the path files in
    it: the editable hwnas of this environment stays out.
    """
    home = tmp_path_factory.mktemp("environment")
    _run(sys.executable, "-m", "venv", home, cwd=home)
    python = home / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return home / "bin"


@pytest.mark.slow  # a build, and a new environment with pip in it
def test_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    expected = {
        f"{place}/{path.relative_to(ROOT / folder)}"
        for folder, place in PLACES.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SHIPPED or path.name == "py.typed"
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {"hwnas/py.typed", "hwnas/report/report.html.j2"} <= expected
    assert held == expected


@pytest.mark.slow  # as above
def test_wheel_runs_away_from_its_source(installed: Path, tmp_path: Path) -> None:
    code = (
        "import hwnas, hwnas.export, hwnas.latency_tables as t; print(hwnas.__file__, t.__file__)"
    )
    for path in _run(installed / "python", "-c", code, cwd=tmp_path).split():
        assert Path(path).is_relative_to(installed.parent)
    assert "Usage: hwnas" in _run(installed / "hwnas", "--help", cwd=tmp_path)
    table_names = _run(installed / "hwnas", "tables", "list", "--json", cwd=tmp_path)
    for table in (ROOT / "latency_tables").glob("*.json"):
        assert (table.name in table_names) == (not table.name.endswith(".schema.json"))


def _cpu_seconds(code: str, cwd: Path) -> float:
    """User and system time of a new interpreter that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _run(sys.executable, "-c", code, "--help", cwd=cwd)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_answers_at_once(tmp_path: Path) -> None:
    """CPU time is the stated contract; what else runs on the machine barely moves it."""
    command = "from hwnas.cli import main; main()"
    _cpu_seconds(command, tmp_path)  # compiles what has changed
    assert statistics.median(_cpu_seconds(command, tmp_path) for _ in range(3)) < HELP_CPU_SECONDS


def test_importing_the_package_and_its_command_line_loads_nothing_heavy(tmp_path: Path) -> None:
    heavy = "{'torch', 'transformers', 'openvino', 'onnxruntime', 'optimum', 'scipy', 'datasets'}"
    code = f"import sys, hwnas, hwnas.cli; print(*sorted({heavy} & set(sys.modules)))"
    assert _run(sys.executable, "-c", code, cwd=tmp_path).split() == []
