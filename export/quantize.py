"""A copy of an exported folder for targets whose precision is int8, int4 or bf16.

It stands beside the folder that it was made of, `openvino-int8-static/` beside `openvino/`: the
exact one keeps its parity with torch, the quantized one is what the target serves. Optimum loads
either in the same way.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.export.folders import MODEL_FILES, SERVING, find_format, quiet
from hwnas.files import replacing, write_json
from hwnas.latency.precision import group_of, quantized
from hwnas.progress import bar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    Feed = dict[str, npt.NDArray[np.integer[Any]]]

CALIBRATION_ROWS = 256


def quantize_folder(source: Path, out: Path, precision: str, rows: Sequence[Feed] = ()) -> None:
    """Write `out`: the exported model in `source`, quantized.

    Args:
        source: an ONNX or OpenVINO folder.
        precision: one that `target.PRECISIONS` lists for its runtime.
        rows: a task's inputs, see `calibration`; static quantization needs some, int4 is better
            with some.

    Raises:
        UserError: no exported model in `source`.
    """
    from transformers import AutoConfig

    file = MODEL_FILES[find_format(source)]
    group = group_of(AutoConfig.from_pretrained(source))
    with replacing(out) as partial, quiet(), bar(f"quantize {precision}", 1) as advance:
        weights = (file, Path(file).with_suffix(".bin").name)
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns(*weights))
        if file.endswith(".onnx"):
            import onnx

            proto = onnx.load(source / file)
            taken = {value.name for value in proto.graph.input}
            small = quantized(proto, "onnxruntime", precision, list(only(rows, taken)), group)
            onnx.save(small, partial / file)
        else:
            import openvino

            from hwnas.latency.runtimes import openvino_core

            graph = openvino_core().read_model(source / file)
            taken = {name for port in graph.inputs for name in port.get_names()}
            small = quantized(graph, "openvino", precision, list(only(rows, taken)), group)
            # what is computed in bf16 needs no more of its weights than half precision has
            openvino.save_model(small, partial / file, compress_to_fp16=precision == "bf16")
            if precision == "bf16":
                write_json(partial / SERVING, {"precision": precision})
        advance(1)


def calibration(encoded: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[Feed]:
    """The first rows of a task as a model's inputs, each a batch of one `(1, seq)`.

    Args:
        encoded: rows as `Kind.encode` makes them; of those that branch, the first line.
    """
    import numpy as np

    from hwnas.tasks.written import lines

    rows = encoded.select(range(min(len(encoded), CALIBRATION_ROWS))).with_format(None)
    names = [name for name in tokenizer.model_input_names if name in rows.column_names]
    feeds: list[Feed] = [
        {name: np.array([row[name]], dtype=np.int64) for name in names} for row in rows
    ]
    if "branch" not in rows.column_names:
        return feeds
    firsts = [next(lines([branch])).at for branch in rows["branch"]]
    return [
        {name: value[:, at] for name, value in feed.items()}
        for feed, at in zip(feeds, firsts, strict=True)
    ]


def only(rows: Sequence[Feed], names: set[str]) -> Iterator[Feed]:
    """The rows with just these inputs; those that follow from the tokens are added."""
    import numpy as np

    for row in rows:
        ids = row["input_ids"]
        made: Feed = {
            "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape),
            "beam_idx": np.arange(len(ids), dtype=np.int32),
        }
        yield {name: value for name, value in (made | row).items() if name in names}
