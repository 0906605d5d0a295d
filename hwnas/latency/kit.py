"""A kit: what measures a device on which hwnas cannot be installed, in one zip file.

`python kit.zip` needs only numpy and the runtime. Inside are the very modules that `hwnas profile`
measures with, the plan of networks, and the exported graph with weights that zip well: every
constant repeats a few numbers of its own. What it writes, `hwnas tables import` makes a table of.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

import hwnas
from hwnas.anatomy import Shape, find_shape
from hwnas.errors import UserError
from hwnas.files import read_json, replacing
from hwnas.latency.graphs import template
from hwnas.latency.openvino_graphs import OpenVinoTemplate, repeat
from hwnas.latency.parts import Device, Machine, ModelSizes
from hwnas.latency.plan import Plan
from hwnas.latency.profiling import check_phase, config_of, table_of
from hwnas.latency.runtimes import check_length
from hwnas.latency.session import Measurement, Session
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Target

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FORMAT = 1  # of the result that a kit writes
# all that measuring needs; a test runs them where nothing but numpy and the runtime can be imported
_MODULES = (
    "errors.py",
    "subnetwork.py",
    "telemetry.py",
    "anatomy/__init__.py",
    "latency/device.py",
    "latency/target.py",
    "latency/measure.py",
    "latency/pinning.py",
    "latency/plan.py",
    "latency/session.py",
    "latency/templates.py",
    "latency/openvino_graphs.py",
    "latency/runtimes.py",
)
_REPEATED = 256  # numbers of each large constant that are kept and repeated


def write_kit(
    model: PretrainedConfig | str,
    target: Target | str,
    out: Path,
    *,
    validate: int = 0,
    seed: int = 0,
) -> None:
    """Write a kit that measures a model of such sizes on another device.

    Args:
        model: its config or name, as `profile` takes it.
        target: on that device; of OpenVINO.
        out: the zip file.
        validate: unseen networks that the kit times as well, to check the table on.
        seed: chooses these.

    Raises:
        UserError: the target is not OpenVINO's, or does not suit the model.
    """
    target = Target.parse(target) if isinstance(target, str) else target
    if target.runtime != "openvino":
        raise UserError(
            f"target {target}: kits are made for openvino; for {target.runtime}, install hwnas "
            "on the device and use hwnas profile"
        )
    config = config_of(model)
    shape = find_shape(config)
    check_phase(shape, target)
    check_length(config, target)
    job = {
        "format": FORMAT,
        "hwnas": hwnas.__version__,
        "target": str(target),
        "vocab": config.vocab_size,
        "model": ModelSizes.of(shape).model_dump(mode="json"),
        "plan": Plan.of(shape, validate, seed, target.phase).to_json(),
    }
    found = template(config, target)
    with replacing(out) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as kit:
        _write_modules(kit)
        _write_graph(kit, found)
        kit.writestr("job.json", json.dumps(job))


def table_from(result: Path) -> LatencyTable:
    """The table of what a kit measured.

    Raises:
        UserError: the file is not a kit's result.
    """
    stored = read_json(result)
    if not isinstance(stored, dict) or stored.get("format") != FORMAT or "job" not in stored:
        raise UserError(f"{result}: is not the result of a kit of this hwnas")
    try:
        job, machine = stored["job"], _Machine.model_validate(stored["machine"])
        target = Target.parse(job["target"])
        shape: Shape = ModelSizes.model_validate(job["model"]).shape
        session = Session(
            fitted=tuple(Measurement.from_json(m) for m in stored["fitted"]),
            unseen=tuple(
                (Measurement.from_json(a), Measurement.from_json(b)) for a, b in stored["unseen"]
            ),
            seconds=float(stored["seconds"]),
        )
        plan = Plan.from_json(job["plan"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{result}: a kit's result, but damaged ({reason})") from None
    here = Machine(machine.device, machine.versions, tuple(machine.warnings))
    return table_of(session, plan, shape, target, here)


class _Machine(BaseModel):
    """What a kit says of the machine that it ran on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Device
    versions: dict[str, str]
    warnings: list[str]


def _write_modules(kit: zipfile.ZipFile) -> None:
    package = resources.files("hwnas")
    for name in _MODULES:
        kit.writestr(f"hwnas/{name}", package.joinpath(name).read_bytes())
    for empty in ("", "latency/"):
        kit.writestr(f"hwnas/{empty}__init__.py", "")
    kit.writestr("__main__.py", package.joinpath("latency/kit_main.py").read_bytes())


def _write_graph(kit: zipfile.ZipFile, found: OpenVinoTemplate) -> None:
    import openvino

    graph = found.graph.clone()
    for number, op in enumerate(graph.get_ops()):
        if op.get_type_name() == "Constant":
            repeat(op, _REPEATED, number)
    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder:
        path = Path(folder) / "graph.xml"
        openvino.save_model(graph, path, compress_to_fp16=False)
        kit.write(path, "graph.xml")
        kit.write(path.with_suffix(".bin"), "graph.bin")
    kit.writestr("template.json", json.dumps(found.to_json()))
