"""How rows are dealt out to virtual clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from hwnas.errors import UserError
from hwnas.federated.population import deal, load_simulated
from hwnas.federated.recipe import FederatedRecipe

Make = Callable[..., FederatedRecipe]


def _shares(recipe: FederatedRecipe) -> np.ndarray:
    """Of each client's rows, what share each class has: `(clients, classes)`."""
    task = load_simulated(recipe)
    labels = np.asarray(task.train["label"])
    counts = [np.bincount(labels[part], minlength=len(task.labels)) for part in deal(recipe, task)]
    return np.array([count / count.sum() for count in counts])


@pytest.mark.parametrize("split", [{"kind": "dirichlet", "alpha": 0.3}, {"kind": "even"}])
def test_every_row_has_one_client(make_recipe: Make, split: dict[str, object]) -> None:
    recipe = make_recipe(clients={"count": 8, "split": split, "rows": None})
    task = load_simulated(recipe)
    dealt = deal(recipe, task)
    assert sorted(chain(*dealt)) == list(range(len(task.train)))
    assert dealt == deal(recipe, task)  # the same wherever it is asked for
    assert dealt != deal(recipe.model_copy(update={"seed": 1}), task)


def test_a_small_alpha_is_uneven_and_a_large_one_even(make_recipe: Make) -> None:
    def split(alpha: float) -> FederatedRecipe:
        return make_recipe(
            clients={"count": 8, "split": {"kind": "dirichlet", "alpha": alpha, "least": 5}}
        )

    uneven, even = _shares(split(0.1)), _shares(split(1000.0))
    assert even.std(axis=0).max() < 0.1 < 0.25 < uneven.std(axis=0).max()


@pytest.mark.shared_data
def test_natural_groups_stay_together(shared_data: Path, make_recipe: Make, tmp_path: Path) -> None:
    """Questions of three real data sets, whose source is a column: a client has one's, or some."""
    lines, asked = [], {}
    for name, count in (("arc_easy", 300), ("openbookqa", 200), ("boolq", 100)):
        rows = (shared_data / "commonsense" / f"{name}_train.jsonl").read_text().splitlines()
        found = [json.loads(row) for row in rows[:count]]
        asked[name] = {row["instruction"] for row in found}
        lines += [row | {"source": name} for row in found]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # any task that reads the file: rows are dealt out before a model sees them
    task = {"data": str(data), "text": "instruction", "label": "output", "max_length": 32}

    def dealt(count: int) -> list[set[str]]:
        split = {"kind": "groups", "column": "source"}
        recipe = make_recipe(task=task, clients={"count": count, "split": split, "rows": None})
        loaded = load_simulated(recipe)
        texts = loaded.train["text"]
        return [{texts[i] for i in part} for part in deal(recipe, loaded)]

    for part, name in zip(dealt(3), ("arc_easy", "openbookqa", "boolq"), strict=True):
        assert part and part <= asked[name]
    largest, others = dealt(2)
    assert largest <= asked["arc_easy"]
    assert others <= asked["openbookqa"] | asked["boolq"]
    assert others & asked["openbookqa"] and others & asked["boolq"]
    with pytest.raises(UserError, match="4 clients, the column has 3 groups"):
        dealt(4)
