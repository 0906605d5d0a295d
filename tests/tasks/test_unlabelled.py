"""Unlabelled text: blank rows are passed over, and only what is inside a model is learned."""

import json

import pytest
import torch
from transformers import BertForSequenceClassification

from hwnas.errors import UserError
from hwnas.models import load_tokenizer
from hwnas.tasks.unlabelled import TextSpec, Unlabelled, load_text


def _file(tmp_path, texts, column="text"):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return str(path)


def test_blank_rows_are_passed_over(tmp_path):
    data = _file(tmp_path, ["A heading", "", "  ", "A paragraph.", None])
    assert load_text(TextSpec(data=data))["text"] == ["A heading", "A paragraph."]


@pytest.mark.parametrize(
    ("spec", "advice"),
    [
        ({"text": "body"}, "no column 'body'"),
        ({"data": "nowhere.jsonl"}, "no such file"),
    ],
)
def test_mistakes_are_named(tmp_path, spec, advice):
    data = {"data": _file(tmp_path, ["words"])}
    with pytest.raises(UserError, match=advice):
        load_text(TextSpec(**(data | spec)))


def test_a_file_without_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no text"):
        load_text(TextSpec(data=_file(tmp_path, ["", " "])))


def test_a_number_is_no_text(tmp_path):
    with pytest.raises(UserError, match="line 1: column 'text' holds 7, expected text"):
        load_text(TextSpec(data=_file(tmp_path, [7])))


def test_answers_do_not_count(tiny_config):
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3).long()}
    outputs = BertForSequenceClassification(tiny_config)(**batch)
    assert Unlabelled().hard_loss(outputs, batch) == 0
    assert Unlabelled().soft_loss(outputs, outputs, batch, 2.0) == 0


@pytest.mark.shared_data
def test_wikitext_is_read(shared_data, minilm_dir):
    found = load_text(TextSpec(data=str(shared_data / "wikitext2" / "train.jsonl")))
    assert len(found) > 1000
    encoded = Unlabelled().encode(found.select(range(10)), load_tokenizer(minilm_dir), 64)
    assert max(encoded["length"]) == 64
    assert "labels" not in encoded.column_names
