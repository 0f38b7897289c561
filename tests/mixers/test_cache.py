"""The cache of attention: slots are filled in order, a ring keeps the last ones, and too long a call is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.mixers import cache


def orders(*positions_BL, slots: int, window: int | None = None):
    """(state, [what each call may see]) after calls with these positions, kept as `a` too."""
    state, seen = cache.empty({"a": (slots, 2), "b": (2, slots)}, 1, slots, "bfloat16"), []
    for row in positions_BL:
        new = {"a": jnp.broadcast_to(jnp.array(row, jnp.float32)[None, :, None], (1, len(row), 2))}
        new["b"] = jnp.swapaxes(new["a"], 1, 2)
        state, found = cache.write(state, new, jnp.array([row]), window, {"b": 2})
        np.testing.assert_array_equal(found["b"], jnp.swapaxes(found["a"], 1, 2))
        np.testing.assert_array_equal(found["a"][..., 1] * (found["order"] >= 0), np.maximum(found["order"], 0))
        seen.append(found["order"][0].tolist())
    return state, seen


def test_slots_are_filled_in_order_and_empty_ones_have_none():
    state, seen = orders([-1, 0, 1], [2], [3, 4], slots=8)
    assert seen == [[-1, 0, 1, *[-1] * 5], [-1, 0, 1, 2, *[-1] * 4], [-1, 0, 1, 2, 3, 4, -1, -1]]
    assert state["used"] == 6 and state["a"].dtype == "bfloat16" and state["a"].shape == (1, 8, 2)
    assert {"a": "BMK", "b": "BKM", **cache.LETTERS}.keys() == state.keys()


def test_a_ring_keeps_the_last_positions_and_shows_a_chunk_those_before_it():
    state, seen = orders([0, 1, 2, 3, 4], [5], [6, 7], slots=3, window=3)
    assert seen == [[-1, -1, -1, 0, 1, 2, 3, 4], [3, 4, 5], [3, 4, 5, 6, 7]]
    assert sorted(state["order"][0].tolist()) == [5, 6, 7]


@pytest.mark.parametrize("window", [None, 9])
def test_more_positions_than_slots_are_refused(window):
    with pytest.raises(ValueError, match=r"extend\(\) is given 4 positions, and the cache was made for 3; give start"):
        orders([0, 1, 2, 3], slots=3, window=window)
