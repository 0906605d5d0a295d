"""The search of one budget's structures: what it has evaluated outlives every kill."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hwnas import choosing
from hwnas.choosing import choose_structures
from hwnas.contest import Contest
from hwnas.importance.scores import Importance
from hwnas.latency.table import LatencyTable
from hwnas.recipe import Recipe
from hwnas.rundir import RunDirectory
from hwnas.selection import Selection
from hwnas.space import BlockOptions, SearchSpace
from hwnas.subnetwork import Subnetwork

TABLE = LatencyTable.find(Path("minilm-l6_openvino_cpu_xeon-amx_t1_b1_s128"))
RECIPE = Recipe.model_validate({"target": TABLE.target, "search": {"algorithm": "evolution"}})
SPACE = SearchSpace(blocks=(BlockOptions(heads=(4, 8, 12), ffn=(512, 1024, 1536)),) * 6)
EVALUATIONS = 30


class _Judge:
    """Wide is good; ends the process after so many structures, as a kill would."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.asked: list[Subnetwork] = []

    def of(self, _network: object, subnetwork: Subnetwork) -> float:
        if len(self.asked) == self.most:
            raise KeyboardInterrupt
        self.asked.append(subnetwork)
        return 1 / sum(block.ffn + block.heads for block in subnetwork.blocks)


def _search(folder: Path, judge: _Judge, *, resume: bool = False) -> Selection:
    generator = torch.Generator().manual_seed(0)
    heads, ffn = (
        tuple(torch.rand(size, generator=generator) for _ in SPACE.blocks) for size in (12, 1536)
    )
    plan = SimpleNamespace(evaluations=EVALUATIONS, entrants=2)
    directory = RunDirectory.open(folder, RECIPE, resume)
    inputs: Any = SimpleNamespace(recipe=RECIPE, directory=directory, path=folder, plan=plan)
    inputs.target = None  # nothing but latency is limited
    anything: Any = object()
    contest = Contest(
        inputs=inputs,
        table=TABLE,
        space=SPACE,
        scores=Importance(heads, ffn),
        networks=anything,
        judge=judge,  # type: ignore[arg-type]
        network=anything,
        time=TABLE.predictor().predict,
        trains=False,
    )
    try:
        return choose_structures(contest, "60%")
    finally:
        directory.close()


def test_no_kill_loses_what_was_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _Judge(EVALUATIONS)
    found = _search(tmp_path / "whole", whole)
    expected = (tmp_path / "whole" / "candidates.jsonl").read_text()
    assert len(expected.splitlines()) == len(whole.asked) == EVALUATIONS

    path = tmp_path / "killed" / "candidates.jsonl"
    with pytest.raises(KeyboardInterrupt):
        _search(path.parent, _Judge(12))
    before = path.read_text()
    assert len(before.splitlines()) == 12

    def killed(*_given: object, **_named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(choosing, "evolve_at", killed)  # before it has passed over what it knows
        with pytest.raises(KeyboardInterrupt):
            _search(path.parent, _Judge(0), resume=True)
    assert path.read_text() == before

    rest = _Judge(EVALUATIONS)
    assert _search(path.parent, rest, resume=True) == found
    assert path.read_text() == expected
    assert rest.asked == whole.asked[12:]
