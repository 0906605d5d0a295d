"""`serve.py`: a small script beside the folders, with the settings that were measured.

It needs the runtime and a tokenizer (transformers), and neither hwnas nor Optimum.
"""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

from hwnas.errors import HwnasError
from hwnas.export.folders import MODEL_FILES, format_for, served_folder
from hwnas.files import write_text
from hwnas.latency.runtimes import openvino_settings
from hwnas.latency.target import Target

SCRIPT = "serve.py"

_READY = {
    "openvino": """\
    sys.modules.setdefault("openvino_telemetry", None)  # it reports over the network else
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(FOLDER / "{file}", "{device}", SETTINGS)
    request = compiled.create_infer_request()
    names = [port.get_any_name() for port in compiled.inputs]
""",
    "onnxruntime": """\
    import onnxruntime

    options = onnxruntime.SessionOptions()
    for name, value in SETTINGS.items():
        setattr(options, name, value)
    session = onnxruntime.InferenceSession(
        str(FOLDER / "{file}"), options, providers=["{device}"]
    )
    names = [port.name for port in session.get_inputs()]
""",
}
_RUN = {
    "openvino": """
    def run(feed):
        return request.infer(feed)[compiled.output(0)]
""",
    "onnxruntime": """
    def run(feed):
        return session.run(None, feed)[0]
""",
}
# the same for language models: `first` begins a new text
_RUN_TEXT = {
    "openvino": """
    def run(feed, first):
        if first:
            request.reset_state()
        return request.infer(feed)[compiled.output(0)]
""",
    "onnxruntime": """\
    kept = [port for port in session.get_inputs() if port.name.startswith("past_key_values")]
    cache = {{}}

    def run(feed, first):
        if first:
            for port in kept:
                _, heads, _, size = port.shape
                cache[port.name] = np.zeros((1, heads, 0, size), dtype=np.float32)
        logits, *present = session.run(None, {{**feed, **cache}})
        names_of_present = [port.name for port in session.get_outputs()[1:]]
        for name, value in zip(names_of_present, present):
            cache[name.replace("present", "past_key_values")] = value
        return logits
""",
}
_DEVICES = {"onnxruntime": {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}}


def settings_of(target: Target) -> dict[str, Any]:
    """The runtime's settings that the target was measured with."""
    if target.runtime == "openvino":
        return openvino_settings(target)
    return {"intra_op_num_threads": target.threads, "inter_op_num_threads": 1}


def write_serve(out: Path, target: Target) -> None:
    """Write `out/serve.py` for the folder that the target serves; nothing for torch's."""
    if target.runtime not in _READY:
        return
    file = MODEL_FILES[format_for(target.runtime)]
    device = _DEVICES.get(target.runtime, {}).get(target.device, target.device.upper())
    writes = target.phase != "encode"
    source = "serve_text.py.in" if writes else "serve.py.in"
    template = (resources.files("hwnas.export") / source).read_text(encoding="utf-8")
    load = _READY[target.runtime] + (_RUN_TEXT if writes else _RUN)[target.runtime]
    script = template.format(
        packages=f"{target.runtime} transformers",
        folder=served_folder(target),
        settings=repr(settings_of(target)),
        load=load.format(file=file, device=device).rstrip("\n"),
    )
    write_text(out / SCRIPT, script)


def cold_start(out: Path) -> float | None:
    """Seconds from starting `out/serve.py` in a new process to its first answer; None without one.

    Imports, reading and compiling are part of it. The files are as warm as they just happen to be:
    those of an export that was timed before are in the system's cache.

    Raises:
        HwnasError: the script does not answer.
    """
    script = out / SCRIPT
    if not script.exists():
        return None
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, str(script), "1"],  # of a language model's tokens
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("a\n")
        process.stdin.flush()
        answered = bool(process.stdout.readline())
        seconds = time.perf_counter() - begin
        _, error = process.communicate()
    if not answered:
        last = (error.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise HwnasError(f"{script}: does not answer ({last}); report this as a bug")
    return seconds
