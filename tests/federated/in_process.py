"""Flower's grid within this process, for tests that choose what goes wrong with which client.

The apps are the real ones and so are their messages; what is left out is the network between them.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from hwnas.federated.client import client_app
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.server import Federation, federate
from hwnas.federated.summary import FederatedSummary

# what becomes of a client's reply to a request: (request, reply) -> reply, or None: silence
Fault = Callable[[Message, Message], Message | None]


@dataclass
class InProcess(Grid):
    """So many virtual clients of one app.

    Args:
        faults: by a client's partition.
        away: by a client's partition, the rounds in which it is not there.
        delay_s: by a client's partition, of its replies to training.
    """

    app: ClientApp
    partitions: int
    faults: dict[int, Fault] = field(default_factory=dict)
    away: dict[int, set[int]] = field(default_factory=dict)
    delay_s: dict[int, float] = field(default_factory=dict)
    configs: dict[int, dict[str, Any]] = field(default_factory=dict)  # more node config
    backwards: bool = False  # replies of a look come in the opposite order
    most_waiting: int = 0
    asked: Counter[str] = field(default_factory=Counter)  # messages of each type
    number: int = 0  # of the round that was asked for last
    _replies: dict[str, tuple[float, Message | None]] = field(default_factory=dict)
    _ids: Any = field(default_factory=itertools.count)
    _contexts: dict[int, Context] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # as Flower's own runners do in the process of an app
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 0

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def node(self, partition: int) -> int:
        return 1000 + 7 * partition

    def get_node_ids(self) -> Iterable[int]:
        # the server looks who is there before it asks for anything in a round
        coming = self.number + 1
        return [
            self.node(p) for p in range(self.partitions) if coming not in self.away.get(p, set())
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            name = f"message-{next(self._ids)}"
            self.asked[message.metadata.message_type] += 1
            metadata = cast("Any", message.metadata)
            metadata._message_id = name
            metadata._src_node_id = 0
            self.number = max(self.number, int(message.metadata.group_id or 0))
            partition = (message.metadata.dst_node_id - 1000) // 7
            reply = self._answer(partition, message)
            training = message.metadata.message_type == "train"
            delay = self.delay_s.get(partition, 0.0) if training else 0.0
            self._replies[name] = (time.monotonic() + delay, reply)
            self.most_waiting = max(self.most_waiting, len(self._replies))
            ids.append(name)
        return ids

    def _answer(self, partition: int, message: Message) -> Message | None:
        config = {"partition-id": partition, "num-partitions": self.partitions}
        config |= self.configs.get(partition, {})
        context = self._contexts.setdefault(
            partition,
            Context(
                run_id=1,
                node_id=self.node(partition),
                node_config=cast("Any", config),
                state=RecordDict(),
                run_config=cast("Any", {}),
            ),
        )
        try:
            reply = self.app(message, context)
        except Exception as error:
            reply = Message(Error(code=0, reason=str(error)), reply_to=message)
        fault = self.faults.get(partition)
        return fault(message, reply) if fault is not None else reply

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        now = time.monotonic()
        found = []
        for name in list(message_ids):
            at, reply = self._replies.get(name, (now + 1, None))
            if reply is not None and at <= now:
                del self._replies[name]
                found.append(reply)
        return found[::-1] if self.backwards else found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError


def run(
    recipe: FederatedRecipe,
    out: Path,
    *,
    resume: bool = False,
    kind: type[Federation] = Federation,
    **wrong: Any,
) -> tuple[FederatedSummary, InProcess]:
    """All of a recipe in this process; what goes wrong as `InProcess` takes it."""
    grid = InProcess(client_app(recipe), recipe.clients.count, **wrong)
    return federate(grid, recipe, out, resume=resume, kind=kind), grid
