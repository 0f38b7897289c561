"""Latent attention against numpy, both ways to decode, its small state, its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.cost import Shape, traced_flops
from llmlab.mixers import Causal
from llmlab.mixers.latent import LatentAttention
from llmlab.nn import Context
from llmlab.nn.bias import Alibi
from llmlab.nn.module import Rngs

BATCH, LENGTH, WIDTH = 2, 14, 8
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
POSITIONS_BL = np.tile(np.arange(LENGTH), (BATCH, 1))
SMALL = dict(heads=2, rank=6, q_rank=5, head_size=4, turned_size=2, value_size=3)


def make(**values):
    return LatentAttention(**SMALL | values).build({"D": WIDTH, "N": 1}, Rngs(params=0))


def test_it_is_the_formula_of_the_paper():
    layer = make()
    layer.norm.scale[...] = jnp.arange(1.0, 7.0)
    w = lambda part: np.asarray(part.w[...])
    root = lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    angle_L = np.arange(LENGTH)[:, None]  # of the one pair of the turned part

    def turn(x_BLHK):
        a, b = x_BLHK[..., 0], x_BLHK[..., 1]
        return np.stack([a * np.cos(angle_L) - b * np.sin(angle_L), b * np.cos(angle_L) + a * np.sin(angle_L)], -1)

    query_BLR = root(X @ w(layer.q_down))
    latent_BLR = root(X @ w(layer.down)) * np.arange(1, 7)
    make_heads = lambda x, part: np.tensordot(x, w(part), 1)
    turned_BL1K = turn((X @ w(layer.k_turned))[:, :, None])
    scores = np.einsum("blhk,bmhk->bhlm", make_heads(query_BLR, layer.q), make_heads(latent_BLR, layer.k))
    scores += np.einsum("blhk,bmk->bhlm", turn(make_heads(query_BLR, layer.q_turned)), turned_BL1K[:, :, 0])
    weights = np.exp(scores * 6**-0.5) * np.tri(LENGTH)
    weights /= weights.sum(-1, keepdims=True)
    y_BLHK = np.einsum("bhlm,bmhk->blhk", weights, make_heads(latent_BLR, layer.v))
    expected_BLD = np.einsum("blhk,hkd->bld", y_BLHK, w(layer.out))
    found_BLD, aux = jax.jit(layer)(X, Context(positions_BL=POSITIONS_BL))
    np.testing.assert_allclose(found_BLD, expected_BLD, rtol=1e-4, atol=1e-5)
    assert aux == {}


@pytest.mark.parametrize("window", [None, 5])
def test_decoding_from_latents_equals_the_parallel_form_in_both_ways(window):
    layer = make(view=Causal(window=window), q_rank=None)
    pad, lengths = 2, (9, 1, 3, 1)  # 9 positions make keys again, fewer absorb; the second row begins with padding
    assert [layer.absorbs(length, window or LENGTH) for length in lengths] == [False, True, True, True]
    bias = Alibi(heads=2).build({}, None)

    @jax.jit
    def run(x_BLD):
        whole_BLD, _ = layer(x_BLD, Context(positions_BL=POSITIONS_BL, bias=bias))
        moved_BLD = x_BLD.at[1].set(jnp.roll(x_BLD[1], pad, 0).at[:pad].set(99.0))
        positions_BL = jnp.stack([jnp.arange(LENGTH), jnp.maximum(jnp.arange(LENGTH) - pad, -1)])
        state, parts = layer.start(BATCH, LENGTH, Context(positions_BL=POSITIONS_BL)), []
        assert jax.tree.map(len, layer.letters) == jax.tree.map(jnp.ndim, state)
        assert sum(a.size for name, a in state.items() if name in ("latent", "turned")) == 2 * (window or LENGTH) * 8
        for start, length in zip(np.cumsum((0, *lengths)), lengths):
            here = slice(start, start + length)
            ctx = Context(positions_BL=positions_BL[:, here], bias=bias)
            y_BLD, state = layer.extend(moved_BLD[:, here], state, ctx)
            parts.append(y_BLD)
        return whole_BLD, jnp.concatenate(parts, 1)

    whole_BLD, y_BLD = run(X)
    np.testing.assert_allclose(y_BLD[0], whole_BLD[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y_BLD[1, pad:], whole_BLD[1, :-pad], rtol=1e-4, atol=1e-5)


def test_cost_is_that_of_the_traced_program_and_the_state_that_of_the_latents():
    for q_rank in (None, 5):
        layer, length = make(q_rank=q_rank), 260  # two tiles
        ctx = Context(positions_BL=np.zeros((1, length), np.int32))
        cost = layer.cost(Shape(1, length, itemsize=2))
        traced = traced_flops(
            lambda x, layer=layer, ctx=ctx: layer(x, ctx)[0], np.zeros((1, length, WIDTH), np.float32)
        )
        assert cost.executed == traced and cost.state == length * (6 + 2) * 2
        pairs = length * (length + 1) // 2
        assert cost.executed - cost.algorithmic == 2 * 2 * (4 + 2 + 3) * (length * length * 3 // 4 - pairs)


def test_absorbing_is_chosen_where_it_costs_fewer_products():
    layer, slots = make(head_size=5, value_size=5), 40

    def products(length, absorbed):
        layer.absorbs = lambda *_: absorbed
        ctx = Context(positions_BL=np.zeros((1, length), np.int32))
        state = layer.start(1, slots, ctx)
        count = traced_flops(lambda x: layer.extend(x, state, ctx)[0], np.zeros((1, length, WIDTH), np.float32))
        del layer.absorbs
        return count

    for length in (1, 17, 18, 36):
        fewer = products(length, True) < products(length, False)
        assert fewer == layer.absorbs(length, slots) == (length < 18), length


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="LatentAttention.q_rank is 0; it is 1 or more"):
        LatentAttention(q_rank=0)
