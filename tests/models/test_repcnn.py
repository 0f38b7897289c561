"""Branches folded into one convolution, batch statistics, streams of frames, many devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab import axes
from llmlab.cost import Shape, traced_flops
from llmlab.mesh import Mesh
from llmlab.models import Mean, Pooled
from llmlab.models.repcnn import EPS, Branched, RepBlock, RepCNN, fold
from llmlab.nn import Context, repeat
from llmlab.nn.module import Rngs, merge, split

BATCH, LENGTH, FEATURES = 4, 9, 6
TRUNK = RepCNN(features=FEATURES, width=8, form=Branched(convs=2), stack=repeat(RepBlock(size=3), 2))
CONFIG = Pooled(trunk=TRUNK, pooling=Mean(), classes=3)
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, FEATURES)).astype(np.float32)
SEGMENTS_BL = np.array([[1] * 9, [1] * 4 + [2] * 5, [1] * 6 + [0] * 3, [1] * 9])
CTX = Context(positions_BL=np.tile(np.arange(LENGTH), (BATCH, 1)), segments_BL=SEGMENTS_BL)


@pytest.fixture(scope="module")
def made():
    """(structure, parameters, statistics) with nothing neutral."""
    structure, *trees = split(CONFIG.build(Rngs(params=0)))
    leaves, tree = jax.tree.flatten(tuple(trees))
    noise = [np.random.default_rng(i).uniform(0.5, 1.5, a.shape).astype(np.float32) for i, a in enumerate(leaves)]
    return structure, *tree.unflatten([jnp.asarray(a * n + (n - 1) / 3) for a, n in zip(leaves, noise)])


def test_one_convolution_gives_what_the_branches_give(made):
    structure, params, stats = made
    folded, fewer = fold(CONFIG, params, stats)
    twin, shapes, none = split(folded.build(Rngs(params=1)))
    assert not none and jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, fewer)
    expected_BLD, _ = jax.jit(lambda x: merge(structure, params, stats)(x, CTX))(X)
    found_BLD, aux = jax.jit(lambda x: merge(twin, fewer)(x, CTX))(X)
    assert aux == {} and np.abs(expected_BLD).max() > 0.1
    np.testing.assert_allclose(found_BLD, expected_BLD, rtol=0, atol=1e-5 * np.abs(expected_BLD).max())
    branches, one = (
        sum(a.size for path, a in jax.tree_util.tree_leaves_with_path(tree) if "taps" in jax.tree_util.keystr(path))
        for tree in (params, fewer)
    )
    assert branches == (4 * 3 + 1) * 8 * 2 and one == 3 * 8 * 2


def test_training_uses_the_batch_and_moves_the_running_statistics(made):
    structure, params, stats = made
    model = merge(structure, params, stats)
    training = dataclasses.replace(CTX, training=True)
    _, aux = jax.jit(model)(X, training)
    assert jax.tree.structure(aux["stats"]) == jax.tree.structure(stats)
    assert jax.tree.map(jnp.shape, aux["stats"]) == jax.tree.map(jnp.shape, stats)
    branch = model.trunk.first.branched.branches[0]
    real = X[SEGMENTS_BL > 0] @ np.asarray(branch.conv.w[...])  # padding is not counted
    new, old = (tree["trunk"]["first"]["branched"]["branches"]["0"]["norm"] for tree in (aux["stats"], stats))
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * real.mean(0), rtol=1e-4)
    np.testing.assert_allclose(new["variance"], 0.9 * old["variance"] + 0.1 * real.var(0, ddof=1), rtol=1e-4)
    y_BLD, _ = branch(X, training)
    expected = (real - real.mean(0)) / np.sqrt(real.var(0) + EPS) * branch.norm.scale[...] + branch.norm.bias[...]
    np.testing.assert_allclose(y_BLD[SEGMENTS_BL > 0], expected, rtol=1e-3, atol=1e-4)
    y_BLD, found = branch(X, CTX)
    assert found == {}
    expected = (real - old["mean"]) / np.sqrt(old["variance"] + EPS) * branch.norm.scale[...] + branch.norm.bias[...]
    np.testing.assert_allclose(y_BLD[SEGMENTS_BL > 0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["branched", "folded"])
def test_frames_one_by_one_give_what_the_whole_row_gives(made, form):
    structure, params, stats = made
    if form == "folded":
        cfg, params = fold(CONFIG, params, stats)
        structure, stats = split(cfg.build(Rngs(params=0)))[0], {}
    trunk = merge(structure, params, stats).trunk
    whole_BLD, _ = jax.jit(trunk)(X, Context(positions_BL=CTX.positions_BL))
    pad = 2  # odd rows begin with padding
    moved_BLJ = np.where((np.arange(BATCH) % 2 > 0)[:, None, None], np.roll(X, pad, 1), X)
    positions_BL = np.where((np.arange(BATCH) % 2 > 0)[:, None], np.arange(LENGTH) - pad, np.arange(LENGTH))
    state, parts, extend = trunk.start(BATCH, LENGTH, CTX), [], jax.jit(trunk.extend)
    for at in [slice(0, 4), *(slice(i, i + 1) for i in range(4, LENGTH))]:
        y_BLD, state = extend(moved_BLJ[:, at], state, Context(positions_BL=np.maximum(positions_BL[:, at], -1)))
        parts.append(y_BLD)
    found_BLD = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(found_BLD[::2], whole_BLD[::2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found_BLD[1::2, pad:], whole_BLD[1::2, :-pad], rtol=1e-4, atol=1e-5)
    assert jax.tree.map(jnp.ndim, state) == jax.tree.map(len, trunk.letters)


def test_documents_of_a_row_and_later_frames_are_not_seen(made):
    trunk = merge(*made).trunk
    reach = jax.jacrev(lambda x: trunk(x[None], jax.tree.map(lambda a: a[1:2], CTX))[0][0].sum(-1))(X[1])
    reach_LM = np.abs(reach).sum(-1)
    assert not np.triu(reach_LM, 1).any() and not reach_LM[4:, :4].any() and reach_LM.diagonal().all()


def test_many_devices_share_the_statistics_of_the_whole_batch(made):
    structure, params, stats = made
    ctx = dataclasses.replace(CTX, training=True)

    def loss(params, scope):
        with axes.use(*scope):
            model = merge(structure, params, stats)
            hidden_BLD, aux = model(X, ctx)
            return jnp.square(model.classify(hidden_BLD, ctx)).sum(), aux["stats"]

    many, one = (
        jax.jit(jax.value_and_grad(lambda p, scope=(grid, axes.every()): loss(p, scope), has_aux=True))(params)
        for grid in (Mesh(data=2, fsdp=2, tensor=2).build(jax.devices()[:8]), Mesh(data=1).build(jax.devices()[:1]))
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * max(np.abs(b).max(), 1))
    jax.tree.map(close, many, one)
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(many[1]))


def test_cost_is_that_of_the_program(made):
    structure, params, stats = made
    model = merge(structure, params, stats)
    trunk = model.trunk
    assert trunk.cost(Shape(BATCH, LENGTH)).executed == traced_flops(lambda x: trunk(x, CTX)[0], X)
    cfg, _ = fold(TRUNK, params["trunk"], stats["trunk"])
    one, many = cfg.build(Rngs(params=0)).cost(Shape(1, 1)), trunk.cost(Shape(1, 1))
    assert one.executed == 2 * FEATURES * 8 + 2 * 2 * 8 * 8 and many.executed == 2 * 2 * FEATURES * 8 + 4 * 2 * 2 * 64
    assert one.algorithmic - one.executed == 2 * 2 * 3 * 8 and one.state == many.state == 2 * 2 * 8 * 4


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"Branched: convs 0 is 1 or more, momentum 0.1 in \(0, 1\]"):
        Branched(convs=0)
    with pytest.raises(ValueError, match="RepBlock.size is 0"):
        RepBlock(size=0)
    with pytest.raises(ValueError, match="RepCNN: features 0 and width 64 are 1 or more"):
        RepCNN(features=0)
