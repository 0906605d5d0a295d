"""The model card: a header that the hub reads, true figures, loading code that is Python."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
from finished_run import HALF, THIRD, chosen, make_summary
from huggingface_hub import ModelCard

from hwnas.report.card import card


def made(**changes: Any) -> str:
    summary = make_summary(**changes)
    return card(summary, summary.chosen[0])


def test_the_header() -> None:
    data = ModelCard(made(model="google/bert_uncased_L-6_H-768_A-12")).data
    assert data.pipeline_tag == "text-classification"
    assert data.library_name == "transformers"
    assert data.base_model == "google/bert_uncased_L-6_H-768_A-12"
    assert data.metrics == ["accuracy"]
    assert data.license is None


@pytest.mark.parametrize("name", ["demo:minilm", "/models/bert", "../bert", "a/b/c", "x: [y"])
def test_a_base_model_that_the_hub_cannot_know_is_left_out(name: str) -> None:
    text = made(model=name)
    assert ModelCard(text).data.base_model is None
    assert name in text


def test_the_figures() -> None:
    text = made()
    assert "at 0.50 of its latency" in text
    assert "| accuracy (test split, 3815 examples) | 73.9 % | 74.6 % |" in text
    assert "| latency, measured | 10.6 ms | 21.4 ms |" in text
    assert "onnx 3.4e-07, openvino 4.1e-07." in text
    assert "`openvino:cpu:threads=1,batch=1,seq=64`" in text
    assert "| 5 | 8 | 864 |" in text
    assert "not met" not in text


def test_the_loading_code_is_python_for_the_formats_there_are() -> None:
    blocks = re.findall(r"```python\n(.*?)```", made(), flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        ast.parse(block)
    only = made(chosen=[chosen("50%", HALF, parity={"onnx": 1e-7})])
    assert "ORTModelForSequenceClassification" in only
    assert "OVModelForSequenceClassification" not in only


def test_a_miss_is_said() -> None:
    text = made(chosen=[chosen("50%", HALF, met=False, measured_ms=12.5)])
    assert "**The budget was not met**: 12.5 ms measured, 10.7 ms allowed." in text


def test_blocks_left_out_and_tables_without_gaps() -> None:
    text = made(chosen=[chosen("33%", THIRD)])
    assert "| 2 | left out | left out |" in text
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_backticks_and_lines_in_a_name_stay_in_their_code_span() -> None:
    text = made(task="a`b\n# not a heading")
    assert "`` a`b # not a heading ``" in text
    assert "\n# not a heading" not in text
