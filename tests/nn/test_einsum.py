"""A weight read from the letters of an equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.cost import Shape
from llmlab.nn.einsum import Einsum
from llmlab.nn.init import FanIn, Fill
from llmlab.nn.module import Rngs

DIMS = {"D": 8, "H": 2, "K": 4, "E": 3, "F": 5}


def make(spec: str, **options) -> Einsum:
    return Einsum(spec, DIMS, Rngs(params=0), **options)


@pytest.mark.parametrize(
    ("spec", "shape", "axes", "inputs"),
    [
        ("BLD,DHK->BLHK", (8, 2, 4), "DHK", "D"),
        ("BLHK,HKD->BLD", (2, 4, 8), "HKD", "HK"),
        ("BLED,EDF->BLEF", (3, 8, 5), "EDF", "D"),
        ("BLD,Dd->BLd", (8, 8), "Dd", "D"),
    ],
)
def test_shape_letters_and_inputs(spec, shape, axes, inputs):
    w = make(spec).w
    assert (w.shape, w.get_metadata()["axes"], w.get_metadata()["inputs"]) == (shape, axes, inputs)


def test_the_fan_in_is_the_size_of_what_is_contracted():
    wide = Einsum("BLHK,HKD->BLD", {"D": 500, "H": 5, "K": 20}, Rngs(params=0), FanIn())
    assert abs(float(wide.w[...].std()) * 10 - 1) < 0.03


def test_product_and_bias():
    layer = make("BLD,DHK->BLHK", bias=Fill(value=0.5))
    assert layer.bias.get_metadata()["axes"] == "HK" and make("BLHK,HKD->BLD", bias=Fill()).bias.shape == (8,)
    assert make("BLED,EDF->BLEF", bias=Fill()).bias.get_metadata()["axes"] == "EF"
    x_BLD = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    y_BLHK = jax.jit(layer)(x_BLD)
    np.testing.assert_allclose(y_BLHK, np.tensordot(x_BLD, np.asarray(layer.w[...]), 1) + 0.5, rtol=1e-5, atol=1e-5)
    assert jax.eval_shape(layer, jnp.asarray(x_BLD, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("spec", ["BLD,DHK->BLHK", "BLHK,HKD->BLD", "BLD,Dd->BLd", "BLED,EDF->BLEF"])
def test_a_turned_weight_gives_the_same_product(spec):
    x, w, _ = spec.replace("->", ",").split(",")
    sizes = {"B": 2, "L": 3, **DIMS}
    given = jnp.asarray(np.random.default_rng(0).normal(size=[sizes[letter] for letter in x]), jnp.bfloat16)
    layer = make(spec, bias=Fill(value=0.5))
    before, exact = np.asarray(layer(given), np.float32), layer(given.astype(jnp.float32))
    layer.turn("bfloat16")
    np.testing.assert_array_equal(layer(given.astype(jnp.float32)), exact)
    np.testing.assert_allclose(np.asarray(layer(given), np.float32), before, rtol=1e-2, atol=1e-2)
    assert layer.w.shape == tuple(sizes[letter.upper()] for letter in w)
    assert (layer.turned is None) == (spec == "BLED,EDF->BLEF")  # E is in no place that a plain product has


def test_a_repeated_letter_is_refused_with_its_mend():
    with pytest.raises(ValueError, match="'DD' in 'BLD,DD->BLD' repeats a letter; write the second one in lower case"):
        make("BLD,DD->BLD")


def test_cost_is_two_flops_for_each_multiply_add():
    cost = make("BLD,DHK->BLHK").cost(Shape(2, 3))
    assert cost.algorithmic == cost.executed == 2 * 6 * 8 * 8 and cost.bytes == 4 * (6 * 8 + 8 * 8 + 6 * 8)
    assert make("BLED,EDF->BLEF").cost(Shape(2, 3)).executed == 2 * 6 * 3 * 8 * 5
    assert make("BMD,DHK->BMHK").cost(Shape(2, 3, memory=7)).executed == 2 * 14 * 8 * 8
