"""The optimizer's state is laid out as the parameters are: bytes per device, letters, what stays whole."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from llmlab import axes
from llmlab.nn.module import Spec
from llmlab.optim.optimizers import Adafactor, AdamW, Lion, Muon
from llmlab.optim.sharding import state_letters, state_shardings, unlettered

RULES = axes.fsdp() * axes.tensor()


@pytest.mark.parametrize(
    "optimizer", [AdamW(), Lion(), Muon(), Adafactor(smallest=16, momentum=0.9)], ids=lambda o: type(o).__name__
)
def test_moments_are_sharded(optimizer, specs, tree):
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    transformation = optimizer.build(specs, 10)
    shardings = state_shardings(jax.eval_shape(transformation.init, tree(0)), specs, mesh, RULES)
    state = jax.jit(transformation.init, out_shardings=shardings)(tree(0))

    def here(leaf):
        return leaf.addressable_shards[0].data.nbytes

    for leaf, letters in zip(jax.tree.leaves(state), jax.tree.leaves(state_letters(state, specs)), strict=True):
        assert letters or leaf.size <= 3
        assert here(leaf) * (2 if "D" in letters else 1) * (4 if set(letters) & set("HFV") else 1) == leaf.nbytes
    assert sum(map(here, jax.tree.leaves(state))) < 0.3 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def test_what_has_no_letters_is_listed(specs, tree):
    state = jax.eval_shape(Muon().build(specs, 10).init, tree(0))
    assert list(unlettered(state, specs).values()) == [(3,)]  # the coefficients of Newton-Schulz
    state = jax.eval_shape(AdamW().build(specs, 10).init, tree(0))
    assert not unlettered(state, specs)
    assert len(unlettered(state, {("other", "w"): specs["square", "w"]})) == 2 * len(specs)


def test_the_longest_suffix_with_the_same_shape_gives_the_letters():
    specs = {
        path: Spec(path, (4, 8), np.float32, letters) for path, letters in {("w",): "DF", ("a", "w"): "HK"}.items()
    }
    leaf, turned = jax.ShapeDtypeStruct((4, 8), np.float32), jax.ShapeDtypeStruct((8, 4), np.float32)
    state = {"mu": {"w": leaf, "a": {"w": leaf}, "aw": leaf}, "nu": {"w": turned}}
    assert state_letters(state, specs) == {"mu": {"w": "DF", "a": {"w": "HK"}, "aw": ""}, "nu": {"w": ""}}


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16), (16, 24, 16), (16, 16, 16), (4, 16, 2, 16)])
def test_factored_moments_keep_the_surviving_letters(shape):
    """A gradient that varies over one dimension alone shows which dimension of a moment that is."""
    letters, path = "VDFK"[: len(shape)], ("w",)
    specs = {path: Spec(path, shape, np.float32, letters)}
    transformation = Adafactor(smallest=16, clip=None).direction(specs)
    ramps = [
        np.broadcast_to(np.expand_dims(np.arange(1.0, n + 1), [*range(1, len(shape) - i)]), shape)
        for i, n in enumerate(shape)
    ]
    state = transformation.init({"w": np.ones(shape, np.float32)})
    named = state_letters(state, specs)[0]
    update = jax.jit(lambda ramp: transformation.update({"w": ramp}, state, {"w": ramp})[1][0])
    for letter, ramp in zip(letters, ramps):
        found = update(ramp.astype(np.float32))
        for moment in ("v_row", "v_col"):
            array, name = getattr(found, moment)["w"], getattr(named, moment)["w"]
            assert len(name) == array.ndim == len(shape) - 1
            varies = [name[i] for i in range(array.ndim) if np.ptp(np.asarray(array), axis=i).max() > 0.5]
            assert varies == ([letter] if letter in name else []), (moment, name, letter)
