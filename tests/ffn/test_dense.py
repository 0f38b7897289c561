"""Feed-forwards and their activations against formulas."""

import math
from typing import get_args

import jax
import numpy as np
import pytest

from llmlab.cost import Shape
from llmlab.ffn import Gated, Mlp
from llmlab.nn import Context, Fill
from llmlab.nn.activation import ACTIVATIONS, Activation
from llmlab.nn.module import Rngs

DIMS = {"D": 6, "N": 1}
X = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
CTX = Context(positions_BL=np.zeros((2, 3), int))
FORMULAS = {
    "gelu": lambda x: x * (1 + math.erf(x / 2**0.5)) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: max(x, 0),
    "relu2": lambda x: max(x, 0) ** 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
}


@pytest.mark.parametrize("name", get_args(Activation))
def test_activations(name):
    values = np.linspace(-4, 4, 17, dtype=np.float32)
    np.testing.assert_allclose(ACTIVATIONS[name](values), [FORMULAS[name](float(x)) for x in values], atol=1e-5)
    assert set(ACTIVATIONS) == set(FORMULAS) == set(get_args(Activation))


def array(part):
    return np.asarray(part.w[...])


def test_two_and_three_matrices():
    mlp = Mlp(hidden=5, activation="relu", bias=Fill(value=0.5)).build(DIMS, Rngs(params=0))
    gated = Gated(hidden=5, activation="relu").build(DIMS, Rngs(params=1))
    (plain_BLD, aux), (gated_BLD, _) = jax.jit(lambda x: (mlp(x, CTX), gated(x, CTX)))(X)
    expected = np.maximum(X @ array(mlp.up) + 0.5, 0) @ array(mlp.down) + 0.5
    np.testing.assert_allclose(plain_BLD, expected, rtol=1e-4, atol=1e-5)
    expected = (np.maximum(X @ array(gated.gate), 0) * (X @ array(gated.up))) @ array(gated.down)
    np.testing.assert_allclose(gated_BLD, expected, rtol=1e-4, atol=1e-5)
    assert aux == {} and mlp.up.w.get_metadata()["axes"] == "DF" and mlp.down.w.get_metadata()["axes"] == "FD"
    assert mlp.cost(Shape(2, 3)).executed == 2 * 2 * 6 * 6 * 5 and gated.cost(Shape(2, 3)).executed == 3 * 2 * 6 * 6 * 5


def test_an_unknown_activation_is_refused():
    with pytest.raises(TypeError, match=r"Gated.activation is 'swish', a str; it takes Literal\['gelu'"):
        Gated(activation="swish")
