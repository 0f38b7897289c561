"""The short convolution against a loop: documents, padding while decoding, activations, half precision, cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.cost import Shape
from llmlab.nn import Context
from llmlab.nn.conv import ShortConv
from llmlab.nn.module import Rngs

DIMS, BATCH, LENGTH = {"C": 6, "H": 2, "K": 3, "N": 1}, 2, 9
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, 6)).astype(np.float32)
SEGMENTS_BL = np.array([[1, 1, 2, 3, 3, 3, 3, 3, 0], [1] * 5 + [2] * 4])
POSITIONS_BL = np.tile(np.arange(LENGTH), (BATCH, 1))


def loop(layer, x_BLC, segments_BL):
    """The definition, before the activation."""
    taps_JC, y_BLC = np.asarray(layer.taps[...]), np.zeros(x_BLC.shape)
    for b, i, j in np.ndindex(BATCH, LENGTH, layer.cfg.width):
        if i >= j and segments_BL[b, i] == segments_BL[b, i - j]:
            y_BLC[b, i] += taps_JC[j] * x_BLC[b, i - j]
    return y_BLC + (0 if layer.bias is None else np.asarray(layer.bias[...]))


@pytest.mark.parametrize("width", [1, 4, 12])
def test_documents_are_convolved_apart(width):
    layer = ShortConv(width=width, activation="relu").build(DIMS, Rngs(params=0))
    ctx = Context(positions_BL=POSITIONS_BL, segments_BL=SEGMENTS_BL)
    np.testing.assert_allclose(jax.jit(layer)(X, ctx), np.maximum(loop(layer, X, SEGMENTS_BL), 0), rtol=1e-5, atol=1e-6)


def test_pieces_of_a_padded_row_equal_the_whole():
    layer = ShortConv(activation=None, bias=None).build(DIMS, Rngs(params=0), letters="HK")
    x_BLHK, pad = X.reshape(BATCH, LENGTH, 2, 3), 2
    expected = loop(layer, x_BLHK, np.ones((BATCH, LENGTH)))
    moved = np.concatenate([np.full((BATCH, pad, 2, 3), 99.0, np.float32), x_BLHK], axis=1)
    positions_BL = np.tile(np.maximum(np.arange(LENGTH + pad) - pad, -1), (BATCH, 1))
    past, parts, at = layer.start(BATCH, Context(positions_BL=positions_BL)), [], 0
    assert past.shape == (BATCH, 3, 2, 3) and layer.letters == "BJHK"
    for length in (1, 5, 1, 4):
        here = slice(at, at + length)
        y, past = layer.extend(moved[:, here], past, Context(positions_BL=positions_BL[:, here]))
        parts.append(y)
        at += length
    np.testing.assert_allclose(np.concatenate(parts, 1)[:, pad:], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(past, x_BLHK[:, -3:])


def test_the_gradient_is_that_of_the_definition():
    layer = ShortConv(activation=None).build(DIMS, Rngs(params=0))
    ctx = Context(positions_BL=POSITIONS_BL, segments_BL=SEGMENTS_BL)
    dy_BLC = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    dx_BLC = jax.grad(lambda x: (layer(x, ctx) * dy_BLC).sum())(X)
    expected = np.zeros(X.shape)
    for b, i, j in np.ndindex(BATCH, LENGTH, 4):
        if i >= j and SEGMENTS_BL[b, i] == SEGMENTS_BL[b, i - j]:
            expected[b, i - j] += np.asarray(layer.taps[...])[j] * dy_BLC[b, i]
    np.testing.assert_allclose(dx_BLC, expected, rtol=1e-5, atol=1e-5)


def test_initial_values_type_and_cost():
    layer = ShortConv().build({**DIMS, "C": 4000}, Rngs(params=0))
    assert layer.taps.shape == (4, 4000) and layer.taps.get_metadata()["axes"] == "JC"
    for values in (layer.taps[...], layer.bias[...]):  # uniform within 1/sqrt(4)
        assert 0.49 < jnp.abs(values).max() <= 0.5 and abs(float(values.std()) - 1 / 12**0.5) < 0.01
    layer = ShortConv().build(DIMS, Rngs(params=0))
    half = layer(jnp.asarray(X, jnp.bfloat16), Context(positions_BL=POSITIONS_BL))
    whole = layer(X, Context(positions_BL=POSITIONS_BL))
    assert half.dtype == jnp.bfloat16 and np.allclose(half.astype(np.float32), whole, atol=0.03)
    cost = layer.cost(Shape(2, 9))
    assert (cost.algorithmic, cost.executed, cost.state) == (2 * 2 * 9 * 4 * 6, 0, 2 * 3 * 6 * 4)


def test_a_width_without_taps_is_refused():
    with pytest.raises(ValueError, match="ShortConv.width is 0; a position has at least the tap of itself"):
        ShortConv(width=0)
