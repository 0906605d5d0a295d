"""Who takes part: clients that have said who they are, what their devices are, and who has left.

Nothing that a client says is believed without a look. Who cannot be used is refused, and not asked
again while it stays.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from hwnas.anatomy import Shape
from hwnas.errors import HwnasError
from hwnas.federated.exchange import Answer, Request, ask
from hwnas.federated.messages import HELLO, GarbledError, Hello, Work, pack, unpack
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.secure import LEVELS
from hwnas.federated.state import ServerState
from hwnas.federated.tiers import Device, own_device, own_tier, tiers_of
from hwnas.rundir import RunDirectory

if TYPE_CHECKING:
    from flwr.app import RecordDict
    from flwr.serverapp import Grid

T = TypeVar("T")
EVENTS = "events.jsonl"
ASKED = "asked.jsonl"  # a line for each time that a round asks, where what clients send is counted
_LOOK_S = 0.5  # between two looks for clients that connect


@dataclass
class Roster:
    """The clients of a run.

    Args:
        grid: Flower's way to them.
        devices: of the recipe's tiers, by name; those that clients bring are added.
        shape: of the original model.
    """

    grid: Grid
    recipe: FederatedRecipe
    directory: RunDirectory
    devices: dict[str, Device]
    shape: Shape
    clients: dict[int, Hello] = field(default_factory=dict)  # by their nodes' numbers
    refused: set[int] = field(default_factory=set)

    def event(self, what: str, number: int, client: str = "", why: str = "") -> None:
        """Note what happened, to whom, in which round."""
        about = {"event": what, "round": number, "client": client, "why": why}
        self.directory.append(EVENTS, {"time": time.time()} | about)

    def ask(
        self, requests: Iterable[Request], number: int, deadline_s: float | None = None
    ) -> Iterator[Answer]:
        """Send a round's requests, yield answers as they come; by default until its deadline."""
        spec = self.recipe.clients
        return ask(
            self.grid,
            requests,
            number=number,
            at_once=spec.at_once,
            deadline_s=deadline_s or spec.deadline_s,
        )

    def heard(
        self,
        requests: Iterable[Request],
        number: int,
        read: Callable[[RecordDict], T],
        problem: str,
    ) -> Iterator[tuple[Answer, Hello, T | None]]:
        """What each client says as `read` understands it; None and an event where it cannot.

        Args:
            problem: the event's name.
        """
        for answer in self.ask(requests, number):
            hello = self.clients[answer.node]
            try:
                said = read(answer.said)
            except HwnasError as error:
                self.event(problem, number, hello.name, str(error))
                yield answer, hello, None
            else:
                yield answer, hello, said

    def of_tier(self, name: str) -> list[int]:
        """The nodes of a tier's clients."""
        return [node for node, hello in self.clients.items() if hello.tier == name]

    def by_name(self, nodes: Iterable[int]) -> list[int]:
        """Nodes in the order of their clients' names."""
        return sorted(nodes, key=lambda node: self.clients[node].name)

    def greet(self, number: int, *, patient: bool = False) -> None:
        """Ask nodes that are new who they are, and forget those that have gone.

        Args:
            patient: wait until as many have answered as a round needs, or the deadline.
        """
        end = time.monotonic() + self.recipe.clients.deadline_s
        while True:
            nodes = set(self.grid.get_node_ids())
            for gone in self.clients.keys() - nodes:
                self.event("gone", number, self.clients.pop(gone).name)
            self.refused &= nodes
            self._greet(number, sorted(nodes - self.clients.keys() - self.refused), end)
            enough = len(self.clients) >= self.recipe.clients.least
            if enough or not patient or time.monotonic() >= end:
                return
            time.sleep(_LOOK_S)

    @property
    def most_rows(self) -> float:
        """That a client may say it has; beside more, a row would weigh nothing in a secure sum."""
        recipe = self.recipe
        weighed = recipe.secure is not None and recipe.aggregation.weigh == "examples"
        return min(recipe.clients.rows or math.inf, LEVELS if weighed else math.inf)

    def _greet(self, number: int, nodes: Sequence[int], end: float) -> None:
        names = {hello.name for hello in self.clients.values()}
        requests = (
            Request(node, HELLO, pack(Work(number=number, genome=[], labels=[]))) for node in nodes
        )
        left = max(1.0, end - time.monotonic())
        for answer in self.ask(requests, number, left):
            try:
                hello = unpack(answer.said, Hello)
                if hello.name in names:
                    raise GarbledError(f"another client is {hello.name!r} already")
                if hello.rows > self.most_rows:
                    raise GarbledError(f"{hello.rows} rows, {self.most_rows:.0f} are the most")
                known = [tier.name for tier in self.recipe.tiers]
                if hello.device is not None and hello.tier in known:
                    raise GarbledError(f"tier {hello.tier!r} is the recipe's, not its own to say")
                if hello.device is not None:
                    # by the client's name, which is its own: no other's device is replaced
                    tier = own_tier(hello.name)
                    own = own_device(hello.device, tier, self.shape)
                    hello = hello.model_copy(update={"tier": tier})
                    self.devices[hello.tier] = own
                elif hello.tier not in known:
                    said = ", ".join(known)
                    raise GarbledError(f"tier {hello.tier!r} is none of the run's: {said}")
            except HwnasError as error:
                self.event("refused", number, f"node-{answer.node}", str(error))
                if not answer.late:
                    self.refused.add(answer.node)
                continue
            names.add(hello.name)
            self.clients[answer.node] = hello
            self.event("joined", number, hello.name)

    def adopt(self, state: ServerState, number: int) -> None:
        """Find the subnetworks of devices that clients have brought."""
        for node, hello in list(self.clients.items()):
            if hello.tier in state.tiers:
                continue
            device = self.devices[hello.tier]
            try:
                found = tiers_of([device], self.shape, self.recipe, state.scores)
            except HwnasError as error:
                self.event("refused", number, self.clients.pop(node).name, str(error))
                self.refused.add(node)
                continue
            state.tiers |= found
