"""Every kind of task: what it reads, learns from and scores, against values worked out by hand."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from hwnas.errors import UserError
from hwnas.models import load_model
from hwnas.tasks.embedding import with_teacher
from hwnas.tasks.kinds import KINDS, kind_named
from hwnas.tasks.predict import predict
from hwnas.tasks.regression import Regression
from hwnas.tasks.rows import Columns, Row
from hwnas.tasks.spans import Spans, normalised
from hwnas.tasks.tokens import Tokens
from hwnas.training.batches import collator, model_columns, questions
from hwnas.training.memory import Memory
from hwnas.training.observing import observe
from hwnas.training.optimization import Optimization
from hwnas.training.trainer import train

MODELS = {
    "classification": BertForSequenceClassification,
    "regression": BertForSequenceClassification,
    "spans": BertForQuestionAnswering,
    "tokens": BertForTokenClassification,
    "embedding": BertModel,
}
WORDS = ("good", "bad", "day", "a")


def _rows(kind: str, count: int = 24) -> list[Row]:
    """Rows whose answer can be learned."""
    found = []
    for i in range(count):
        words = tuple(WORDS[(i // 4**k) % 4] for k in range(3))
        text = " ".join(words)
        if kind == "spans":
            at = text.find("good")
            found.append(Row(("what", text), (("good", at),) if at >= 0 else (), i))
        elif kind == "tokens":
            tags = tuple({"good": "B-X", "bad": "B-Y"}.get(word, "O") for word in words)
            found.append(Row(words, tags, i))
        else:
            labels = {
                "classification": ("no", "yes")[words[0] == "good"],
                "regression": float(WORDS.index(words[0])),
                "embedding": "",
            }
            found.append(Row((text,), labels[kind], i))
    return found


@pytest.fixture
def setup(tiny_config: Any, tiny_tokenizer: Any) -> Any:
    def make(name: str) -> SimpleNamespace:
        kind = kind_named(name)
        rows = _rows(name)
        labels = kind.label_names(rows, "rows.jsonl", kind.metrics[0], "label")
        encoded = kind.encode(kind.split(rows, labels), tiny_tokenizer, 24)
        config = copy.deepcopy(tiny_config)
        config.num_labels = max(1, len(labels)) if name != "spans" else 2
        if name == "regression":
            config.problem_type = "regression"
        torch.manual_seed(0)
        model = MODELS[name](config).eval()
        torch.manual_seed(1)
        teacher = MODELS[name](config).eval()
        if name == "embedding":
            encoded = with_teacher(encoded, predict(teacher, encoded))
        return SimpleNamespace(
            kind=kind,
            rows=rows,
            labels=labels,
            encoded=encoded,
            model=model,
            teacher=teacher,
            tokenizer=tiny_tokenizer,
        )

    return make


def _batch(found: Any) -> dict[str, torch.Tensor]:
    part = model_columns(found.encoded)
    return dict(collator(found.tokenizer, part)([part[i] for i in range(len(part))]))


@pytest.mark.parametrize("name", KINDS)
def test_losses_in_torch_and_in_numpy_agree(name: str, setup: Any) -> None:
    found = setup(name)
    batch = _batch(found)
    with torch.inference_mode():
        mine, theirs = (m(**questions(batch)) for m in (found.model, found.teacher))
    answers, wanted = (
        predict(m, found.encoded, batch_size=7) for m in (found.model, found.teacher)
    )
    if name != "embedding":  # it has no labels
        hard = found.kind.hard_loss(mine, batch).item()
        assert found.kind.loss(answers, found.encoded) == pytest.approx(hard, abs=1e-5)
        ours = found.model(**batch).loss.item()
        assert ours == pytest.approx(hard, abs=1e-5), "transformers' own loss"
    soft = found.kind.soft_loss(mine, theirs, batch, 1.0).item()
    apart = found.kind.divergence(wanted, answers, found.encoded)
    # tokens are averaged over all words in both
    assert apart == pytest.approx(soft, rel=1e-3, abs=1e-5)
    assert apart > 1e-6
    assert found.kind.divergence(wanted, wanted, found.encoded) == pytest.approx(0, abs=1e-6)
    assert found.kind.soft_loss(theirs, theirs, batch, 2.0).item() == pytest.approx(0, abs=1e-6)
    answers[0, 0] = np.nan
    assert math.isnan(found.kind.score(found.kind.metrics[0], answers, found.encoded))


@pytest.mark.parametrize("name", KINDS)
def test_what_is_remembered_of_a_teacher_is_what_it_says(name: str, setup: Any) -> None:
    found = setup(name)
    memory = Memory(found.teacher, found.tokenizer, found.encoded, states=True, relations=True)
    batch = _batch(found)
    with torch.inference_mode():
        mine = found.model(**questions(batch))
        theirs = observe(found.teacher, found.teacher, batch, states=True, relations=True)
    rows = list(range(len(batch["input_ids"])))
    for _ in range(2):
        known = memory.answers(rows, batch["input_ids"].shape[1])
        soft, expected = (
            found.kind.soft_loss(mine, outputs, batch, 1.0).item()
            for outputs in (known.outputs, theirs.outputs)
        )
        assert soft == pytest.approx(expected, abs=1e-6)
    real = batch["attention_mask"].bool()
    inside = (*known.states, *known.projections), (*theirs.states, *theirs.projections)
    assert len(known.states) == found.teacher.config.num_hidden_layers
    assert len(known.projections) == 3
    for remembered, said in zip(*inside, strict=True):
        assert remembered.dtype == said.dtype
        torch.testing.assert_close(remembered[real], said[real], rtol=0.01, atol=0.01)
        assert not remembered[~real].any()


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_can_be_learned(name: str, setup: Any, tmp_path: Path) -> None:
    found = setup(name)
    metric = found.kind.metrics[0]

    def score() -> float:
        return float(found.kind.score(metric, predict(found.model, found.encoded), found.encoded))

    before = score()
    settings = Optimization(steps=90, learning_rate=5e-3, batch=12, states_weight=0)
    teacher = found.teacher if name == "embedding" else None
    train(
        found.model,
        found.tokenizer,
        found.encoded,
        settings,
        tmp_path / "work",
        kind=found.kind,
        teacher=teacher,
    )
    assert score() > max(before, 85)


@pytest.mark.parametrize("name", KINDS)
def test_a_probe_has_gradients(name: str, setup: Any) -> None:
    found = setup(name)
    batch = _batch(found)
    loss = found.kind.probe(found.model(**questions(batch)), batch)
    loss.backward()
    weight = found.model.get_parameter(
        next(
            n
            for n, _ in found.model.named_parameters()
            if n.endswith("layer.0.output.dense.weight")
        )
    )
    assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_regression_scores() -> None:
    kind = Regression()
    encoded = Dataset.from_dict({"labels": [1.0, 2.0, 3.0, 4.0]})
    answers = np.array([[1.0], [4.0], [9.0], [16.0]])
    assert kind.score("spearman", answers, encoded) == pytest.approx(100)
    pearson = np.corrcoef(answers[:, 0], [1, 2, 3, 4])[0, 1]
    assert kind.score("pearson", answers, encoded) == pytest.approx(100 * pearson)
    assert kind.score("pearson_spearman", answers, encoded) == pytest.approx(50 * (1 + pearson))
    assert kind.score("pearson", np.ones((4, 1)), encoded) == 0.0
    assert kind.loss(answers, encoded) == pytest.approx((0 + 4 + 36 + 144) / 4)


def test_entities_are_judged_whole(tiny_tokenizer: Any) -> None:
    kind = Tokens()
    rows = [Row(("good", "day", "a"), ("B-X", "I-X", "O"), 0), Row(("bad",), ("B-Y",), 1)]
    labels = kind.label_names(rows, "rows", "f1", "ner_tags")
    assert labels == ["B-X", "B-Y", "I-X", "O"]
    encoded = kind.encode(kind.split(rows, labels), tiny_tokenizer, 16)
    assert encoded["labels"] == [[-100, 0, 2, 3, -100], [-100, 1, -100]]
    truth = np.eye(4)[[3, 0, 2, 3, 3, 3, 1, 3]]  # whatever stands at [CLS] and [SEP]
    assert kind.score("f1", truth, encoded) == 100
    half = truth.copy()
    half[2] = np.eye(4)[3]  # the first entity is cut short: one of two right, two guessed
    assert kind.score("f1", half, encoded) == pytest.approx(50)
    assert kind.score("accuracy", half, encoded) == pytest.approx(75)


def _spans(contexts: list[str], answers: list[str], tokenizer: Any, length: int = 64) -> Dataset:
    kind = Spans()
    rows = [
        Row(("good day", context), ((text, context.find(text)),) if text else (), i)
        for i, (context, text) in enumerate(zip(contexts, answers, strict=True))
    ]
    return kind.encode(kind.split(rows, []), tokenizer, length)


def test_windows_overlap_and_hold_the_answer_s_place(minilm_dir: Path) -> None:
    from hwnas.models import load_tokenizer

    context = " ".join(f"word{i}" for i in range(60)) + " needle " + "hay " * 60
    encoded = _spans([context, "short needle"], ["needle", "needle"], load_tokenizer(minilm_dir))
    assert list(encoded["row"]) == [0] * (len(encoded) - 1) + [1] and len(encoded) > 5
    holding = 0
    seen: set[int] = set()
    for window in encoded:
        covered = {b for b in window["begins"] if b >= 0}
        assert window["length"] <= 64
        assert not seen or seen & covered or window["row"] == 1, "neighbours overlap"
        seen = covered
        first, last = window["start_positions"], window["end_positions"]
        if first:
            holding += 1
            text = window["context"][window["begins"][first] : window["ends"][last]]
            assert text == "needle"
    assert holding >= 2


def test_a_question_that_fills_the_window(tiny_tokenizer: Any) -> None:
    kind = Spans()
    split = kind.split([Row(("good " * 20, "a day"), (("day", 2),), 7)], [])
    with pytest.raises(UserError, match="question of row 7: 22 tokens, more than half of max_l"):
        kind.encode(split, tiny_tokenizer, 24)


def test_the_best_span_over_all_windows_answers(tiny_tokenizer: Any) -> None:
    encoded = _spans(["a good day", "a bad day"], ["good", "bad day"], tiny_tokenizer)
    kind = Spans()
    answers = np.zeros((sum(encoded["length"]), 2))
    first = encoded["begins"][0].index(2)
    answers[first] = 5  # "good", start and end
    second = encoded["length"][0] + encoded["begins"][1].index(2)
    answers[second, 0] = answers[second, 1] = 4
    assert kind.texts(answers, encoded) == {0: "good", 1: "bad"}
    assert kind.score("exact_match", answers, encoded) == 50
    assert kind.score("f1", answers, encoded) == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_no_answer_must_beat_the_best_by_the_threshold(tiny_tokenizer: Any) -> None:
    encoded = _spans(["a good day", "a bad day"], ["good", ""], tiny_tokenizer)
    answers = np.zeros((sum(encoded["length"]), 2))
    at = encoded["length"][0]
    answers[at] = 3  # [CLS] of the second
    answers[at + encoded["begins"][1].index(2)] = 2
    answers[encoded["begins"][0].index(2)] = 2
    assert Spans().texts(answers, encoded) == {0: "good", 1: ""}
    assert Spans(null_threshold=3.0).texts(answers, encoded) == {0: "good", 1: "bad"}
    # where every question has an answer, one is always given
    always = _spans(["a good day", "a bad day"], ["good", "bad"], tiny_tokenizer)
    assert Spans().texts(answers, always)[1] == "bad"


def test_answers_are_compared_as_the_official_evaluation_does() -> None:
    assert normalised("The  U.S.,  of A!") == "us of"
    kind = Spans()
    assert kind.metrics == ("f1", "exact_match")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "q", "context": "c d"}, "holds 'None', expected"),
        ({"question": "q", "context": "c d", "answers": {"text": ["d"]}}, "expected"),
        (
            {"question": "q", "context": "c d", "answers": {"text": ["d"], "answer_start": [0]}},
            "the answer 'd' does not stand at character 0 of column 'context'",
        ),
        ({"question": "", "context": "c", "answers": {}}, "no text in column 'question'"),
    ],
)
def test_damaged_questions(record: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Spans().parse(record, Columns(("question", "context"), "answers"), "rows.jsonl: line 1")


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        ("a b", ["O", "O"], "column 'tokens' holds 'a b', expected a list"),
        (["a", "b"], ["O"], "2 words in column 'tokens', 1 labels"),
        ([], [], "0 words"),
        (["a"], [None], "column 'ner_tags' holds"),
    ],
)
def test_damaged_sentences(words: Any, tags: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tokens().parse(
            {"tokens": words, "ner_tags": tags}, Columns(("tokens",), "ner_tags"), "line 1"
        )


@pytest.mark.parametrize("value", [None, "much", float("nan"), True])
def test_a_number_that_is_none(value: Any) -> None:
    with pytest.raises(UserError, match="expected a number"):
        Regression().parse({"text": "x", "label": value}, Columns(("text",), "label"), "line 1")


def test_words_are_read_with_the_space_before_them(tmp_path: Path) -> None:
    """RoBERTa's tokenizer refuses words unless it is told to add it."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaForMaskedLM, RobertaTokenizerFast

    bytewise = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bytewise.train_from_iterator(["a good day in Rome"] * 9, 300, special_tokens=special)
    bytewise.save_model(str(tmp_path))
    RobertaTokenizerFast.from_pretrained(tmp_path).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=300, intermediate_size=16, **sizes)
    RobertaForMaskedLM(config).save_pretrained(tmp_path)
    _, tokenizer = load_model(str(tmp_path), task="token-classification", labels=["O", "B-X"])
    kind = kind_named("tokens")
    row = kind.split([Row(("good", "Rome"), ("O", "B-X"), 0)], ["O", "B-X"])
    encoded = kind.encode(row, tokenizer, 16)
    read = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])
    assert read[0] == "<s>" and [token[0] for token in read].count("Ġ") == 2
    tokenizer.save_pretrained(tmp_path / "served")  # whoever serves it reads words likewise
    assert RobertaTokenizerFast.from_pretrained(tmp_path / "served").add_prefix_space is True
