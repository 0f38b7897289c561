"""An encoder-decoder that reads a row twice keeps the contract under a pooled head."""

import pytest

from llmlab.data import Bytes, Fragments
from llmlab.ffn import Gated
from llmlab.mixers import Attention, Bidirectional, CrossAttention
from llmlab.models import Block, EncoderDecoder, Pooled, Reread
from llmlab.nn import Embedding, repeat
from llmlab.tasks import Classification
from llmlab.testing import check_model

TRUNK = EncoderDecoder(
    vocab=257,
    width=16,
    encoder=repeat(Block(mixer=Attention(heads=2, view=Bidirectional()), ffn=Gated(hidden=24)), 1),
    stack=repeat(Block(mixer=Attention(heads=2), cross=CrossAttention(heads=2), ffn=Gated(hidden=24)), 1),
)


def test_it_keeps_the_contract():
    model = Pooled(trunk=Reread(trunk=TRUNK), classes=16)
    data = Fragments(tokenizer=Bytes(), length=16)
    only = ("causality", "packing isolation", "executed = traced FLOPs", "finite gradients", "initial loss near ln V")
    seen = check_model(model, Classification(), only, data)
    assert seen["causality"].startswith("not applicable")
    assert sum(not text.startswith("not applicable") for text in seen.values()) == 4


def test_an_embedding_of_its_own_for_the_source_is_refused():
    with pytest.raises(ValueError, match="Reread.trunk has a source_embed"):
        Reread(trunk=EncoderDecoder(source_embed=Embedding()))
