"""The table as a file: the same after a round trip, and refused where it is damaged or foreign."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from samples import SMALL, entries, small_table

from hwnas.errors import UserError
from hwnas.latency.checks import doubts
from hwnas.latency.parts import AtLength, describe_device, versions_of
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Target
from hwnas.subnetwork import Subnetwork

TARGET = "openvino:cpu:threads=1,batch=1,seq=64"


@pytest.fixture
def table() -> LatencyTable:
    return small_table()


Damage = Callable[[Callable[[dict[str, Any]], object]], Path]


@pytest.fixture
def damaged(table: LatencyTable, tmp_path: Path) -> Damage:
    """Saves the table after a function has changed its JSON."""

    def save(change: Callable[[dict[str, Any]], object]) -> Path:
        value = table.model_dump(mode="json")
        change(value)
        path = tmp_path / "table.json"
        path.write_text(json.dumps(value))
        return path

    return save


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        act()
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_fewer_tokens_save_every_subnetwork_the_same(table: LatencyTable) -> None:
    fewer = table.of_vocabulary(40, 0.95)  # a twentieth of 2 ms; 0.2 ms are fixed
    assert fewer.model.vocab == 40 and fewer.reference_ms == table.reference_ms
    for genome in ([[4, 128]] * 2, [[1, 32], [0, 0]]):
        before, after = (one.predictor().predict(Subnetwork.of(genome)) for one in (table, fewer))
        assert after == pytest.approx(before - 0.1)
    (fixed,) = (entry for entry in fewer.entries if entry.op == "fixed")
    assert fixed.ms.p10 == pytest.approx(0.08) and fixed.ratio_to_reference == pytest.approx(0.05)
    nothing = table.of_vocabulary(1, 0.5)
    assert nothing.predictor().fixed_ms == 0, "more is not saved than what is not in the blocks"
    LatencyTable.model_validate(fewer.model_dump())


def test_round_trip(table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "table.json"
    table.save(path)
    assert LatencyTable.load(path) == table
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


def test_predictor_has_the_tables_costs(table: LatencyTable) -> None:
    predictor = table.predictor()
    assert predictor.predict(Subnetwork.full(SMALL)) == pytest.approx(0.2 + 2 * (0.4 + 0.5))
    assert predictor.predict(Subnetwork.of([[3, 80], [0, 0]])) == pytest.approx(0.2 + 0.3 + 0.3125)
    assert predictor.baseline_ms == 2.0


def of_lengths(table: LatencyTable, target: str, **changes: Any) -> LatencyTable:
    """A table of requests of 32 tokens (three of four) and of 64, which take twice as long."""
    values = {
        "target": target,
        "reference_ms": 2.0,
        "lengths": (
            AtLength(tokens=32, share=0.75, reference_ms=1.0, **changes),
            AtLength(tokens=64, share=0.25, reference_ms=2.0, **changes),
        ),
        "entries": (*entries(32, 0.5), *entries(64)),
        "validation": None,
    }
    return LatencyTable(**(dict(table) | values))


def test_mix_of_lengths_is_predicted_by_its_mean(table: LatencyTable) -> None:
    mixed = of_lengths(table, "openvino:cpu:seq=32*.75/64*.25")
    subnetwork = Subnetwork.of([[3, 80], [0, 0]])
    at_64 = table.predictor().predict(subnetwork)
    assert mixed.predictor_at(32).predict(subnetwork) == pytest.approx(at_64 / 2)
    assert mixed.predictor().predict(subnetwork) == pytest.approx(0.75 * at_64 / 2 + 0.25 * at_64)
    assert mixed.predictor().baseline_ms == 2.0


def test_percentile_is_of_single_requests_of_any_length(table: LatencyTable) -> None:
    target = "openvino:cpu:seq=32*.75/64*.25,statistic=p95"
    # the slowest fifth of the long requests, which are a quarter, is the slowest 5 % of all
    quantiles = {"0.5": 1.0, "0.8": 1.1, "0.95": 1.4}
    found = of_lengths(table, target, quantiles=quantiles).predictor()
    subnetwork = Subnetwork.of([[3, 80], [0, 0]])
    assert found.predict(subnetwork) == pytest.approx(1.1 * table.predictor().predict(subnetwork))


def test_confident_predictions_leave_a_margin(table: LatencyTable) -> None:
    subnetwork = Subnetwork.full(SMALL)
    likely = table.predictor().predict(subnetwork)
    assert table.predictor(0.95).predict(subnetwork) == pytest.approx(likely * 1.05)
    assert table.predictor(0.5).predict(subnetwork) == pytest.approx(likely)
    assert likely < table.predictor(0.9).predict(subnetwork) < likely * 1.05
    assert "1.5" in refusal(lambda: table.predictor(1.5))
    without = table.model_copy(update={"interval_90": None})
    assert "interval_90" in refusal(lambda: without.predictor(0.95))


def drop(op: str) -> Callable[[dict[str, Any]], object]:
    return lambda t: t.update(entries=[e for e in t["entries"] if e["op"] != op])


def cost(table: dict[str, Any], number: int, **changed: float) -> dict[str, Any]:
    """An entry of the table with another width or another cost, sound in itself."""
    result: dict[str, Any] = json.loads(json.dumps(table["entries"][number]))
    if "heads" in changed:
        result["dims"]["heads"] = changed["heads"]
    if "ms" in changed:
        result["ms"] = dict.fromkeys(("median", "p10", "p90"), changed["ms"])
        result["ratio_to_reference"] = changed["ms"] / table["reference_ms"]
    return result


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("reference_ms"), "reference_ms"),
        (lambda t: t.update(reference_ms=0), "reference_ms"),
        (lambda t: t.update(reference_ms=float("inf")), "reference_ms"),
        (lambda t: t.update(schema_version=1), "version 1"),
        (lambda t: t.update(schema_version=3), "version 3"),
        (lambda t: t.update(target="tpu:pod"), "tpu"),
        (lambda t: t.update(comment="mine"), "comment"),
        (lambda t: t["entries"][1]["ms"].update(median=-0.1), "entries.1.ms.median"),
        (lambda t: t["entries"][1]["ms"].update(median=float("nan")), "entries.1.ms.median"),
        (lambda t: t["entries"][1].update(dims={"width": 1, "seq": 64}), "entries.1.dims"),
        (lambda t: t["entries"][1].update(dims={"heads": 1}), "entries.1.dims"),
        (lambda t: t["entries"][1].update(dims={"heads": 0, "seq": 64}), "entries.1.dims.heads"),
        (lambda t: t["entries"][1]["dims"].update(seq=32), "entries.1.dims.seq"),
        (lambda t: t.update(lengths=[]), "lengths"),
        (lambda t: t["lengths"][0].update(tokens=32), "lengths"),
        (lambda t: t["lengths"][0].update(share=0.5), "lengths.0.share"),
        (lambda t: t["lengths"][0].update(reference_ms=0.002), "reference_ms"),
        (lambda t: t["entries"].append(t["entries"][1]), "twice"),
        (lambda t: t["entries"].append(t["entries"][0]), "'fixed'"),
        (lambda t: t["entries"].pop(3), "width 4"),
        (drop("fixed"), "'fixed'"),
        (drop("attention"), "'attention'"),
        (drop("ffn"), "'ffn'"),
        (lambda t: t.update(reference_ms="2.0"), "reference_ms"),
        (lambda t: t.update(reference_ms=1e300), "more than an hour"),
        (lambda t: t.update(reference_ms=2000.0), "milliseconds"),
        (lambda t: t["entries"][1]["ms"].update(median=1e-4, p10=1e-4), "milliseconds"),
        (lambda t: t["entries"][1]["ms"].update(p10=0.2), "entries.1.ms"),
        (lambda t: t["entries"][1].update(samples=1.5), "entries.1.samples"),
        (lambda t: t["entries"][1].update(op="conv"), "entries.1.op"),
        (lambda t: t["entries"][1].update(dims={"heads": "1", "seq": 64}), "entries.1.dims.heads"),
        (lambda t: t["entries"].append(cost(t, 1, heads=5)), "entries.6.dims.heads"),
        (lambda t: t["entries"].__setitem__(2, cost(t, 2, ms=0.01)), "attention at 2"),
        (lambda t: t["model"].update(heads=[]), "model"),
        (lambda t: t["model"].update(hidden=True), "model.hidden"),
        (lambda t: t["validation"].update(n=7), "validation.n"),
        (lambda t: t["validation"].update(mape=0.1), "validation.mape"),
        (lambda t: t["validation"]["rows"][0].update(genome=[[2, 64]]), "rows.0.genome"),
        (lambda t: t["protocol"].pop("clock"), "protocol.clock"),
        (lambda t: t.update(entries={}), "entries"),
    ],
)
def test_damaged_table_is_refused(
    damaged: Damage, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    path = damaged(change)
    message = refusal(lambda: LatencyTable.load(path))
    assert str(path) in message
    assert named in message


def test_no_table_at_all(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    assert "no such file" in refusal(lambda: LatencyTable.load(path))
    path.write_text('{"schema_version": 1, "model": {')
    assert "not valid JSON" in refusal(lambda: LatencyTable.load(path))
    path.write_text('{"schema_version": 1, "schema_version": 1}')
    assert "'schema_version' is given twice" in refusal(lambda: LatencyTable.load(path))
    path.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(lambda: LatencyTable.load(path))
    path.write_text("[1, 2]")
    assert str(path) in refusal(lambda: LatencyTable.load(path))


def test_other_model(table: LatencyTable) -> None:
    table.check_model(SMALL)
    deeper = dataclasses.replace(SMALL, heads=(4,) * 12, ffn=(128,) * 12)
    message = refusal(lambda: table.check_model(deeper))
    assert "4 (2 blocks)" in message and "4 (12 blocks)" in message
    assert "hidden" not in message
    mixed = dataclasses.replace(SMALL, ffn=(128, 64))
    assert "ffn [128, 64]" in refusal(lambda: table.check_model(mixed))
    renamed = dataclasses.replace(SMALL, vocab=200)
    assert "vocab 100" in refusal(lambda: table.check_model(renamed))


def test_other_target(table: LatencyTable) -> None:
    table.check_target(Target.parse(TARGET))
    message = refusal(lambda: table.check_target(Target.parse("onnxruntime:cpu:seq=64")))
    assert TARGET in message and "onnxruntime:cpu:threads=1,batch=1,seq=64" in message


def test_target_is_kept_as_it_is_written_in_full(damaged: Damage) -> None:
    path = damaged(lambda t: t.update(target="openvino:cpu:seq=64"))
    assert LatencyTable.load(path).target == TARGET


def test_this_machine_is_described() -> None:
    device = describe_device(Target.parse("openvino:cpu"))
    assert device.cpu and device.cores >= 1 and device.memory_gb > 0
    versions = versions_of(Target("onnxruntime"))
    assert {"torch", "transformers", "onnxruntime"} <= versions.keys()
    assert "openvino" not in versions


def test_doubts_name_both_sides(table: LatencyTable) -> None:
    assert doubts(table, table.device, dict(table.versions)) == []
    other = table.device.model_copy(update={"cpu": "Another CPU"})
    (device, version, check) = doubts(
        table.model_copy(update={"validation": None}), other, {"openvino": "2030.1"}
    )
    assert "Some CPU" in device and "Another CPU" in device
    assert "2026.0" in version and "2030.1" in version
    assert "--validate" in check


def test_a_table_of_another_gpu_is_doubted(table: LatencyTable) -> None:
    theirs, ours = (table.device.model_copy(update={"gpu": name}) for name in ("A100", "H100"))
    (line,) = doubts(table.model_copy(update={"device": theirs}), ours, {})
    assert "A100" in line and "H100" in line


def test_subnetwork_of_another_model(table: LatencyTable) -> None:
    table.check_subnetwork(Subnetwork.of([[4, 128], [0, 0]]))
    assert "block 1 has 5 heads" in refusal(
        lambda: table.check_subnetwork(Subnetwork.of([[4, 128], [5, 128]]))
    )
    assert "3 blocks" in refusal(lambda: table.check_subnetwork(Subnetwork.of([[1, 32]] * 3)))


def test_shipped_tables_are_found_by_name() -> None:
    shipped = sorted(files("hwnas.latency_tables").iterdir(), key=lambda entry: entry.name)
    names = [e.name for e in shipped if e.name.endswith(".json") and "schema" not in e.name]
    assert names
    for name in names:
        assert LatencyTable.find(Path(name)) == LatencyTable.find(Path(name.removesuffix(".json")))
    assert "no such file" in refusal(lambda: LatencyTable.find(Path("nothing.json")))
