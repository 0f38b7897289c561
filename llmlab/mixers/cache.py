"""The decode state of attention: what keys and values are made of, a slot for each position.

With a window the slots are a ring of the window's size; else there are as many as positions were asked for, and the
caller goes no further: a call longer than that is refused, but how many calls came before it is not known while
tracing, so positions beyond the last slot would overwrite the first ones.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmlab.axes import platform

LETTERS = {"order": "BM", "used": ""}  # of what `empty` adds to the arrays


def empty(arrays: dict[str, tuple[int, ...]], batch: int, slots: int, dtype) -> dict[str, jax.Array]:
    """A state without positions. arrays: {name: shape of a row of slots}."""
    return {
        **{name: jnp.zeros((batch, *shape), dtype) for name, shape in arrays.items()},
        "order": jnp.full((batch, slots), -1, jnp.int32),
        "used": jnp.zeros((), jnp.int32),
    }


def _write(old, a, start, axis: int):
    """`a` from `start` on, in `old`. XLA's CPU backend makes a whole array of bfloat16 anew for it, of bits not."""
    if old.dtype != jnp.bfloat16 or platform() != "cpu":
        return jax.lax.dynamic_update_slice_in_dim(old, a, start, axis)
    bits = lambda a: jax.lax.bitcast_convert_type(a, jnp.uint16)
    written = jax.lax.dynamic_update_slice_in_dim(bits(old), bits(a), start, axis)
    return jax.lax.bitcast_convert_type(written, jnp.bfloat16)


def write(
    state: dict, new: dict, positions_BL: jax.Array, window: int | None, axes: dict[str, int] | None = None
) -> tuple[dict, dict]:
    """(state with the new positions, what their queries may see: the arrays and their "order").

    axes: of the positions in each array, 1 where none is given. Raises ValueError when one call has more positions than
    the state has slots.
    """
    slots, length = state["order"].shape[1], positions_BL.shape[1]
    ring = window == slots
    if length > slots and not ring:
        raise ValueError(
            f"extend() is given {length} positions, and the cache was made for {slots}; give start() their number"
        )
    new = {name: a.astype(state[name].dtype) for name, a in new.items()} | {"order": positions_BL}
    if length == 1 or not ring:  # one piece: written in place
        start = state["used"] % slots
        put = lambda old, a, axis: _write(old, a, start, axis)
    else:
        place = (state["used"] + jnp.arange(length))[-slots:] % slots
        last = lambda a, axis: jax.lax.slice_in_dim(a, max(0, length - slots), length, axis=axis)
        put = lambda old, a, axis: old.at[(slice(None),) * axis + (place,)].set(last(a, axis))
    axes = {name: 1 for name in new} | (axes or {})
    written = {name: put(state[name], a, axes[name]) for name, a in new.items()}
    seen = written
    if length > 1 and ring:  # a ring forgets keys that the chunk's first queries still see
        seen = {name: jnp.concatenate([state[name], a], axes[name]) for name, a in new.items()}
    return {**written, "used": state["used"] + length}, seen
