"""Secure aggregation: the server sees the sum of a group's updates, and not one of them.

The protocol is SecAgg+ (Bell et al. 2020), with Flower's mod on the clients and Flower's primitives
here. A group are the clients that train the same part in a round. Each masks its update twice: with
masks that it shares with its neighbours, and that cancel in the sum, and with one of its own. Of
the secrets behind both every neighbour holds a share, so that the sum can be freed of the masks of
those who stayed and of those who left, and of each client of one kind only.

    public keys -> shares of secrets -> masked updates -> shares of those who stayed or left

What is summed are integers: an update's numbers, cut to `range`, in steps of `range / 2**21`.

Not protected: a sum of few says much, so a group has at least `least`, which its clients check; the
sum itself (add central privacy); a server that lies about who has left; one that tries all 2**32
seeds of Flower's masks; and nothing that is masked can be looked at for poison.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

from hwnas.errors import HwnasError, UserError
from hwnas.federated.exchange import Answer, Request
from hwnas.federated.messages import UNREADABLE, Done, GarbledError, unpack

if TYPE_CHECKING:
    import numpy as np
    from flwr.app import Context, Message, RecordDict
    from flwr.clientapp.typing import ClientAppCallable

    from hwnas.federated.parts import Part, Tensors
    from hwnas.federated.recipe import SecureSpec
    from hwnas.federated.roster import Roster

LEVELS = 2**22  # that the numbers of an update are rounded to
MODULUS = 2**32
MOST = MODULUS // LEVELS - 1  # clients of a group; more might overflow
_WEIGHT = "fitres.num_examples"  # in an answer that Flower's mod can mask
_SHARES = 21  # neighbours of a client in a large group, itself counted


def masking(recipe_of: Callable[[Context], SecureSpec | None]) -> Any:
    """Flower's mod for a client: updates leave it masked, where the recipe says so.

    Args:
        recipe_of: what the recipe says.

    Raises:
        UserError: (to Flower, which tells the server) the server asks for an update that is not
            masked, or is masked among too few.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        from flwr.client.mod import secaggplus_mod
        from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS

        kind = message.metadata.message_type
        # Flower takes `train.default` for the same, and its mod lets that pass as it is
        if kind.partition(".")[0] != "train" or (spec := recipe_of(context)) is None:
            return call_next(message, context)
        if kind != "train":
            raise UserError(f"secure: the server asks for {kind}, an update that is not masked")
        asked = message.content.config_records.get(RECORD_KEY_CONFIGS)
        if asked is None:
            raise UserError("secure: the server asks for an update that is not masked")
        _check(dict(asked), spec)

        def update(message: Message, context: Context) -> Message:
            answer = call_next(message, context)
            if not answer.has_content() or not answer.content.metric_records.get(_WEIGHT):
                raise _NothingToMaskError(answer)
            return answer

        try:
            return secaggplus_mod(message, context, update)
        except _NothingToMaskError as nothing:
            return nothing.answer

    return mod


class _NothingToMaskError(Exception):
    def __init__(self, answer: Message) -> None:
        super().__init__("no update")
        self.answer = answer


def _check(asked: Mapping[str, Any], spec: SecureSpec) -> None:
    """Raise `UserError` unless what the server asks for hides a client among enough others."""
    from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage

    stage = asked.get(Key.STAGE)
    if stage == Stage.SETUP:
        shares, threshold = asked.get(Key.SHARE_NUMBER), asked.get(Key.THRESHOLD)
        if not isinstance(shares, int) or shares < spec.least:
            raise UserError(f"secure.least: among {shares} clients, {spec.least} are the least")
        if not isinstance(threshold, int) or 2 * threshold <= shares:
            raise UserError(f"secure: {threshold} of {shares} clients could undo the masks")
    if stage == Stage.SHARE_KEYS and len(asked) - 1 < spec.least:
        raise UserError(f"secure.least: among {len(asked) - 1} clients, {spec.least} are the least")


def maskable(content: RecordDict, change: Sequence[torch.Tensor], weight: int) -> RecordDict:
    """A client's answer, with its change as Flower's mod looks for it.

    Args:
        weight: that it counts with; masked as well.

    Raises:
        UserError: the change holds numbers that are not finite, which would spoil the sum.
    """
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
    from flwr.compat.common.recorddict_compat import fitres_to_recorddict

    if not all(tensor.isfinite().all() for tensor in change):
        raise UserError("the update holds numbers that are not finite")
    parameters = ndarrays_to_parameters([tensor.double().numpy() for tensor in change])
    found = fitres_to_recorddict(FitRes(Status(Code.OK, ""), parameters, weight, {}), True)
    for name, record in found.items():
        content[name] = record
    return content


@dataclass(frozen=True)
class Sum:
    """What a group says together.

    Attributes:
        change: the weighted mean, under the whole model's names.
        weight: of all of them.
        done: what each client said beside it, by its node.
    """

    change: Tensors
    weight: float
    done: dict[int, Done]


@dataclass
class Group:
    """The clients of one sum, in one round.

    Args:
        contents: what each is to do, by node.
        heaviest: the largest weight that one may have.
    """

    roster: Roster
    number: int
    part: Part
    spec: SecureSpec
    contents: Mapping[int, Callable[[], RecordDict]]
    heaviest: float
    down: int = field(default=0, init=False)
    up: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.nodes = sorted(self.contents)
        self.shares = min(len(self.nodes), _SHARES)
        self.threshold = max(2, int(self.spec.threshold * self.shares) + 1)
        # who is whose neighbour is nobody's choice
        ring = random.SystemRandom().sample(self.nodes, len(self.nodes))
        half, count = self.shares // 2, len(ring)
        self.neighbours = {
            node: {ring[(i + offset) % count] for offset in range(-half, half + 1)}
            for i, node in enumerate(ring)
        }

    def sum(self) -> Sum | None:
        """Ask for everybody's masked update; None if too few stayed, and of these nothing is known.

        Raises:
            UserError: the group is too small or too large to hide anybody.
        """
        count = len(self.nodes)
        if count < self.spec.least:
            raise UserError(f"{count} clients, secure sums have {self.spec.least} or more")
        if count > MOST:
            raise UserError(f"{count} clients, a secure sum holds {MOST} at most")
        keys = self._public_keys()
        if not self._enough(set(keys)):
            return None
        shared = self._shared(keys)
        if not self._enough(set(shared)):
            return None
        total, done = self._masked(shared)
        if total is None or not self._enough(set(done)):
            return None
        if not self._unmask(total, keys, set(shared), set(done)):
            return None
        return self._mean(total, done)

    def _ask(
        self, stage: str, nodes: Sequence[int], asked: Callable[[int], dict[str, Any]]
    ) -> Iterator[tuple[int, Answer, dict[str, Any]]]:
        """A stage's answers, of those that gave one."""
        from flwr.app import ConfigRecord, RecordDict
        from flwr.common.secure_aggregation.secaggplus_constants import (
            RECORD_KEY_CONFIGS,
            Key,
            Stage,
        )

        def requests() -> Iterator[Request]:
            for node in nodes:
                updates = stage == Stage.COLLECT_MASKED_VECTORS
                content = self.contents[node]() if updates else RecordDict()
                content[RECORD_KEY_CONFIGS] = ConfigRecord({Key.STAGE: stage} | asked(node))
                yield Request(node, "train", content)

        for answer in self.roster.ask(requests(), self.number):
            self.down, self.up = self.down + answer.down, self.up + answer.up
            try:
                found = answer.said.config_records.get(RECORD_KEY_CONFIGS)
                if found is None:
                    unpack(answer.said, Done)  # it may say why
                    raise GarbledError(f"no answer to the stage {stage} of secure aggregation")
            except HwnasError as error:
                self._left(answer.node, str(error), late=answer.late)
                continue
            yield answer.node, answer, dict(found)

    def _left(self, node: int, why: str, *, late: bool = False) -> None:
        name = self.roster.clients[node].name
        self.roster.event("late" if late else "failed", self.number, name, why)

    def _enough(self, here: set[int]) -> bool:
        """Whether the secrets of all who matter can still be put together."""
        enough = len(here) >= self.spec.least and all(
            len(self.neighbours[node] & here) >= self.threshold for node in here
        )
        if not enough:
            self.roster.event("too few", self.number, why=f"{len(here)} left in a secure sum")
        return enough

    def _public_keys(self) -> dict[int, tuple[bytes, bytes]]:
        from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage

        asked: dict[str, Any] = {
            Key.SAMPLE_NUMBER: len(self.nodes),
            Key.SHARE_NUMBER: self.shares,
            Key.THRESHOLD: self.threshold,
            Key.CLIPPING_RANGE: float(self.spec.range),
            Key.TARGET_RANGE: LEVELS,
            Key.MOD_RANGE: MODULUS,
            Key.MAX_WEIGHT: float(self.heaviest),
        }
        keys = {}
        seen: set[bytes] = set()
        for node, _, found in self._ask(Stage.SETUP, self.nodes, lambda _: asked):
            pair = (found.get(Key.PUBLIC_KEY_1), found.get(Key.PUBLIC_KEY_2))
            if not all(isinstance(key, bytes) and _is_key(key) for key in pair):
                self._left(node, "its public keys are missing, or are none")
                continue
            mine = cast("tuple[bytes, bytes]", pair)
            if mine[0] == mine[1] or seen & set(mine):  # its neighbours would all refuse them
                self._left(node, "its public keys are not two of its own")
                continue
            seen.update(mine)
            keys[node] = mine
        return keys

    def _shared(self, keys: Mapping[int, tuple[bytes, bytes]]) -> dict[int, dict[int, bytes]]:
        """Encrypted shares, by who made them and whom they are for."""
        from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage

        def asked(node: int) -> dict[str, Any]:
            return {str(n): list(keys[n]) for n in sorted(self.neighbours[node] & keys.keys())}

        shared: dict[int, dict[int, bytes]] = {}
        for node, _, found in self._ask(Stage.SHARE_KEYS, sorted(keys), asked):
            to, secrets = _list(found, Key.DESTINATION_LIST), _list(found, Key.CIPHERTEXT_LIST)
            wanted = (self.neighbours[node] & keys.keys()) - {node}
            if set(to) != wanted or len(secrets) != len(to):
                self._left(node, "its shares are not for its neighbours")
                continue
            shared[node] = dict(zip(to, secrets, strict=True))
        return shared

    def _masked(
        self, shared: Mapping[int, Mapping[int, bytes]]
    ) -> tuple[list[np.ndarray] | None, dict[int, Done]]:
        """The sum of masked updates, and what was said beside them."""
        from flwr.common import bytes_to_ndarray
        from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition
        from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage

        def asked(node: int) -> dict[str, Any]:
            of = [n for n in sorted(self.neighbours[node] & shared.keys()) if n != node]
            return {Key.SOURCE_LIST: of, Key.CIPHERTEXT_LIST: [shared[n][node] for n in of]}

        shapes = [(1,), *(piece.shape for piece in self.part.trained)]
        total: list[np.ndarray] | None = None
        done: dict[int, Done] = {}
        stage = Stage.COLLECT_MASKED_VECTORS
        for node, answer, found in self._ask(stage, sorted(shared), asked):
            try:
                said = unpack(answer.said, Done)
                sent = _list(found, Key.MASKED_PARAMETERS)
                arrays = [bytes_to_ndarray(one) for one in sent]
                if [array.shape for array in arrays] != shapes or any(
                    array.dtype.kind != "i" for array in arrays
                ):
                    raise GarbledError("its masked update is not of the part it was asked for")
            except (HwnasError, *UNREADABLE) as error:
                self._left(node, str(error))
                continue
            self.up += sum(map(len, sent))
            done[node] = said
            total = arrays if total is None else parameters_addition(total, arrays)
        return total, done

    def _unmask(
        self,
        total: list[np.ndarray],
        keys: Mapping[int, tuple[bytes, bytes]],
        shared: set[int],
        stayed: set[int],
    ) -> bool:
        """Take all masks off the sum; whether enough shares came.

        Of those who stayed, their own masks are told; of those who left, those that they have in
        common with others.
        """
        from flwr.common.secure_aggregation.crypto.shamir import combine_shares
        from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage

        def asked(node: int) -> dict[str, Any]:
            near = self.neighbours[node] & shared
            return {
                Key.ACTIVE_NODE_ID_LIST: sorted(near & stayed),
                Key.DEAD_NODE_ID_LIST: sorted(near - stayed),
            }

        shares: dict[int, list[bytes]] = {node: [] for node in shared}
        for node, _, found in self._ask(Stage.UNMASK, sorted(stayed), asked):
            of, parts = _list(found, Key.NODE_ID_LIST), _list(found, Key.SHARE_LIST)
            if len(of) != len(parts) or not set(of) <= self.neighbours[node] & shared:
                self._left(node, "its shares are not those that it was asked for")
                continue
            for owner, share in zip(of, parts, strict=True):
                shares[owner].append(share)
        needed = [n for n in shared if n in stayed or self.neighbours[n] & stayed]
        if any(len(shares[node]) < self.threshold for node in needed):
            self.roster.event("too few", self.number, why="shares to undo a secure sum's masks")
            return False
        for node in needed:
            try:
                secret = combine_shares(shares[node])
            except (ValueError, TypeError, IndexError) as error:
                why = f"shares that make no secret ({error})"
                self.roster.event("too few", self.number, why=why)
                return False
            if node in stayed:
                self._take(total, secret, -1)
                continue
            for other in self.neighbours[node] & stayed:
                common = _common(secret, keys[other][0])
                # what the other added or took away when it masked its own update
                self._take(total, common, -1 if other > node else 1)
        for array in total:
            array %= MODULUS
        return True

    def _take(self, total: list[np.ndarray], seed: bytes, sign: int) -> None:
        from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

        masks = pseudo_rand_gen(seed, MODULUS, [array.shape for array in total])
        for array, mask in zip(total, masks, strict=True):
            array += sign * mask

    def _mean(self, total: Sequence[np.ndarray], done: dict[int, Done]) -> Sum | None:
        """The weighted mean out of the sum of rounded, shifted, weighted numbers."""
        shares = int(total[0][0]) / LEVELS  # of the largest weight
        if not 0 < shares <= len(done):
            self.roster.event("failed", self.number, why="a secure sum's weights make no sense")
            return None
        step = 2 * self.spec.range / LEVELS
        offset = len(done) * self.spec.range
        change = {
            piece.name: torch.from_numpy((array * step - offset) / shares).float()
            for piece, array in zip(self.part.trained, total[1:], strict=True)
        }
        return Sum(change, shares * self.heaviest, done)


def _list(found: Mapping[str, Any], key: str) -> list[Any]:
    value = found.get(key)
    return value if isinstance(value, list) else []


def _is_key(public: bytes) -> bool:
    """Whether others can agree on a secret with the key's owner."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key

    try:
        key = bytes_to_public_key(public)
    except (ValueError, UnsupportedAlgorithm):
        return False
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)


def _common(secret: bytes, public: bytes) -> bytes:
    """The secret that two clients' keys have in common."""
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
    from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

    return generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(public))
