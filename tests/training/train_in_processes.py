"""What `torchrun` runs in `test_processes`: one short training, whose weights the first one saves.

torchrun --nproc_per_node 2 train_in_processes.py OUT KIND ACCUMULATE

KIND: dense, supernet, adapters or adapters-supernet.
"""

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from hwnas.elastic.spec import AdapterSpec
from hwnas.elastic.supernet import SuperNetwork
from hwnas.space import SearchSpace
from hwnas.tasks.language import Language
from hwnas.training.optimization import Optimization
from hwnas.training.sampling import Sandwich
from hwnas.training.trainer import train


def main() -> None:
    """Train, and save."""
    out, kind, accumulate = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    from tokenizers import Tokenizer, models

    torch.set_num_threads(1)
    vocab = {f"t{i}": i for i in range(64)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="t1")), pad_token="t0"
    )
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
    )
    torch.manual_seed(0)
    # Adam divides gradients by their size: rounding would make steps of what should be none
    torch.set_default_dtype(torch.float64)
    if kind.startswith("adapters"):
        model = _train_adapters(out, accumulate, elastic=kind == "adapters-supernet")
    else:
        model = _train_encoder(config, tokenizer, out, accumulate, elastic=kind == "supernet")
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
        save_file(weights, out / "w.safetensors")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _ids() -> list[list[int]]:
    """Of several lengths: the passes and processes of a step have unequal shares of its tokens."""
    rng = random.Random(0)
    return [[rng.randrange(2, 64) for _ in range(rng.randrange(4, 30))] for _ in range(160)]


def _train_encoder(config, tokenizer, out: Path, accumulate: int, *, elastic: bool):
    model = BertForSequenceClassification(config)
    teacher = BertForSequenceClassification(config).eval()
    ids = _ids()
    examples = Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "labels": [row[0] % 3 for row in ids],
            "length": [len(row) for row in ids],
        }
    )
    settings = Optimization(
        steps=8,
        learning_rate=1e-3,
        batch=16,
        accumulate=accumulate,
        relations_weight=0.5,
        states_weight=0.5,
        checkpoint_every=100,
    )
    network = SuperNetwork(model) if elastic else model
    space = SearchSpace.whole(SuperNetwork(BertForSequenceClassification(config)).shape)
    sandwich = Sandwich(space, seed=0) if elastic else None
    train(network, tokenizer, examples, settings, out / "work", teacher=teacher, sandwich=sandwich)
    return model


def _train_adapters(out: Path, accumulate: int, *, elastic: bool):
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    model = LlamaForCausalLM(config)
    ids = _ids()
    examples = Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "labels": ids,
            "length": [len(row) for row in ids],
        }
    )
    settings = Optimization(
        steps=8,
        learning_rate=1e-3,
        batch=16,
        accumulate=accumulate,
        checkpoint_every=100,
        adapters=AdapterSpec(rank=3, dropout=0.0),
    )
    network = SuperNetwork(model) if elastic else None
    train(
        network or model,
        SimpleNamespace(pad_token_id=0),
        examples,
        settings,
        out / "work",
        kind=Language(),
        own_teacher=elastic,
        sandwich=Sandwich(SearchSpace.whole(network.shape), seed=0) if network else None,
    )
    return model


if __name__ == "__main__":
    main()
