"""Evolution under a latency budget: NSGA-II (Deb et al. 2002, pymoo's) from the seeds on.

Two objectives, the quality signal and the predicted latency, with the budget as a constraint.
Every newcomer is repaired to use the budget up: shrunk until it fits, then widened where the
additive loss, tasted a little differently each time, gains most. So evaluations, the dear part,
are spent on structures that a user would want. The same seed gives the same candidates.

Assumption: the quality signal is smooth and deterministic, lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import ElementwiseDuplicateElimination
from pymoo.core.individual import Individual
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.sampling import Sampling
from pymoo.core.termination import NoTermination

from hwnas.latency.predictor import LatencyPredictor
from hwnas.search.exact import BlockLoss
from hwnas.search.fitting import fit
from hwnas.search.problem import Predictor, Tables, limit
from hwnas.search.seeds import Seed, seeds
from hwnas.space import BlockOptions, SearchSpace
from hwnas.subnetwork import DROPPED, Block, Subnetwork

if TYPE_CHECKING:
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]

# all blocks kept or not, a narrower residual stream: only training judges between these
GROUPS = ("widths", "depth", "residual")

_TASTE = 0.5  # standard deviation of the logarithm of a newcomer's tastes
_REACH = 2  # options by which a mutation moves a width, at most
_DROP = 0.05  # probability that a mutation takes a block out, or brings one back


@dataclass(frozen=True)
class Evaluated:
    """A candidate with its quality signal and predicted latency; kinds as in `candidates.jsonl`."""

    kind: str
    subnetwork: Subnetwork
    signal: float  # of quality, lower is better
    predicted_ms: float


Evaluate = Callable[[Subnetwork], float]


def evolve(
    space: SearchSpace,
    loss: BlockLoss,
    predictor: Predictor,
    budget_ms: float,
    evaluate: Evaluate,
    *,
    evaluations: int,
    seed: int,
    on_candidate: Callable[[Evaluated], None] = lambda candidate: None,
) -> list[Evaluated]:
    """Evaluate the seeds, then what NSGA-II breeds from them, all within the budget.

    Args:
        loss: the additive guess at the loss, which seeds and repairs candidates.
        evaluate: the quality signal of a subnetwork, for example its divergence from the teacher.
        evaluations: at most so many calls of `evaluate`.
        on_candidate: told each candidate as soon as it is evaluated.

    Raises:
        BudgetError: nothing in the space fits the budget.
        UserError: `loss` is of another model.
    """
    starts = seeds(space, loss, predictor, budget_ms)[:evaluations]
    kinds = {start.subnetwork: start.kind for start in starts}
    problem = _Budgeted(space, Tables.of(space, loss, predictor), budget_ms)
    size = min(max(len(starts), evaluations // 2), evaluations)
    algorithm = NSGA2(
        pop_size=size,
        n_offsprings=max(2, size // 2),
        sampling=_Start(starts),
        crossover=_SwapBlocks(),
        mutation=_ShiftWidths(),
        repair=_UseBudget(starts),
        eliminate_duplicates=_SameGenome(),
    )
    algorithm.setup(problem, termination=NoTermination(), seed=seed)
    found: list[Evaluated] = []
    while len(found) < evaluations:
        newcomers = algorithm.ask()
        if newcomers is None or len(newcomers) == 0:
            break  # the space within the budget is used up
        newcomers = newcomers[: evaluations - len(found)]
        batch = []
        for genome in newcomers.get("X"):
            subnetwork = problem.subnetwork(genome)
            candidate = Evaluated(
                kinds.get(subnetwork, "evolved"),
                subnetwork,
                evaluate(subnetwork),
                predictor.predict(subnetwork),
            )
            on_candidate(candidate)
            batch.append(candidate)
        found += batch
        newcomers.set("F", np.array([[c.signal, c.predicted_ms] for c in batch]))
        newcomers.set("G", np.array([[c.predicted_ms - limit(budget_ms)] for c in batch]))
        for individual in newcomers:
            individual.evaluated.update(("F", "G"))
        algorithm.tell(infills=newcomers)
    return found


def evolve_at(
    hidden: int,
    space: SearchSpace,
    loss: BlockLoss,
    predictor: LatencyPredictor,
    budget_ms: float,
    evaluate: Evaluate,
    *,
    evaluations: int,
    seed: int,
    on_candidate: Callable[[Evaluated], None] = lambda candidate: None,
) -> list[Evaluated]:
    """`evolve` among subnetworks of one residual width; 0: the model's own.

    Raises:
        UserError: the predictor has no costs at that width.
    """

    def with_width(candidate: Evaluated) -> Evaluated:
        return replace(candidate, subnetwork=candidate.subnetwork.narrowed(hidden))

    found = evolve(
        space,
        loss,
        predictor.at_hidden(hidden),
        budget_ms,
        lambda subnetwork: evaluate(subnetwork.narrowed(hidden)),
        evaluations=evaluations,
        seed=seed,
        on_candidate=lambda candidate: on_candidate(with_width(candidate)),
    )
    return [with_width(candidate) for candidate in found]


def finalists(evaluated: Sequence[Evaluated], budget_ms: float) -> list[Evaluated]:
    """The best within the budget: of all blocks, of fewer, of a narrower residual stream.

    The quality signal of untrained structures ranks widths, uniform or not, but not a structure of
    fewer blocks against them (METHODS, last section), so one of each goes on.
    """
    best: dict[str, Evaluated] = {}
    for candidate in sorted(evaluated, key=lambda c: c.signal):
        if candidate.predicted_ms <= limit(budget_ms):
            best.setdefault(group_of(candidate.subnetwork), candidate)
    return [best[group] for group in GROUPS if group in best]


def group_of(subnetwork: Subnetwork) -> str:
    """Which of `GROUPS` a structure competes in."""
    if subnetwork.hidden:
        return "residual"
    return "depth" if subnetwork.depth < len(subnetwork.blocks) else "widths"


class _Budgeted(Problem):  # type: ignore[misc]
    """Genomes of `2 * blocks` integers, heads and FFN width of each block in turn."""

    def __init__(self, space: SearchSpace, tables: Tables, budget_ms: float) -> None:
        top = np.array(space.largest.genome).ravel()
        super().__init__(n_var=len(top), n_obj=2, n_ieq_constr=1, xl=0, xu=top, vtype=int)
        self.space = space
        self.tables = tables
        self.budget_ms = budget_ms

    def subnetwork(self, genome: Integers) -> Subnetwork:
        return Subnetwork.of(genome.reshape(-1, 2))

    def within_budget(self, subnetwork: Subnetwork, taste: npt.NDArray[np.float64]) -> Subnetwork:
        """The subnetwork brought up to the budget by `fit`."""
        tables = self.tables
        return tables.subnetwork(fit(tables, tables.choice(subnetwork), self.budget_ms, taste))

    def taste(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        return np.exp(rng.normal(0.0, _TASTE, (len(self.space.blocks), 2)))


class _Start(Sampling):  # type: ignore[misc]
    """The seeds as they are, then variants of the width seeds by other tastes."""

    def __init__(self, starts: Sequence[Seed]) -> None:
        super().__init__()
        self.starts = starts

    def _do(
        self, problem: _Budgeted, n_samples: int, *args: Any, random_state: Any = None, **_: Any
    ) -> Integers:
        chosen = {start.subnetwork: None for start in self.starts[:n_samples]}
        widths = [s for s in chosen if s.depth == len(s.blocks)] or list(chosen)
        for attempt in range(20 * n_samples):
            if len(chosen) >= n_samples:
                break
            origin = widths[attempt % len(widths)]
            # all widths grow from the smallest, so that only the taste decides
            kept = zip(problem.space.blocks, origin.blocks, strict=True)
            floor = Subnetwork(tuple(_narrowest(o) if b.present else DROPPED for o, b in kept))
            chosen.setdefault(problem.within_budget(floor, problem.taste(random_state)))
        return np.array([np.ravel(s.genome) for s in chosen])


class _SwapBlocks(Crossover):  # type: ignore[misc]
    """Two children, each block from either parent."""

    def __init__(self) -> None:
        super().__init__(n_parents=2, n_offsprings=2)

    def _do(
        self, problem: _Budgeted, genomes: Integers, *args: Any, random_state: Any = None, **_: Any
    ) -> Integers:
        _, matings, _ = genomes.shape
        blocks = genomes.reshape(2, matings, -1, 2)
        swap = random_state.random((matings, blocks.shape[2], 1)) < 0.5
        first = np.where(swap, blocks[1], blocks[0])
        second = np.where(swap, blocks[0], blocks[1])
        return np.stack([first, second]).reshape(genomes.shape)


class _ShiftWidths(Mutation):  # type: ignore[misc]
    """About two blocks of each child get other widths, a few options up or down."""

    def _do(
        self, problem: _Budgeted, genomes: Integers, *args: Any, random_state: Any = None, **_: Any
    ) -> Integers:
        changed = genomes.copy().reshape(len(genomes), -1, 2)
        rate = min(1.0, 2 / changed.shape[1])
        for genome in changed:
            for i, options in enumerate(problem.space.blocks):
                if random_state.random() < rate:
                    genome[i] = _shifted(Block(*genome[i]), options, random_state)
            if not genome.any():
                genome[0] = _narrowest(problem.space.blocks[0])
        return changed.reshape(genomes.shape)


def _narrowest(options: BlockOptions) -> Block:
    return Block(options.heads[0], options.ffn[0])


def _shifted(block: Block, options: BlockOptions, rng: Any) -> Block:
    toggles = options.droppable and rng.random() < _DROP
    if not block.present:
        return _narrowest(options) if toggles else block
    if toggles:
        return DROPPED

    def move(widths: Sequence[int], width: int) -> int:
        reach = max(_REACH, math.ceil(len(widths) / 8))
        at = int(np.argmin(np.abs(np.array(widths) - width))) + int(rng.integers(-reach, reach + 1))
        return widths[min(max(at, 0), len(widths) - 1)]

    return Block(move(options.heads, block.heads), move(options.ffn, block.ffn))


class _UseBudget(Repair):  # type: ignore[misc]
    """Snap to the space's options, then fit to the budget; the seeds stay as they are."""

    def __init__(self, starts: Sequence[Seed]) -> None:
        super().__init__()
        self.starts = {start.subnetwork for start in starts}

    def _do(
        self, problem: _Budgeted, genomes: Integers, *args: Any, random_state: Any = None, **_: Any
    ) -> Integers:
        repaired = []
        for genome in genomes:
            subnetwork = problem.space.snap(genome.reshape(-1, 2))
            if subnetwork not in self.starts:
                subnetwork = problem.within_budget(subnetwork, problem.taste(random_state))
            repaired.append(np.ravel(subnetwork.genome))
        return np.array(repaired)


class _SameGenome(ElementwiseDuplicateElimination):  # type: ignore[misc]
    def is_equal(self, a: Individual, b: Individual) -> bool:
        return bool(np.array_equal(a.X, b.X))
