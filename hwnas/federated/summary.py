"""What a federated run ends with, and what it notes of each round."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of what is written: fixed once made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClientScore(Record):
    """A client's own held-out rows, answered by its tier's model."""

    client: str
    tier: str
    rows: int
    score: float
    loss: float


class Candidate(Record):
    """A line of `candidates.jsonl`: a structure for a tier, as clients found it.

    Attributes:
        kind: which rule proposed it; `own`: what the tier has trained.
        loss, score: on the clients' held-out rows, weighed by them.
    """

    tier: str
    kind: str
    genome: list[list[int]]
    predicted_ms: float
    loss: float
    score: float
    chosen: bool


class PersonalScore(Record):
    """A client's held-out rows, answered by the shared model and by the one it uses in the end.

    Attributes:
        kept: whether that is its own; else the shared one.
    """

    client: str
    tier: str
    rows: int
    shared: float
    own: float
    kept: bool


class Round(Record):
    """One round.

    Attributes:
        asked, answered: clients whose training was asked for, and counted.
        loss: of the weights before the round, on some of the clients' held-out rows, weighed by
            how many rows they have.
        down_bytes, up_bytes: weights that were sent to clients and back, evaluation apart.
        evaluation_bytes: of weights sent for evaluation.
        steps: whole-model training steps that the clients' computing comes to.
        scores: each tier's model on the server's test rows, where it was judged.
        clients: each client's own, likewise.
        phase: of a continual run.
        phase_scores: of each tier's model on each phase's test rows, where it was judged.
        forgetting: of each tier's model, from the second phase on.
    """

    number: int
    asked: int
    answered: int
    loss: float | None
    down_bytes: int
    up_bytes: int
    evaluation_bytes: int = 0
    steps: float
    seconds: float
    scores: dict[str, float] = {}
    clients: list[ClientScore] = []
    phase: int = 0
    phase_scores: dict[str, list[float]] = {}
    forgetting: dict[str, float] = {}


class TierResult(Record):
    """A tier's model in the end.

    Attributes:
        served: the tier whose model it is: its own, or a smaller one's that clients found better.
        score: on the server's test rows; None where it has none.
        served_score: of its files in int8 or int4, on the same rows, where it is served so.
        clients, mean, least, spread: how many clients judged it on their own rows, the mean of
            their scores by the tier's own model, the lowest, and their standard deviation.
        measured_ms, ratio, met, size_mb: of its exported files on this machine: the latency, as a
            share of the whole model's, whether the tier's budget is met, and what is on disk.
    """

    name: str
    target: str
    served: str
    genome: list[list[int]]
    params: int
    budget_ms: float | None
    predicted_ms: float
    whole_ms: float
    score: float | None
    clients: int
    mean: float | None
    least: float | None
    spread: float | None
    path: str
    forgetting: float | None = None  # of a continual run
    measured_ms: float | None = None
    ratio: float | None = None
    met: bool | None = None
    size_mb: float | None = None
    served_score: float | None = None


class FederatedSummary(Record):
    """`summary.json` of a federated run.

    Attributes:
        trained_bytes: what sending all trained weights both ways to everybody asked would have
            come to.
        everything_bytes: the same with the word embeddings, trained or not.
        personal: of clients' own models, where the recipe has any and clients tell scores.
    """

    model: str
    task: str
    metric: str
    seed: int
    rounds: int
    clients: int
    labels: list[str]
    tiers: list[TierResult]
    down_bytes: int
    up_bytes: int
    trained_bytes: int
    everything_bytes: int
    steps: float
    epsilon: float | None = None  # of privacy, at `delta`
    delta: float | None = None
    events: dict[str, int]
    personal: list[PersonalScore] = []
    seconds: float
