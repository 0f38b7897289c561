"""An encoder (Devlin et al., 2018): every token sees its whole document; trained on masked tokens, or under a head.

Left out here: classifiers and text embeddings, which are heads on any model (llmlab/models/heads.py).
"""

from __future__ import annotations

from llmlab.config import config
from llmlab.ffn.dense import Mlp
from llmlab.mixers.attention import Attention, Bidirectional
from llmlab.models.block import Block, PostNorm
from llmlab.models.decoder import Model, TokenModel
from llmlab.nn.embed import Embedding, Head, TransformHead
from llmlab.nn.norm import LayerNorm
from llmlab.nn.parts import Norm
from llmlab.nn.position import Learned
from llmlab.nn.stack import Stack, repeat

BLOCK = Block(
    mixer=Attention(view=Bidirectional(), position=None),
    ffn=Mlp(activation="gelu"),
    norm=LayerNorm(),
    wiring=PostNorm(),
)


@config
class Encoder(Model):
    """vocab: entries that are real. norm: after the last layer, None for none (post-norm blocks)."""

    vocab: int = 256
    width: int = 256
    embed: Embedding = Embedding(position=Learned(), norm=LayerNorm())
    stack: Stack = repeat(BLOCK, 4)
    norm: Norm | None = None
    head: Head = TransformHead()

    def declared(self):
        return self.stack.declared()

    def build(self, rngs):
        return TokenModel(self, rngs)
