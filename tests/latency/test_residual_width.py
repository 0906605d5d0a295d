"""Latency tables of narrower residual streams: measured, predicted from, kept and carried along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import TARGET, TINY, TINY_LLAMA
from test_graphs import openvino_operations

from hwnas.errors import UserError
from hwnas.latency import graphs
from hwnas.latency.adapt import scaled_table
from hwnas.latency.compare import merge
from hwnas.latency.graphs import builder, exported_graph, random_model
from hwnas.latency.parts import Machine
from hwnas.latency.profiling import profile
from hwnas.latency.table import LatencyTable
from hwnas.subnetwork import Subnetwork

FULL = Subnetwork.of([[4, 64]] * 2)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return profile(TINY, TARGET, minutes=0, validate=2, hidden=[16])


def test_table_holds_the_narrower_stream(table: LatencyTable, tmp_path: Path) -> None:
    (part,) = table.narrower
    assert part.hidden == 16
    assert {e.op for e in part.entries} >= {"fixed", "attention", "ffn"}
    table.save(tmp_path / "table.json")
    again = LatencyTable.load(tmp_path / "table.json")
    assert again == table
    predictor = again.predictor()
    alone = predictor.at_hidden(16)
    assert predictor.predict(FULL.narrowed(16)) == alone.predict(FULL)
    assert predictor.predict(FULL.narrowed(16)) != predictor.predict(FULL)
    assert predictor.scaled(2).predict(FULL.narrowed(16)) == pytest.approx(2 * alone.predict(FULL))


def test_both_are_checked_on_networks_not_seen(table: LatencyTable) -> None:
    assert table.validation is not None
    widths = [Subnetwork.of(row.genome).hidden for row in table.validation.rows]
    assert sorted(widths) == [0, 0, 16, 16]


def test_widths_that_were_not_measured(table: LatencyTable) -> None:
    with pytest.raises(UserError, match=r"no costs at residual width 24.*--hidden 24"):
        table.predictor().predict(FULL.narrowed(24))
    with pytest.raises(UserError, match="not a multiple of 4"):
        profile(TINY, TARGET, hidden=[18])
    with pytest.raises(UserError, match="decoders"):
        profile(TINY_LLAMA, "openvino:cpu:phase=prefill,seq=16", hidden=[24])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": 32}, "narrower.0.hidden: 32, the model has 32"),
        ({"entries": []}, "narrower.0.entries: exactly one of 'fixed'"),
    ],
)
def test_damaged_parts_are_named(table: LatencyTable, change: dict, words: str) -> None:  # type: ignore[type-arg]
    stored = table.model_dump(mode="json")
    stored["narrower"][0] |= change
    with pytest.raises(ValueError, match=words):
        LatencyTable.model_validate(stored)


def test_joined_and_scaled_tables_keep_it(table: LatencyTable) -> None:
    joined = merge([table, table])
    assert joined.predictor().predict(FULL.narrowed(16)) == pytest.approx(
        table.predictor().predict(FULL.narrowed(16))
    )
    with pytest.raises(UserError, match=r"narrower residual widths \[\], the first \[16\]"):
        merge([table, table.at_hidden(0)])


def test_graphs_follow_the_residual_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """The very sizes that a real export of that width has."""
    built: list[Any] = []
    monkeypatch.setattr(graphs, "openvino_inferences", lambda graph, *_: built.append(graph))
    build = builder(TINY, TARGET)
    build(FULL.narrowed(16), 1)
    build(FULL, 1)
    narrow, full = map(openvino_operations, built)
    real = exported_graph(random_model(TINY, FULL.narrowed(16)), TARGET)
    assert narrow == openvino_operations(real) != full


def test_adapted_costs_follow(table: LatencyTable) -> None:
    from hwnas.latency.measure import Paired
    from hwnas.latency.session import Measurement

    predictor = table.predictor()
    measured = []
    for genome in ([[4, 16]] * 2, [[1, 64]] * 2, [[2, 32], [0, 0]]):
        subnetwork = Subnetwork.of(genome)
        ratio = predictor.predict(subnetwork) / predictor.predict(FULL)
        point = Paired(ratio, 0.0, ratio, ratio, ratio, 2 * predictor.predict(FULL), 3)
        measured.append(Measurement(subnetwork, 1, (point,)))
    adapted = scaled_table(table, measured, TARGET, Machine.here(TARGET), 1.0)
    twice = adapted.predictor().predict(FULL.narrowed(16))
    assert np.isclose(twice, 2 * predictor.predict(FULL.narrowed(16)), rtol=0.05)
