"""The end of a federated run: every tier's model as files that serve it, timed on this machine.

Where a tier is served in int8 or int4, a folder of it stands beside the exact ones, as it does for
the whole model. It is made of the weights alone: no client's texts are here to calibrate it on.

The whole model, as learned, is the reference that budgets in per cent are of. Assumption: this
machine stands for the tiers' devices, as it does where their latency tables were measured here; of
a table of another machine, times are only said to be of this one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hwnas.federated.judging import server_rows
from hwnas.federated.recipe import FederatedRecipe, TierSpec
from hwnas.federated.state import ServerState
from hwnas.federated.summary import FederatedSummary, TierResult
from hwnas.files import write_json
from hwnas.latency.target import Budget, Target
from hwnas.models import load
from hwnas.progress import bar

_TOLERANCE = 0.02  # of a budget, for the noise of a measurement
_PAIRS = 20
_FILES = ("onnx", "openvino")


def hand_over(recipe: FederatedRecipe, run: Path, summary: FederatedSummary) -> FederatedSummary:
    """Export and time every tier's model; write `report.html` and the summary again, and return it.

    A soft prompt is not part of exported files, so models with one are left as they are.

    Each lies in `tiers/NAME/onnx` and `tiers/NAME/openvino`, as the tier's runtime serves it.
    """
    from hwnas.report.federated_page import write_page

    if recipe.train == "prompt":
        write_page(run)
        return summary
    state = ServerState.find(run, recipe)
    assert state is not None
    specs = {tier.name: tier for tier in recipe.tiers}
    results = []
    with bar("exporting", len(summary.tiers)) as advance:
        for result in summary.tiers:
            results.append(_served(run, state, result, specs.get(result.name)))
            advance(1)
    served = summary.model_copy(update={"tiers": results})
    write_json(run / "summary.json", served)
    write_page(run)
    return served


def _served(run: Path, state: ServerState, result: TierResult, spec: TierSpec | None) -> TierResult:
    """A tier's result with what it takes here; of a device that a client brought, only exported."""
    from hwnas.export import (
        export_model,
        folder_size_mb,
        measure_against,
        quantize_folder,
        served_folder,
    )

    target = Target.parse(result.target)
    name, exact = served_folder(target), served_folder(replace(target, precision="fp32"))
    whole, mine = run / "whole", run / "tiers" / result.name
    if not (whole / exact).exists():
        export_model(state.network.extract(state.network.full), state.tokenizer, whole, [exact])
    if not all((mine / one).exists() for one in _FILES):
        export_model(load(run / result.path), state.tokenizer, mine, _FILES)
    if name != exact:
        for folder in (whole, mine):
            if not (folder / name).exists():
                quantize_folder(folder / exact, folder / name, target.precision)
        result = result.model_copy(update={"served_score": _score(state, mine / name, target)})
    if spec is None:
        return result.model_copy(update={"size_mb": folder_size_mb(mine / name)})
    paired = measure_against(mine / name, whole / name, target, pairs=_PAIRS)
    met = None
    if spec.budget is not None:
        budget = Budget.parse(spec.budget)
        found, most = (
            (paired.ms, budget.ms) if budget.ms is not None else (paired.ratio, budget.fraction)
        )
        assert most is not None
        met = found <= most * (1 + _TOLERANCE)
    return result.model_copy(
        update={
            "measured_ms": paired.ms,
            "ratio": paired.ratio,
            "met": met,
            "size_mb": folder_size_mb(mine / name),
        }
    )


def _score(state: ServerState, folder: Path, target: Target) -> float | None:
    """Of served files, on the server's test rows; None where it has none."""
    from hwnas.export import score_folder

    recipe = state.recipe
    if not recipe.evaluation.server:
        return None
    kind, metric = recipe.task.task_kind, recipe.task.usual_metric
    return score_folder(folder, server_rows(recipe), kind, metric)
