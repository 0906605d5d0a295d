"""Other people's searches of the front, behind the interface of `front`, to compare ours with.

None of them knows the additive loss (but `ExactOnly`); all know the predicted latency. Their
genes are option indices: for each block its heads, 0 for leaving it out, and its FFN width.
"""

from __future__ import annotations

import importlib.util
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import UserError
from hwnas.search.evolution import Evaluated
from hwnas.search.front import FrontProblem, Searcher, front
from hwnas.search.guided import Guided, starts
from hwnas.subnetwork import DROPPED, Block, Subnetwork

if TYPE_CHECKING:
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]

_POPULATION = 40  # EFTNAS's of NSGA-II (METHODS)
_BATCH = 5
_TOURNAMENT = 10  # of regularised evolution, a quarter of its population
_DROP = 0.1  # of a random structure's blocks, that are left out


def require_algorithm(name: str) -> None:
    """Raise `UserError` unless what the algorithm needs is installed."""
    if name in ("tpe", "nsga3") and importlib.util.find_spec("optuna") is None:
        raise UserError(
            f"search.algorithm: {name} is Optuna's; pip install optuna, or choose another"
        )


class Genes:
    """Structures as integers: `2 * blocks` of them, each from 0 to `top`."""

    def __init__(self, problem: FrontProblem) -> None:
        self.blocks = problem.space.blocks
        # heads count from 1, so that 0 may leave the block out
        sizes = [(len(b.heads), len(b.ffn) - 1) for b in self.blocks]
        self.top = np.array(sizes).ravel()
        self.least = np.array([(0 if b.droppable else 1, 0) for b in self.blocks]).ravel()

    def decode(self, genes: Integers) -> Subnetwork:
        """The structure; one that leaves out every block keeps the first at its narrowest."""
        pairs = np.asarray(genes, dtype=np.int64).reshape(-1, 2)
        blocks = [
            Block(options.heads[h - 1], options.ffn[f]) if h > 0 else DROPPED
            for options, (h, f) in zip(self.blocks, pairs, strict=True)
        ]
        if not any(block.present for block in blocks):
            blocks[0] = Block(self.blocks[0].heads[0], self.blocks[0].ffn[0])
        return Subnetwork(tuple(blocks))

    def encode(self, subnetwork: Subnetwork) -> Integers:
        """The genes of a structure of the space."""
        pairs = [
            (options.heads.index(b.heads) + 1, options.ffn.index(b.ffn)) if b.present else (0, 0)
            for options, b in zip(self.blocks, subnetwork.blocks, strict=True)
        ]
        return np.array(pairs, dtype=np.int64).ravel()

    def neighbour(self, genes: Integers, rng: random.Random) -> Integers:
        """One gene moved: by a tenth of its options at most, or anywhere if there are few."""
        changed = genes.copy()
        at = rng.randrange(len(genes))
        reach = max(1, int(self.top[at]) // 10)
        step = rng.choice([d for d in range(-reach, reach + 1) if d])
        changed[at] = min(max(int(genes[at]) + step, int(self.least[at])), int(self.top[at]))
        return changed


class Random:
    """Independent random widths."""

    def __init__(self, problem: FrontProblem, evaluations: int, seed: int) -> None:
        self.problem = problem
        self.rng = random.Random(seed)

    def ask(self) -> list[Subnetwork]:
        return [self.problem.space.sample(self.rng, _DROP) for _ in range(_BATCH)]

    def tell(self, found: Sequence[Evaluated]) -> None:
        pass


class ExactOnly:
    """The proven best under the additive loss, at more and more latencies; learns nothing."""

    def __init__(self, problem: FrontProblem, evaluations: int, seed: int) -> None:
        self.left = starts(problem, evaluations, alike=0)

    def ask(self) -> list[Subnetwork]:
        batch, self.left = self.left[:_BATCH], self.left[_BATCH:]
        return batch

    def tell(self, found: Sequence[Evaluated]) -> None:
        pass


class PlainNsga2:
    """NSGA-II (Deb et al. 2002) from a random population, as EFTNAS and LoNAS run it; pymoo's."""

    def __init__(self, problem: FrontProblem, evaluations: int, seed: int) -> None:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem
        from pymoo.core.termination import NoTermination
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.operators.sampling.rnd import IntegerRandomSampling

        self.genes = Genes(problem)
        top, least = self.genes.top, self.genes.least
        self.algorithm = NSGA2(
            pop_size=min(_POPULATION, evaluations),
            sampling=IntegerRandomSampling(),
            crossover=SBX(vtype=float, repair=RoundingRepair()),
            mutation=PM(vtype=float, repair=RoundingRepair()),
            eliminate_duplicates=True,
        )
        self.algorithm.setup(
            Problem(n_var=len(top), n_obj=2, xl=least, xu=top, vtype=int),
            termination=NoTermination(),
            seed=seed,
        )
        self.asked: Any = None

    def ask(self) -> list[Subnetwork]:
        self.asked = self.algorithm.ask()
        if self.asked is None:
            return []
        return [self.genes.decode(genes) for genes in self.asked.get("X")]

    def tell(self, found: Sequence[Evaluated]) -> None:
        # where two genomes mean one structure, or evaluations ran out, fewer come back
        known = {c.subnetwork: [c.signal, c.predicted_ms] for c in found}
        told = [i for i, x in enumerate(self.asked.get("X")) if self.genes.decode(x) in known]
        infills = self.asked[told]
        infills.set("F", np.array([known[self.genes.decode(x)] for x in infills.get("X")]))
        for individual in infills:
            individual.evaluated.add("F")
        self.algorithm.tell(infills=infills)


class OptunaSearch:
    """A sampler of Optuna's, for two objectives."""

    def __init__(
        self, problem: FrontProblem, seed: int, sampler: Callable[[Any, int], Any]
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.genes = Genes(problem)
        self.study = optuna.create_study(
            directions=["minimize", "minimize"], sampler=sampler(optuna.samplers, seed)
        )
        self.trials: list[tuple[Any, Subnetwork]] = []

    def ask(self) -> list[Subnetwork]:
        self.trials = []
        for _ in range(_BATCH):
            trial = self.study.ask()
            genes = [
                trial.suggest_int(f"g{i}", int(least), int(top))
                for i, (least, top) in enumerate(zip(self.genes.least, self.genes.top, strict=True))
            ]
            self.trials.append((trial, self.genes.decode(np.array(genes))))
        return [subnetwork for _, subnetwork in self.trials]

    def tell(self, found: Sequence[Evaluated]) -> None:
        known = {c.subnetwork: c for c in found}
        for trial, subnetwork in self.trials:
            if subnetwork in known:
                candidate = known[subnetwork]
                self.study.tell(trial, [candidate.signal, candidate.predicted_ms])


class RegularisedEvolution:
    """Aging evolution (Real et al. 2019); a tournament is won by a random weighing of the two."""

    def __init__(self, problem: FrontProblem, evaluations: int, seed: int) -> None:
        self.problem = problem
        self.genes = Genes(problem)
        self.rng = random.Random(seed)
        self.size = min(_POPULATION, max(2, evaluations // 2))
        self.population: deque[Evaluated] = deque(maxlen=self.size)

    def ask(self) -> list[Subnetwork]:
        if len(self.population) < self.size:
            return [self.problem.space.sample(self.rng, _DROP) for _ in range(_BATCH)]
        children = []
        for _ in range(_BATCH):
            weight = self.rng.random()

            def worth(c: Evaluated, weight: float = weight) -> float:
                problem = self.problem
                span = problem.most_ms - problem.least_ms
                ms = (c.predicted_ms - problem.least_ms) / span
                return max(weight * c.signal / problem.worst, (1 - weight) * ms)

            best = min(self.rng.sample(list(self.population), _tournament(self.size)), key=worth)
            genes = self.genes.neighbour(self.genes.encode(best.subnetwork), self.rng)
            children.append(self.genes.decode(genes))
        return children

    def tell(self, found: Sequence[Evaluated]) -> None:
        self.population.extend(found)


def _tournament(population: int) -> int:
    return min(_TOURNAMENT, population)


class LocalSearch:
    """Pareto local search from uniform structures: neighbours of the front, of each in turn."""

    def __init__(self, problem: FrontProblem, evaluations: int, seed: int) -> None:
        self.problem = problem
        self.genes = Genes(problem)
        self.rng = random.Random(seed)
        self.evaluated: list[Evaluated] = []
        self.turn = 0

    def ask(self) -> list[Subnetwork]:
        if not self.evaluated:
            shares = np.linspace(0, 1, 2 * _BATCH + 1)[1:]
            return [self.problem.space.scaled(float(share)) for share in shares]
        best = front(self.evaluated)
        batch = []
        for _ in range(_BATCH):
            origin = best[self.turn % len(best)].subnetwork
            self.turn += 1
            genes = self.genes.neighbour(self.genes.encode(origin), self.rng)
            batch.append(self.genes.decode(genes))
        return batch

    def tell(self, found: Sequence[Evaluated]) -> None:
        known = {c.subnetwork for c in self.evaluated}
        self.evaluated += [c for c in found if c.subnetwork not in known]


def _tpe(problem: FrontProblem, evaluations: int, seed: int) -> Searcher:
    return OptunaSearch(problem, seed, lambda s, n: s.TPESampler(seed=n, multivariate=True))


def _nsga3(problem: FrontProblem, evaluations: int, seed: int) -> Searcher:
    size = min(_POPULATION, evaluations)
    return OptunaSearch(problem, seed, lambda s, n: s.NSGAIIISampler(population_size=size, seed=n))


SEARCHERS: dict[str, Callable[[FrontProblem, int, int], Searcher]] = {
    "guided": Guided,
    "exact": ExactOnly,
    "nsga2": PlainNsga2,
    "nsga3": _nsga3,
    "tpe": _tpe,
    "regularised": RegularisedEvolution,
    "local": LocalSearch,
    "random": Random,
}
