"""Recurrent mixers against loops in numpy (PyTorch's and Cho's definitions), packed and in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.cost import Shape
from llmlab.mixers.recurrent import GRU, LSTM, RNN, Both, Gates, Orthogonal, Summary
from llmlab.nn import Context, Normal
from llmlab.nn.module import Rngs, merge, split

WIDTH, HIDDEN, BATCH, LENGTH = 6, 4, 3, 7
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
POSITIONS_BL = np.tile(np.arange(LENGTH), (BATCH, 1))
SEGMENTS_BL = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0], [1, 2, 2, 3, 3, 3, 0]])
LOUD = {"bias": Normal(std=0.5), "init": Normal(std=0.7), "recurrent_init": Normal(std=0.7)}
CELLS = [RNN(), RNN(activation="relu"), LSTM(), GRU(), GRU(reset="before")]
NAMES = ["rnn", "relu", "lstm", "gru", "gru before"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def walk(cfg, params, x_LD, h_C):
    """One document in one direction, a step at a time: torch.nn's formulas, and Cho's for a reset before."""
    w_DJC, b_JC = params["read"]["w"], params["read"]["bias"]
    u = [params["state"][name]["w"] for name in sorted(params["state"])]
    c_C, found = np.zeros_like(h_C), []
    for x_D in x_LD:
        a = np.einsum("d,djc->jc", x_D, w_DJC) + b_JC
        p = np.einsum("d,djc->jc", h_C, u[0])
        if isinstance(cfg, RNN):
            h_C = np.tanh(a[0] + p[0]) if cfg.activation == "tanh" else np.maximum(a[0] + p[0], 0)
        elif isinstance(cfg, LSTM):
            i, f, g, o = a + p
            c_C = sigmoid(f) * c_C + sigmoid(i) * np.tanh(g)
            h_C = sigmoid(o) * np.tanh(c_C)
        elif cfg.reset == "after":
            r, z = sigmoid(a[:2] + p[:2])
            n = np.tanh(a[2] + r * (p[2] + params["free_bias"]))
            h_C = (1 - z) * n + z * h_C
        else:
            r, z = sigmoid(a[:2] + p)
            n = np.tanh(a[2] + np.einsum("d,dc->c", r * h_C, u[1][:, 0]))
            h_C = (1 - z) * h_C + z * n
        found.append(h_C)
    return np.array(found)


def expected(cfg, params, x_BLD, segments_BL):
    """The states [forward; backward] of every document, each begun anew; padding gives 0."""
    passes = [params["passes"][name] for name in sorted(params["passes"])]
    y_BLC = np.zeros((*x_BLD.shape[:2], len(passes) * HIDDEN))
    for row, segments_L in enumerate(segments_BL):
        for segment in set(segments_L) - {0}:
            here = segments_L == segment
            x_LD, zero_C = x_BLD[row, here], np.zeros(HIDDEN)
            parts = [walk(cfg, passes[0], x_LD, zero_C)]
            parts += [walk(cfg, p, x_LD[::-1], zero_C)[::-1] for p in passes[1:]]
            y_BLC[row, here] = np.concatenate(parts, axis=1)
    return y_BLC


def build(cfg, width=WIDTH):
    layer = cfg.build({"D": width, "N": 1}, Rngs(params=0))
    structure, params, _ = split(layer)
    return layer, structure, params


def renew(cfg, **values):
    return type(cfg)(**{f: getattr(cfg, f) for f in ("activation", "reset") if hasattr(cfg, f)} | values)


@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
def test_values_are_those_of_a_loop_in_both_directions_of_packed_rows(cell):
    cfg = renew(cell, hidden=HIDDEN, direction=Both(), out_init=Normal(std=1.0), **LOUD)
    layer, _, params = build(cfg)
    if isinstance(cell, GRU) and cell.reset == "after":
        for part in layer.passes:
            part.free_bias[...] = jnp.arange(HIDDEN) - 1.5
        params = split(layer)[1]
    params = jax.tree.map(np.asarray, params)
    ctx = Context(positions_BL=POSITIONS_BL, segments_BL=SEGMENTS_BL)
    y_BLD, aux = jax.jit(layer)(X, ctx)
    found_BLC = expected(cfg, params, X, SEGMENTS_BL)
    expected_BLD = found_BLC @ params["out"]["w"].reshape(2 * HIDDEN, WIDTH)
    real_BL = SEGMENTS_BL > 0
    np.testing.assert_allclose(y_BLD[real_BL], expected_BLD[real_BL], rtol=1e-4, atol=1e-5)
    assert aux == {}


@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
def test_gradients_are_those_of_finite_differences(cell):
    """Of a loss over one packed row, in a random direction of all parameters and of the input at once."""
    cfg = renew(cell, hidden=HIDDEN, direction=Both(), **LOUD)
    _, structure, params = build(cfg)
    ctx = Context(positions_BL=POSITIONS_BL, segments_BL=SEGMENTS_BL)
    pull_BLD = np.random.default_rng(1).normal(size=X.shape) * (SEGMENTS_BL > 0)[..., None]
    grads = jax.jit(jax.grad(lambda p, x: (merge(structure, p)(x, ctx)[0] * pull_BLD).sum(), argnums=(0, 1)))(params, X)
    way = jax.tree.map(lambda a: np.random.default_rng(a.size).normal(size=a.shape), (params, X))

    def loss(step):
        moved, x_BLD = jax.tree.map(lambda a, d: np.asarray(a, np.float64) + step * d, (params, X), way)
        y_BLC = expected(cfg, moved, x_BLD, SEGMENTS_BL)
        return (y_BLC @ moved["out"]["w"].reshape(2 * HIDDEN, WIDTH) * pull_BLD).sum()

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    found = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float((g * d).sum()), grads, way)))
    assert found == pytest.approx(slope, rel=2e-4)


MEMORY = np.random.default_rng(2).normal(size=(BATCH, 5, WIDTH)).astype(np.float32)
MEMORY_SEGMENTS_BM = np.array([[1, 1, 2, 2, 2], [1, 1, 1, 0, 0], [1, 2, 2, 2, 3]])


def test_a_summary_of_each_documents_memory_is_its_initial_state():
    layer, _, params = build(LSTM(hidden=HIDDEN, initial=Summary()))
    memory = {"memory_BMD": MEMORY, "memory_segments_BM": MEMORY_SEGMENTS_BM}
    # One step from the initial state, h = o tanh(c), shows c when the gates ignore all but their bias.
    first = layer.passes[0]
    first.read.w[...], first.state[0].w[...] = first.read.w[...] * 0, first.state[0].w[...] * 0
    first.read.bias[...] = jnp.array([-50.0, 50.0, 0.0, 50.0])[:, None] + jnp.zeros((4, HIDDEN))
    layer.out.w[...] = jnp.eye(HIDDEN, WIDTH)[None]
    y_BLD, _ = layer(X, Context(positions_BL=POSITIONS_BL, segments_BL=SEGMENTS_BL, **memory))
    part = layer.initial.parts[1]
    for row, segments_L in enumerate(SEGMENTS_BL):
        for at, segment in enumerate(segments_L):
            own = np.flatnonzero(MEMORY_SEGMENTS_BM[row] == segment)
            if segment and len(own):
                ends_D = np.concatenate([MEMORY[row, own[-1], : WIDTH // 2], MEMORY[row, own[0], WIDTH // 2 :]])
                c_C = np.tanh(ends_D @ np.asarray(part.w[...]))
                np.testing.assert_allclose(y_BLD[row, at, :HIDDEN], np.tanh(c_C), rtol=1e-4, atol=1e-5)


def test_decoding_begins_with_the_summary():
    layer, _, _ = build(GRU(hidden=HIDDEN, initial=Summary(), **LOUD))
    memory = {"memory_BMD": MEMORY, "memory_segments_BM": np.minimum(MEMORY_SEGMENTS_BM, 1)}
    ctx = Context(positions_BL=POSITIONS_BL, **memory)
    whole_BLD, _ = jax.jit(layer)(X, ctx)
    ones = Context(positions_BL=POSITIONS_BL, segments_BL=np.ones_like(POSITIONS_BL), **memory)
    np.testing.assert_allclose(jax.jit(layer)(X, ones)[0], whole_BLD, rtol=1e-5, atol=1e-6)
    state = layer.start(BATCH, LENGTH, ctx)
    first_BLD, state = layer.extend(X[:, :3], state, Context(positions_BL=POSITIONS_BL[:, :3]))
    rest_BLD, _ = layer.extend(X[:, 3:], state, Context(positions_BL=POSITIONS_BL[:, 3:]))
    np.testing.assert_allclose(np.concatenate([first_BLD, rest_BLD], 1), whole_BLD, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="reads an encoder's memory and the context has none; use it in the decoder"):
        layer.start(BATCH, LENGTH, Context(positions_BL=POSITIONS_BL))


def test_initial_values():
    w_cJC = Orthogonal()(jax.random.key(0), (8, 3, 8), 8, 1)
    np.testing.assert_allclose(jnp.einsum("cjC,djC->jcd", w_cJC, w_cJC), np.tile(np.eye(8), (3, 1, 1)), atol=1e-5)
    layer, _, _ = build(LSTM(bias=Gates(values=(0.0, 2.0, 0.0, 0.0))))
    assert layer.passes[0].read.bias[...].sum(1).tolist() == [0, 2 * WIDTH, 0, 0]
    assert layer.out is None  # the hidden size is the width


def test_cost():
    """2 x gates x (D C + C^2), and the projection; bytes of state do not grow with length."""
    layer, _, _ = build(LSTM(hidden=HIDDEN))
    cost = layer.cost(Shape(2, 10))
    assert cost.algorithmic == cost.executed == 20 * 2 * (4 * (WIDTH * HIDDEN + HIDDEN**2) + HIDDEN * WIDTH)
    assert cost.state == layer.cost(Shape(2, 99)).state == 4 * 2 * 2 * HIDDEN
    summary = build(GRU(hidden=WIDTH, initial=Summary()))[0].cost(Shape(2, 10))
    assert summary.executed - summary.algorithmic == 2 * 2 * 9 * WIDTH * WIDTH


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"GRU: hidden 0 and unroll 1 are 1 or more"):
        GRU(hidden=0)
    with pytest.raises(ValueError, match=r"RNN: initial is the state of a decoder, which has no Both\(\)"):
        RNN(initial=Summary(), direction=Both())
    with pytest.raises(ValueError, match=r"GRU\(direction=Both\(\)\) halves the width, 5; give `hidden`"):
        GRU(direction=Both()).build({"D": 5}, Rngs(params=0))
