"""The selective scan against a loop in float64: values, gradients, documents, pieces, and what it keeps in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab import axes
from llmlab.cost import traced_flops
from llmlab.kernels.scan import document_starts, selective_scan
from llmlab.mesh import Mesh

BATCH, LENGTH, CHANNELS, STATE = 2, 11, 4, 3
STARTS_BL = np.zeros((BATCH, LENGTH), bool)
STARTS_BL[0, [0, 3, 4, 8]] = True


def arrays(length: int = LENGTH):
    """x, step, rate, b, c, state."""
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    step_BLC, rate_CS = np.exp(normal(BATCH, length, CHANNELS) - 1), -np.exp(normal(CHANNELS, STATE))
    b_BLS, c_BLS = normal(BATCH, length, STATE), normal(BATCH, length, STATE)
    return normal(BATCH, length, CHANNELS), step_BLC, rate_CS, b_BLS, c_BLS, normal(BATCH, STATE, CHANNELS)


def loop(x_BLC, step_BLC, rate_CS, b_BLS, c_BLS, h_BSC, starts_BL, xp=np):
    """The recurrence, written out."""
    y = []
    for i in range(x_BLC.shape[1]):
        decay_BSC = xp.exp(step_BLC[:, i, None] * rate_CS.T) * (1 - starts_BL[:, i, None, None])
        h_BSC = decay_BSC * h_BSC + (step_BLC[:, i] * x_BLC[:, i])[:, None] * b_BLS[:, i, :, None]
        y.append((h_BSC * c_BLS[:, i, :, None]).sum(1))
    return xp.stack(y, 1), h_BSC


def scan(x, step, rate, b, c, state, starts_BL, chunk=4):
    return selective_scan(x, step, rate, b, c, starts_BL, state, chunk)


@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_values_are_those_of_the_loop(chunk):
    expected = loop(*(a.astype(np.float64) for a in arrays()), STARTS_BL)
    for found, value in zip(scan(*arrays(), STARTS_BL, chunk), expected):
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_loop():
    random = np.random.default_rng(1)
    weights = [random.normal(size=(BATCH, LENGTH, CHANNELS)), random.normal(size=(BATCH, STATE, CHANNELS))]
    loss = lambda run: lambda given: sum((a * w).sum() for a, w in zip(run(*given, STARTS_BL), weights))
    reference = lambda *given: loop(*given, xp=jnp)
    found, expected = jax.jit(lambda given: [jax.grad(loss(run))(given) for run in (scan, reference)])(arrays())
    for a, b in zip(found, expected):
        assert np.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_pieces_pass_the_state_on():
    x, step, rate, b, c, state = arrays()
    whole, last = scan(x, step, rate, b, c, state, None)
    cut = lambda piece: [a[:, piece] for a in (x, step, b, c)]
    parts = []
    for piece in (slice(0, 6), slice(6, 7), slice(7, LENGTH)):
        x_BLC, step_BLC, b_BLS, c_BLS = cut(piece)
        y, state = selective_scan(x_BLC, step_BLC, rate, b_BLS, c_BLS, None, state, 4)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state, last, rtol=1e-5, atol=1e-6)


def test_starts_of_documents():
    assert document_starts(None) is None
    found = document_starts(jnp.array([[1, 1, 2, 2, 0], [0, 0, 0, 0, 0]]))
    np.testing.assert_array_equal(found, [[1, 0, 1, 0, 1], [1, 0, 0, 0, 0]])


def test_it_holds_no_array_of_all_positions_and_states():
    """Twice the length costs the inputs and a state for each chunk, in the backward pass too."""
    channels, state, chunk = 32, 32, 32

    def temporary(length: int) -> int:
        shapes = [(1, length, channels)] * 2 + [(channels, state)] + [(1, length, state)] * 2 + [(1, state, channels)]
        given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        loss = lambda given: scan(*given, jnp.zeros((1, length), bool), chunk)[0].sum()
        return jax.jit(jax.grad(loss)).lower(given).compile().memory_analysis().temp_size_in_bytes

    slope = (temporary(4096) - temporary(2048)) / 2048
    inputs, states = 4 * (2 * channels + 2 * state + 1), 4 * channels * state
    assert states / chunk < slope < 4 * inputs + states / chunk < 0.6 * states


def test_it_has_no_matrix_product_and_bears_a_sharded_length():
    given = arrays(16)
    starts_BL = np.zeros((BATCH, 16), bool)
    assert traced_flops(lambda given: scan(*given, starts_BL), given) == 0

    def run(given):
        with axes.use(Mesh(sequence=4, tensor=2).build(), axes.every()):
            return scan(*given, starts_BL)

    for found, value in zip(jax.jit(run)(given), loop(*given, starts_BL)):
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)
    half = scan(jnp.asarray(given[0], jnp.bfloat16), *given[1:], starts_BL)
    assert half[0].dtype == jnp.bfloat16 and half[1].dtype == jnp.float32
