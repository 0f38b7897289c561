"""Attention inside the decoder's recurrence, against a loop in numpy that follows the paper's appendix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab import axes
from llmlab.cost import Shape, traced_flops
from llmlab.mesh import Mesh
from llmlab.mixers.bahdanau import Bahdanau
from llmlab.nn import Context, Normal
from llmlab.nn.module import Rngs, merge, split

WIDTH, HIDDEN, BATCH, LENGTH, SOURCE = 6, 4, 4, 8, 5
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
MEMORY = DRAW.normal(size=(BATCH, SOURCE, WIDTH)).astype(np.float32)
POSITIONS_BL = np.tile(np.arange(LENGTH), (BATCH, 1))
SEGMENTS_BL = np.array([[1] * 8, [1] * 3 + [2] * 5, [1] * 6 + [0] * 2, [1, 1, 2, 2, 3, 3, 3, 0]])
MEMORY_SEGMENTS_BM = np.array([[1] * 5, [1, 1, 2, 2, 2], [1, 1, 1, 0, 0], [1, 2, 3, 3, 0]])
LOUD = {name: Normal(std=0.6) for name in ("init", "recurrent_init", "attention_init", "score_init")}
PACKED = Context(
    positions_BL=POSITIONS_BL, segments_BL=SEGMENTS_BL, memory_BMD=MEMORY, memory_segments_BM=MEMORY_SEGMENTS_BM
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def build(**values):
    layer = Bahdanau(**{"hidden": HIDDEN, **LOUD} | values).build({"D": WIDTH, "N": 1}, Rngs(params=0))
    return layer, *split(layer)[:2]


def translate(params, x_LD, memory_MD):
    """Appendix A.2.2 of the paper for one sentence; W, W_z and W_r (with C, C_z, C_r for c_i) stand in `read`."""
    w = {name: part["w"] for name, part in params.items() if name != "score"}
    s_C = np.tanh(memory_MD[0, WIDTH // 2 :] @ w["begin"] + params["begin"]["bias"])
    found = []
    for x_D in x_LD:
        e_M = np.tanh(s_C @ w["query"] + memory_MD @ w["keys"]) @ params["score"]
        alpha_M = np.exp(e_M - e_M.max())
        c_D = alpha_M / alpha_M.sum() @ memory_MD
        t_DP = np.einsum("c,cdp->dp", s_C, w["out_state"]) + params["out_state"]["bias"]
        t_DP = t_DP + np.einsum("c,cdp->dp", x_D, w["out_read"]) + np.einsum("c,cdp->dp", c_D, w["out_context"])
        found.append(np.maximum(t_DP[:, 0], t_DP[:, 1]))
        by_x = np.einsum("d,djc->jc", x_D, w["read"]) + params["read"]["bias"]
        by_c = np.einsum("d,djc->jc", c_D, w["context"])
        by_s = np.einsum("d,djc->jc", s_C, w["gates"])
        r, z = sigmoid(by_x[:2] + by_c[:2] + by_s)
        new_C = np.tanh(by_x[2] + by_c[2] + (r * s_C) @ w["candidate"])
        s_C = (1 - z) * s_C + z * new_C
    return np.array(found)


def expected(params, x_BLD, memory_BMD):
    y_BLD = np.zeros(x_BLD.shape)
    for row in range(BATCH):
        for segment in set(SEGMENTS_BL[row]) - {0}:
            here = SEGMENTS_BL[row] == segment
            own = MEMORY_SEGMENTS_BM[row] == segment
            y_BLD[row, here] = translate(params, x_BLD[row, here], memory_BMD[row, own])
    return y_BLD


def test_values_and_gradients_are_those_of_the_papers_equations_in_packed_rows():
    _, structure, params = build()
    weigh_BLD = DRAW.normal(size=X.shape) * (SEGMENTS_BL > 0)[..., None]

    def loss(params, x_BLD, memory_BMD):
        ctx = Context(**{f: getattr(PACKED, f) for f in ("positions_BL", "segments_BL", "memory_segments_BM")},
                      memory_BMD=memory_BMD)  # fmt: skip
        y_BLD, aux = merge(structure, params)(x_BLD, ctx)
        assert aux == {}
        return (y_BLD * weigh_BLD).sum(), y_BLD

    at = (params, X, MEMORY)
    (_, y_BLD), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*at)
    real_BL = SEGMENTS_BL > 0
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), at)
    np.testing.assert_allclose(y_BLD[real_BL], expected(*exact)[real_BL], rtol=1e-4, atol=1e-5)
    # The slope in a random direction of each parameter alone, of the input and of the memory.
    leaves, tree = jax.tree.flatten(exact)
    for i, grad in enumerate(jax.tree.leaves(grads)):
        way = np.random.default_rng(i).normal(size=grad.shape)
        move = lambda step, i=i, way=way: tree.unflatten(leaves[:i] + [leaves[i] + step * way] + leaves[i + 1 :])
        slope = sum(sign * (expected(*move(sign * 1e-5)) * weigh_BLD).sum() for sign in (1, -1)) / 2e-5
        assert float((np.asarray(grad) * way).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_decoding_equals_teacher_forcing_with_padding_on_both_sides():
    layer, *_ = build()
    memory = {"memory_BMD": MEMORY, "memory_segments_BM": np.minimum(MEMORY_SEGMENTS_BM, 1)}
    ctx = Context(positions_BL=POSITIONS_BL, **memory)
    whole_BLD, _ = jax.jit(layer)(X, ctx)
    pad, steps = 2, (4, 1, 1, 2)
    moved_BLD = np.concatenate([np.full((BATCH, pad, WIDTH), 9.0, np.float32), X], 1)[:, :LENGTH]
    positions_BL = np.maximum(POSITIONS_BL - pad, -1)
    state, at, parts = layer.start(BATCH, LENGTH, ctx), 0, []
    assert {name: a.ndim for name, a in state.items()} == {name: len(axes) for name, axes in layer.letters.items()}
    extend = jax.jit(layer.extend)
    for length in steps:
        here = slice(at, at + length)
        y_BLD, state = extend(moved_BLD[:, here], state, Context(positions_BL=positions_BL[:, here]))
        parts.append(y_BLD)
        at += length
    np.testing.assert_allclose(np.concatenate(parts, 1)[:, pad:], whole_BLD[:, :-pad], rtol=1e-4, atol=1e-5)


def test_sharded_equals_one_device():
    layer, structure, params = build()
    mesh = Mesh(data=2, sequence=2, tensor=2).build(jax.devices()[:8])

    def loss(params, scope):
        with axes.use(*scope):
            return jnp.square(merge(structure, params)(X, PACKED)[0] * (SEGMENTS_BL > 0)[..., None]).sum()

    many, one = (
        jax.jit(jax.value_and_grad(lambda p, scope=(grid, axes.every()): loss(p, scope)))(params)
        for grid in (mesh, Mesh(data=1).build(jax.devices()[:1]))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), many, one)


def test_the_papers_initial_values():
    layer, *_ = build(**{f: getattr(Bahdanau(), f) for f in LOUD})
    assert not layer.score[...].any() and not layer.read.bias[...].any()
    u_cC = layer.candidate.w[...]
    np.testing.assert_allclose(u_cC @ u_cC.T, np.eye(HIDDEN), atol=1e-5)
    assert 0.005 < layer.read.w[...].std() < 0.015 and 0.0005 < layer.keys.w[...].std() < 0.0015


def test_cost_is_that_of_the_program():
    layer, *_ = build()
    cost = layer.cost(Shape(BATCH, LENGTH, SOURCE))
    assert cost.executed == traced_flops(lambda x: layer(x, PACKED)[0], X)
    more = layer.cost(Shape(BATCH, LENGTH, SOURCE + 1))
    each_source = 2 * WIDTH * HIDDEN + LENGTH * (3 * HIDDEN + 2 * WIDTH)
    assert more.algorithmic - cost.algorithmic == BATCH * each_source
    assert cost.state == BATCH * (4 * HIDDEN + SOURCE * (4 * (HIDDEN + WIDTH) + 1))
    with pytest.raises(ValueError, match="Bahdanau.cost needs a Shape with `memory`"):
        layer.cost(Shape(BATCH, LENGTH))


def test_what_it_cannot_do_is_refused():
    layer, *_ = build()
    with pytest.raises(ValueError, match="reads an encoder's memory and the context has none; use it in the decoder"):
        layer(X, Context(positions_BL=POSITIONS_BL))
    with pytest.raises(ValueError, match="reads a memory of two directions; its width, 5, must be even"):
        Bahdanau().build({"D": 5}, Rngs(params=0))
    with pytest.raises(ValueError, match="Bahdanau: hidden 0 and unroll 1 are 1 or more"):
        Bahdanau(hidden=0)
