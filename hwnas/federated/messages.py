"""What server and clients say to each other, in Flower's records.

Beside the weights, everything is one JSON text in the record `json`, validated on arrival, for
whoever is at the other end may send anything.
"""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hwnas.errors import HwnasError
from hwnas.federated.parts import Tensors

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, RecordDict

# the names of queries; training and evaluation are Flower's own
HELLO = "query.hello"
IMPORTANCE = "query.importance"
PERSONAL = "query.personal"
CANDIDATES = "query.candidates"

ARRAYS = "arrays"
ORDER = "order"  # scores that heads and neurons are sorted by, where clients have frozen weights
_JSON = "json"
_METRICS = "metrics"
_MOST = 100.01  # of a metric, which is times 100; some are rounded

# what reading arrays that somebody has made up may raise
UNREADABLE = (ValueError, TypeError, EOFError, OSError, MemoryError, zipfile.BadZipFile)

Said = TypeVar("Said", bound=BaseModel)


class GarbledError(HwnasError):
    """A message is not what was agreed on."""


class IdleError(GarbledError):
    """A client has nothing to do in a round, and says so."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Rows = Annotated[int, Field(ge=0, lt=2**31)]
_Score = Annotated[float, Field(ge=-_MOST, le=_MOST)]


class OwnDevice(_Message):
    """A device that none of the recipe's tiers describes.

    Attributes:
        table: its latency table as JSON, or the name of a shipped one.
        budget, memory_mb: as a tier's.
    """

    table: str
    budget: str | None = None
    memory_mb: float | None = None


class Hello(_Message):
    """Who a client is, and what its device is: one of the recipe's tiers, or its own."""

    name: str = Field(min_length=1, max_length=200)
    tier: str
    device: OwnDevice | None = None
    rows: _Rows = 0  # that it trains on; not said where privacy counts
    labels: list[str] = []


class Work(_Message):
    """What a client is asked to do with the weights that come with it.

    Attributes:
        genome: the subnetwork whose weights they are.
        smaller: genomes of smaller tiers' subnetworks, or of candidates, of the whole model.
        reordered: whether heads and neurons have been sorted; the weights say how.
    """

    number: int  # of the round
    genome: list[list[int]]
    labels: list[str]
    smaller: list[list[list[int]]] = []
    phase: int | None = None  # whose rows are trained on; None: all
    steps: int = 0
    rate: float = 0.0
    seed: int = 0


class Done(_Message):
    """What a client says of its work, beside the weights; only the time where privacy counts."""

    rows: _Rows = 1
    loss: float | None = None  # on some of its held-out rows, with the weights as they came
    score: _Score | None = None
    seconds: float


class Judged(_Message):
    """What a client says of candidates, in their order, on its held-out rows."""

    rows: _Rows
    losses: list[float]
    scores: list[_Score]


class Personal(_Message):
    """What a client says of its own model, on its held-out rows; nothing where privacy counts.

    Attributes:
        shared, own: scores of the shared model and of the one that the client uses.
        kept: whether that is its own.
    """

    rows: _Rows = 0
    shared: _Score | None = None
    own: _Score | None = None
    kept: bool = False
    seconds: float


class Failed(_Message):
    """Why a client could not do it; or, idle, why there was nothing to do."""

    error: str
    idle: bool = False


def weights(arrays: Tensors) -> ArrayRecord:
    """Weights as they travel; made once for several messages."""
    from flwr.app import ArrayRecord

    return ArrayRecord(dict(arrays))


def pack(
    said: BaseModel, arrays: ArrayRecord | None = None, order: ArrayRecord | None = None
) -> RecordDict:
    """A message's content."""
    from flwr.app import ConfigRecord, MetricRecord, RecordDict

    content = RecordDict({_JSON: ConfigRecord({_JSON: said.model_dump_json()})})
    if arrays is not None:
        content[ARRAYS] = arrays
    if order is not None:
        content[ORDER] = order
    if isinstance(said, Done):  # what Flower's own strategies and mods look for
        content[_METRICS] = MetricRecord({"num-examples": said.rows})
    return content


def unpack(content: RecordDict, kind: type[Said]) -> Said:
    """What was said.

    Raises:
        GarbledError: it is not of this kind; or the other side's reason why it failed.
    """
    record = content.config_records.get(_JSON)
    text = record.get(_JSON) if record is not None else None
    if not isinstance(text, str):
        raise GarbledError("the message holds no JSON")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        try:
            failed = Failed.model_validate_json(text)
        except ValidationError:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"])) or kind.__name__
            raise GarbledError(f"{at}: {first['msg']}") from None
        raise (IdleError if failed.idle else GarbledError)(failed.error) from None


def arrays_of(content: RecordDict, name: str = ARRAYS) -> Tensors:
    """The weights that came with a message, or what else is called so.

    Raises:
        GarbledError: there are none, or they cannot be read.
    """
    record = content.array_records.get(name)
    if record is None:
        raise GarbledError("the message holds no weights")
    try:
        return dict(record.to_torch_state_dict())
    except UNREADABLE as error:
        raise GarbledError(f"its weights cannot be read: {error}") from None


def size_of(content: RecordDict) -> int:
    """Bytes of the weights in a message."""
    return sum(record.count_bytes() for record in content.array_records.values())
