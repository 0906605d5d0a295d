"""Training the finalists on, in successive halving (Jamieson & Talwalkar 2016).

Inherited weights rank candidates within a kind of structure, not across kinds. So the best of each
kind are trained a little, the worse ones are dropped on validation data that the search did not
look at, and the rest goes on. The last rung takes most of the steps. In each of them the learning
rate falls to zero: at a constant one, a short training ends anywhere. Judged by the loss (of
classes, the cross-entropy at each one's best temperature), which is smoother than the metric.

A finalist whose weights were trained for the task already, and that leaves little out, may be best
as it is: of its rungs and its start, the best one counts, by the same loss. One that leaves out
nothing at all, such as the whole baseline served in int8, is its own teacher, and is not trained.

Every rung of every finalist is a folder, so an interrupted halving goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from hwnas.files import read_model, replacing, write_json
from hwnas.models import load, on_gpu
from hwnas.processes import alone, made_once
from hwnas.subnetwork import Subnetwork
from hwnas.tasks.calibration import calibrated_loss
from hwnas.tasks.kinds import Kind
from hwnas.tasks.predict import predict
from hwnas.training.optimization import Optimization
from hwnas.training.trainer import train

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hwnas.training.memory import Memory


START = -1  # the rung before any training


@dataclass(frozen=True)
class Entrant:
    """A finalist before its training."""

    kind: str
    subnetwork: Subnetwork
    start: str  # names the weights that `build` cuts it from
    steps: int  # of training, should it win
    handicap: float = 0.0  # what its loss is higher by as it will be served
    trained: bool = False  # its weights were, for this very task
    rate: float | None = None  # of learning, if it has one of its own
    whole: bool = False  # of a trained one: all of its baseline, so that it learns no more


@dataclass(frozen=True)
class Rung:
    """One stage of the halving: so many more steps for each, so many left afterwards."""

    steps: int | None  # in the last, None: what is left of the entrant's own
    survivors: int


class RungResult(BaseModel):
    """How a finalist stood after a rung; kept beside its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entrant: int
    rung: int  # -1: before any training
    steps: int  # so far
    loss: float
    metric: float


@dataclass(frozen=True)
class Halving:
    """The result: every rung's standing, and the winner's weights on disk."""

    results: tuple[RungResult, ...]
    winner: int
    weights: Path
    steps: int  # that these weights took here


def rows(examples: Dataset, start: int, count: int) -> Dataset:
    """`count` rows of `examples` from `start` on, going round at the end."""
    return examples.select([(start + i) % len(examples) for i in range(count)])


def halve(
    entrants: Sequence[Entrant],
    build: Callable[[Entrant], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    validation: Dataset,
    kind: Kind,
    metric: str,
    rungs: Sequence[Rung],
    optimization: Optimization,
    folder: Path,
    teacher: PreTrainedModel | None = None,
    memory: Memory | None = None,
) -> Halving:
    """Train `entrants` rung by rung and return the standing and the winner.

    Args:
        build: cuts a dense model for an entrant from its starting weights.
        examples: encoded training rows, taken in order, rung by rung.
        validation: encoded rows that the search did not look at.
        kind, metric: the task's.
        optimization: its `steps` are replaced by each rung's.
        folder: where the weights of each rung go.
        teacher: the entrants learn from it.
        memory: of what it has said to `examples`.
    """
    alive = list(range(len(entrants)))
    results: list[RungResult] = []
    taken = 0
    for i in alive:
        if entrants[i].trained:
            out = _weights(folder, i, START)
            at = (i, START, 0)
            made_once(
                out, partial(_judge_cut, build, entrants[i], validation, kind, metric, at, out)
            )
            results.append(read_model(out / "result.json", RungResult))
    for number, rung in enumerate(rungs):
        standing: list[RungResult] = []
        for i in alive:
            if entrants[i].whole:
                continue
            steps = entrants[i].steps - taken if rung.steps is None else rung.steps
            rung_optimization = replace(
                optimization,
                steps=steps,
                seed=optimization.seed + number,
                learning_rate=entrants[i].rate or optimization.learning_rate,
            )
            part = rows(examples, taken * optimization.batch, steps * optimization.batch)
            out = folder / str(i) / f"rung-{number}"
            if not out.exists():
                model = build(entrants[i]) if number == 0 else load(_weights(folder, i, number - 1))
                title = f"{folder.name} {entrants[i].kind}, rung {number + 1}"
                work = folder / str(i) / f"rung-{number}-training"
                train(
                    model,
                    tokenizer,
                    part,
                    rung_optimization,
                    work,
                    kind=kind,
                    teacher=teacher,
                    memory=memory,
                    title=title,
                )
                standing_at = (i, number, taken + steps)
                alone(partial(_judge, model, validation, kind, metric, standing_at, out))
                del model  # before the next one is in memory
            standing.append(read_model(out / "result.json", RungResult))
        taken += rung.steps or 0
        results += standing
        best = {i: _best(results, i, entrants[i]) for i in alive}
        ranked = sorted(alive, key=lambda i: (best[i].loss + entrants[i].handicap, i))
        alive = ranked[: rung.survivors]
    winner = alive[0]
    counts = _best(results, winner, entrants[winner])
    weights = _weights(folder, winner, counts.rung)
    return Halving(tuple(results), winner, weights, counts.steps)


def _best(results: Sequence[RungResult], number: int, entrant: Entrant) -> RungResult:
    """The result that counts of an entrant: its last, or of one that was trained, its best."""
    own = [result for result in results if result.entrant == number]
    return min(own, key=lambda result: result.loss) if entrant.trained else own[-1]


def _judge_cut(build: Callable[[Entrant], PreTrainedModel], entrant: Entrant, *how: Any) -> None:
    """Judge an entrant as it is cut from its starting weights."""
    _judge(build(entrant), *how)


def _judge(
    model: PreTrainedModel,
    validation: Dataset,
    kind: Kind,
    metric: str,
    at: tuple[int, int, int],
    out: Path,
) -> None:
    """Write the model to `out`, with how it stands at this entrant, rung and step."""
    answers = predict(on_gpu(model), validation)
    entrant, rung, steps = at
    result = RungResult(
        entrant=entrant,
        rung=rung,
        steps=steps,
        loss=calibrated_loss(kind, answers, validation),
        metric=kind.score(metric, answers, validation),
    )
    with replacing(out) as folder:
        model.save_pretrained(folder)
        write_json(folder / "result.json", result)


def _weights(folder: Path, entrant: int, rung: int) -> Path:
    return folder / str(entrant) / ("start" if rung == START else f"rung-{rung}")
