"""Asking many clients something: so many messages under way at once, answers as they come.

Sending in waves bounds what the server holds in memory by the messages under way, however many
clients there are. A deadline ends the waiting; who has not answered by then is left out, and what
he sends later is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.federated.messages import GarbledError, size_of

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid

_PAUSE_S = 0.05  # between two looks for answers


@dataclass(frozen=True)
class Request:
    """One message to a node."""

    node: int
    kind: str
    content: RecordDict


@dataclass(frozen=True)
class Answer:
    """What became of a request: a content, or why there is none."""

    node: int
    content: RecordDict | None
    problem: str = ""
    late: bool = False
    down: int = 0  # bytes of weights that were sent
    up: int = 0

    @property
    def said(self) -> RecordDict:
        """The content.

        Raises:
            GarbledError: there is none; says why.
        """
        if self.content is None:
            raise GarbledError(self.problem)
        return self.content


def ask(
    grid: Grid, requests: Iterable[Request], *, number: int, at_once: int, deadline_s: float
) -> Iterator[Answer]:
    """Send all requests, yield their answers in the order in which they come.

    Args:
        requests: made only when their turn comes.
        number: of the round.
        at_once: messages under way.
        deadline_s: after which nothing is waited for any more.
    """
    from flwr.app import Message

    waiting: dict[str, tuple[Request, int]] = {}
    todo = iter(requests)
    end = time.monotonic() + deadline_s
    exhausted = False
    while True:
        while not exhausted and len(waiting) < at_once and time.monotonic() < end:
            request = next(todo, None)
            if request is None:
                exhausted = True
                break
            message = Message(
                content=request.content,
                dst_node_id=request.node,
                message_type=request.kind,
                ttl=max(1.0, end - time.monotonic()),
                group_id=str(number),
            )
            sent = list(grid.push_messages([message]))
            if not sent or not sent[0]:
                yield Answer(request.node, None, "the message could not be sent")
                continue
            waiting[sent[0]] = (request, size_of(request.content))
        if exhausted and not waiting:
            return
        for reply in grid.pull_messages(list(waiting)) if waiting else ():
            found = waiting.pop(reply.metadata.reply_to_message_id, None)
            if found is not None:
                yield _answer(reply, *found)
        if time.monotonic() >= end:
            yield from (
                Answer(request.node, None, "no answer by the deadline", late=True, down=down)
                for request, down in waiting.values()
            )
            yield from (
                Answer(request.node, None, "not asked before the deadline", late=True)
                for request in todo
            )
            return
        if waiting:
            time.sleep(_PAUSE_S)


def _answer(reply: Message, request: Request, down: int) -> Answer:
    if reply.has_error():
        reason = (reply.error.reason or f"error {reply.error.code}").strip().splitlines()
        return Answer(request.node, None, reason[-1] if reason else "failed", down=down)
    return Answer(request.node, reply.content, down=down, up=size_of(reply.content))
