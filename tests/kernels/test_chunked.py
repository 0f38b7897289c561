"""Chunked recurrences against loops in float64: values, gradients, documents, pieces, FLOPs, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab import axes
from llmlab.cost import Shape, traced_flops
from llmlab.kernels import chunked
from llmlab.kernels.chunked import delta_flops, delta_rule, linear_attention, linear_flops
from llmlab.mesh import Mesh

BATCH, LENGTH = 2, 11
DIMS = {"G": 2, "H": 4, "S": 3, "K": 5}
STARTS_BL = np.zeros((BATCH, LENGTH), bool)
STARTS_BL[0, [0, 2, 3, 9]] = True
KINDS = ("head", "channel", "delta")


def arrays(kind: str, length: int = LENGTH):
    """q, k, v, (beta,) decay, state, for one kind of recurrence."""
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    groups = DIMS["G"] if kind == "head" else DIMS["H"]
    q, k = normal(BATCH, length, groups, 3), normal(BATCH, length, groups, 3)
    v, state = normal(BATCH, length, 4, 5), normal(BATCH, 4, 3, 5)
    decay = -np.exp(normal(BATCH, length, 4, 3) if kind == "channel" else normal(BATCH, length, 4))
    if kind != "delta":
        return q, k, v, decay, state
    return q, k / np.linalg.norm(k, axis=-1, keepdims=True), v, random.uniform(0, 2, (BATCH, length, 4)), decay, state


def loop(kind, q, k, v, *rest, starts_BL, xp=np):
    """The recurrence, written out; rest: (beta,) decay, state."""
    *beta, decay, S_BHSK = rest
    share = v.shape[2] // q.shape[2]
    q, k, y = xp.repeat(q, share, 2), xp.repeat(k, share, 2), []
    for i in range(v.shape[1]):
        a_BH = xp.exp(decay[:, i]) * (1 - starts_BL[:, i].reshape(-1, *(1,) * (decay.ndim - 2)))
        S_BHSK = S_BHSK * (a_BH[..., None] if kind == "channel" else a_BH[..., None, None])
        u_BHK = v[:, i]
        if kind == "delta":
            u_BHK = beta[0][:, i, :, None] * (u_BHK - xp.einsum("bhs,bhsk->bhk", k[:, i], S_BHSK))
        S_BHSK = S_BHSK + k[:, i, :, :, None] * u_BHK[:, :, None]
        y.append(xp.einsum("bhs,bhsk->bhk", q[:, i], S_BHSK))
    return xp.stack(y, 1), S_BHSK


def run(kind, *given, starts_BL, chunk=4):
    *given, state = given
    return (delta_rule if kind == "delta" else linear_attention)(*given, starts_BL, state, chunk)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_loop(kind):
    given = arrays(kind)
    expected = loop(kind, *(a.astype(np.float64) for a in given), starts_BL=STARTS_BL)
    found = jax.jit(lambda *given: [run(kind, *given, starts_BL=STARTS_BL, chunk=c) for c in (1, 4, 50)])(*given)
    for pair in found:
        for a, b in zip(pair, expected):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_loop(kind):
    random = np.random.default_rng(1)
    weights = [random.normal(size=(BATCH, LENGTH, 4, 5)), random.normal(size=(BATCH, 4, 3, 5))]
    loss = lambda f, **more: (
        lambda given: sum((a * w).sum() for a, w in zip(f(kind, *given, starts_BL=STARTS_BL, **more), weights))
    )
    both = jax.jit(lambda given: [jax.grad(f)(given) for f in (loss(run), loss(loop, xp=jnp))])
    for a, b in zip(*both(arrays(kind))):
        assert np.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_pass_the_state_on(kind):
    *given, state = arrays(kind)
    whole, last = run(kind, *given, state, starts_BL=None)
    parts = []
    for piece in (slice(0, 6), slice(6, 7), slice(7, LENGTH)):
        y, state = run(kind, *(a[:, piece] for a in given), state, starts_BL=None)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state, last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_declared_and_a_sharded_length_is_borne(kind):
    for length, chunk in ((16, 4), (11, 4), (3, 8)):
        traced = traced_flops(lambda *a, c=chunk: run(kind, *a, starts_BL=None, chunk=c), *arrays(kind, length))
        dims, shape = DIMS | ({} if kind == "head" else {"G": 4}), Shape(BATCH, length)
        declared = delta_flops(shape, dims, chunk)
        if kind != "delta":
            declared = linear_flops(shape, dims, chunk, by_channel=kind == "channel")
        assert declared == traced
    given, starts_BL = arrays(kind, 16), np.zeros((BATCH, 16), bool)

    def sharded(*given):
        with axes.use(Mesh(sequence=4, tensor=2).build(), axes.every()):
            return run(kind, *given, starts_BL=starts_BL)

    for a, b in zip(jax.jit(sharded)(*given), loop(kind, *given, starts_BL=starts_BL)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_large_decays_and_half_precision_stay_finite(kind):
    *given, decay, state = arrays(kind)
    half = [jnp.asarray(a, jnp.bfloat16) for a in given]
    y, last = run(kind, *half, 300 * decay, state, starts_BL=None)
    grads = jax.grad(lambda d: run(kind, *given, d, state, starts_BL=None)[0].sum())(300 * decay)
    assert y.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    assert np.isfinite(np.asarray(y, np.float32)).all() and np.isfinite(last).all() and np.isfinite(grads).all()


@pytest.mark.parametrize("kind", KINDS)
def test_memory_grows_by_the_inputs_and_a_state_for_each_chunk(kind):
    size, chunk = 32, 64

    def temporary(length: int) -> int:
        row = lambda *shape: jax.ShapeDtypeStruct((1, length, *shape), jnp.float32)
        given = [row(1, size)] * 3 + [row(1)] * (kind == "delta") + [row(1, size) if kind == "channel" else row(1)]
        state = jax.ShapeDtypeStruct((1, 1, size, size), jnp.float32)
        loss = lambda given: run(kind, *given, starts_BL=None, chunk=chunk)[0].sum()
        return jax.jit(jax.grad(loss)).lower([*given, state]).compile().memory_analysis().temp_size_in_bytes

    slope = (temporary(2048) - temporary(1024)) / 1024
    inputs, states = 4 * 5 * size, 4 * size**2
    assert states / chunk < slope < 4 * inputs + states / chunk < 0.7 * states


@pytest.mark.parametrize("size", [1, 2, 3, 16, 100])
def test_the_inverse_is_exact_where_powers_of_the_matrix_would_not_be(size):
    """Equal keys: every entry below the diagonal is 1, and the 32nd power of such a matrix has entries beyond 1e20."""
    for below in (np.ones((size, size)), np.random.default_rng(0).normal(size=(size, size)) / size**0.5):
        matrix = np.eye(size) + np.tril(below, -1)
        found = chunked._inverse(jnp.asarray(below, jnp.float32)[None])[0]
        np.testing.assert_allclose(found, np.linalg.inv(matrix), rtol=1e-4, atol=1e-4)
