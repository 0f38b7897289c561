"""DeltaNet: the layer against a loop, what a key that comes again does to the state, the contract, cost, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.cost import Shape
from llmlab.mixers.decay import PerChannel
from llmlab.mixers.delta import DeltaNet, gated_delta_net
from llmlab.nn import Context
from llmlab.nn.module import Rngs

DIMS, BATCH, LENGTH = {"D": 8, "N": 1}, 2, 7
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, 8)).astype(np.float32)
CONTEXT = Context(positions_BL=np.tile(np.arange(LENGTH), (BATCH, 1)))


def make(cfg=None, **values):
    return dataclasses.replace(cfg or DeltaNet(heads=2), chunk=3, **values).build(DIMS, Rngs(params=0))


def loop(layer, x_BLD):
    """The equations of the papers, position by position; one document a row."""
    linear = lambda part: jnp.tensordot(x_BLD, part.w[...], 1)
    silu, unit = jax.nn.silu, lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def convolved(part, conv):
        past = jnp.pad(linear(part), ((0, 0), (3, 0), (0, 0), (0, 0)))
        return silu(sum(past[:, 3 - j : 3 - j + LENGTH] * conv.taps[j] for j in range(4)))

    q_BLHS, k_BLHS, v_BLHK = (convolved(*pair) for pair in layer.convolved().values())
    q_BLHS, k_BLHS = unit(q_BLHS) * q_BLHS.shape[-1] ** -0.5, unit(k_BLHS)
    beta_BLH = layer.cfg.largest / (1 + jnp.exp(-linear(layer.beta)))
    a_BLH = jnp.ones_like(beta_BLH)
    if layer.decay is not None:
        step_BLH = jnp.log1p(jnp.exp(linear(layer.decay.step) + layer.decay.bias[...]))
        a_BLH = jnp.exp(-jnp.exp(layer.decay.log_rate[...]) * step_BLH)

    def move(S_BHSK, i):
        k_BHS, v_BHK, q_BHS = k_BLHS[:, i], v_BLHK[:, i], q_BLHS[:, i]
        S_BHSK = a_BLH[:, i, :, None, None] * S_BHSK
        error_BHK = beta_BLH[:, i, :, None] * (v_BHK - (k_BHS[..., None] * S_BHSK).sum(2))
        S_BHSK = S_BHSK + k_BHS[..., None] * error_BHK[:, :, None]
        return S_BHSK, (q_BHS[..., None] * S_BHSK).sum(2)

    empty = jnp.zeros((BATCH, *k_BLHS.shape[2:], v_BLHK.shape[-1]))
    y_BLHK = jnp.moveaxis(jax.lax.scan(move, empty, jnp.arange(LENGTH))[1], 0, 1)
    y_BLHK = y_BLHK / jnp.sqrt((y_BLHK**2).mean(-1, keepdims=True) + 1e-5) * layer.norm.scale[...]
    if layer.gate is not None:
        y_BLHK = y_BLHK * silu(linear(layer.gate))
    return jnp.einsum("blhk,hkd->bld", y_BLHK, layer.out.w[...])


@pytest.mark.parametrize(
    "cfg",
    [pytest.param(DeltaNet(heads=2, largest=2.0), id="delta", marks=pytest.mark.soak), gated_delta_net(2)],
)
def test_values_and_gradients_are_those_of_the_paper(cfg):
    layer = make(cfg)
    layer.norm.scale[...] = layer.norm.scale[...] + jnp.arange(layer.norm.scale.shape[0])
    weights_BLD = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    run = lambda layer, x: layer(x, CONTEXT)[0]

    @jax.jit
    def both(layer):
        pairs = [jax.vjp(lambda p, f=f: f(p, X), layer) for f in (run, loop)]
        return [(y_BLD, pull(weights_BLD)) for y_BLD, pull in pairs]

    (y_BLD, grads), (expected_BLD, expected) = both(layer)
    np.testing.assert_allclose(y_BLD, expected_BLD, rtol=1e-3, atol=1e-3)
    for found, value in zip(jax.tree.leaves(grads), jax.tree.leaves(expected)):
        np.testing.assert_allclose(found, value, rtol=1e-2, atol=1e-2 * np.abs(value).max())


def test_a_key_that_comes_again_replaces_its_value():
    """With beta 1 the state holds the last value of a key, and nothing of the one before."""
    layer = make(DeltaNet(heads=1))
    key_BLHS, ones_BLH = jnp.broadcast_to(jnp.arange(1.0, 9.0), (1, 2, 1, 8)), jnp.ones((1, 2, 1))
    v_BLHK = jnp.array([[[[5.0] * 8], [[1.0, 2, 3, 4, 5, 6, 7, 8]]]])
    _, state_BHSK = layer.mix(key_BLHS, key_BLHS, v_BLHK, ones_BLH, jnp.zeros((1, 2, 1)), None)
    unit_S = np.arange(1, 9) / np.linalg.norm(np.arange(1, 9))
    np.testing.assert_allclose(np.einsum("s,sk->k", unit_S, state_BHSK[0, 0]), v_BLHK[0, 1, 0], rtol=1e-4)


def test_cost_of_the_core_and_of_the_state():
    layer = make(keys=0.5, values=1.5, gate="silu")
    cost, keys, values = layer.cost(Shape(3, 10)), 2, 6
    projections = sum(
        p.cost(Shape(3, 10)).executed for p in (layer.q, layer.k, layer.v, layer.beta, layer.gate, layer.out)
    )
    convolutions = 2 * 4 * 30 * 2 * (2 * keys + values)
    assert cost.algorithmic - projections - convolutions == 8 * 30 * 2 * keys * values
    core = 2 * (2 * 3 * keys + 2 * 3 * values + 3 * keys * values)  # for each of 12 positions: chunks of 3
    inverse = 2 * 2 * 2**3  # of 3 x 3 by halves of 2 x 2
    assert cost.executed - projections == 3 * 2 * (12 * core + 4 * inverse)
    assert cost.state == sum(a.nbytes for a in layer.start(3, 10, CONTEXT).values())


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="DeltaNet.chunk is 0; it is 1 or more"):
        DeltaNet(chunk=0)
    with pytest.raises(ValueError, match="DeltaNet.largest is 3.0; beyond 2 the state grows"):
        DeltaNet(largest=3.0)
    with pytest.raises(ValueError, match="takes one decay for each head, not channel"):
        make(decay=PerChannel())
