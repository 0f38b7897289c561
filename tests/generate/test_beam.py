"""Beam search against all continuations there are, for decoders and encoder-decoders."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab import axes
from llmlab.ffn import Mlp
from llmlab.generate import Beam, Generator, Sampling, search
from llmlab.mesh import Mesh
from llmlab.mixers import Attention
from llmlab.mixers.attention import Bidirectional
from llmlab.mixers.cross import CrossAttention
from llmlab.models import Block, Decoder, EncoderDecoder
from llmlab.nn import Context, Embedding, LinearHead, Normal, Rotary, repeat
from llmlab.nn.module import Rngs, split
from llmlab.nn.rotary import LongRope

VOCAB, STOP, MOST = 5, 4, 4
EMBED, FFN = Embedding(init=Normal(std=1.0)), Mlp(hidden=16)
BLOCK = Block(mixer=Attention(heads=4), ffn=FFN)
DECODER = Decoder(vocab=VOCAB, width=16, embed=EMBED, stack=repeat(BLOCK, 2))
PAIR = EncoderDecoder(
    vocab=VOCAB,
    width=16,
    embed=EMBED,
    encoder=repeat(Block(mixer=Attention(heads=4, view=Bidirectional()), ffn=FFN), 1),
    stack=repeat(Block(mixer=Attention(heads=4), cross=CrossAttention(heads=4), ffn=FFN), 2),
)
WAVES = LongRope(short=(1.0, 1.0), long=(3.0, 9.0), factor=4.0, original=3)  # rows of 3 and of 1 grow beyond it
LONG = Block(mixer=Attention(heads=4, position=Rotary(scaling=WAVES), init=Normal(std=1.0)), ffn=FFN)
BORDER = dataclasses.replace(DECODER, stack=repeat(LONG, 2), head=LinearHead(init=Normal(std=1.0)))
PROMPTS, SOURCES = [[1, 2, 0], [3]], [[2, 2], [0, 1, 3, 1]]


def generator(model):
    return Generator(*split(model.build(Rngs(params=1))), Mesh().build(jax.devices()[:1]), axes.data(), "float32")


def continuations():
    """All that end with the stop token, or have MOST tokens."""
    for count in range(1, MOST + 1):
        for tokens in itertools.product(range(VOCAB), repeat=count):
            if STOP not in tokens[:-1] and (tokens[-1] == STOP or count == MOST):
                yield list(tokens)


def ranked(model, beam, prompt, source=None):
    """The best continuation by the parallel form, and its rank."""
    built, rows = model.build(Rngs(params=1)), list(continuations())
    whole = np.array([prompt + row + [0] * (MOST - len(row)) for row in rows])
    at_L = jnp.tile(jnp.arange(whole.shape[1]), (len(rows), 1))

    @jax.jit
    def logp(tokens_BL, length):
        found = Context(positions_BL=jnp.where(at_L < length, at_L, -1))
        if source is not None:
            source_BM = jnp.tile(jnp.array(source), (len(rows), 1))
            at = Context(positions_BL=jnp.tile(jnp.arange(len(source)), (len(rows), 1)))
            found = dataclasses.replace(found, memory_BMD=built.encode(source_BM, at)[0])
        return jax.nn.log_softmax(built.logits(built(tokens_BL, found)[0])[:, length - 1])

    logp_TBV = [np.asarray(logp(whole, len(prompt) + count)) for count in range(MOST)]
    scores = [sum(logp_TBV[j][i, t] for j, t in enumerate(row)) for i, row in enumerate(rows)]
    ranks = [float(beam.rank(score, len(row))) for score, row in zip(scores, rows)]
    best = int(np.argmax(ranks))
    return rows[best], ranks[best]


@pytest.mark.parametrize("penalty", [pytest.param(0.0, marks=pytest.mark.soak), 5.0])
@pytest.mark.parametrize("model", [DECODER, PAIR, BORDER], ids=["decoder", "pair", "border"])
def test_wide_beams_find_the_best_of_all(model, penalty):
    beam = Beam(width=VOCAB**3, penalty=penalty)
    sources = SOURCES if model is PAIR else None
    found = search(generator(model), PROMPTS, MOST, beam, stop=[STOP], sources=sources)
    for row, (tokens, rank) in enumerate(found):
        expected, best = ranked(model, beam, PROMPTS[row], SOURCES[row] if sources else None)
        assert tokens == expected
        np.testing.assert_allclose(rank, best, rtol=1e-4)


def test_one_beam_is_greedy_and_more_are_not_worse():
    made = generator(PAIR)
    greedy = made.generate(PROMPTS, MOST, sampling=Sampling(temperature=0.0), stop=[STOP], sources=SOURCES)
    one = search(made, PROMPTS, MOST, Beam(width=1, penalty=0.0), stop=[STOP], sources=SOURCES)
    assert [tokens for tokens, _ in one] == greedy
    more = search(made, PROMPTS, MOST, Beam(width=3, penalty=0.0), stop=[STOP], sources=SOURCES)
    assert all(rank >= low - 1e-6 for (_, rank), (_, low) in zip(more, one))
    alone = search(made, PROMPTS[1:], MOST, Beam(width=3, penalty=0.0), stop=[STOP], sources=SOURCES[1:])
    assert alone[0][0] == more[1][0]  # padding of prompt and source change nothing


def test_messages():
    with pytest.raises(ValueError, match="width 0 is 1 or more"):
        Beam(width=0)
    with pytest.raises(ValueError, match="source 0 holds no tokens"):
        search(generator(PAIR), [[1]], 2, sources=[[]])
