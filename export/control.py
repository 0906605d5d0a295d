"""Int8 with accuracy control: operations that lose most are given back their float weights.

NNCF's: it ranks the quantized operations by what each does to the answers, and reverts one after
the other until the metric, on the user's own rows, is within the bound. Where even that does not
help, what comes out is the exact model again.

Assumption: the rows that decide are those that the export is scored on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hwnas.export.folders import MODEL_FILES, quiet
from hwnas.files import replacing
from hwnas.progress import bar

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from hwnas.export.quantize import Feed
    from hwnas.export.verify import Judged


def quantize_controlled(
    exact: Path, out: Path, judged: Judged, rows: Sequence[Feed], max_drop: float
) -> None:
    """Write `out`: the OpenVINO folder `exact` in static int8, as far as that loses little.

    Args:
        judged: rows that say how much is lost.
        rows: inputs to calibrate on, see `quantize.calibration`.
        max_drop: points of the metric, in per cent, that may be lost.
    """
    import openvino
    from transformers import AutoConfig

    from hwnas.export.quantize import only
    from hwnas.latency.precision import quiet_quantizers
    from hwnas.latency.runtimes import openvino_core

    file = MODEL_FILES["openvino"]
    graph = openvino_core().read_model(exact / file)
    config = AutoConfig.from_pretrained(exact)
    taken = {name for port in graph.inputs for name in port.get_names()}

    def validate(compiled: Any, numbers: Iterable[int]) -> tuple[float, None]:
        from hwnas.tasks.predict import predict

        part = judged.scored.select(list(numbers))
        answers = predict(_Compiled(compiled, config), part)
        return judged.kind.score(judged.metric, answers, part), None

    with quiet(), quiet_quantizers(), bar("int8 with accuracy control", 1) as advance:
        import nncf  # which looks at once whether it may report

        small = nncf.quantize_with_accuracy_control(
            graph,
            nncf.Dataset(list(only(rows, taken))),
            nncf.Dataset(list(range(len(judged.scored)))),
            validate,
            max_drop=max_drop,
            drop_type=nncf.DropType.ABSOLUTE,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(rows),
            # smoothed weights are not brought back when an operation is (NNCF 3.4): it got worse
            advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1)
            ),
        )
        with replacing(out) as partial:
            weights = shutil.ignore_patterns(file, Path(file).with_suffix(".bin").name)
            shutil.copytree(exact, partial, ignore=weights)
            openvino.save_model(small, partial / file, compress_to_fp16=False)
        advance(1)


class _Compiled:
    """A compiled OpenVINO model as `predict` calls one."""

    def __init__(self, compiled: Any, config: PretrainedConfig) -> None:
        self.config = config
        self.request = compiled.create_infer_request()
        self.outputs = [port.get_any_name() for port in compiled.outputs]
        self.inputs = [port.get_any_name() for port in compiled.inputs]

    def __call__(self, **batch: torch.Tensor) -> SimpleNamespace:
        import torch

        given = {name: batch[name].numpy() for name in self.inputs if name in batch}
        found = self.request.infer(given, share_outputs=False)
        answers = {name: torch.from_numpy(found[i]) for i, name in enumerate(self.outputs)}
        return SimpleNamespace(**answers)
