"""The report page: whole, self-contained, honest about what is missing, safe with any name."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from finished_run import (
    HALF,
    THIRD,
    Write,
    chosen,
    make_candidates,
    make_summary,
    make_table,
    write_lines,
)

from hwnas.errors import UserError
from hwnas.files import write_json
from hwnas.report.html import write_report
from hwnas.space import BlockOptions, SearchSpace

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Page(HTMLParser):
    """Elements, their ids, the text, and whether every element is closed where it should be."""

    VOID = frozenset(("meta", "img", "br", "link", "hr", "input"))

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.addresses.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_a_whole_run(write_run: Write) -> None:
    run = write_run()
    out = write_report(run)
    assert out == run / "report.html"
    page = Page(out)
    assert not page.open
    assert "At 0.50 of the baseline's latency, 99.1" in page.text
    assert "97.2" in page.text
    for figure in ("74.6 %", "73.9 %", "10.7 ms", "21.4 ms", "22.7 M", "onnx 3.4e-07", "670 M"):
        assert figure in page.text, figure
    for title in ("Candidates:", "Results:", "50%: FFN neurons", "33%: finalists"):
        assert title in page.text, title
    assert page.tags.count("svg") == 7
    assert "911" in page.text  # full-model steps of super-network, search and finalists
    assert "7 min 21 s" in page.text
    assert "off by 2.0 % in the mean, 2.0 % too fast on the whole" in page.text
    assert "line through FLOPs (off by 10.0 %)" in page.text
    assert "Some CPU, 8 logical cores" in page.text
    assert "standard error of an accuracy near the baseline's on 3815 test" in page.text
    assert "examples is 0.7 points" in page.text


def test_it_needs_nothing_from_elsewhere(write_run: Write) -> None:
    out = write_report(write_run())
    page = Page(out)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.addresses, "the pictures refer to their own markers"
    assert [a for a in page.addresses if not a.startswith(("#", "data:"))] == []
    assert "@import" not in out.read_text(encoding="utf-8")
    assert re.findall(r"url\((?!#)", out.read_text(encoding="utf-8")) == []


def test_ids_are_unique_and_references_meet_one(write_run: Write) -> None:
    out = write_report(write_run())
    page = Page(out)
    assert len(page.ids) == len(set(page.ids))
    text = out.read_text(encoding="utf-8")
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    assert used
    assert used <= set(page.ids)


def test_the_same_run_gives_the_same_page(write_run: Write) -> None:
    run = write_run()
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_a_summary_alone_says_what_is_missing(write_run: Write) -> None:
    page = Page(write_report(write_run(bare=True)))
    assert "No candidates are recorded" in page.text
    assert "No finalists are recorded" in page.text
    assert "no table.json" in page.text
    assert "no importance.safetensors" in page.text
    assert page.tags.count("svg") == 2  # results, layers
    assert "yes" in page.text


def test_the_space_is_set_beside_all_that_the_model_has(write_run: Write) -> None:
    run = write_run()
    assert "every width that the model has" in Page(write_report(run)).text
    block = BlockOptions(heads=(6, 12), ffn=(768, 1536))
    write_json(run / "space.json", SearchSpace(blocks=(block,) * 6))
    text = Page(write_report(run)).text
    assert "choose from 15,625 subnetworks" in text
    assert "there would be 3 × 10^16" in text
    (run / "importance.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UserError, match=r"importance.safetensors: damaged"):
        write_report(run)


def test_a_table_without_validation_says_so(write_run: Write) -> None:
    run = write_run(bare=True)
    make_table(validation=None).save(run / "table.json")
    page = Page(write_report(run))
    assert "The table was not validated on unseen networks" in page.text
    assert "Some CPU" in page.text
    assert page.tags.count("svg") == 2


def test_a_damaged_table_is_named(write_run: Write) -> None:
    run = write_run(bare=True)
    (run / "table.json").write_text('{"schema_version": 7}', encoding="utf-8")
    with pytest.raises(UserError, match=r"table\.json: "):
        write_report(run)


def test_empty_files_are_as_good_as_none(write_run: Write) -> None:
    run = write_run(bare=True)
    (run / "candidates.jsonl").touch()
    (run / "finalists.jsonl").touch()
    assert "No candidates are recorded" in Page(write_report(run)).text


def test_one_chosen_at_an_absolute_budget(write_run: Write) -> None:
    page = Page(write_report(write_run(bare=True, chosen=[chosen("8ms", THIRD)])))
    assert "8.00 ms" in page.text
    assert "8ms: attention heads" in page.text
    assert "left out" in page.text


def test_nothing_chosen(write_run: Write) -> None:
    page = Page(write_report(write_run(bare=True, chosen=[])))
    assert "No smaller model was chosen" in page.text
    assert "No subnetwork was chosen" in page.text


def test_a_missed_budget_is_said_first(write_run: Write) -> None:
    missed = chosen("50%", HALF, met=False, measured_ms=12.5, ratio=0.584)
    page = Page(write_report(write_run(bare=True, chosen=[missed])))
    assert "Budget 50% was NOT met: 12.5 ms measured, 10.7 ms allowed." in page.text
    assert "of its accuracy" not in page.text
    assert "NO" in page.text.split()


def test_a_budget_met_only_within_the_tolerance_says_so(write_run: Write) -> None:
    within = chosen("50%", HALF, measured_ms=10.75, ratio=0.502)
    page = Page(write_report(write_run(bare=True, chosen=[within])))
    assert "yes , within tolerance" in page.text
    clear = chosen("50%", HALF, measured_ms=10.6, ratio=0.495)
    page = Page(write_report(write_run("clear", bare=True, chosen=[clear])))
    assert "yes , within tolerance" not in page.text


def test_an_unfinished_baseline_is_warned_of(write_run: Write) -> None:
    warning = "while validation was still improving"
    assert warning not in Page(write_report(write_run("done", bare=True))).text
    baseline = make_summary().baseline.model_copy(update={"converged": False})
    assert warning in Page(write_report(write_run("early", bare=True, baseline=baseline))).text


def test_names_are_text_never_markup(write_run: Write) -> None:
    run = write_run(
        model=EVIL,
        task=EVIL,
        target=EVIL,
        strategy=EVIL,
        metric=EVIL,
        splits={EVIL: 3},
        seconds={EVIL: 1.0},
        versions={EVIL: EVIL},
        chosen=[
            chosen("50%", HALF, budget=EVIL, kind=EVIL, runtime=EVIL, precision=EVIL, path=EVIL,
                   parity={EVIL: 0.1})
        ],
    )  # fmt: skip
    candidates = [c.model_copy(update={"kind": EVIL, "budget": EVIL}) for c in make_candidates(5)]
    write_lines(run / "candidates.jsonl", candidates)
    page = Page(write_report(run))
    assert not page.open
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count("alert(1)") > 10


def test_names_that_matplotlib_would_take_for_mathematics(write_run: Write) -> None:
    run = write_run(strategy=r"$\frac{$", chosen=[chosen("50%", HALF, budget=r"$\no{$")])
    assert r"$\no{$: FFN neurons" in Page(write_report(run)).text


def test_long_names_and_many_layers(write_run: Write) -> None:
    deep = [[12, 3072] if i % 3 else [0, 0] for i in range(48)]
    run = write_run(
        bare=True, model="a" * 3000, chosen=[chosen("50%", deep, path="p" * 500, budget="b" * 400)]
    )
    page = Page(write_report(run))
    assert "32 of 48 blocks" in page.text


def test_rivals_are_averaged_over_their_seeds(write_run: Write) -> None:
    run = write_run(seed=0)
    others = [
        write_run(
            f"{strategy}-{seed}",
            bare=True,
            strategy=strategy,
            seed=seed,
            chosen=[chosen("50%", HALF, metric=metric)],
        )
        for strategy, metrics in (("uniform", (73.0, 74.0)), ("layers", (70.0, 71.0)))
        for seed, metric in enumerate(metrics)
    ]
    page = Page(write_report(run, [*others, run, others[0]]))  # each counts once
    assert "50% uniform 0, 1 73.5 % ± 0.7" in page.text
    assert "50% layers 0, 1 70.5 %" in page.text
    assert "50% search 0 73.9 % one run" in page.text
    assert "search is 0.4 points ahead; a single run says little" in page.text
    assert "uniform (2 runs)" in page.text  # in the picture
    assert "Rivals" not in Page(write_report(run)).text


def test_a_rival_of_another_target_is_refused(write_run: Write) -> None:
    run = write_run()
    other = write_run("other", target="torch:cpu:threads=1,batch=1,seq=64")
    with pytest.raises(UserError, match=r"other: its target is 'torch.*same model"):
        write_report(run, [other])
    assert not (run / "report.html").exists()


def test_a_run_that_has_not_ended(write_run: Write) -> None:
    run = write_run()
    (run / "summary.json").unlink()
    with pytest.raises(UserError, match=r"summary\.json: missing.*--resume"):
        write_report(run)
    with pytest.raises(UserError, match="no such run directory"):
        write_report(run / "nowhere")


def test_a_damaged_line_is_named_and_a_torn_last_one_ignored(write_run: Write) -> None:
    run = write_run()
    file = run / "candidates.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"budget": "50%", "rou')
    assert f"{len(whole.splitlines())} evaluations" in Page(write_report(run)).text
    file.write_text(whole + '{"budget": "50%"}\n')
    line = len(whole.splitlines()) + 1
    with pytest.raises(UserError, match=rf"candidates\.jsonl: line {line}: round"):
        write_report(run)
