"""Modules as plain nested dicts."""

import jax
import jax.numpy as jnp
import pytest

from llmlab.nn.module import List, Module, Param, Rngs, Statistic, abstract, merge, specs, split


class Part(Module):
    def __init__(self, rngs, axes="DF"):
        self.w = Param(jax.random.normal(rngs.params(), (2, 3)), axes=axes, inputs="D")
        self.mean = Statistic(jnp.zeros(3), axes="F")


class Whole(Module):
    def __init__(self, rngs):
        self.parts = List([Part(rngs), Part(rngs)])


def test_a_model_is_plain_dicts_and_a_hashable_structure():
    structure, params, stats = split(Whole(Rngs(params=0)))
    assert set(params["parts"]) == {"0", "1"} and type(params["parts"]["0"]) is dict
    assert set(stats["parts"]["0"]) == {"mean"} and set(params["parts"]["0"]) == {"w"}
    hash(structure)
    again = merge(structure, jax.tree.map(lambda a: a + 1, params), stats)
    assert jnp.array_equal(again.parts[1].w[...], params["parts"]["1"]["w"] + 1)
    assert again.parts[0].w.get_metadata()["axes"] == "DF"
    found = jax.jit(lambda params: merge(structure, params, stats).parts[0].w[...].sum())(params)
    assert jnp.allclose(found, params["parts"]["0"]["w"].sum())


def test_specs_are_known_without_values():
    found = specs(abstract(Whole))
    assert found == specs(Whole(Rngs(params=0))) and list(found) == [("parts", "0", "w"), ("parts", "1", "w")]
    spec = found["parts", "0", "w"]
    assert (spec.shape, spec.axes, spec.inputs, spec.size) == ((2, 3), "DF", "D", 6)
    assert [spec.axes for spec in specs(abstract(Whole), Statistic).values()] == ["F", "F"]


def test_a_parameter_without_a_letter_for_each_dimension_is_named():
    with pytest.raises(ValueError, match=r"w of shape \(2, 3\) needs axes with one letter for each dimension"):
        specs(Part(Rngs(params=0), axes="D"))
