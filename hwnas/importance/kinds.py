"""How important each part of a model is: four ways to measure it.

- `first_order`: the loss changes by about w·∂L/∂w when a weight is removed (EFTNAS, section 3;
  Molchanov et al. 2019). Summed over the weights through which a part acts on the rest (its columns
  of the output projection) this is the gradient of a gate on the part; its absolute value, averaged
  over small batches, is the score.
- `fisher`: the same squared, which is the second-order term where the loss is at its least and the
  Hessian is taken to be the diagonal Fisher matrix (LeCun et al. 1990; Theis et al. 2018).
- `movement`: -w·∂L/∂w summed over a fine-tuning (Sanh et al. 2020): weights that grow matter.
- `magnitude`: the size of the weights, which needs no data.

Scores can be divided by a norm of their block's, so that no block loses all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hwnas.anatomy import find_family
from hwnas.anatomy.dense import take_apart
from hwnas.anatomy.modules import BlockModules, Slot, block_modules, blocks, layer
from hwnas.files import read_tensors, replacing
from hwnas.importance.scores import Importance, Tensors
from hwnas.importance.spec import ImportanceSpec
from hwnas.processes import leading
from hwnas.progress import bar
from hwnas.tasks.predict import outputs_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# (a model's outputs, its inputs with labels) -> the loss
Loss = Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor]
# name of a parameter -> the product of weight and gradient, or what was made of it
Products = Mapping[str, torch.Tensor]
Measure = Callable[[torch.Tensor], torch.Tensor]


def measure(
    model: PreTrainedModel,
    batches: Sequence[Mapping[str, torch.Tensor]],
    spec: ImportanceSpec | None = None,
    *,
    loss_of: Loss | None = None,
    movement: Products | None = None,
) -> Importance:
    """Score every part of `model`.

    Args:
        batches: of inputs with labels, each with `input_ids`, `attention_mask`, `labels` …; small
            ones (8 to 16 examples) tell more than large ones, for each counts by its absolute
            value. `magnitude` and `movement` need none.
        spec: by default first order.
        loss_of: the loss of a batch's outputs, whose change is looked at; by default the model's.
        movement: what `Movement` summed up during a fine-tuning of this model.
    """
    spec = spec or ImportanceSpec()
    take_apart(model)  # what several parts share has no part's scores
    parts = _Parts(model)
    if spec.kind == "magnitude":
        weights = {name: p.detach().square() for name, p in parts.parameters.items()}
        found = parts.scores([weights], torch.sqrt)
    elif spec.kind == "movement":
        if movement is None:
            raise ValueError("movement is summed up during a fine-tuning: give what it gave")
        found = _shifted(parts.scores([movement], torch.Tensor.clone))
    else:
        products = _products(model, parts, batches, loss_of)
        found = parts.scores(products, torch.abs if spec.kind == "first_order" else torch.square)
    if spec.kind == "movement" and spec.threshold == "hard":
        return _ranked(found)
    return _normalised(found, spec.normalise)


def _products(
    model: PreTrainedModel,
    parts: _Parts,
    batches: Sequence[Mapping[str, torch.Tensor]],
    loss_of: Loss | None,
) -> Iterator[Products]:
    """Weight times gradient of every weight that is looked at, batch by batch."""
    names, weights = zip(*parts.parameters.items(), strict=True)
    was_training = model.training
    model.eval()
    with bar("importance", len(batches)) as advance:
        for batch in batches:
            inputs = {name: value.to(model.device) for name, value in batch.items()}
            outputs: Any = model(**inputs) if loss_of is None else outputs_of(model, inputs)
            loss = outputs.loss if loss_of is None else loss_of(outputs, inputs)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            yield {
                name: torch.zeros_like(w) if g is None else w.detach() * g
                for name, w, g in zip(names, weights, gradients, strict=True)
            }
            advance(1)
    model.train(was_training)


class _Parts:
    """The weights of each part, by the names of the parameters."""

    def __init__(self, model: PreTrainedModel) -> None:
        family = find_family(model.config)
        self.shape = family.shape(model.config)
        self.blocks = [block_modules(family, block) for block in blocks(model)]
        named = {id(p): name for name, p in model.named_parameters()}
        self.names = {
            id(linear.weight): named[id(linear.weight)]
            for part in self.blocks
            for linear in map(layer, part.all)
        }
        embeddings = model.get_input_embeddings()
        self.embedding = ""
        parameters = dict(model.named_parameters())
        if isinstance(embeddings, torch.nn.Embedding):
            self.embedding = named[id(embeddings.weight)]
        wanted = [*self.names.values(), *([self.embedding] if self.embedding else [])]
        self.parameters = {name: parameters[name] for name in wanted}

    def scores(self, of_batches: Iterable[Products], measure_of: Measure) -> Importance:
        """The mean over batches of `measure_of` what a part's products sum up to."""
        totals: list[list[torch.Tensor]] = []
        count = 0
        for products in of_batches:
            found = self._of_one(products, measure_of)
            totals = [_added(*pair) for pair in zip(totals, found, strict=True)] if count else found
            count += 1
        heads, ffn, head_weights, ffn_weights, layers, (residual, vocabulary) = (
            tuple((total / count).cpu() for total in each) for each in totals
        )
        return Importance(
            heads, ffn, head_weights, ffn_weights, torch.stack(layers), residual, vocabulary
        )

    def _of_one(self, products: Products, measure_of: Measure) -> list[list[torch.Tensor]]:
        """By block: heads, FFN, single weights of both, layers; then residual and vocabulary."""
        gates = [self._gates(part, products) for part in self.blocks]
        single = [self._single(part, products, measure_of) for part in self.blocks]
        reading = [
            self._of(slot, products).sum(0)
            for part in self.blocks
            for slot in (*part.attention_in, *part.shared_in, *part.ffn_in)
        ]
        rows = products[self.embedding].sum(1) if self.embedding else torch.empty(0)
        return [
            [measure_of(heads) for heads, _ in gates],
            [measure_of(ffn) for _, ffn in gates],
            [heads for heads, _ in single],
            [ffn for _, ffn in single],
            # a block that is left out takes both away from the residual stream
            [measure_of(heads.sum()) + measure_of(ffn.sum()) for heads, ffn in gates],
            [torch.stack([measure_of(r) for r in reading]).sum(0), measure_of(rows)],
        ]

    def _of(self, slot: Slot, products: Products) -> torch.Tensor:
        return products[self.names[id(layer(slot).weight)]]

    def _gates(self, part: BlockModules, products: Products) -> tuple[torch.Tensor, torch.Tensor]:
        """What gates on the heads and on the neurons would have as weight times gradient."""
        attention, ffn = (
            self._of(slot, products).sum(0) for slot in (part.attention_out, part.ffn_out)
        )
        return attention.view(-1, self.shape.head_size).sum(1), ffn

    def _single(
        self, part: BlockModules, products: Products, measure_of: Measure
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean over all weights of each head, and of each neuron."""

        def by_rows(slot: Slot) -> torch.Tensor:
            return measure_of(self._of(slot, products)).mean(1)

        def by_columns(slot: Slot) -> torch.Tensor:
            return measure_of(self._of(slot, products)).mean(0)

        def by_head(columns: torch.Tensor) -> torch.Tensor:
            return columns.view(-1, self.shape.head_size).mean(1)

        heads = [by_head(by_rows(slot)) for slot in part.attention_in]
        heads += [
            by_head(by_rows(slot)).repeat_interleave(self.shape.group) for slot in part.shared_in
        ]
        heads.append(by_head(by_columns(part.attention_out)))
        ffn = [*(by_rows(slot) for slot in part.ffn_in), by_columns(part.ffn_out)]
        return torch.stack(heads).mean(0), torch.stack(ffn).mean(0)


def _added(one: list[torch.Tensor], other: list[torch.Tensor]) -> list[torch.Tensor]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _changed(found: Importance, change: Callable[[Tensors], Tensors]) -> Importance:
    """The scores of heads and of neurons, as they are compared, changed together."""
    depth = len(found.heads)
    parts = change((*found.heads, *found.ffn))
    weights = change((*found.head_weights, *found.ffn_weights))
    return replace(
        found,
        heads=parts[:depth],
        ffn=parts[depth:],
        head_weights=weights[:depth],
        ffn_weights=weights[depth:],
    )


def _shifted(found: Importance) -> Importance:
    """Signed scores made scores of which the least is 0; what is compared is shifted alike."""

    def shift(parts: Tensors) -> Tensors:
        least = min(float(part.min()) for part in parts)
        return tuple(part - least for part in parts)

    (layers,) = shift((found.layers,))
    (residual,) = shift((found.residual,))
    rows = found.vocabulary
    vocabulary = rows - rows.min() if len(rows) else rows
    return replace(_changed(found, shift), layers=layers, residual=residual, vocabulary=vocabulary)


def _ranked(found: Importance) -> Importance:
    """Each score as its rank among its block's, from 1 / n to 1: all blocks then lose alike."""

    def rank(parts: Tensors) -> Tensors:
        return tuple((part.argsort().argsort() + 1) / len(part) for part in parts)

    return _changed(found, rank)


def _normalised(found: Importance, by: str) -> Importance:
    if by == "none":
        return found

    def divide(parts: Tensors) -> Tensors:
        return tuple(
            part / (part.sum() if by == "sum" else part.norm()).clamp_min(1e-30) for part in parts
        )

    return _changed(found, divide)


class Movement(TrainerCallback):
    """Sums up -w·∂L/∂w at every step of a training, so far also beside each of its checkpoints.

    Args:
        kept: the file of the sums.
        steps: after how many steps they are written; at the end, if that comes first.
    """

    def __init__(self, kept: Path, steps: int) -> None:
        self.kept = kept
        self.steps = steps
        self.sums: dict[str, torch.Tensor] = {}
        self._parts: _Parts | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_: Any,
    ) -> None:
        assert model is not None
        self._parts = _Parts(model)
        if state.global_step:
            kept = read_tensors(self._at(state.global_step))
            self.sums = {n: kept[n].to(p.device) for n, p in self._parts.parameters.items()}
        else:
            self.sums = {n: torch.zeros_like(p) for n, p in self._parts.parameters.items()}

    @torch.no_grad()
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        assert self._parts is not None
        for name, parameter in self._parts.parameters.items():
            if parameter.grad is not None:
                self.sums[name] -= parameter * parameter.grad

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step == self.steps:
            self._save(self.kept)
        if control.should_save:  # before the checkpoint: whoever finds it finds its sums
            self._save(self._at(state.global_step))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not leading():
            return
        for path in self.kept.parent.glob(f"{self.kept.stem}-*.safetensors"):
            if path != self._at(state.global_step):
                path.unlink()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step < self.steps:
            self._save(self.kept)

    def _at(self, step: int) -> Path:
        return self.kept.with_name(f"{self.kept.stem}-{step}.safetensors")

    def _save(self, path: Path) -> None:
        if not leading():
            return
        from safetensors.torch import save_file

        with replacing(path) as partial:
            save_file(self.sums, partial)
