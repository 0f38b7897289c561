"""Rows as text: ends by ids and by texts, half characters, spaces, and likelihoods against plain softmax."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab import axes
from llmlab.data import Bytes
from llmlab.generate import Generator, Reading, likelihoods
from llmlab.mesh import Mesh
from llmlab.mixers import Attention
from llmlab.mixers.attention import Bidirectional
from llmlab.mixers.cross import CrossAttention
from llmlab.models import Block, Decoder, EncoderDecoder
from llmlab.nn import Context, Embedding, Learned, Normal, repeat
from llmlab.nn.module import Rngs, split
from llmlab.tasks.pairs import read_source

BYTES = Bytes().load()


def read(parts, **options):
    reading = Reading(BYTES, **options)
    shown = [reading.push(part.encode() if isinstance(part, str) else part) for part in parts]
    return [*shown, reading.push((), final=True)], reading


def test_a_row_ends_with_an_id_and_with_a_text():
    assert read(["ab", [256, 99]], ends=[256])[0] == ["ab", "", ""]
    shown, reading = read(["one\n", "\nInp", "ut: two"], until=["\nInput:"])
    assert shown == ["one", "\n", "", ""] and reading.done
    shown, reading = read(["a sto", "ry"], until=["stop"])
    assert shown == ["a ", "story", ""] and not reading.done and reading.count == 7
    assert read(["a sto"], until=["stop"])[0] == ["a ", "sto"]  # held back, and shown where nothing more comes
    assert read([[-1, 65]])[0] == ["", ""]  # a row that is done is filled with -1
    assert read(["ab12", "34"], until=["34", "b1234"])[0] == ["a", "", ""]  # the first of two ends


def test_a_character_comes_whole():
    assert read([[0xC3], [0xA9, 0xC3]])[0] == ["", "é", "\ufffd"]


def test_a_row_that_goes_on_keeps_its_space():
    spaced = dataclasses.replace(BYTES, indent=True)
    assert Reading(spaced, before=list(b" The")).push(b" end") == " end" and Reading(spaced).push(b" end") == "end"


MODEL = Decoder(vocab=23, width=16, embed=Embedding(init=Normal(std=1.0)), stack=repeat(Block(), 2))
ROWS = [[3, 7, 1, 4], [3, 7, 9, 2, 22], [3, 7, 1, 1, 1, 1]]


def make(model):
    built = model.build(Rngs(params=0))
    return built, Generator(*split(built), Mesh().build(jax.devices()[:1]), axes.data(), "float32")


def by_hand(built, row, first, source=None):
    ctx = Context(positions_BL=jnp.arange(len(row))[None])
    if source is not None:
        batch = {"source_BM": jnp.array([source]), "source_segments_BM": jnp.ones((1, len(source)), jnp.int32)}
        ctx, _ = read_source(built, {**batch, "tokens_BL": jnp.array([row])}, None, "float32")
    logp = jax.nn.log_softmax(built.logits(built(jnp.array([row]), ctx)[0]))[0]
    return sum(logp[i - 1, row[i]] for i in range(first, len(row)))


@pytest.mark.parametrize("first", [1, 3])
def test_likelihoods_are_those_of_the_softmax(first):
    built, generator = make(MODEL)
    found = likelihoods(generator, ROWS, first)
    np.testing.assert_allclose(found, [by_hand(built, row, first) for row in ROWS], rtol=1e-5)


def test_likelihoods_of_an_encoder_decoder():
    reads, writes = Attention(heads=4, view=Bidirectional()), Block(cross=CrossAttention(heads=4))
    pair = EncoderDecoder(
        vocab=23, width=16, embed=Embedding(init=Normal(std=1.0)), encoder=repeat(Block(mixer=reads), 1),
        stack=repeat(writes, 1),
    )  # fmt: skip
    built, generator = make(pair)
    source = [2, 2, 5]  # padded to four, and the padding is not read
    found = likelihoods(generator, ROWS[:2], 1, source)
    np.testing.assert_allclose(found, [by_hand(built, row, 1, source) for row in ROWS[:2]], rtol=1e-5)


def test_rows_that_cannot_be_scored():
    model = dataclasses.replace(MODEL, embed=Embedding(position=Learned(length=5)), stack=repeat(Block(), 1))
    _, generator = make(model)
    for first in (0, 4):
        with pytest.raises(ValueError, match=f"rows of 4 tokens or more cannot be scored from token {first} on"):
            likelihoods(generator, ROWS, first)
    assert len(likelihoods(generator, [[1] * 6, [2] * 6], 2)) == 2
    with pytest.raises(ValueError, match="6 positions, and the model has 5"):
        likelihoods(generator, [[1] * 7, [2] * 7], 2)
