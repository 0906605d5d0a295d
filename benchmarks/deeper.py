"""A second real encoder for the benchmarks: MiniLM with every layer twice, twelve in all.

No other encoder's weights can be had on the machines these run on. Depth by repeated layers is how
SOLAR (arXiv:2312.15166) and StackBERT grow a network; a fine-tuned one is a working classifier.
"""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn
from transformers import AutoModel

from hwnas.files import replacing
from hwnas.models import load_tokenizer, model_folder

TIMES = 2


def deeper_minilm(folder: Path) -> Path:
    """`folder`, with the model in it, written if it is not there."""
    if not folder.exists():
        shallow = model_folder("demo:minilm")
        model = AutoModel.from_pretrained(shallow)
        layers = [copy.deepcopy(layer) for layer in model.encoder.layer for _ in range(TIMES)]
        model.encoder.layer = nn.ModuleList(layers)
        model.config.num_hidden_layers = len(layers)
        with replacing(folder) as partial:
            model.save_pretrained(partial)
            load_tokenizer(shallow).save_pretrained(partial)
    return folder
