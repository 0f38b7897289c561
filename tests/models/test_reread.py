"""An encoder-decoder that reads a row twice keeps the contract under a pooled head."""

import dataclasses

import pytest

from llmlab.data import Bytes, Fragments
from llmlab.ffn import Gated
from llmlab.mixers import Attention, Bidirectional, CrossAttention
from llmlab.models import Block, EncoderDecoder, Pooled, Reread
from llmlab.nn import Learned, repeat
from llmlab.nn.embed import SharedEmbedding
from llmlab.tasks import Classification
from llmlab.testing import check_model

TRUNK = EncoderDecoder(
    vocab=257,
    width=16,
    encoder=repeat(Block(mixer=Attention(heads=2, view=Bidirectional()), ffn=Gated(hidden=24)), 1),
    stack=repeat(Block(mixer=Attention(heads=2), cross=CrossAttention(heads=2), ffn=Gated(hidden=24)), 1),
)


POSITION = Learned(length=16)
APART = dataclasses.replace(TRUNK, source_embed=SharedEmbedding(position=POSITION))


@pytest.mark.parametrize("trunk", [Reread(trunk=TRUNK), Reread(trunk=APART, start=2)])
def test_it_keeps_the_contract(trunk):
    data = Fragments(tokenizer=Bytes(), length=16)
    only = ("causality", "packing isolation", "executed = traced FLOPs", "finite gradients", "initial loss near ln V")
    seen = check_model(Pooled(trunk=trunk, classes=16), Classification(), only, data)
    assert seen["causality"].startswith("not applicable")
    assert sum(not text.startswith("not applicable") for text in seen.values()) == 4
