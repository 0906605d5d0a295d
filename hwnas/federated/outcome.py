"""What a federated run leaves: every tier's model as a folder, and `summary.json`."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from hwnas.federated.judging import judge, judge_at_clients, personalised, served
from hwnas.federated.privacy import epsilon
from hwnas.federated.roster import ASKED, EVENTS, Roster
from hwnas.federated.search import search
from hwnas.federated.state import ServerState
from hwnas.federated.summary import FederatedSummary, Round, TierResult
from hwnas.federated.tiers import Tier
from hwnas.files import replacing, write_json

_NUMBER = 4  # bytes of a weight


def finish(
    roster: Roster, state: ServerState, rounds: Sequence[Round], seconds: float
) -> FederatedSummary:
    """Write every tier's model as a folder, and the summary."""
    recipe, path = roster.recipe, roster.directory.path
    judged = next((one for one in reversed(rounds) if one.scores or one.clients), None)
    results = []
    if search(roster, state) and judged is not None:
        clients, _ = judge_at_clients(roster, state, state.number)
        judged = judged.model_copy(update={"scores": judge(state), "clients": clients})
    best = served(roster, state, state.number)
    own = personalised(roster, state, best, state.number)
    for name, tier in state.tiers.items():
        model = state.tiers[best[name]]
        dense = state.network.extract(model.subnetwork)
        with replacing(path / "tiers" / name / "model") as partial:
            dense.save_pretrained(partial)
            state.tokenizer.save_pretrained(partial)
        if state.prompt:
            with state.answering(model) as reading:
                reading.save_pretrained(path / "tiers" / name / "prompt")
        mine = [c.score for c in judged.clients if c.tier == name] if judged else []
        results.append(
            TierResult(
                name=name,
                target=tier.target,
                served=best[name],
                genome=model.genome,
                params=sum(p.numel() for p in dense.parameters()),
                budget_ms=tier.budget_ms,
                predicted_ms=_predicted(roster, tier, model),
                whole_ms=tier.whole_ms,
                score=judged.scores.get(best[name]) if judged else None,
                clients=len(mine),
                mean=statistics.mean(mine) if mine else None,
                least=min(mine, default=None),
                spread=statistics.pstdev(mine) if mine else None,
                path=f"tiers/{name}/model",
                forgetting=judged.forgetting.get(best[name]) if judged else None,
            )
        )
    whole = sum(parameter.numel() for parameter in state.network.model.parameters())
    trained = state.whole.numel
    events = Counter(line["event"] for line in roster.directory.lines(EVENTS) if "round" in line)
    summary = FederatedSummary(
        model=recipe.model,
        task=recipe.task.data,
        metric=recipe.task.usual_metric,
        seed=recipe.seed,
        rounds=len(rounds),
        clients=len(roster.clients),
        labels=state.labels,
        tiers=results,
        down_bytes=sum(one.down_bytes for one in rounds),
        up_bytes=sum(one.up_bytes for one in rounds),
        trained_bytes=sum(2 * one.asked * _NUMBER * trained for one in rounds),
        everything_bytes=sum(2 * one.asked * _NUMBER * whole for one in rounds),
        steps=sum(one.steps for one in rounds),
        epsilon=epsilon(recipe, len(roster.directory.lines(ASKED))),
        delta=recipe.privacy.delta if recipe.privacy else None,
        events=dict(sorted(events.items())),
        personal=own,
        seconds=round(seconds, 1),
    )
    write_json(path / "summary.json", summary)
    return summary


def _predicted(roster: Roster, tier: Tier, model: Tier) -> float:
    """What a model takes on a tier's device, by its table."""
    if model.name == tier.name or tier.name not in roster.devices:
        return tier.predicted_ms
    return roster.devices[tier.name].table.predictor().predict(model.subnetwork)
