"""The selective scan of Mamba (Gu & Dao, 2023): a diagonal linear recurrence whose coefficients the input chooses.

    h_l = exp(step_l rate) h_{l-1} + step_l b_l x_l        y_l = c_l h_l

It runs position by position and forms exp(step rate) inside the step, so nothing of size B L C S is ever in memory.
Saved for the backward pass are the inputs and the state before each chunk: it goes through the chunks in reverse and
recomputes the states of one at a time. On CPU that is several times faster than an associative scan
(benchmarks/scan_cpu.py). Left out: a fused kernel for GPUs, where a loop over positions is slow.
Letters of this file: P, chunks; Q, the positions of one.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from llmlab.axes import shard
from llmlab.kernels.receipt import note

CHUNK = 32  # positions whose states the backward pass holds at once; memory is least near the root of the length


def document_starts(segments_BL: jax.Array | None) -> jax.Array | None:
    """True where a document of a packed row begins, so that no state crosses; None when a row is one document."""
    return None if segments_BL is None else jnp.diff(segments_BL, axis=1, prepend=-1) != 0


def selective_scan(
    x_BLC: jax.Array,
    step_BLC: jax.Array,
    rate_CS: jax.Array,
    b_BLS: jax.Array,
    c_BLS: jax.Array,
    starts_BL: jax.Array | None = None,
    state_BSC: jax.Array | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """(y_BLC in x's dtype, the last state_BSC in float32); a position with a step of 0 leaves the state as it is.

    rate: below 0. starts: where the state is emptied first. state: the one before the first position, or empty.
    """
    batch, length, channels = x_BLC.shape
    chunk = min(chunk, length)
    note("selective scan", f"XLA, by position, chunks of {chunk}")
    if state_BSC is None:
        state_BSC = jnp.zeros((batch, rate_CS.shape[1], channels), jnp.float32)
    if starts_BL is None:
        starts_BL = jnp.zeros((batch, length), bool)
    # A loop over L needs all of it: the lower-case letter.
    x_BLC, step_BLC = shard(x_BLC, "BlC"), shard(step_BLC.astype(jnp.float32), "BlC")
    b_BLS, c_BLS, starts_BL = shard(b_BLS, "BlS"), shard(c_BLS, "BlS"), shard(starts_BL, "Bl")
    y_BLC, state_BSC = _scan(chunk, x_BLC, step_BLC, rate_CS, b_BLS, c_BLS, starts_BL, state_BSC)
    return shard(y_BLC, "BLC"), state_BSC


def _cut(a_BL, chunk: int):
    """Chunks of positions, positions first; the last chunk is filled with zeros."""
    fill = -a_BL.shape[1] % chunk
    a_LB = jnp.moveaxis(jnp.pad(a_BL, ((0, 0), (0, fill), *[(0, 0)] * (a_BL.ndim - 2))), 1, 0)
    return a_LB.reshape(-1, chunk, *a_LB.shape[1:])


def _join(a_PQB, length: int):
    """What `_cut` has cut."""
    return jnp.moveaxis(a_PQB.reshape(-1, *a_PQB.shape[2:]), 0, 1)[:, :length]


def _inputs(chunk: int, x_BLC, step_BLC, b_BLS, c_BLS, starts_BL):
    """Everything that the steps read, cut; a filled position has a step of 0 and keeps the state."""
    keep_PQB = 1.0 - _cut(starts_BL, chunk).astype(jnp.float32)
    return (*(_cut(a, chunk) for a in (x_BLC, step_BLC, b_BLS, c_BLS)), keep_PQB)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(chunk: int, x_BLC, step_BLC, rate_CS, b_BLS, c_BLS, starts_BL, state_BSC):
    return _forward(chunk, x_BLC, step_BLC, rate_CS, b_BLS, c_BLS, starts_BL, state_BSC)[0]


def _forward(chunk: int, x_BLC, step_BLC, rate_CS, b_BLS, c_BLS, starts_BL, state_BSC):
    rate_SC, given = rate_CS.T, (x_BLC, step_BLC, b_BLS, c_BLS, starts_BL)

    def move(h_BSC, inputs):
        x_BC, step_BC, b_BS, c_BS, keep_B = inputs
        _, h_BSC = _step(h_BSC, x_BC, step_BC, rate_SC, b_BS, keep_B)
        return h_BSC, (h_BSC * c_BS.astype(jnp.float32)[:, :, None]).sum(1).astype(x_BC.dtype)

    def run(h_BSC, inputs):
        last_BSC, y_QBC = jax.lax.scan(move, h_BSC, inputs)
        return last_BSC, (y_QBC, h_BSC)

    last_BSC, (y_PQBC, before_PBSC) = jax.lax.scan(run, state_BSC, _inputs(chunk, *given))
    return (_join(y_PQBC, x_BLC.shape[1]), last_BSC), (given, rate_SC, before_PBSC)


def _step(h_BSC, x_BC, step_BC, rate_SC, b_BS, keep_B):
    """(decay, state) of one position."""
    decay_BSC = jnp.exp(step_BC[:, None] * rate_SC) * keep_B[:, None, None]
    written_BC = step_BC * x_BC.astype(jnp.float32)
    return decay_BSC, decay_BSC * h_BSC + written_BC[:, None] * b_BS.astype(jnp.float32)[:, :, None]


def _backward(chunk: int, saved, gradients):
    """Chunks in reverse; in each, its states forward and then the gradients backward."""
    given, rate_SC, before_PBSC = saved
    dy_BLC, dh_BSC = gradients

    def states(h_BSC, inputs):
        x_BC, step_BC, b_BS, _, keep_B = inputs
        return _step(h_BSC, x_BC, step_BC, rate_SC, b_BS, keep_B)[1], h_BSC

    def move(carry, inputs):
        dh_BSC, drate_BSC = carry  # of the state after this position, from later positions
        (x_BC, step_BC, b_BS, c_BS, keep_B), h_BSC, dy_BC = inputs
        decay_BSC, new_BSC = _step(h_BSC, x_BC, step_BC, rate_SC, b_BS, keep_B)
        dy_BC, x32_BC = dy_BC.astype(jnp.float32), x_BC.astype(jnp.float32)
        dh_BSC = dh_BSC + dy_BC[:, None] * c_BS.astype(jnp.float32)[:, :, None]
        dc_BS = (dy_BC[:, None] * new_BSC).sum(2)
        db_BS = (dh_BSC * (step_BC * x32_BC)[:, None]).sum(2)
        dwritten_BC = (dh_BSC * b_BS.astype(jnp.float32)[:, :, None]).sum(1)
        dh_BSC = dh_BSC * decay_BSC
        dlog_BSC = dh_BSC * h_BSC  # of the logarithm of the decay
        dstep_BC = (dlog_BSC * rate_SC).sum(1) + dwritten_BC * x32_BC
        drate_BSC = drate_BSC + dlog_BSC * step_BC[:, None]
        dx_BC = (dwritten_BC * step_BC).astype(x_BC.dtype)
        return (dh_BSC, drate_BSC), (dx_BC, dstep_BC, db_BS.astype(b_BS.dtype), dc_BS.astype(c_BS.dtype))

    def run(carry, inputs):
        inputs, h_BSC, dy_QBC = inputs
        _, h_QBSC = jax.lax.scan(states, h_BSC, inputs)
        return jax.lax.scan(move, carry, (inputs, h_QBSC, dy_QBC), reverse=True)

    carry = (dh_BSC, jnp.zeros_like(dh_BSC))
    inputs = (_inputs(chunk, *given), before_PBSC, _cut(dy_BLC, chunk))
    (dh_BSC, drate_BSC), found = jax.lax.scan(run, carry, inputs, reverse=True)
    dx_BLC, dstep_BLC, db_BLS, dc_BLS = (_join(a, dy_BLC.shape[1]) for a in found)
    return dx_BLC, dstep_BLC, drate_BSC.sum(0).T, db_BLS, dc_BLS, None, dh_BSC


_scan.defvjp(_forward, _backward)
