"""A tokenizer that trainings of tiny models pad with."""

import pytest
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models

    vocab = {f"t{i}": i for i in range(64)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="t1")), pad_token="t0"
    )
