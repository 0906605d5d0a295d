"""What a run ends with: the contracts of `summary.json` and `candidates.jsonl`."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel, ConfigDict

from hwnas.latency.target import Target

FRONT = "front"  # stands for the budget of a candidate where all budgets shared a search


class Record(BaseModel):
    """Base of the records: fixed once made, no fields but the known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Candidate(Record):
    """One evaluated subnetwork, a line of `candidates.jsonl`."""

    budget: str  # as the user wrote it: "50%"; or `FRONT`
    round: int  # 1, then one more for each correction of the table after a miss
    kind: str  # exact, uniform, layers, hybrid, evolved; of the front, the search's algorithm
    genome: list[list[int]]  # [heads, ffn] for each block, [0, 0] = left out
    signal: float  # of quality on the search's validation data, lower is better
    predicted_ms: float
    deployment: str = ""  # that the prediction is of, e.g. openvino-int8-static; the target's own


class Finalist(Record):
    """One finalist of the successive halving."""

    budget: str
    round: int
    kind: str
    genome: list[list[int]]
    # weights it started from: "supernet", "teacher" (the students' start), "baseline", or a larger
    # budget's "50% winner"
    start: str
    rung: int
    steps: int  # training steps so far
    loss: float  # on validation data that the search did not use
    metric: float  # of the task, same data, in per cent where the metric is a share
    survived: bool
    deployment: str = ""  # that it is trained for, if not the target's own


class Unquantized(Record):
    """The baseline in full precision, where the target serves it quantized."""

    metric: float  # on the test split
    latency_ms: float
    size_mb: float


class Baseline(Record):
    """The original model, trained as its rivals were, exported and measured as it is served."""

    metric: float  # on the test split
    latency_ms: float
    size_mb: float
    params: int
    flops: int
    steps: int  # training steps
    converged: bool  # validation stopped improving before the steps ran out
    unquantized: Unquantized | None = None

    @property
    def best_metric(self) -> float:
        """The metric that smaller models are compared with: that of full precision."""
        return self.unquantized.metric if self.unquantized else self.metric


class KeptLimit(Record):
    """A limit beside latency and size."""

    name: str  # cache, first token
    unit: str
    most: float
    value: float  # measured, or of the cache, counted


class Chosen(Record):
    """The subnetwork chosen for one budget."""

    budget: str
    budget_ms: float
    met: bool
    kind: str
    genome: list[list[int]]
    metric: float  # on the test split
    kept: float  # metric / baseline's metric, in full precision
    predicted_ms: float
    measured_ms: float
    ratio: float  # measured in pairs against the baseline
    runtime: str
    precision: str
    threads: int | None = None  # that serve it; the target's in runs that do not say
    size_mb: float
    max_size_mb: float | None = None  # that it may have
    limits: list[KeptLimit] = []
    params: int
    flops: int
    steps: int  # training steps that its weights saw, all stages
    parity: dict[str, float]  # format -> largest difference of its logits from torch's
    rounds: int
    path: str

    def served_at(self, own: Target) -> Target:
        """Where it is served.

        Args:
            own: the run's target.
        """
        threads = self.threads or own.threads
        return replace(own, runtime=self.runtime, precision=self.precision, threads=threads)


class BesideScore(Record):
    """How models do on further data; see `beside`."""

    name: str
    metric: str  # of the task, in per cent, or perplexity, where less is better
    rows: int  # that were looked at
    of: int  # that there are
    original: float  # of the model before any training
    baseline: float
    chosen: dict[str, float]  # by budget


class Compute(Record):
    """Training compute in full-model steps: one step of the full model on one batch is 1."""

    baseline: float
    supernet: float
    search: float
    finalists: float


class Summary(Record):
    """`summary.json`."""

    model: str
    task: str
    pipeline: str = "text-classification"  # Optimum's name of what the models are for
    metric: str
    target: str
    strategy: str  # search, uniform or layers
    seed: int
    splits: dict[str, int]
    baseline: Baseline
    chosen: list[Chosen]
    beside: list[BesideScore] = []
    compute: Compute
    seconds: dict[str, float]
    versions: dict[str, str]
