"""Elastic low-rank adapters: a frozen super-network that learns by few weights, then merges them.

LoNAS (Munoz et al., LREC-COLING 2024): beside each elastic layer of a frozen model stands a
low-rank pair, `y = W x + s B A x`, and the pair's slices follow the layer's: a subnetwork of fewer
heads or neurons uses the matching rows of B and columns of A. Its rank is elastic too: a smaller
one uses the first so many. What is cut out is dense, the adapters added to its weights, so nothing
of them is left to be paid for.

Files are peft's. An adapter is of the model as it was: `Order` says how a reordered model differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from hwnas.anatomy import find_family
from hwnas.anatomy.modules import BlockModules, Slot, block_modules, blocks, layer
from hwnas.elastic.layers import ElasticLinear
from hwnas.elastic.residual import name_of
from hwnas.elastic.spec import AdapterSpec
from hwnas.elastic.supernet import SuperNetwork
from hwnas.errors import UserError
from hwnas.files import read_json, read_tensors, replacing, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hwnas.importance.reordering import Order

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of peft's names


class AdaptedLinear(ElasticLinear):
    """An elastic layer with an adapter, whose slices and rank are active prefixes too.

    `down` (peft's `lora_A`) is `(rank, in_features)`, `up` (`lora_B`) `(out_features, rank)` and
    zero at first, so that nothing changes before it is trained.
    """

    down: nn.Parameter
    up: nn.Parameter
    active_rank: int
    scaling: float  # 0 while adapters are off
    dropout: float

    @classmethod
    def beside(cls, linear: ElasticLinear, spec: AdapterSpec) -> AdaptedLinear:
        """An adapter beside the very weights of `linear`, which are frozen."""
        adapted = cls.__new__(cls)
        nn.Module.__init__(adapted)
        for name in ("in_features", "out_features", "active_in", "active_out"):
            setattr(adapted, name, getattr(linear, name))
        adapted.weight, adapted.bias = linear.weight, linear.bias
        adapted.weight.requires_grad_(False)
        if adapted.bias is not None:
            adapted.bias.requires_grad_(False)
        device = linear.weight.device  # in full precision, whatever the frozen weights' is
        first = torch.empty(spec.rank, linear.in_features, device=device)
        second = torch.zeros(linear.out_features, spec.rank, device=device)
        adapted.down, adapted.up = nn.Parameter(first), nn.Parameter(second)
        nn.init.kaiming_uniform_(adapted.down, a=math.sqrt(5))
        adapted.active_rank, adapted.scaling = spec.rank, spec.scaling
        adapted.dropout = spec.drops
        adapted.train(linear.training)
        return adapted

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if not self.scaling:
            return y
        down = self.down[: self.active_rank, : self.active_in]
        up = self.up[: self.active_out, : self.active_rank]
        # at 0 torch would draw numbers all the same, a seventh of a step of SmolLM2
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        dropped = dropped.to(down.dtype)
        return y + (self.scaling * F.linear(F.linear(dropped, down), up)).to(y.dtype)

    def merged(self) -> torch.Tensor:
        """The weight with the adapter added, at the active rank, `(out_features, in_features)`."""
        rank = self.active_rank
        delta = self.scaling * (self.up[:, :rank] @ self.down[:rank])
        return self.weight + delta.to(self.weight.dtype)


class Adapters:
    """The adapters of a super-network, all of whose other weights are frozen.

    Args:
        network: gets an adapter beside each of its elastic layers, in place.
        seed: of their first weights.
    """

    def __init__(self, network: SuperNetwork, spec: AdapterSpec, seed: int = 0) -> None:
        self.network = network
        self.spec = spec
        network.model.requires_grad_(False)
        self._parts = [block_modules(network.family, block) for block in network.blocks]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in self._parts:
                for slot in part.all:
                    holder, name = slot
                    elastic = cast(ElasticLinear, layer(slot))
                    setattr(holder, name, AdaptedLinear.beside(elastic, spec))

    @property
    def layers(self) -> list[AdaptedLinear]:
        """Every adapted layer."""
        return [cast(AdaptedLinear, layer(slot)) for part in self._parts for slot in part.all]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return [p for one in self.layers for p in (one.down, one.up)]

    def set_rank(self, rank: int) -> None:
        """Use the first so many of every adapter's rank.

        Raises:
            UserError: adapters have no such rank.
        """
        if not 0 < rank <= self.spec.rank:
            raise UserError(f"rank {rank}: adapters have ranks from 1 to {self.spec.rank}")
        for one in self.layers:
            one.active_rank = rank

    @contextmanager
    def off(self) -> Iterator[None]:
        """The frozen model as it was, for a while: its own teacher."""
        before = [one.scaling for one in self.layers]
        for one in self.layers:
            one.scaling = 0.0
        try:
            yield
        finally:
            for one, scaling in zip(self.layers, before, strict=True):
                one.scaling = scaling

    @torch.no_grad()
    def merge(self) -> None:
        """Add every adapter to the weights that it stands beside, and be gone; in place.

        At full rank every subnetwork computes what it did before, for an adapter's slices are those
        of its layer. All weights can be trained again.
        """
        for part in self._parts:
            for holder, name in part.all:
                adapted = cast(AdaptedLinear, getattr(holder, name))
                adapted.active_rank = self.spec.rank
                adapted.weight.copy_(adapted.merged())
                setattr(holder, name, ElasticLinear.sharing(adapted))
        self.network.set_subnetwork(self.network.active)
        self.network.model.requires_grad_(True)

    def save(self, folder: Path, order: Order | None = None) -> None:
        """Write the adapters as peft has them, for the full-width model.

        Args:
            order: by which the model was reordered, see `importance.reordering`; the adapter is
                then for the model as it was before.

        Raises:
            UserError: the family's projections are one layer in transformers (GPT-2, BLOOM).
        """
        from safetensors.torch import save_file

        self._require_own_layers()
        tensors = {}
        names = set()
        for path, slot, rows, columns in self._each(order):
            one = cast(AdaptedLinear, layer(slot))
            down, up = one.down.detach(), one.up.detach()
            tensors[f"{_PREFIX}{path}.lora_A.weight"] = _restored(down, columns, 1).contiguous()
            tensors[f"{_PREFIX}{path}.lora_B.weight"] = _restored(up, rows, 0).contiguous()
            names.add(path.rpartition(".")[2])
        with replacing(folder) as partial:
            partial.mkdir()
            save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
            write_json(partial / CONFIG, self._peft_config(sorted(names)))

    def load(self, folder: Path, order: Order | None = None) -> None:
        """Take the weights of an adapter that peft, or `save`, has written.

        Args:
            order: as for `save`.

        Raises:
            UserError: there is none, it is damaged, of another rank, or of another model.
        """
        self._require_own_layers()
        config = read_json(folder / CONFIG)
        rank = config.get("r") if isinstance(config, dict) else None
        if rank != self.spec.rank:
            raise UserError(f"{folder / CONFIG}: rank {rank}, this run's is {self.spec.rank}")
        stored = read_tensors(folder / WEIGHTS)
        scale = _alpha(config) / self.spec.alpha
        unused = set(stored)
        for path, slot, rows, columns in self._each(order):
            one = cast(AdaptedLinear, layer(slot))
            names = [f"{_PREFIX}{path}.lora_{part}.weight" for part in "AB"]
            if names[0] not in stored:
                continue  # the adapter is not of every layer; the others stay as they are
            for name, own, axis, moved in (
                (names[0], one.down, 1, columns),
                (names[1], one.up, 0, rows),
            ):
                if name not in stored or stored[name].shape != own.shape:
                    shape = tuple(stored[name].shape) if name in stored else "missing"
                    raise UserError(
                        f"{folder / WEIGHTS}: {name} is {shape}, the model needs "
                        f"{tuple(own.shape)}; it is of another model"
                    )
                unused.discard(name)
                value = stored[name] if moved is None else stored[name].index_select(axis, moved)
                with torch.no_grad():
                    own.copy_(value * scale if axis == 0 else value)
        if unused == set(stored):
            raise UserError(f"{folder / WEIGHTS}: none of this model's layers is in it")
        if unused:
            raise UserError(
                f"{folder / WEIGHTS}: {min(unused)} is of no layer that has adapters here; merge "
                "it with peft, and start from the merged model"
            )

    def _each(
        self, order: Order | None
    ) -> Iterator[tuple[str, Slot, torch.Tensor | None, torch.Tensor | None]]:
        """Every layer: its name in the model, its slot, how its rows and columns were moved."""
        model = self.network.model
        inside = name_of(model, blocks(model))
        for i, (block, part) in enumerate(zip(self.network.blocks, self._parts, strict=True)):
            paths = {id(module): name for name, module in block.named_modules()}
            for slot, rows, columns in _moves(part, order, i):
                yield f"{inside}.{i}.{paths[id(layer(slot))]}", slot, rows, columns

    def _peft_config(self, names: list[str]) -> dict[str, object]:
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": None,
            "r": self.spec.rank,
            "lora_alpha": self.spec.alpha,
            "lora_dropout": self.spec.drops,
            "target_modules": names,
            "bias": "none",
            "inference_mode": True,
        }

    def _require_own_layers(self) -> None:
        family = find_family(self.network.model.config)
        if family.joined:
            raise UserError(
                f"model family {self.network.shape.family!r}: its queries, keys and values are one "
                "layer in transformers, and peft's adapters are of that; cut out a dense model"
            )


def dense_state(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """The weights of a model as they are once its adapters are merged; None if it has none."""
    adapted = [(n, m) for n, m in model.named_modules() if isinstance(m, AdaptedLinear)]
    if not adapted:
        return None
    state = dict(model.state_dict())
    with torch.no_grad():
        for name, module in adapted:
            state[f"{name}.weight"] = module.merged()
            del state[f"{name}.down"], state[f"{name}.up"]
    return state


def _moves(
    part: BlockModules, order: Order | None, index: int
) -> Iterator[tuple[Slot, torch.Tensor | None, torch.Tensor | None]]:
    """Each slot with the order that its rows and its columns were put into; None: as they were."""
    heads = order.columns[index] if order else None
    shared = order.shared[index] if order else None
    neurons = order.neurons[index] if order else None
    for slot in part.attention_in:
        yield slot, heads, None
    for slot in part.shared_in:
        yield slot, shared, None
    yield part.attention_out, None, heads
    for slot in part.ffn_in:
        yield slot, neurons, None
    yield part.ffn_out, None, neurons


def _restored(tensor: torch.Tensor, order: torch.Tensor | None, axis: int) -> torch.Tensor:
    """The tensor with that axis as it was before it was put into this order."""
    if order is None:
        return tensor
    return tensor.index_select(axis, order.argsort())


def merge_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Add an adapter that peft has written to a model's weights, in place.

    Raises:
        UserError: there is none, or it is of another model.
    """
    network = SuperNetwork(model)
    adapters = Adapters(network, read_spec(folder))
    adapters.load(folder)
    adapters.merge()


# settings of peft's that make another sum of weights and adapter
_OTHER_KINDS = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")


def _alpha(config: dict[str, Any]) -> float:
    """What the product is multiplied by, times the rank (rsLoRA: its root; Kalajdzievski 2023)."""
    alpha, rank = float(config["lora_alpha"]), int(config["r"])
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def read_spec(folder: Path) -> AdapterSpec:
    """The sizes of an adapter that peft has written.

    Raises:
        UserError: there is none, or it is no LoRA.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise UserError(f"{folder / CONFIG}: an adapter of kind {kind}, expected LORA")
    for key in _OTHER_KINDS:
        if config.get(key):
            raise UserError(
                f"{folder / CONFIG}: {key}: {config[key]} is more than plain LoRA; merge it with "
                "peft, and start from the merged model"
            )
    try:
        return AdapterSpec(
            rank=int(config["r"]),
            alpha=_alpha(config),
            dropout=float(config.get("lora_dropout", 0.0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG}: not a usable config: {error}") from None
