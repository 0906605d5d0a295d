"""The model card (README.md) of a chosen model: what it is, what was measured, how to load it.

The hub's YAML header names only what is known: no license, which is the original model's, and no
base model unless its name is one the hub could know.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from hwnas.anatomy.heads import auto_name, exported_ending
from hwnas.latency.target import Target
from hwnas.report import text
from hwnas.subnetwork import Subnetwork
from hwnas.summary import Chosen, Summary

TEMPLATE = "card.md.j2"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def card(summary: Summary, chosen: Chosen) -> str:
    """The card of one chosen model as Markdown with a YAML header.

    Loading is shown for torch and for every format in `chosen.parity`; the same card fits each
    format's folder and the folder that holds them.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from hwnas.export import served_folder

    generated = summary.pipeline == "text-generation"
    target = chosen.served_at(Target.parse(summary.target))
    environment = Environment(
        loader=PackageLoader("hwnas.report", ""),
        autoescape=False,  # Markdown; names stand in code spans
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "ms": text.milliseconds,
        "percent": text.percent,
        "count": text.count,
        "code": _code,
    }
    return environment.get_template(TEMPLATE).render(
        header=yaml.safe_dump(_header(summary, chosen), sort_keys=False, allow_unicode=True),
        summary=summary,
        chosen=chosen,
        served=served_folder(target),
        served_at=text.served_at(target),
        metric=text.metric_name(summary.metric),
        score=lambda value: text.metric_value(summary.metric, value),
        structure=text.structure(chosen.genome),
        exported=exported_ending(summary.pipeline),
        auto=auto_name(summary.pipeline),
        # an encoder keeps no cache
        uneven=generated and len({b.heads for _, b in Subnetwork.of(chosen.genome).kept}) > 1,
        blocks=[
            (i, block.heads, block.ffn)
            for i, block in enumerate(Subnetwork.of(chosen.genome).blocks)
        ],
    )


def _header(summary: Summary, chosen: Chosen) -> dict[str, object]:
    header: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": summary.pipeline,
        "tags": ["hwnas", summary.pipeline, *sorted(chosen.parity)],
        "metrics": [summary.metric],
    }
    if _HUB_NAME.fullmatch(summary.model) and not Path(summary.model).exists():
        header["base_model"] = summary.model
    return header


def _code(name: str) -> str:
    """`name` as a Markdown code span on one line, whatever backticks are in it."""
    flat = " ".join(name.split())
    longest = max((len(run) for run in re.findall(r"`+", flat)), default=0)
    if not longest:
        return f"`{flat}`"
    fence = "`" * (longest + 1)
    return f"{fence} {flat} {fence}"
