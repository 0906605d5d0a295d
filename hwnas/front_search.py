"""One search of the front for all budgets of a run, and more of it where a budget was missed.

Stopped by Ctrl-C, where that is allowed, it goes on with the best of what was evaluated.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from hwnas.errors import BudgetError
from hwnas.judge import Judge
from hwnas.latency.predictor import LatencyPredictor
from hwnas.latency.target import Budget
from hwnas.progress import bar
from hwnas.rundir import RunDirectory
from hwnas.search.evolution import Evaluated, finalists
from hwnas.search.exact import BlockLoss
from hwnas.search.front import EvaluateAll, FrontProblem, Searcher, search_front
from hwnas.search.guided import Guided
from hwnas.search.rivals import SEARCHERS
from hwnas.search.spec import Algorithm
from hwnas.selection import Proposer
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork
from hwnas.summary import FRONT, Candidate

BELOW = 0.8  # of the smallest budget, where the front begins
_NEAR = 0.75  # of a missed budget, likewise
_AGAIN = 0.25  # of the evaluations, that a correction takes


@dataclass
class Stop:
    """Whether Ctrl-C has ended the search, at all deployments and residual widths of a run."""

    wanted: bool = False


@dataclass
class FrontSearch:
    """The archive of one run's search, which grows."""

    space: SearchSpace
    loss: BlockLoss
    judge: Judge
    evaluate_all: EvaluateAll
    directory: RunDirectory
    algorithm: Algorithm
    evaluations: int  # for all budgets together
    seed: int
    aims: Sequence[float]  # ms, what the budgets allow
    start: Sequence[Subnetwork] = ()  # structures to look at first
    stoppable: bool = False  # Ctrl-C ends the search, not the run
    deployment: str = ""  # whose latencies are predicted, if not the target's own
    allows: Callable[[Subnetwork], bool] = lambda subnetwork: True  # what is small enough
    # where size is limited: an additive predictor of latency and size together, for the searcher
    within_size: Callable[[LatencyPredictor, float, int], LatencyPredictor] | None = None
    evaluated: dict[Subnetwork, Evaluated] = field(default_factory=dict)
    searched: bool = False
    stop: Stop = field(default_factory=Stop)
    recorded: dict[Subnetwork, Candidate] = field(default_factory=dict)  # in `candidates.jsonl`

    def __post_init__(self) -> None:
        lines = map(Candidate.model_validate, self.directory.lines("candidates.jsonl"))
        self.recorded = {
            Subnetwork.of(line.genome): line for line in lines if line.deployment == self.deployment
        }

    def proposer(self, budget: str) -> Proposer:
        """Proposals for one budget: of the front, and after a miss of what is near the budget."""

        def propose(
            predictor: LatencyPredictor, budget_ms: float, number: int
        ) -> Iterable[Evaluated]:
            if not self.searched:
                self._whole_front(predictor)
                self._take_back()
            elif number > 1 and not self.stop.wanted:
                self._near(predictor, budget, budget_ms, number)
            pool = [
                replace(c, predicted_ms=predictor.predict(c.subnetwork))
                for c in self.evaluated.values()
                if self.allows(c.subnetwork)
            ]
            best = finalists(pool, budget_ms)
            if not best:
                raise BudgetError(
                    f"budget {budget}: of {len(self.evaluated)} structures that were looked at, "
                    f"none of the {len(pool)} that are small enough is predicted within "
                    f"{budget_ms:.3g} ms"
                )
            return best

        return propose

    def _whole_front(self, predictor: LatencyPredictor) -> None:
        self.searched = True
        for hidden, number, problem in self._problems(
            predictor, self.aims, BELOW, self.evaluations
        ):
            searcher = self._searcher(problem, number, hidden, self.seed)
            if self.start:
                searcher = _After([s for s in self.start if s.hidden == hidden], searcher)
            self._search(problem, searcher, predictor, number, hidden, FRONT, 1)

    def _near(
        self, predictor: LatencyPredictor, budget: str, budget_ms: float, number: int
    ) -> None:
        again = max(1, round(_AGAIN * self.evaluations))
        for hidden, evaluations, problem in self._problems(predictor, (budget_ms,), _NEAR, again):
            searcher = self._searcher(problem, evaluations, hidden, self.seed + number)
            self._search(problem, searcher, predictor, evaluations, hidden, budget, number)

    def _take_back(self) -> None:
        """What an earlier sitting evaluated for budgets that have their structures."""
        for subnetwork, line in self.recorded.items():
            if line.budget == FRONT or subnetwork in self.evaluated:
                continue
            folder = Budget.parse(line.budget).folder
            if (self.directory.path / "selection" / f"{folder}.json").exists():
                self.evaluated[subnetwork] = Evaluated(
                    line.kind, subnetwork, line.signal, line.predicted_ms
                )

    def _problems(
        self, predictor: LatencyPredictor, aims: Sequence[float], below: float, evaluations: int
    ) -> Iterator[tuple[int, int, FrontProblem]]:
        """Residual widths, each one's evaluations, and what is searched there.

        Args:
            aims: ms, that matter.
            below: of the smallest of these, where the front begins.

        Raises:
            BudgetError: at no width anything is within budget and limits.
        """
        refused: list[BudgetError] = []
        searched = False
        for hidden, number in self._widths(predictor, max(aims), evaluations):
            if self.stop.wanted:
                break
            try:
                by = self._searched_by(predictor, max(aims), hidden)
                # where all of it is faster than that, the largest counts
                smallest = min(*aims, by.predict(self.space.largest))
                problem = FrontProblem.of(
                    self.space,
                    self.loss,
                    by,
                    self.judge.worst,
                    least_ms=below * smallest,
                    most_ms=max(aims),
                    aims=aims,
                )
            except BudgetError as error:
                refused.append(error)
                continue
            searched = True
            yield hidden, number, problem
        if refused and not searched:
            raise refused[0]

    def _searched_by(
        self, predictor: LatencyPredictor, most_ms: float, hidden: int
    ) -> LatencyPredictor:
        """What the searcher takes for the latency, at a residual width (0: the model's own)."""
        if self.within_size is None:
            return predictor.at_hidden(hidden)
        return self.within_size(predictor.near(most_ms), most_ms, hidden).at_hidden(hidden)

    def _widths(
        self, predictor: LatencyPredictor, most_ms: float, evaluations: int
    ) -> list[tuple[int, int]]:
        """The residual widths to search at, the model's own (0) first, and evaluations of each."""
        smallest = self.space.smallest_width
        narrower = [
            hidden
            for hidden in self.space.hidden
            if predictor.predict(smallest.narrowed(hidden)) <= most_ms
        ]
        each = max(1, math.ceil(evaluations / (1 + len(narrower))))
        return [(hidden, each) for hidden in (0, *narrower)]

    def _searcher(
        self, problem: FrontProblem, evaluations: int, hidden: int, seed: int
    ) -> Searcher:
        if self.algorithm == "guided":
            known = [
                replace(
                    c,
                    subnetwork=c.subnetwork.narrowed(0),
                    predicted_ms=problem.predictor.predict(c.subnetwork.narrowed(0)),
                )
                for c in self.evaluated.values()
                if c.subnetwork.hidden == hidden
            ]
            return Guided(problem, evaluations, seed, known)
        return SEARCHERS[self.algorithm](problem, evaluations, seed)

    def _search(
        self,
        problem: FrontProblem,
        searcher: Searcher,
        predictor: LatencyPredictor,
        evaluations: int,
        hidden: int,
        budget: str,
        number: int,
    ) -> None:
        def record(batch: Sequence[Evaluated]) -> None:
            for candidate in batch:
                found = replace(candidate, subnetwork=candidate.subnetwork.narrowed(hidden))
                advance(1)
                self.evaluated.setdefault(found.subnetwork, found)
                if found.subnetwork not in self.recorded:
                    line = Candidate(
                        budget=budget,
                        round=number,
                        kind=found.kind,
                        genome=found.subnetwork.genome,
                        signal=found.signal,
                        predicted_ms=predictor.predict(found.subnetwork),
                        deployment=self.deployment,
                    )
                    self.recorded[found.subnetwork] = line
                    self.directory.append("candidates.jsonl", line.model_dump())

        with bar(f"search {budget}, round {number}", evaluations) as advance:
            try:
                search_front(
                    problem,
                    searcher,
                    lambda all_: self.evaluate_all([s.narrowed(hidden) for s in all_]),
                    evaluations,
                    self.algorithm,
                    record,
                )
            except KeyboardInterrupt:
                if not self.stoppable or not self.evaluated or self.stop.wanted:
                    raise
                self.stop.wanted = True
                print(
                    f"hwnas: search stopped; going on with the best of the {len(self.evaluated)} "
                    "structures that were looked at (Ctrl-C again ends it)",
                    file=sys.stderr,
                )


class Remembered:
    """`EvaluateAll` that asks only for what no earlier sitting has evaluated."""

    def __init__(self, directory: RunDirectory, evaluate_all: EvaluateAll) -> None:
        lines = directory.lines("candidates.jsonl")
        self.known = {Subnetwork.of(line["genome"]): float(line["signal"]) for line in lines}
        self.evaluate_all = evaluate_all

    def __call__(self, subnetworks: Sequence[Subnetwork]) -> list[float]:
        fresh = [s for s in subnetworks if s not in self.known]
        if fresh:
            self.known |= dict(zip(fresh, self.evaluate_all(fresh), strict=True))
        return [self.known[s] for s in subnetworks]


def one_by_one(evaluate: Callable[[Subnetwork], float]) -> EvaluateAll:
    """`EvaluateAll` in this process."""
    return lambda subnetworks: [evaluate(s) for s in subnetworks]


class _After:
    """A searcher that is told of given structures before it proposes its own."""

    def __init__(self, given: Sequence[Subnetwork], searcher: Searcher) -> None:
        self.given = [s.narrowed(0) for s in given]
        self.searcher = searcher

    def ask(self) -> list[Subnetwork]:
        if self.given:
            return self.given
        return self.searcher.ask()

    def tell(self, found: Sequence[Evaluated]) -> None:
        if not self.given:
            self.searcher.tell(found)
            return
        self.given = []
        if isinstance(self.searcher, Guided):
            self.searcher.tell(found)
