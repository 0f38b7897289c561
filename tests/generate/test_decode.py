"""Generation against the slow way: the whole sequence through the parallel form for every token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab import axes
from llmlab.ffn import Mlp
from llmlab.generate import Beam, Generator, Sampling, search
from llmlab.mesh import Mesh
from llmlab.mixers import Attention, Causal
from llmlab.models import Block, Decoder
from llmlab.nn import Context, Embedding, Learned, Normal, Rotary, repeat
from llmlab.nn.module import Rngs, split
from llmlab.nn.rotary import LongRope

GREEDY, MOST = Sampling(temperature=0.0), 18  # more than one scan
BLOCK = Block(mixer=Attention(heads=4, kv_heads=2, view=Causal(window=6)), ffn=Mlp(hidden=16))
EMBED = Embedding(multiple=4, init=Normal(std=1.0))
MODEL = Decoder(vocab=23, width=16, embed=EMBED, stack=repeat(BLOCK, 2))
PROMPTS = [[3], [7, 1, 4, 4, 9, 2, 22], [5, 6, 5, 6]]
LENGTH = 32


@pytest.fixture(scope="module")
def built():
    return MODEL.build(Rngs(params=0))


@pytest.fixture(scope="module")
def generator(built):
    return Generator(*split(built), Mesh().build(jax.devices()[:1]), axes.data(), "float32")


@pytest.fixture(scope="module")
def slow(built):
    """The greedy continuation of each prompt."""

    @jax.jit
    def following(tokens_BL):
        hidden_BLD, _ = built(tokens_BL, Context(positions_BL=jnp.tile(jnp.arange(LENGTH), (len(PROMPTS), 1))))
        return built.logits(hidden_BLD).argmax(-1)

    tokens_BL = np.zeros((len(PROMPTS), LENGTH), int)
    for row, prompt in enumerate(PROMPTS):
        tokens_BL[row, : len(prompt)] = prompt
    rows = np.arange(len(PROMPTS))
    ends = np.array([len(prompt) for prompt in PROMPTS])
    for step in range(MOST):
        tokens_BL[rows, ends + step] = np.asarray(following(tokens_BL))[rows, ends + step - 1]
    return [tokens_BL[row, end : end + MOST].tolist() for row, end in enumerate(ends)]


def test_prompts_of_different_lengths_are_continued_as_each_alone(generator, slow):
    assert generator.generate(PROMPTS, MOST, sampling=GREEDY) == slow
    assert generator.generate(PROMPTS[1:2], 5, sampling=GREEDY) == [slow[1][:5]]
    assert len({tuple(row) for row in slow}) == 3 and len(set(slow[1])) > 3  # it is no constant


def test_a_row_ends_with_its_stop_token(generator, slow):
    stop = slow[1][4]
    expected = [row[: row.index(stop) + 1] if stop in row else row for row in slow]
    assert generator.generate(PROMPTS, MOST, sampling=GREEDY, stop=[stop]) == expected
    parts = list(generator.stream(PROMPTS, MOST, sampling=GREEDY, stop=[stop]))
    assert [part.shape[1] for part in parts][:2] == [1, 16] and sum(part.shape[1] for part in parts) <= MOST
    assert (np.concatenate(parts, 1)[1, len(expected[1]) :] == -1).all()


def test_all_rows_done_ends_the_stream(generator, slow):
    everything = range(MODEL.vocab)
    assert generator.generate(PROMPTS, MOST, sampling=GREEDY, stop=everything) == [[row[0]] for row in slow]
    assert generator.generate(PROMPTS, 1, sampling=GREEDY) == [[row[0]] for row in slow]


def test_rows_that_grow_beyond_the_border_are_read_anew():
    """Each at a step of its own, and one after it has ended."""
    waves = LongRope(short=(1.0, 1.0), long=(3.0, 9.0), factor=4.0, original=12)
    block = Block(mixer=Attention(heads=4, position=Rotary(scaling=waves)), ffn=Mlp(hidden=16))
    built = dataclasses.replace(MODEL, stack=repeat(block, 2)).build(Rngs(params=0))
    generator = Generator(*split(built), Mesh().build(jax.devices()[:1]), axes.data(), "float32")

    @jax.jit
    def following(tokens_1L, length):
        positions_1L = jnp.where(jnp.arange(LENGTH) < length, jnp.arange(LENGTH), -1)[None]
        hidden_1LD, _ = built(tokens_1L, Context(positions_BL=positions_1L))
        return built.logits(hidden_1LD)[0, length - 1].argmax()

    slow = []
    for prompt in PROMPTS:
        text = list(prompt)
        for _ in range(MOST):
            text.append(int(following(np.pad(text, (0, LENGTH - len(text)))[None], len(text))))
        slow.append(text[len(prompt) :])
    found = list(generator.stream(PROMPTS, MOST, sampling=GREEDY))
    assert np.concatenate(found, 1).tolist() == slow
    assert [part.shape[1] for part in found] == [1, 5, 1, 2, 1, 2, 1, 5]  # rows of 7, 4 and 1 reach 12
    stop = slow[1][3]
    expected = [row[: row.index(stop) + 1] if stop in row else row for row in slow]
    assert generator.generate(PROMPTS, MOST, sampling=GREEDY, stop=[stop]) == expected
    assert [tokens for tokens, _ in search(generator, PROMPTS, MOST, Beam(width=1))] == slow


def test_over_eight_devices_a_batch_of_any_size_gives_the_same(built, slow):
    mesh = Mesh(data=2, fsdp=2, tensor=2).build()
    generator = Generator(*split(built), mesh, axes.every(), "float32")
    assert generator.generate(PROMPTS, 9, sampling=GREEDY) == [row[:9] for row in slow]


def test_samples_follow_the_seed(generator):
    first, again, other = (generator.generate(PROMPTS, MOST, seed=seed) for seed in (1, 1, 2))
    assert first == again != other and all(0 <= token < MODEL.vocab for row in first + other for token in row)


def test_wrong_requests_are_refused(generator):
    with pytest.raises(ValueError, match="prompt 1 holds no tokens; generation needs at least one"):
        next(generator.stream([[1], []], 4))
    with pytest.raises(ValueError, match="1 new token or more, not 0"):
        next(generator.stream([[1]], 0))


def test_learned_positions_limit_the_row_and_not_its_padding():
    model = dataclasses.replace(MODEL, embed=Embedding(position=Learned(length=24)), stack=repeat(BLOCK, 1))
    mesh = Mesh().build(jax.devices()[:1])
    generator = Generator(*split(model.build(Rngs(params=0))), mesh, axes.data(), "float32")
    assert len(generator.generate([[1] * 17], 7)[0]) == 7
    with pytest.raises(ValueError, match="25 positions, and the model has 24"):
        generator.generate([[1] * 17], 8)


def test_the_cache_is_written_in_place_and_layers_are_views(built):
    structure, params, stats = split(built)
    generator = Generator(structure, params, stats, Mesh().build(jax.devices()[:1]), axes.data(), "float32")
    stacked, own = params["stack"]["segments"]["0"]["0"], generator.params["stack"]["segments"]["0"]
    for index in range(2):
        w, view = stacked["mixer"]["q"]["w"], own[str(index)]["mixer"]["q"]["w"]
        assert view.unsafe_buffer_pointer() == w.unsafe_buffer_pointer() + index * w[0].nbytes
    wide = dataclasses.replace(MODEL, stack=repeat(dataclasses.replace(BLOCK, mixer=Attention(heads=4)), 3))
    generator = Generator(*split(wide.build(Rngs(params=0))), generator.mesh, generator.rules, "float32")
    rows = generator.rows(PROMPTS, 500)
    tokens_B, carry = generator.prefill(generator.params, generator.stats, rows, jax.random.key(0), 512, GREEDY)
    given = (tokens_B, tokens_B < 0, *carry)
    extend = generator.extend.lower(generator.params, generator.stats, given, jax.random.key(0), 1, GREEDY, ())
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(carry[1]))
    assert extend.compile().memory_analysis().temp_size_in_bytes < size / 4


def test_several_rows_are_continued_in_half_precision(built):
    """The prefill of rows of 32 tokens once met a product that XLA's CPU backend has not."""
    half = Generator(*split(built), Mesh().build(jax.devices()[:1]), axes.data(), "bfloat16")
    mixer = half.params["stack"]["segments"]["0"]["0"]["mixer"]  # each product reads a weight that lies for few rows
    assert mixer["q"]["turned"].dtype == jnp.bfloat16 and mixer["q"]["turned"].shape[-1] == mixer["q"]["w"].shape[1]
    prompts = np.random.default_rng(0).integers(1, 23, (4, 32)).tolist()
    together = half.generate(prompts, 3, sampling=GREEDY)
    assert together == [half.generate([prompt], 3, sampling=GREEDY)[0] for prompt in prompts]
