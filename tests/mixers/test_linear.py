"""Linear attention: layers against loops, decays against their formulas, the contract, cost and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.cost import Shape
from llmlab.mixers.decay import PerChannel, PerHead, Retention, Stepped
from llmlab.mixers.linear import LinearAttention, Scaled
from llmlab.nn import Context, Normal, RMSNorm
from llmlab.nn.module import Rngs

DIMS, BATCH, LENGTH = {"D": 8, "N": 1}, 2, 7
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, 8)).astype(np.float32)
CONTEXT = Context(positions_BL=np.tile(np.arange(LENGTH), (BATCH, 1)))


def make(**values):
    return LinearAttention(**{"heads": 2, "chunk": 3} | values).build(DIMS, Rngs(params=0))


def project(part, x=X):
    y = np.tensordot(x, np.asarray(part.w[...]), np.ndim(part.w[...]) - len(part.spec.split(">")[1]) + 2)
    return y if part.bias is None else y + np.asarray(part.bias[...])


def test_without_decay_it_is_attention_with_another_kernel():
    """Katharopoulos et al., equation 9: weights f(q) f(k) over the past, divided by their sum."""
    layer = make(values=1.5)
    feature = lambda x: np.where(x > 0, x + 1, np.exp(x))
    q_BLHS, k_BLHS, v_BLHK = feature(project(layer.q)), feature(project(layer.k)), project(layer.v)
    weights_BHLM = np.einsum("blhs,bmhs->bhlm", q_BLHS, k_BLHS) * np.tri(LENGTH)
    y_BLHK = np.einsum("bhlm,bmhk->blhk", weights_BHLM / weights_BHLM.sum(-1, keepdims=True), v_BLHK)
    expected_BLD = np.einsum("blhk,hkd->bld", y_BLHK, np.asarray(layer.out.w[...]))
    y_BLD, aux = jax.jit(layer)(X, CONTEXT)
    np.testing.assert_allclose(y_BLD, expected_BLD, rtol=1e-4, atol=1e-5)
    assert aux == {} and layer.v.w.shape == (8, 2, 6)


def test_decay_norm_and_gate_are_where_they_belong():
    layer = make(
        feature=Scaled(), decay=PerChannel(rank=3), norm=RMSNorm(), gate="silu", bias=Normal(std=1.0), keys=0.5
    )
    layer.norm.scale[...] = jnp.arange(1.0, 5.0)
    q_BLHS, k_BLHS, v_BLHK = project(layer.q) / 2**0.5, project(layer.k), project(layer.v)
    gate_BLHS = np.einsum("blr,rhs->blhs", project(layer.decay.low), np.asarray(layer.decay.gate.w[...]))
    a_BLHS, S_BHSK, y = (1 / (1 + np.exp(-gate_BLHS))) ** (1 / 16), 0.0, []
    for i in range(LENGTH):
        S_BHSK = a_BLHS[:, i, :, :, None] * S_BHSK + k_BLHS[:, i, :, :, None] * v_BLHK[:, i, :, None]
        y.append((q_BLHS[:, i, :, :, None] * S_BHSK).sum(2))
    y_BLHK, gate_BLHK = np.stack(y, 1), project(layer.gate)
    y_BLHK = y_BLHK / np.sqrt((y_BLHK**2).mean(-1, keepdims=True) + 1e-6) * [1, 2, 3, 4]
    y_BLHK = y_BLHK * gate_BLHK / (1 + np.exp(-gate_BLHK))
    expected_BLD = np.einsum("blhk,hkd->bld", y_BLHK, np.asarray(layer.out.w[...])) + np.asarray(layer.out.bias[...])
    np.testing.assert_allclose(jax.jit(layer)(X, CONTEXT)[0], expected_BLD, rtol=1e-3, atol=1e-4)


def test_decays_are_their_formulas():
    dims, rngs = {**DIMS, "H": 3, "S": 2}, Rngs(params=0)
    fixed = Retention().build(dims, rngs)
    np.testing.assert_allclose(np.exp(fixed(X))[0, 0], [1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128], rtol=1e-6)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    head = PerHead(temperature=2.0, bias=Normal(std=1.0)).build(dims, rngs)
    expected_BLH = sigmoid(project(head.gate) + np.asarray(head.bias[...])) ** 0.5
    np.testing.assert_allclose(np.exp(head(X)), expected_BLH, rtol=1e-5)
    stepped = Stepped().build(dims, rngs)
    step_BLH = np.log1p(np.exp(project(stepped.step) + np.asarray(stepped.bias[...])))
    np.testing.assert_allclose(stepped(X), -np.exp(stepped.log_rate[...]) * step_BLH, rtol=1e-4)
    for layer in (fixed, head, stepped):
        assert layer(jnp.asarray(X, jnp.bfloat16)).dtype == jnp.float32 and layer.letters == "BLH"


def test_cost_of_the_core_and_of_the_state():
    layer = make(keys=0.5, values=2.0, norm=RMSNorm(), chunk=4)
    cost, keys, values = layer.cost(Shape(3, 10)), 2, 8
    projections = sum(part.cost(Shape(3, 10)).executed for part in (layer.q, layer.k, layer.v, layer.out))
    assert cost.algorithmic - projections == 4 * 30 * 2 * keys * values
    assert cost.executed - projections == 36 * 2 * 2 * (4 * keys + 4 * values + 2 * keys * values)  # 12 positions of 10
    assert cost.state == layer.start(3, 10, CONTEXT)["state"].nbytes == 4 * 3 * 2 * keys * values
    summed = make()  # one more column, for the sum of weights
    assert summed.cost(Shape(3, 10)).state == summed.start(3, 10, CONTEXT)["state"].nbytes == 4 * 3 * 2 * 4 * 5


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="LinearAttention.heads is 0; it is 1 or more"):
        LinearAttention(heads=0)
    with pytest.raises(ValueError, match="LinearAttention.keys is 0.3: 2 heads at width 8 would have size 1.2; choose"):
        make(keys=0.3)
    with pytest.raises(ValueError, match="PerChannel.rank is 0"):
        PerChannel(rank=0)
