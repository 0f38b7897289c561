"""Positions: learned, waves and rotations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.nn import Learned, Rotary, Sinusoidal
from llmlab.nn.module import Rngs

DIMS = {"D": 8}
POSITIONS_BL = np.array([[0, 1, 2, 3, 4], [7, 8, 0, 1, 2]])


def test_learned_positions_are_added_by_position_not_by_index():
    layer = Learned(length=9).build(DIMS, Rngs(params=0))
    y_BLD = layer(jnp.ones((2, 5, 8)), POSITIONS_BL)
    np.testing.assert_allclose(y_BLD - 1, np.asarray(layer.table[...])[POSITIONS_BL], atol=1e-6)
    assert layer.table.get_metadata()["axes"] == "lD"


def test_rows_before_the_first_position_are_left_alone():
    layer = Learned(length=9, offset=2).build(DIMS, Rngs(params=0))
    y_BLD = layer(jnp.ones((2, 5, 8)), POSITIONS_BL)
    np.testing.assert_allclose(y_BLD - 1, np.asarray(layer.table[...])[POSITIONS_BL + 2], atol=1e-6)
    assert (layer.table.shape, layer.longest) == ((11, 8), 9)


def test_more_positions_than_were_learned_are_refused():
    layer = Learned(length=4).build(DIMS, Rngs(params=0))
    with pytest.raises(ValueError, match=r"5 positions, but Learned\(length=4\) has 4; raise its `length`"):
        layer(jnp.ones((2, 5, 8)), POSITIONS_BL)


@pytest.mark.parametrize("layout", ["interleaved", "halves"])
def test_waves_follow_the_formula_of_the_paper(layout):
    """PE(pos, 2i) = sin(pos / 10000^(2i/D)), PE(pos, 2i+1) = cos of the same."""
    expected_BLD = np.zeros((2, 5, 8))
    for b, l, i in np.ndindex(2, 5, 4):
        angle = POSITIONS_BL[b, l] / 10_000 ** (2 * i / 8)
        even, odd = (2 * i, 2 * i + 1) if layout == "interleaved" else (i, i + 4)
        expected_BLD[b, l, even], expected_BLD[b, l, odd] = np.sin(angle), np.cos(angle)
    y_BLD = Sinusoidal(layout=layout).build(DIMS, None)(jnp.ones((2, 5, 8)), POSITIONS_BL)
    np.testing.assert_allclose(y_BLD, 1 + expected_BLD, atol=1e-5)


def test_waves_need_an_even_width():
    with pytest.raises(ValueError, match="even width, not 7"):
        Sinusoidal().build(DIMS, None)(jnp.ones((2, 5, 7)), POSITIONS_BL)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotation_keeps_norms_and_scores_depend_on_distance_alone(fraction):
    layer = Rotary(theta=100.0, fraction=fraction).build(DIMS, None)
    random = np.random.default_rng(0)
    q_BLHK, k_BLHK = random.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    turn = lambda x, positions: layer(jnp.broadcast_to(x, (1, len(positions), 1, 8)), np.array([positions]))
    at = np.array([0, 1, 5, 40])
    turned_BLHK, moved_BLHK = turn(q_BLHK, at + 3), turn(k_BLHK, at)
    np.testing.assert_allclose(np.linalg.norm(turned_BLHK, axis=-1), np.linalg.norm(q_BLHK), rtol=1e-5)
    scores_L = (turned_BLHK * moved_BLHK).sum(-1).ravel()
    np.testing.assert_allclose(scores_L, scores_L[0], rtol=1e-4)
    assert not np.allclose(scores_L[0], (q_BLHK * k_BLHK).sum())
    np.testing.assert_allclose(turn(q_BLHK, [0]), q_BLHK, atol=1e-6)
    whole = int(8 * fraction)  # the rest of a head is left as it is
    np.testing.assert_array_equal(turned_BLHK[..., whole:], np.broadcast_to(q_BLHK[..., whole:], (1, 4, 1, 8 - whole)))


def test_rotation_turns_the_pairs_of_two_halves():
    layer = Rotary(theta=10_000.0).build(DIMS, None)
    x_BLHK = np.arange(1, 5, dtype=np.float32).reshape(1, 1, 1, 4)
    found = np.asarray(layer(x_BLHK, np.array([[3]]))).ravel()
    for i, angle in enumerate((3, 3 / 100)):
        a, b = x_BLHK.ravel()[[i, i + 2]]
        expected = (a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle))
        np.testing.assert_allclose(found[[i, i + 2]], expected, rtol=1e-4)
    assert jax.eval_shape(layer, jnp.ones((1, 1, 1, 4), jnp.bfloat16), np.array([[3]])).dtype == jnp.bfloat16


def test_wrong_fractions_are_refused():
    with pytest.raises(ValueError, match="fraction 0.4 of 8 is odd"):
        Rotary(fraction=0.4).build(DIMS, None)(jnp.ones((1, 1, 1, 8)), np.array([[0]]))
    with pytest.raises(ValueError, match="Rotary.fraction is 1.5; .* at most 1"):
        Rotary(fraction=1.5)
