"""Mamba-2: the whole layer against a loop, its initial values, the contract, cost and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.cost import Shape
from llmlab.mixers.mamba2 import Mamba2
from llmlab.nn import Context, Normal
from llmlab.nn.module import Rngs

DIMS, BATCH, LENGTH = {"D": 8, "N": 4}, 2, 7
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, 8)).astype(np.float32)
CONTEXT = Context(positions_BL=np.tile(np.arange(LENGTH), (BATCH, 1)))


def make(**values):
    layer = Mamba2(**{"chunk": 3, "state": 3, "head_size": 4, "groups": 2} | values).build(DIMS, Rngs(params=0))
    layer.norm_scale[...] = layer.norm_scale[...] + jnp.arange(16.0).reshape(4, 4)  # nothing neutral
    return layer


def loop(layer, x_BLD):
    """The paper's equations, position by position; one document a row."""
    silu, groups = jax.nn.silu, layer.cfg.groups

    def linear(part):
        y = jnp.tensordot(x_BLD, part.w[...], 1)
        return y if part.bias is None else y + part.bias[...]

    def convolved(part, conv):
        past = jnp.pad(linear(part), ((0, 0), (3, 0), (0, 0), (0, 0)))
        return silu(sum(past[:, 3 - j : 3 - j + LENGTH] * conv.taps[j] for j in range(4)) + conv.bias[...])

    value_BLHK, b_BLGS, c_BLGS = (convolved(*pair) for pair in layer.convolved())
    b_BLHS, c_BLHS = (jnp.repeat(a, value_BLHK.shape[2] // groups, 2) for a in (b_BLGS, c_BLGS))
    step_BLH = jnp.clip(jnp.log1p(jnp.exp(linear(layer.step) + layer.step_bias[...])), *layer.cfg.steps)
    decay_BLH = jnp.exp(-jnp.exp(layer.log_rate[...]) * step_BLH)

    def move(S_BHSK, i):
        written_BHK = step_BLH[:, i, :, None] * value_BLHK[:, i]
        S_BHSK = decay_BLH[:, i, :, None, None] * S_BHSK + b_BLHS[:, i, :, :, None] * written_BHK[:, :, None]
        y_BHK = (c_BLHS[:, i, :, :, None] * S_BHSK).sum(2)
        return S_BHSK, y_BHK + layer.skip_scale[...][:, None] * value_BLHK[:, i]

    empty = jnp.zeros((BATCH, value_BLHK.shape[2], b_BLHS.shape[3], value_BLHK.shape[3]))
    y_BLHK = jnp.moveaxis(jax.lax.scan(move, empty, jnp.arange(LENGTH))[1], 0, 1) * silu(linear(layer.gate))
    rows = y_BLHK.reshape(BATCH, LENGTH, groups, -1)
    rows = rows / jnp.sqrt((rows**2).mean(-1, keepdims=True) + layer.cfg.eps)
    y_BLD = jnp.einsum("blhk,hkd->bld", rows.reshape(y_BLHK.shape) * layer.norm_scale[...], layer.out.w[...])
    return y_BLD if layer.out.bias is None else y_BLD + layer.out.bias[...]


@pytest.mark.parametrize("values", [{}, {"groups": 1, "bias": Normal(std=1.0), "steps": (0.01, 0.3)}])
def test_values_and_gradients_are_those_of_the_paper(values):
    layer = make(**values)
    weights_BLD = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    run = lambda layer, x: layer(x, CONTEXT)[0]

    @jax.jit
    def both(layer):
        pairs = [jax.vjp(lambda p, f=f: f(p, X), layer) for f in (run, loop)]
        return [(y_BLD, pull(weights_BLD)) for y_BLD, pull in pairs]

    (y_BLD, grads), (expected_BLD, expected) = both(layer)
    np.testing.assert_allclose(y_BLD, expected_BLD, rtol=1e-4, atol=1e-4)
    for found, value in zip(jax.tree.leaves(grads), jax.tree.leaves(expected)):
        np.testing.assert_allclose(found, value, rtol=2e-3, atol=1e-3)


def test_initial_values_are_those_of_the_authors_code():
    layer = Mamba2(head_size=1, state=4).build({"D": 256, "N": 4}, Rngs(params=0))
    rate_H, step_H = jnp.exp(layer.log_rate[...]), jax.nn.softplus(layer.step_bias[...])
    assert 1 <= rate_H.min() < 1.2 and 15.8 < rate_H.max() <= 16 and abs(float(rate_H.mean()) - 8.5) < 0.5
    assert 0.001 <= step_H.min() < 0.0011 and 0.095 < step_H.max() < 0.1001
    assert (layer.skip_scale[...] == 1).all() and (layer.norm_scale[...] == 1).all()
    assert 0.99 * 512**-0.5 / 2 < jnp.abs(layer.out.w[...]).max() <= 1.0001 * 512**-0.5 / 2  # 4 layers


def test_cost_and_state_of_the_published_size():
    """Mamba2-130M: FLOPS.md's chunked core, 2 Q n N + 2 Q i + 4 N i a token, and 24 heads of 64 x 128 for a state."""
    layer = Mamba2().build({"D": 768, "N": 24}, Rngs(params=0))
    cost = layer.cost(Shape(1, 2048))
    width, inner, keys = 768, 1536, 128
    projections = 2 * width * (2 * inner + 2 * keys + 24) + 2 * inner * width
    assert cost.executed == 2048 * (projections + 2 * 256 * keys + 2 * 256 * inner + 4 * keys * inner)
    conv = 2 * 4 * (inner + 2 * keys)
    assert cost.algorithmic == 2048 * (projections + conv + 5 * inner * keys + 2 * inner)
    state = layer.start(1, 5, CONTEXT)
    assert cost.state == sum(a.nbytes for a in state.values()) == 4 * (inner * keys + 3 * (inner + 2 * keys))


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="Mamba2.chunk is 0; it is 1 or more"):
        Mamba2(chunk=0)
    with pytest.raises(ValueError, match=r"Mamba2.steps is \(0.5, 0.1\); give the least step"):
        Mamba2(steps=(0.5, 0.1))
    with pytest.raises(ValueError, match="16 channels .* in heads of 5 and 1 groups do not divide; choose another"):
        make(head_size=5, groups=1)
