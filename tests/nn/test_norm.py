"""Norms against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.nn import Fill, LayerNorm, RMSNorm
from llmlab.nn.module import Rngs

DIMS = {"D": 6, "K": 4}
X = np.random.default_rng(0).normal(2, 3, (2, 3, 6)).astype(np.float32)
ROOT = np.sqrt((X**2).mean(-1, keepdims=True) + 0.1)
DEVIATION = np.sqrt(X.var(-1, keepdims=True) + 0.1)
CENTRED = X - X.mean(-1, keepdims=True)


def make(cfg, scale=None, letter="D"):
    layer = cfg.build(DIMS, Rngs(params=0), letter)
    if scale is not None:
        layer.scale[...] = jnp.asarray(scale, jnp.float32)
    return layer


@pytest.mark.parametrize(
    ("cfg", "scale", "expected"),
    [
        (RMSNorm(eps=0.1), None, X / ROOT),
        (RMSNorm(eps=0.1), range(6), X / ROOT * np.arange(6)),
        (RMSNorm(eps=0.1, offset=1.0), None, X / ROOT),
        (RMSNorm(eps=0.1, offset=1.0), range(6), X / ROOT * np.arange(1, 7)),
        (LayerNorm(eps=0.1), range(6), CENTRED / DEVIATION * np.arange(6)),
        (LayerNorm(eps=0.1, bias=Fill(value=0.5)), range(6), CENTRED / DEVIATION * np.arange(6) + 0.5),
        (LayerNorm(eps=0.1, bias=None), None, CENTRED / DEVIATION),
    ],
)
def test_formula(cfg, scale, expected):
    np.testing.assert_allclose(make(cfg, scale)(X), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_is_normalised_in_float32():
    large = jnp.full((1, 4), 300.0, jnp.float16)  # its square is no float16
    y = make(RMSNorm(), letter="K")(large)
    assert y.dtype == jnp.float16 and np.allclose(y, 1)


def test_letters_and_parameters():
    layer = make(LayerNorm(), letter="K")
    assert layer.scale.shape == layer.bias.shape == (4,) and layer.scale.get_metadata()["axes"] == "K"
    assert make(LayerNorm(bias=None)).bias is None and len(jax.tree.leaves(make(RMSNorm()))) == 1
