"""Recurrent encoder-decoders at the sizes of Bahdanau et al. (2015): 1000 hidden units, 30,000 words.

RNNsearch has a decoder that attends from inside its recurrence; RNNencdec, what it was compared with (Cho et al.,
2014), knows of the source what its first state is made of. GRUs reset before the product; there are no norms and no
residuals; source and target have tables of their own.

What differs from the papers: a model has one width, here the 2000 of both directions of the encoder, where they have
embeddings of 620 and an output of 500; RNNencdec too reads the source in both directions, and its summary begins the
decoder's state and is not given to every step.
"""

from __future__ import annotations

from llmlab.mixers.bahdanau import Bahdanau
from llmlab.mixers.recurrent import GRU, Both, Summary
from llmlab.models.block import Bare, Block
from llmlab.models.encdec import EncoderDecoder
from llmlab.nn.embed import Embedding, LinearHead
from llmlab.nn.init import Normal
from llmlab.nn.parts import Mixer
from llmlab.nn.stack import repeat

INIT = Normal(std=0.01)


def recurrent(decoder: Mixer, vocab: int) -> EncoderDecoder:
    block = lambda mixer: repeat(Block(mixer=mixer, ffn=None, wiring=Bare()), 1)
    return EncoderDecoder(
        vocab=vocab,
        width=2000,
        embed=Embedding(init=INIT),
        source_embed=Embedding(init=INIT),
        encoder=block(GRU(hidden=1000, reset="before", direction=Both(), init=INIT)),
        stack=block(decoder),
        norm=None,
        source_norm=None,
        head=LinearHead(init=INIT),
    )


def rnnsearch(vocab: int = 30_000) -> EncoderDecoder:
    return recurrent(Bahdanau(hidden=1000, init=INIT), vocab)


def rnnencdec(vocab: int = 30_000) -> EncoderDecoder:
    return recurrent(GRU(hidden=1000, reset="before", initial=Summary(), init=INIT), vocab)
