"""Optimizers against optax's own, and what each promises: orthogonal, by layer, decoupled, grouped."""

import jax
import numpy as np
import optax
import pytest

from llmlab.nn.module import Spec
from llmlab.optim.groups import Group
from llmlab.optim.optimizers import Adafactor, AdamW, Lion, Muon, Optimizer, matrix
from llmlab.optim.schedules import Constant, Cosine

ALL = (Group(match=".*"),)
PLAIN = dict(schedule=Constant(), clip=None, decay=0.0, groups=ALL)


def run(transformation, params, *gradients):
    """(last update, state) after some steps, in one program."""

    @jax.jit
    def steps(params):
        state, updates = transformation.init(params), None
        for gradient in gradients:
            updates, state = transformation.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return updates, state

    return steps(params)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-7), a, b)


def test_adamw_is_optax_adamw(specs, tree):
    schedule = Cosine(warmup=1, floor=0.1)
    mine = AdamW(peak=1e-2, schedule=schedule, decay=0.1, clip=0.5, groups=ALL)
    adamw = optax.adamw(lambda count: 1e-2 * schedule.factor(count, 10), 0.9, 0.95, weight_decay=0.1)
    theirs = optax.chain(optax.clip_by_global_norm(0.5), adamw)
    trees = [tree(seed) for seed in range(4)]
    (updates, state), (expected, _) = run(mine.build(specs, 10), *trees), run(theirs, *trees)
    assert_close(updates, expected)
    moments = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.size > 1)
    assert moments == 2 * sum(spec.size for spec in specs.values())
    assert mine.learning_rate(1, 10) == pytest.approx(1e-2)


def test_lion_is_optax_lion(specs, tree):
    mine = Lion(**PLAIN | dict(decay=0.3), peak=1e-3).build(specs, 10)
    trees = [tree(seed) for seed in range(3)]
    assert_close(run(mine, *trees)[0], run(optax.lion(1e-3, weight_decay=0.3), *trees)[0])


def test_adafactor_is_optax_adafactor_where_nothing_is_stacked(specs, tree):
    specs = {path: spec for path, spec in specs.items() if path[0] != "layers"}
    mine = Adafactor(**PLAIN, peak=1e-2, smallest=16).build(specs, 10)
    trees = [{path[0]: tree(seed)[path[0]] for path in specs} for seed in range(3)]
    assert_close(run(mine, *trees)[0], run(optax.adafactor(1e-2, min_dim_size_to_factor=16), *trees)[0])


def test_adafactor_takes_each_layer_of_a_stack_by_itself():
    path, shape = ("w",), (2, 16, 4, 8)
    params, gradients = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    params[1] *= 100  # a large layer must not make the other's step large
    optimizer = Adafactor(**PLAIN, smallest=None)
    stack = optimizer.build({path: Spec(path, shape, np.float32, "NDHK", "D")}, 10)
    layer = optimizer.build({path: Spec(path, shape[1:], np.float32, "DHK", "D")}, 10)
    got = run(stack, {"w": params}, {"w": gradients})[0]["w"]
    for i in range(2):
        assert_close(got[i], run(layer, {"w": params[i]}, {"w": gradients[i]})[0]["w"])


def test_groups_multiply_rate_and_decay(specs, tree):
    groups = (Group(match="embed", peak=0.5, decay=3.0), Group(match="square", peak=0.0), Group(match=".*", decay=0.0))
    params, gradients = tree(0), tree(1)
    shared = dict(schedule=Constant(), clip=None, peak=1e-2)
    grouped, _ = run(AdamW(**shared, decay=0.1, groups=groups).build(specs, 10), params, gradients)
    plain, _ = run(AdamW(**shared, decay=0.0, groups=ALL).build(specs, 10), params, gradients)
    assert_close(grouped["embed"]["table"], 0.5 * (plain["embed"]["table"] - 1e-2 * 0.3 * params["embed"]["table"]))
    assert not np.any(grouped["square"]["w"])
    assert_close(grouped["layers"], plain["layers"])


def test_muon_orthogonalises_matrices_of_each_layer_and_expert(specs, tree):
    params, gradients = tree(0), tree(1)
    updates, state = run(Muon(**PLAIN, peak=1.0, iterations=10).build(specs, 10), params, gradients)
    layers = updates["layers"]
    matrices = {(2, 16, 32): layers["q"]["w"], (2, 32, 16): layers["out"]["w"], (8, 16, 24): layers["moe"]["up"]["w"]}
    for shape, stack in matrices.items():
        values = np.linalg.svd(np.reshape(stack, shape), compute_uv=False) / (0.2 * np.sqrt(max(shape[1:])))
        assert np.all((values > 0.6) & (values < 1.3)), shape  # the quintic iteration does not settle at 1
        assert np.sqrt(np.mean(np.square(stack))) == pytest.approx(0.2, rel=0.15)
    expected, _ = run(AdamW(**PLAIN, peak=1.0).build(specs, 10), params, gradients)
    for name in ("embed", "head"):
        assert_close(updates[name], expected[name])
    assert_close(layers["norm"], expected["layers"]["norm"])
    stored = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.size > 3)  # without counts and coefficients
    assert stored == sum(spec.size * (1 if matrix(spec) else 2) for spec in specs.values())


def test_muon_reads_matrices_from_the_contracted_letters(specs):
    assert matrix(specs["layers", "q", "w"]) == ((1,), (2, 3))
    assert matrix(specs["layers", "out", "w"]) == ((1, 2), (3,))
    assert matrix(specs["layers", "moe", "up", "w"]) == ((2,), (3,))
    assert matrix(specs["embed", "table"]) is matrix(specs["layers", "norm", "scale"]) is None
    assert matrix(Spec(("head", "table"), (32, 16), np.float32, "VD", "D")) is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdamW(clip=0.0), "AdamW.clip is 0.0"),
        (lambda: AdamW(b2=1.0), "AdamW.b2 is 1.0"),
        (lambda: Muon(momentum=-0.1), "Muon.momentum is -0.1"),
        (lambda: Lion(decay=-1.0), "Lion: peak 0.0001 and decay -1.0"),
    ],
)
def test_values_out_of_range_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_an_optimizer_without_direction_says_so(specs):
    with pytest.raises(TypeError, match=r"Optimizer must define direction\(specs\)"):
        Optimizer().build(specs, 1)
