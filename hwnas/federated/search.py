"""Other structures for each tier than the one it has trained, judged by clients on their own rows.

The server proposes structures within a tier's latency and memory: all blocks alike, fewer blocks,
the best widths by importance, other ratios of heads to neurons (`hwnas.search.seeds`). A client
gets, once, the least part of the super-network that holds them all, and says the loss of each on
its held-out rows, which never leave it. What is chosen is served as it is, from shared weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwnas.errors import BudgetError
from hwnas.federated.exchange import Request
from hwnas.federated.judging import able
from hwnas.federated.messages import (
    CANDIDATES,
    GarbledError,
    Judged,
    Work,
    pack,
    unpack,
    weights,
)
from hwnas.federated.roster import Roster
from hwnas.federated.state import ServerState, order_of
from hwnas.federated.summary import Candidate
from hwnas.federated.tiers import Device, Tier, macs_share, nested_space
from hwnas.search.seeds import seeds
from hwnas.space import SearchSpace
from hwnas.subnetwork import Block, Subnetwork

if TYPE_CHECKING:
    from flwr.app import RecordDict

FILE = "candidates.jsonl"
OWN = "own"  # kind of the structure that a tier has trained


@dataclass(frozen=True)
class Proposal:
    """A structure, and which rule it is by."""

    kind: str
    subnetwork: Subnetwork


def search(roster: Roster, state: ServerState) -> bool:
    """Give each tier the best structure that is found; whether any tier's is another now.

    What every candidate scored is written to `candidates.jsonl`.
    """
    spec = state.recipe.search
    if spec is None:
        return False
    lines: list[Candidate] = []
    changed = False
    trained = dict(state.tiers)
    for name, tier in trained.items():
        device = roster.devices.get(name)
        if device is None:  # a client's own, which has not come back
            continue
        found = [Proposal(OWN, tier.subnetwork)]
        found += proposals(device, state, widest_of(state, trained, tier), spec.candidates)
        if len(found) == 1:
            continue
        judged = judge_all(roster, state, found)
        if judged is None:
            continue
        losses, scores = judged
        best = int(np.argmin(losses))
        for i, proposal in enumerate(found):
            lines.append(
                Candidate(
                    tier=name,
                    kind=proposal.kind,
                    genome=proposal.subnetwork.genome,
                    predicted_ms=device.table.predictor().predict(proposal.subnetwork),
                    loss=losses[i],
                    score=scores[i],
                    chosen=i == best,
                )
            )
        if best:
            changed = True
            state.tiers[name] = with_structure(state, tier, found[best].subnetwork, device)
    roster.directory.rewrite(FILE, [line.model_dump(mode="json") for line in lines])
    return changed


def with_structure(state: ServerState, tier: Tier, subnetwork: Subnetwork, device: Device) -> Tier:
    """The tier with another structure."""
    return tier.model_copy(
        update={
            "genome": subnetwork.genome,
            "predicted_ms": device.table.predictor().predict(subnetwork),
            "macs": macs_share(subnetwork, state.network.shape, state.recipe.length),
        }
    )


def widest_of(state: ServerState, trained: Mapping[str, Tier], tier: Tier) -> Subnetwork:
    """How wide a tier's candidates are at most: as the next larger tier, which has trained that."""
    larger = [other for other in trained.values() if other.macs > tier.macs]
    if not larger:
        return state.network.full
    return min(larger, key=lambda other: other.macs).subnetwork


def proposals(device: Device, state: ServerState, widest: Subnetwork, count: int) -> list[Proposal]:
    """At most `count` structures of a device no wider than `widest`; none without a budget."""
    budget = device.budget_ms()
    if budget is None:
        return []
    shape, recipe = state.network.shape, state.recipe
    space = nested_space(SearchSpace.whole(shape), widest)
    predictor = device.table.predictor()
    try:
        found = seeds(space, state.scores.loss(shape.group), predictor.near(budget), budget)
    except BudgetError:
        return []
    own = state.tiers[device.spec.name].subnetwork
    fitting = [
        Proposal(seed.kind, seed.subnetwork)
        for seed in found
        if seed.subnetwork != own
        and predictor.predict(seed.subnetwork) <= budget
        and device.holds(seed.subnetwork, shape, recipe.batch_tokens)
    ]
    return fitting[:count]


def union(subnetworks: Sequence[Subnetwork]) -> Subnetwork:
    """The least subnetwork that holds all of these."""
    blocks = zip(*(one.blocks for one in subnetworks), strict=True)
    return Subnetwork(
        tuple(Block(max(b.heads for b in each), max(b.ffn for b in each)) for each in blocks)
    )


def judge_all(
    roster: Roster, state: ServerState, found: Sequence[Proposal]
) -> tuple[list[float], list[float]] | None:
    """Mean loss and score of every candidate on clients' rows, weighed by rows.

    Of all clients that can hold them, for a tier's own may have few rows, and of few classes. None
    if no client has judged them.
    """
    holding = union([proposal.subnetwork for proposal in found])
    packed = weights(state.part(holding).cut(state.tensors))
    order = order_of(state)
    work = Work(
        number=state.number,
        genome=holding.genome,
        labels=state.labels,
        smaller=[proposal.subnetwork.genome for proposal in found],
    )
    nodes = roster.by_name(able(roster, state, holding))
    requests = (Request(node, CANDIDATES, pack(work, packed, order)) for node in nodes)
    losses, scores = np.zeros(len(found)), np.zeros(len(found))
    rows = 0

    def read(content: RecordDict) -> Judged:
        said = unpack(content, Judged)
        if not len(said.losses) == len(said.scores) == len(found):
            raise GarbledError(f"{len(found)} candidates were to be judged")
        if said.rows < 1:
            raise GarbledError("it has judged them on no rows")
        return said

    for _, _, said in roster.heard(requests, state.number, read, "not judged"):
        if said is None:
            continue
        losses += said.rows * np.array(said.losses)
        scores += said.rows * np.array(said.scores)
        rows += said.rows
    if not rows:
        return None
    return (losses / rows).tolist(), (scores / rows).tolist()
