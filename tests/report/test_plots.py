"""The pictures: well-formed SVG with what they are to show; matplotlib's settings stay."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from finished_run import (
    BASELINE_MS,
    HALF,
    SPACE,
    THIRD,
    chosen,
    make_candidates,
    make_finalists,
    make_table,
    make_validation,
)

from hwnas.report import plots
from hwnas.summary import FRONT, Candidate

FULL = [(b.heads, b.ffn) for b in SPACE.largest.blocks]


def words(svg: str) -> list[str]:
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib  # as wide as the page
    return [(element.text or "").strip() for element in root.iter() if element.text]


def test_pareto_names_kinds_budgets_and_axes() -> None:
    winners = [chosen("50%", HALF), chosen("33%", THIRD)]
    text = words(plots.pareto(make_candidates(), winners, BASELINE_MS))
    for needed in (
        "budget 50%", "budget 33%", "chosen", "uniform (1)", "baseline (divergence 0)",
        "predicted latency (ms)", "divergence from the teacher",
    ):  # fmt: skip
        assert needed in text, needed


def test_pareto_marks_only_what_the_search_looked_at() -> None:
    other = chosen("50%", [[1, 32]] * 6)
    assert "chosen" not in words(plots.pareto(make_candidates(), [other], BASELINE_MS))


def test_pareto_of_a_wide_range_is_logarithmic_with_plain_numbers() -> None:
    candidates = [
        c.model_copy(update={"signal": d})
        for c, d in zip(make_candidates(3), (0.01, 0.1, 1.0, 0.5, 0.2), strict=True)
    ]
    text = words(plots.pareto(candidates, [], BASELINE_MS))
    assert {"0.01", "0.1", "1"} <= set(text)


def test_convergence_rises_to_the_fronts_share_of_the_box() -> None:
    def candidate(ms: float, signal: float) -> Candidate:
        return make_candidates(3)[0].model_copy(
            update={"budget": FRONT, "predicted_ms": ms, "signal": signal}
        )

    svg = plots.convergence([candidate(*p) for p in ((1, 4), (3, 3), (2, 2), (3, 1), (3, 4))])
    text = words(svg)
    assert {"evaluations", "share of the box"} <= set(text)
    # the last candidate adds nothing, so the curve ends level
    assert plots.convergence([candidate(1, 4), candidate(3, 1)]) != svg


def test_the_chosen_of_a_shared_search_is_marked() -> None:
    shared = [c.model_copy(update={"budget": FRONT}) for c in make_candidates()]
    assert "chosen" in words(plots.pareto(shared, [chosen("50%", HALF)], BASELINE_MS))


def test_importance_shows_every_block() -> None:
    rng = np.random.default_rng(0)
    scores = {f"heads.{i}": rng.random(12, dtype=np.float32) for i in range(6)}
    scores |= {f"ffn.{i}": rng.random(1536, dtype=np.float32) for i in range(6)}
    scores["layers"] = rng.random(6, dtype=np.float32)
    svg = plots.importance(scores)
    text = words(svg)
    for needed in ("heads", "FFN neurons", "whole blocks", "block 0", "block 5"):
        assert needed in text, needed
    assert len(svg) < 200_000
    assert plots.importance({name: 0 * array for name, array in scores.items()})


def test_sensitivity_shows_what_half_of_each_block_is_worth() -> None:
    scores = {f"heads.{i}": np.full(12, 1.0 + i, np.float32) for i in range(6)}
    scores |= {f"ffn.{i}": np.zeros(1536, np.float32) for i in range(6)}
    svg = plots.sensitivity(scores, make_table())
    text = words(svg)
    for needed in (
        "importance given up (% of all)",
        "time saved (% of the whole model's)",
        "half the heads",
        "half the FFN neurons",
    ):
        assert needed in text, needed
    given_up, saved = plots.halves(scores, make_table())
    assert given_up["heads"] == pytest.approx([100 * (1 + i) / 2 / 21 for i in range(6)])
    assert given_up["ffn"] == [0.0] * 6
    assert all(0 < share < 100 / 6 for part in saved.values() for share in part)
    assert plots.sensitivity({name: 0 * array for name, array in scores.items()}, make_table())


def test_pareto_of_thousands_stays_small() -> None:
    many = make_candidates(100) * 60
    svg = plots.pareto(many, [], BASELINE_MS)
    assert "data:image/png" in svg
    assert len(svg) < 1_000_000


def test_layers_show_every_width_and_blocks_left_out() -> None:
    text = words(plots.layers([chosen("33%", THIRD)], FULL))
    for needed in ("416", "640", "33%: attention heads", "33%: FFN neurons"):
        assert needed in text, needed
    assert text.count("left out") == 2


def test_finalists_tell_starts_apart_and_who_was_out() -> None:
    text = words(plots.finalists(make_finalists()))
    assert "layers, from the teacher" in text
    assert text.count("out") == 4  # two of three, for two budgets
    again = [f.model_copy(update={"round": 2}) for f in make_finalists()]
    assert "50%: finalists, the lower the better (round 2)" in words(plots.finalists(again))


def test_validation_shows_the_flops_line_beside_the_table() -> None:
    text = words(plots.validation(make_validation()))
    for needed in (
        "table (off by 2.0 %)",
        "line through FLOPs (off by 10.0 %)",
        "measured latency (ms)",
        "predicted latency (ms)",
        "equal",
    ):
        assert needed in text, needed


def test_global_settings_are_left_alone() -> None:
    before = dict(matplotlib.rcParams)
    plots.layers([chosen("50%", HALF)], FULL)
    assert dict(matplotlib.rcParams) == before
