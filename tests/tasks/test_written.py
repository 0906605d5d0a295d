"""Tasks of language models: what is read, what counts, branches as rows of their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from pydantic import ValidationError
from tiny_models import DECODERS, make_model

from hwnas.errors import UserError
from hwnas.models import load, load_tokenizer, model_folder
from hwnas.tasks.choice import Choice, _index
from hwnas.tasks.generation import exact_match, go_on, last_number, score_written
from hwnas.tasks.instruction import Instruction
from hwnas.tasks.kinds import WRITTEN, encode_training, kind_named
from hwnas.tasks.language import Language
from hwnas.tasks.loading import load_task
from hwnas.tasks.predict import outputs_of, predict
from hwnas.tasks.rows import Columns, Row
from hwnas.tasks.spec import TaskSpec
from hwnas.tasks.written import (
    BEGINNING,
    IGNORED,
    Places,
    counted,
    joined_ids,
    likelihoods,
    lines,
    padded,
    states_of,
)
from hwnas.training.batches import model_columns

QUESTION = (
    "Please choose the correct answer to the question: What is wet?\n\n"
    "Answer1: a stone Answer2: the sea Answer3: sand\n\nAnswer format: answer1/answer2/answer3"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """SmolLM2's."""
    return load_tokenizer(model_folder("demo:smollm2"))


def _branching() -> Dataset:
    """Two rows of ids below 99: a beginning of three and of two, with continuations."""
    rows = [
        {"input_ids": [5, 6, 7, 11, 12, 21], "branch": [-1, -1, -1, 0, 0, 1], "answer": 1},
        {"input_ids": [8, 9, 31, 32, 33, 41, 42], "branch": [-1, -1, 0, 0, 0, 1, 1], "answer": 0},
    ]
    for row in rows:
        ids, branch = row["input_ids"], row["branch"]
        row["attention_mask"] = [1] * len(ids)
        row["labels"] = [IGNORED if b == BEGINNING else i for i, b in zip(ids, branch, strict=True)]
        row["closing"] = [0] * len(ids)
        row["bytes"] = [3, 6]
        row["length"] = len(ids)
    return Dataset.from_list(rows)


def test_places_of_branches_come_after_the_beginning() -> None:
    batch = padded(
        [{n: row[n] for n in ("labels", "branch", "input_ids")} for row in _branching()], 0
    )
    rows, at, before = Places.of(batch["labels"], batch["branch"])
    assert rows.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert at.tolist() == [3, 4, 5, 2, 3, 4, 5, 6]
    assert before.tolist() == [2, 3, 2, 1, 2, 3, 1, 5]


def test_lines_are_the_beginning_and_one_continuation() -> None:
    assert [tuple(line) for line in lines(_branching()["branch"])] == [
        (0, [0, 1, 2, 3, 4]),
        (0, [0, 1, 2, 5]),
        (1, [0, 1, 2, 3, 4]),
        (1, [0, 1, 5, 6]),
    ]


@pytest.mark.parametrize("name", DECODERS)
def test_branches_answer_as_rows_of_their_own(name: str) -> None:
    model, encoded = make_model(name), _branching()
    answers = predict(model, encoded)
    assert answers.shape == (13, 2)
    assert (answers[~counted(encoded)] == 0).all()
    for line in lines(encoded["branch"]):
        ids = [encoded[line.row]["input_ids"][i] for i in line.at]
        with torch.inference_mode():
            said = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)
        begins = sum(b == BEGINNING for b in encoded[line.row]["branch"])
        start = 0 if line.row == 0 else 6
        for place in range(begins, len(ids)):
            mine = answers[start + line.at[place]]
            assert mine[0] == pytest.approx(said[place - 1, ids[place]].item(), abs=1e-4)
            assert mine[1] == (said[place - 1].argmax() == ids[place])


def test_a_choice_is_scored_as_lm_evaluation_harness_does() -> None:
    kind, encoded = Choice(), _branching()
    answers = np.zeros((13, 2), dtype=np.float32)
    # row 0: -3 for the first (3 bytes), -4 for the second, the right one (6 bytes)
    answers[[3, 4, 5], 0] = [-1.0, -2.0, -4.0]
    # row 1: -6 for the right one, -13 for the other
    answers[[8, 9, 10, 11, 12], 0] = [-2.0, -2.0, -2.0, -6.5, -6.5]
    assert kind.score("accuracy", answers, encoded) == 50
    # by byte: -1 against -2/3 in the one, -2 against -13/6 in the other
    assert kind.score("accuracy_norm", answers, encoded) == 100
    expected = -np.log(np.exp(-4) / (np.exp(-3) + np.exp(-4)))
    expected -= np.log(np.exp(-6) / (np.exp(-6) + np.exp(-13)))
    assert kind.loss(answers, encoded) == pytest.approx(expected / 2)
    assert kind.divergence(answers, answers, encoded) == pytest.approx(0)


def test_the_three_forms_of_a_question() -> None:
    kind = Choice()
    columns = Columns(("instruction",), "answer")
    texts, right = kind.parse({"instruction": QUESTION, "answer": "answer2"}, columns, "line 1")
    assert texts == ("Question: What is wet?\nAnswer:", "a stone", "the sea", "sand")
    assert right == 1
    told = (
        "Please answer the following question with true or false, question: is it wet?\n\n"
        "Answer format: true/false"
    )
    texts, right = kind.parse({"instruction": told, "answer": "false"}, columns, "line 2")
    assert texts == ("Question: is it wet?\nAnswer:", "true", "false") and right == 1

    columns = Columns(("question", "choices"), "answerKey")
    arc = {"text": ["a stone", "the sea"], "label": ["1", "2"]}
    row = {"question": "What is wet?", "choices": arc, "answerKey": "2"}
    assert kind.parse(row, columns, "line 3")[1] == 1
    for answer in (1, "1", "B", "the sea"):
        row = {"question": "?", "choices": ["a stone", "the sea"], "answerKey": answer}
        assert kind.parse(row, columns, "line 4")[1] == 1

    named = Choice(choices=(("0", "bad"), ("1", "good")), template="{text} It was")
    texts, right = named.parse({"text": "Fine.", "label": 1}, Columns(("text",), "label"), "line 5")
    assert texts == ("Fine. It was", "bad", "good") and right == 1


@pytest.mark.parametrize(
    ("record", "columns", "words"),
    [
        ({"instruction": "What?", "answer": "a"}, ("instruction",), "Answer format"),
        ({"instruction": QUESTION, "answer": "answer9"}, ("instruction",), "'answer9' is none of"),
        ({"instruction": QUESTION, "answer": None}, ("instruction",), "no answer in column"),
        ({"question": "What?", "choices": "a", "answer": 0}, ("question", "choices"), "a list of"),
        ({"question": "What?", "choices": ["a"], "answer": 0}, ("question", "choices"), "a list"),
        ({"question": "", "choices": ["a", "b"], "answer": 0}, ("question", "choices"), "no text"),
        ({"question": "?", "choices": ["a", "b"], "answer": 7}, ("question", "choices"), "none of"),
    ],
)
def test_bad_questions_are_named(record: Any, columns: Any, words: str) -> None:
    with pytest.raises(UserError, match="line 1: ") as error:
        Choice().parse(record, Columns(columns, "answer"), "line 1")
    assert words in str(error.value)


def test_rows_are_encoded_as_read_together(tokenizer: Any) -> None:
    kind = Choice()
    rows = [Row(("Question: What is wet?\nAnswer:", "a stone", "the sea"), 1, 0)]
    split = kind.split(rows, [])
    (row,) = kind.encode(split, tokenizer, 64)
    ids, branch = np.array(row["input_ids"]), np.array(row["branch"])
    for number, text in enumerate(("a stone", "the sea")):
        whole = ids[(branch == BEGINNING) | (branch == number)]
        assert tokenizer.decode(whole) == f"Question: What is wet?\nAnswer: {text}"
    (learned,) = encode_training(kind, split, tokenizer, 64)
    whole = "Question: What is wet?\nAnswer: the sea<|im_end|>"
    assert tokenizer.decode(learned["input_ids"]) == whole
    said = [i for i in learned["labels"] if i != IGNORED]
    assert tokenizer.decode(said) == " the sea<|im_end|>"
    (endless,) = encode_training(replace(kind, ends=False), split, tokenizer, 64)
    assert tokenizer.decode(endless["labels"][-2:]) == " the sea"
    # what is too long loses the prompt's beginning, never an answer
    (short,) = kind.encode(split, tokenizer, 6)
    kept = [i for i, b in zip(short["input_ids"], short["branch"], strict=True) if b == BEGINNING]
    assert tokenizer.decode(kept).endswith("Answer:")
    assert len(kept) + max(sum(b == n for b in short["branch"]) for n in (0, 1)) == 6


def test_a_chat_s_answer_ends_the_reply_and_is_scored_without_its_end(tokenizer: Any) -> None:
    kind = Choice(choices=(("0", "bad"), ("1", "good")), template="Is it good? {text}", chat=True)
    columns = Columns(("text",), "label")
    texts, right = kind.parse({"text": "Fine.", "label": "1"}, columns, "line 1")
    split = kind.split([Row(texts, right, 0)], [])
    (learned,) = encode_training(kind, split, tokenizer, 96)
    said = [i for i in learned["labels"] if i != IGNORED]
    assert tokenizer.decode(said) == "good<|im_end|>"
    (scored,) = kind.encode(split, tokenizer, 96)
    assert tokenizer.decode([i for i in scored["labels"] if i != IGNORED]) == "badgood"


def test_a_response_is_learned_and_its_prompt_is_not(tokenizer: Any) -> None:
    for chat, begins in ((False, "Question: 1 + 1?\nAnswer:"), (True, "<|im_start|>system")):
        kind = Instruction(chat=chat)
        columns = Columns(("question",), "answer")
        texts, label = kind.parse({"question": "1 + 1?", "answer": "2"}, columns, "line 1")
        (row,) = kind.encode(kind.split([Row(texts, label, 0)], []), tokenizer, 96)
        said = [i for i in row["labels"] if i != IGNORED]
        assert tokenizer.decode(said).strip() == "2<|im_end|>"
        whole = tokenizer.decode(row["input_ids"])
        assert whole.startswith(begins) and whole.endswith("2<|im_end|>")
        assert ("assistant" in whole) == chat


def test_texts_are_packed_for_training(tokenizer: Any) -> None:
    kind = Language()
    split = kind.split([Row((f"text number {i}",), "", i) for i in range(9)], [])
    packed = encode_training(kind, split, tokenizer, 16)
    assert {len(ids) for ids in packed["input_ids"][:-1]} == {16}
    whole = tokenizer.decode([i for ids in packed["input_ids"] for i in ids])
    assert whole == "".join(f"text number {i}<|im_end|>" for i in range(9))
    scored = kind.encode(split, tokenizer, 16)
    assert len(scored) == 9


@pytest.mark.parametrize("name", WRITTEN)
def test_losses_in_torch_and_in_numpy_agree(name: str) -> None:
    """Of rows that do not branch, as all kinds are trained."""
    kind = kind_named(name)
    rows = [{n: row[n] for n in ("input_ids", "attention_mask", "labels")} for row in _branching()]
    encoded = Dataset.from_list([row | {"length": len(row["labels"])} for row in rows])
    model, batch = make_model("llama"), padded(rows, 0)
    with torch.inference_mode():
        said = outputs_of(model, batch)
        hard = kind.hard_loss(said, batch).item()
        theirs = model(**batch).loss.item()
        assert kind.soft_loss(said, said, batch, 2.0).item() == pytest.approx(0, abs=1e-6)
        assert kind.hard_loss(model(**batch), batch).item() == pytest.approx(hard, abs=1e-5)
    assert hard == pytest.approx(theirs, abs=1e-5)
    answers = predict(model, encoded)
    assert -answers[counted(encoded), 0].mean() == pytest.approx(hard, abs=1e-5)


@pytest.mark.parametrize("per_byte", [False, True])
@pytest.mark.parametrize("name", [name for name in DECODERS if name != "bloom"])
def test_which_choice_is_right_is_learned_by_the_scores_that_count(
    name: str, per_byte: bool
) -> None:
    kind = Choice(learn="choices", per_byte=per_byte)
    encoded = Dataset.from_list([row | {"answer": 0} for row in _branching()])
    model = make_model(name)
    batch = padded([dict(row) for row in model_columns(encoded)], 0)
    with torch.inference_mode():
        said = outputs_of(model, batch)
        hard = kind.hard_loss(said, batch).item()
        assert kind.soft_loss(said, said, batch, 2.0).item() == pytest.approx(0, abs=1e-6)
    answers = predict(model, encoded)
    of_right = np.concatenate([np.asarray(row) == 0 for row in encoded["branch"]])
    expected = kind.loss(answers, encoded) - answers[of_right, 0].mean()
    assert hard == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("branching", [False, True])
@pytest.mark.parametrize("name", [name for name in DECODERS if name != "bloom"])
def test_rows_as_one_are_what_they_are_side_by_side(name: str, branching: bool) -> None:
    names = ["input_ids", "attention_mask", "labels", *(["branch"] if branching else [])]
    rows = [{n: row[n] for n in names} for row in _branching()]
    longest = {n: row * 3 for n, row in rows[0].items()}
    longest["branch"] = sorted(longest.get("branch", []))
    batch = padded([*rows, {n: longest[n] for n in names}, *rows], 0)
    model, passed = make_model(name), []
    model.base_model.register_forward_pre_hook(
        lambda _module, _given, named: passed.append(named["input_ids"].shape), with_kwargs=True
    )
    grads = []
    for packs in (True, False):
        last, states = states_of(model, model, batch, True, packs=packs)
        real = batch["attention_mask"].bool()
        last[real].square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        assert states is not None
        found = [one[real].detach() for one in (last, *states)]
        if packs:
            expected = found
    assert passed == [(1, 44), (5, 18)]
    for mine, theirs in zip([*expected, *grads[0]], [*found, *grads[1]], strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


def test_choices_are_compared_by_byte_at_the_scale_of_their_sums() -> None:
    answers = np.zeros((13, 2), dtype=np.float32)
    answers[[3, 4, 5], 0] = [-1.0, -2.0, -4.0]  # -3 in 3 bytes, -4 in 6, the right one
    answers[[8, 9, 10, 11, 12], 0] = [-2.0, -2.0, -2.0, -3.5, -3.5]  # -6 in 3, the right one, -7
    expected = np.log(1 + np.exp(-4.5 + 3)) + np.log(1 + np.exp(9 - 5.25))
    assert Choice(per_byte=True).loss(answers, _branching()) == pytest.approx(expected / 2)
    spec = TaskSpec(data="rows.jsonl", kind="choice", metric="accuracy_norm")
    assert spec.task_kind == Choice(per_byte=True)


def test_a_question_that_is_learned_by_its_choices_has_the_right_one_first(tokenizer: Any) -> None:
    kind = Choice(learn="choices")
    rows = [
        Row(("Question: What is wet?\nAnswer:", "a stone", "the sea", "sand"), 1, 0),
        Row(("Question: What is dry?\nAnswer:", "a stone", "the sea"), 0, 1),
    ]
    learned = encode_training(kind, kind.split(rows, []), tokenizer, 64)
    said = []
    for row in learned:
        assert sum(row["closing"]) == 1
        ids, branch = np.array(row["labels"]), np.array(row["branch"])
        said.append([tokenizer.decode(ids[branch == n]) for n in range(branch.max() + 1)])
    assert said == [
        [" the sea<|im_end|>", " a stone", " sand"],
        [" a stone<|im_end|>", " the sea"],
    ]


def test_an_end_is_learned_and_not_scored(tokenizer: Any) -> None:
    rows = [Row(("Question: What is wet?\nAnswer:", "a stone", "the sea", "sand"), 1, 0)]
    kind, model = Choice(learn="choices"), make_model("llama")
    model.resize_token_embeddings(len(tokenizer))
    losses = []
    for one in (kind, replace(kind, ends=False)):
        learned = model_columns(encode_training(one, one.split(rows, []), tokenizer, 64))
        batch = padded([dict(row) for row in learned], 0)
        with torch.inference_mode():
            said = outputs_of(model, batch)
            at, end = Places.of(batch["labels"], batch["branch"]), batch["closing"]
            each = likelihoods(said.logits, batch["labels"][at.rows, at.at])[:, 0]
            right = each[batch["branch"][at.rows, at.at] == 0]
            # all but the words is which choice is right, and that is the same with and without end
            losses.append(one.hard_loss(said, batch).item() + right.mean().item())
            assert int(end.sum()) == one.ends
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"kind": "instruction", "learn": "choices"}, "is for tasks of kind choice"),
        ({"kind": "classification", "choices": ["a", "b"]}, "is for tasks of kind choice"),
        ({"kind": "choice", "choices": ["a"]}, "two or more"),
        ({"kind": "choice", "choices": {"0": "a", "1": "a"}}, "two or more different"),
        ({"kind": "language", "template": "{text}"}, "is for tasks of kind choice or instruction"),
        ({"kind": "choice", "text": "text", "template": "Mood:"}, "names no column"),
        ({"kind": "choice", "text": "text", "template": "{tweet}"}, "{tweet} is no column of text"),
        ({"kind": "language", "chat": True}, "is for tasks of kind choice or instruction"),
        ({"kind": "instruction", "metric": "f1"}, "not for tasks of kind instruction"),
    ],
)
def test_bad_specs_are_named(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        TaskSpec(data="rows.jsonl", **spec)
    assert words in str(error.value)


def test_blank_texts_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    texts = [f"a text {i}" if i % 3 else " " for i in range(90)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    task = load_task(TaskSpec(data=str(path), kind="language"))
    assert sum(task.splits.values()) == 60
    path.write_text(json.dumps({"text": " "}) + "\n")
    with pytest.raises(UserError, match="column 'text' holds no text"):
        load_task(TaskSpec(data=str(path), kind="language"))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("48/2 = <<48/2=24>>24, so\n#### 1,072", 1072),
        ("#### 5 apples, 3 pears", 3),
        ("She has 12 of 15.", 15),
        ("it is -3.50", -3.5),
        ("none at all", None),
    ],
)
def test_the_last_number_is_the_answer(text: str, number: float | None) -> None:
    assert last_number(text) == number


def test_exact_answers_are_counted() -> None:
    said = ["it is 4", "so 18 hours", "I do not know", "2,000"]
    assert exact_match(said, ["4.0", "17", "3", "#### 2000"]) == 50


@pytest.mark.slow  # SmolLM2 writes
def test_a_written_answer_is_what_the_model_generates(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(model_folder("demo:smollm2"))
    kind = Instruction(template="{question}", chat=True)
    rows = [
        Row((f"What is {i} plus {i}{more}?", str(2 * i)), "", i)
        for i, more in ((2, ""), (3, ", and why"))
    ]
    kept: list[str] = []

    def compared(written: list[str], references: list[str]) -> float:
        kept.extend(written)
        return exact_match(written, references)

    monkeypatch.setattr("hwnas.tasks.generation.exact_match", compared)
    score = score_written(kind, model, tokenizer, kind.split(rows, []), 64, most=24)
    for row, text in zip(rows, kept, strict=True):
        asking = [{"role": "user", "content": row.texts[0]}]
        given = tokenizer.apply_chat_template(
            asking, add_generation_prompt=True, return_tensors="pt"
        )
        found = model.generate(given, max_new_tokens=24, do_sample=False)[0, given.shape[1] :]
        assert tokenizer.decode(found, skip_special_tokens=True) == text
    assert score == exact_match(kept, [row.texts[1] for row in rows])
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row.texts[0]}], add_generation_prompt=True
        )
        for row in rows
    ]
    together = go_on(model, prompts, tokenizer.eos_token_id, 24)  # as on a GPU, padded
    assert [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in together] == kept


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "openbookqa", "boolq"])
def test_commonsense_is_read(name: str, shared_data: Path) -> None:
    files = (str(shared_data / "commonsense" / f"{name}_{part}.jsonl") for part in ("train", "dev"))
    spec = dict(zip(("data", "test"), files, strict=True))
    task = load_task(TaskSpec(kind="choice", text="instruction", label="answer", **spec))
    counts = {len(choices) for choices in task.test["choices"]}
    assert counts <= ({2} if name == "boolq" else {3, 4, 5})
    assert all(text.endswith("\nAnswer:") for text in task.test["text"])
    assert not any("nswer1" in text for text in task.test["text"])


def test_choices_may_be_what_yaml_takes_for_numbers_and_truths() -> None:
    given = yaml.safe_load("{0: bad, 1: good}")
    assert TaskSpec(data="rows.jsonl", kind="choice", choices=given).choices == {
        "0": "bad",
        "1": "good",
    }
    given = yaml.safe_load("[no, yes]")
    spec = TaskSpec(data="rows.jsonl", kind="choice", choices=given)
    assert spec.choices == {"false": "false", "true": "true"}


def test_a_number_is_an_index_even_where_the_choices_are_numbers() -> None:
    texts, letters = ["1", "2", "3"], ["A", "B", "C"]
    assert [_index(value, letters, "answer", "row 1", texts) for value in (2, "2", "C", 0)] == [
        2,  # an index
        1,  # a text
        2,
        0,
    ]
    assert _index(2, ["1", "2", "3"], "answer", "row 1", ["x", "y", "z"]) == 1  # a name


@pytest.mark.parametrize("prompt", ["It was ", "It was  ", "It was\n", "It was:\n\n", "It was"])
def test_space_at_the_end_of_a_prompt_leaves_every_answer_whole(prompt: str) -> None:
    """As lm-evaluation-harness has it: the space is the answer's, where they are read as one."""
    tokenizer = load_tokenizer(model_folder("demo:smollm2"))
    answers = ["good", "bad and more"]
    found = joined_ids(tokenizer, [prompt] * 2, answers)
    beginnings = {tuple(one.beginning) for one in found}
    assert len(beginnings) == 1
    assert tokenizer.decode(next(iter(beginnings))).rstrip() == prompt.rstrip()
    for one, answer in zip(found, answers, strict=True):
        assert one.continuation and tokenizer.decode(one.continuation).strip().endswith(answer)
        whole = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
        assert one.beginning + one.continuation == whole


def test_questions_that_are_all_alike_are_parted_by_their_choices(tmp_path: Path) -> None:
    things = [f"{a}{b}" for a in "abcdefgh" for b in ("pple", "nion", "tone", "ail", "ever")]
    rows = [
        {"question": "Which is right?", "choices": [f"{a} is", f"{a} are"], "answer": 0}
        for a in things
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = TaskSpec(data=str(path), kind="choice", text=["question", "choices"], label="answer")
    task = load_task(spec)
    assert len(task.search_validation) and len(task.choice_validation)
