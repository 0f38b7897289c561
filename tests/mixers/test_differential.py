"""Differential attention against numpy, its cost, and a head that cannot be halved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.cost import Shape, traced_flops
from llmlab.mixers import Differential
from llmlab.nn import Context
from llmlab.nn.module import Rngs

BATCH, LENGTH, WIDTH = 2, 9, 8
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
POSITIONS_BL = np.tile(np.arange(LENGTH), (BATCH, 1))


def make(**values):
    return Differential(heads=2, **values).build({"D": WIDTH, "N": 1}, Rngs(params=0))


@pytest.mark.parametrize("layer", [0, 3])
def test_it_is_the_formula_of_the_paper(layer):
    part = make(position=None)
    part.mix[...] = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2)), jnp.float32)
    part.head_norm.scale[...] = jnp.arange(1.0, 5.0)
    heads = lambda matrix: np.tensordot(X, np.asarray(matrix.w[...]), 1)
    q_BLHK, k_BLHK, v_BLHK = heads(part.q), heads(part.k), heads(part.v)

    def weights(cut):
        scores = np.exp(np.einsum("blhk,bmhk->bhlm", q_BLHK[..., cut], k_BLHK[..., cut]) * 2**-0.5)
        scores *= np.tri(LENGTH)
        return scores / scores.sum(-1, keepdims=True)

    start, mix = 0.8 - 0.6 * np.exp(-0.3 * layer), np.asarray(part.mix[...])
    share = np.exp(mix[0] @ mix[1]) - np.exp(mix[2] @ mix[3]) + start
    y_BLHK = np.einsum("bhlm,bmhk->blhk", weights(slice(0, 2)) - share * weights(slice(2, 4)), v_BLHK)
    y_BLHK *= (1 - start) * np.arange(1, 5) / np.sqrt((y_BLHK**2).mean(-1, keepdims=True) + 1e-5)
    expected_BLD = np.einsum("blhk,hkd->bld", y_BLHK, np.asarray(part.out.w[...]))
    ctx = Context(positions_BL=POSITIONS_BL).at(jnp.asarray(layer))
    np.testing.assert_allclose(jax.jit(part)(X, ctx)[0], expected_BLD, rtol=1e-4, atol=1e-5)


def test_each_half_turns_with_its_positions():
    """Scores depend on how far positions lie apart alone, which a rotation of whole heads would also give; so the
    halves are exchanged, and the two kinds of attention must change places."""
    part = make()
    q_BLHK, k_BLHK, _ = part.project(X, Context(positions_BL=POSITIONS_BL))
    for matrix in (part.q, part.k):
        matrix.w[...] = jnp.roll(matrix.w[...], 2, axis=-1)
    turned_q_BLHK, turned_k_BLHK, _ = part.project(X, Context(positions_BL=POSITIONS_BL))
    np.testing.assert_allclose(turned_q_BLHK, np.roll(q_BLHK, 2, axis=-1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(turned_k_BLHK, np.roll(k_BLHK, 2, axis=-1), rtol=1e-5, atol=1e-6)


def test_cost_counts_the_values_twice():
    part, shape = make(), Shape(BATCH, LENGTH)
    products = 8 * BATCH * LENGTH * WIDTH * WIDTH
    assert part.cost(shape).algorithmic == products + 6 * BATCH * WIDTH * LENGTH * (LENGTH + 1) // 2
    traced = traced_flops(lambda x_BLD: part(x_BLD, Context(positions_BL=POSITIONS_BL))[0], X)
    assert part.cost(shape).executed == traced


def test_a_head_that_has_no_halves_is_refused():
    with pytest.raises(ValueError, match="one has 3 elements; give an even head_size"):
        make(head_size=3)
