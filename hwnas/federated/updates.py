"""What a round's clients send back: each one's update, or the sum of each group's masked ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from hwnas.errors import HwnasError
from hwnas.federated.aggregation import Update
from hwnas.federated.exchange import Request
from hwnas.federated.messages import (
    Done,
    GarbledError,
    Hello,
    IdleError,
    Work,
    arrays_of,
    pack,
    unpack,
    weights,
)
from hwnas.federated.parts import Tensors
from hwnas.federated.roster import Roster
from hwnas.federated.secure import Group
from hwnas.federated.state import ServerState, order_of
from hwnas.federated.tiers import Tier

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, RecordDict


@dataclass
class Updates:
    """The updates of one round, and what was said and moved beside them.

    Args:
        trained: what each tier's clients train in this round, by the tier's name.
        work: what a client is asked to do.
        losses, steps, down, up: of those that answered; filled while the updates are read.
        whose: the last update was, by the client's name.
    """

    roster: Roster
    state: ServerState
    number: int
    nodes: Sequence[int]
    trained: Mapping[str, Tier]
    work: Callable[[Hello], Work]
    steps_of: Callable[[Hello], float]
    losses: list[tuple[float, int]] = field(default_factory=list, init=False)
    steps: float = field(default=0.0, init=False)
    down: int = field(default=0, init=False)
    up: int = field(default=0, init=False)
    whose: str = field(default="", init=False)

    def __post_init__(self) -> None:
        tiers = {tier.name: tier for tier in self.trained.values()}
        self.parts = {n: self.state.part(tier.subnetwork) for n, tier in tiers.items()}
        self._before = self.state.tensors
        self._order = order_of(self.state)
        self._sent: dict[str, Tensors] = {}
        self._packed: dict[str, ArrayRecord] = {}

    def __iter__(self) -> Iterator[Update]:
        """As they come."""
        return self._each() if self.roster.recipe.secure is None else self._sums()

    def _weight(self, rows: float) -> float:
        by_rows = self.roster.recipe.aggregation.weigh == "examples"
        return max(float(rows) if by_rows else 1.0, 1.0)

    def _name(self, node: int) -> str:
        """The tier whose subnetwork a client trains."""
        return self.trained[self.roster.clients[node].tier].name

    def _content(self, node: int) -> RecordDict:
        name = self._name(node)
        if name not in self._sent:
            self._sent[name] = self.parts[name].cut(self._before)
            self._packed[name] = weights(self._sent[name])
        return pack(self.work(self.roster.clients[node]), self._packed[name], self._order)

    def _note(self, hello: Hello, done: Done) -> None:
        if done.loss is not None:
            self.losses.append((done.loss, done.rows))
        self.steps += self.steps_of(hello)

    def _each(self) -> Iterator[Update]:
        requests = (Request(node, "train", self._content(node)) for node in self.nodes)
        for answer in self.roster.ask(requests, self.number):
            hello = self.roster.clients[answer.node]
            self.down, self.up = self.down + answer.down, self.up + answer.up
            name = self._name(answer.node)
            try:
                done = unpack(answer.said, Done)
                if self.roster.recipe.privacy is None and done.rows > hello.rows:
                    raise GarbledError(f"it learned from {done.rows} rows, and has {hello.rows}")
                after = self.parts[name].sent_back(arrays_of(answer.said))
            except HwnasError as error:
                what = "idle" if isinstance(error, IdleError) else "failed"
                what = "late" if answer.late else what
                self.roster.event(what, self.number, hello.name, str(error))
                continue
            self._note(hello, done)
            self.whose = hello.name
            sent = self._sent[name]
            change = {
                piece.name: after[piece.name] - sent[piece.local]
                for piece in self.parts[name].trained
            }
            yield Update(self.parts[name], change, self._weight(done.rows))

    def _sums(self) -> Iterator[Update]:
        spec = self.roster.recipe.secure
        assert spec is not None
        names = dict.fromkeys(map(self._name, self.nodes))
        for name in names:
            mine = [node for node in self.nodes if self._name(node) == name]
            rows = (self._weight(self.roster.clients[node].rows) for node in mine)
            group = Group(
                roster=self.roster,
                number=self.number,
                part=self.parts[name],
                spec=spec,
                contents={node: partial(self._content, node) for node in mine},
                heaviest=max(rows),
            )
            try:
                found = group.sum()
            except HwnasError as error:
                self.roster.event("too few", self.number, why=f"{name}: {error}")
                continue
            finally:
                self.down, self.up = self.down + group.down, self.up + group.up
            if found is None:
                continue
            for node, done in found.done.items():
                self._note(self.roster.clients[node], done)
            yield Update(group.part, found.change, found.weight, len(found.done))
