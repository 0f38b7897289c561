"""Linear recurrences with a matrix for a state, in chunks: products inside a chunk, one state from each to the next.

    linear attention   S_l = a_l S_{l-1} + k_l v_l            y_l = q_l S_l
    delta rule         S_l = a_l S_{l-1} + k_l u_l            u_l = beta_l (v_l - k_l a_l S_{l-1})

The chunked form is that of Mamba-2 (Dao & Gu, 2024), and for the delta rule that of Yang et al. (2024): the u of a
chunk solve a unit-triangular system. Each chunk is recomputed in the backward pass, so that what is saved beside the
inputs is one state a chunk, and nothing of the size L L or L S K is ever in memory.

Letters of this file: S, size of a key; K, size of a value; P, chunks; Q and q, positions of one; J, heads of a group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from llmlab.axes import Dims, shard
from llmlab.cost import Shape
from llmlab.kernels.matmul import batched
from llmlab.kernels.receipt import note

EXACT = jax.lax.Precision.HIGHEST  # of products whose errors would add up over a chunk


def linear_attention(
    q_BLGS: jax.Array,
    k_BLGS: jax.Array,
    v_BLHK: jax.Array,
    decay: jax.Array,
    starts_BL: jax.Array | None = None,
    state_BHSK: jax.Array | None = None,
    chunk: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """(y_BLHK in v's dtype, the last state_BHSK in float32). H is a multiple of G: heads of a group share q and k.

    decay: log a <= 0, for each head (BLH) or for each key channel (BLHS, with G = H); float32. starts: where the state
    is emptied first. state: the one before the first position, or empty. A position of zeros changes nothing.
    """
    note("linear attention", f"XLA, chunks of {min(chunk, v_BLHK.shape[1])}")
    inputs = {"q": (q_BLGS, "BlGS"), "k": (k_BLGS, "BlGS"), "v": (v_BLHK, "BlHK")}
    inputs["decay"] = (decay, "BlHS"[: decay.ndim])
    return _run(_by_head if decay.ndim == 3 else _by_channel, inputs, starts_BL, state_BHSK, chunk)


def delta_rule(
    q_BLHS: jax.Array,
    k_BLHS: jax.Array,
    v_BLHK: jax.Array,
    beta_BLH: jax.Array,
    decay_BLH: jax.Array,
    starts_BL: jax.Array | None = None,
    state_BHSK: jax.Array | None = None,
    chunk: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """(y_BLHK in v's dtype, the last state_BHSK in float32); keys of length 1. Arguments as for `linear_attention`.

    beta: how much of what the state holds under a key is replaced, 0 to 1 (to 2: Grazzi et al., 2024).
    """
    note("delta rule", f"XLA, chunks of {min(chunk, v_BLHK.shape[1])}")
    inputs = {"q": (q_BLHS, "BlHS"), "k": (k_BLHS, "BlHS"), "v": (v_BLHK, "BlHK")}
    inputs |= {"beta": (beta_BLH, "BlH"), "decay": (decay_BLH, "BlH")}
    return _run(_delta, inputs, starts_BL, state_BHSK, chunk)


def linear_flops(shape: Shape, dims: Dims, chunk: int, by_channel: bool = False) -> float:
    """FLOPs of the matrix products of `linear_attention`; scores by channel are elementwise work."""
    tokens, chunk = _executed(shape, chunk)
    scores = 0 if by_channel else 2 * dims["G"] * chunk * dims["S"]
    return tokens * (scores + 2.0 * dims["H"] * dims["K"] * (chunk + 2 * dims["S"]))


def delta_flops(shape: Shape, dims: Dims, chunk: int) -> float:
    """FLOPs of the matrix products of `delta_rule`."""
    tokens, chunk = _executed(shape, chunk)
    products = 2 * chunk * dims["S"] + dims["K"] * (2 * chunk + 3 * dims["S"])
    # The inverse of each chunk: two products of h x h for each pair of halves of the size h = 2, 4, ...
    inverse = sum(2 * _power(chunk) * 4**n for n in range(1, _power(chunk).bit_length() - 1))
    return dims["H"] * (2.0 * tokens * products + tokens // chunk * inverse)


def _executed(shape: Shape, chunk: int) -> tuple[int, int]:
    """Positions that are computed, the filling of the last chunk among them, and the chunk."""
    chunk = min(chunk, shape.length)
    return shape.batch * -(-shape.length // chunk) * chunk, chunk


def _run(step: Callable, inputs: dict, starts_BL, state_BHSK, chunk: int):
    """Scans `step` over chunks. inputs: {name: (array, its letters)}, with L whole: the lower-case letter."""
    v_BLHK = inputs["v"][0]
    batch, length, heads, values = v_BLHK.shape
    chunk = min(chunk, length)
    if state_BHSK is None:
        state_BHSK = jnp.zeros((batch, heads, inputs["k"][0].shape[-1], values), jnp.float32)
    if starts_BL is None:
        starts_BL = jnp.zeros((batch, length), bool)
    arrays = {name: _cut(shard(*given), chunk) for name, given in inputs.items()}
    arrays["starts"] = _cut(shard(starts_BL.astype(jnp.int32), "Bl"), chunk)
    step = jax.checkpoint(step, prevent_cse=False)
    state_BHSK, y_PBHQK = jax.lax.scan(lambda state, chunk: step(state, **chunk), state_BHSK, arrays)
    y_BLHK = jnp.moveaxis(y_PBHQK, (0, 3), (1, 2)).reshape(batch, -1, heads, values)[:, :length]
    return shard(y_BLHK, "BLHK"), state_BHSK


def _cut(a_BL, chunk: int):
    """Chunks first, and heads before the positions of a chunk; the last chunk is filled with zeros."""
    fill = -a_BL.shape[1] % chunk
    a_BL = jnp.pad(a_BL, ((0, 0), (0, fill), *[(0, 0)] * (a_BL.ndim - 2)))
    a_BPQ = a_BL.reshape(a_BL.shape[0], -1, chunk, *a_BL.shape[2:])
    return jnp.moveaxis(a_BPQ, (1, 2), (0, min(a_BPQ.ndim - 1, 3)))


@dataclasses.dataclass(frozen=True)
class Decays:
    """What is left, of what one position wrote, at another: from q to Q (0 where q is later or another document's).

    Also from the state before the chunk to Q, from q to the end of the chunk, and over the whole chunk.
    """

    between_BHQq: jax.Array
    before_BHQ: jax.Array
    after_BHQ: jax.Array
    whole_BH: jax.Array


def _decays(log_BHQ, starts_BQ) -> Decays:
    """Between H and Q there may be a letter more."""
    widen = lambda a: a.reshape(a.shape[0], *(1,) * (log_BHQ.ndim - 2), *a.shape[1:])
    sum_BHQ, document_BQ = jnp.cumsum(log_BHQ, axis=-1), jnp.cumsum(starts_BQ, axis=1)
    seen_BQq = (document_BQ[:, :, None] == document_BQ[:, None]) & jnp.tri(log_BHQ.shape[-1], dtype=bool)
    return Decays(
        jnp.exp(jnp.where(widen(seen_BQq), sum_BHQ[..., :, None] - sum_BHQ[..., None, :], -jnp.inf)),
        jnp.exp(sum_BHQ) * widen(document_BQ == 0),
        jnp.exp(sum_BHQ[..., -1:] - sum_BHQ) * widen(document_BQ == document_BQ[:, -1:]),
        jnp.exp(sum_BHQ[..., -1]) * widen(document_BQ == 0)[..., -1],
    )


def _by_head(state_BHSK, q, k, v, decay, starts):
    """One chunk of linear attention with a decay for each head."""
    split = lambda a: a.reshape(a.shape[0], q.shape[1], -1, *a.shape[2:])  # H into G and J
    found = _decays(decay, starts)
    scores_BG1Qq = batched("BGQS,BGqS->BGQq", q, k)[:, :, None]
    weights_BGJQq = (split(found.between_BHQq) * scores_BG1Qq).astype(v.dtype)
    y_BGJQK = batched("BGJQq,BGJqK->BGJQK", weights_BGJQq, split(v))
    y_BGJQK += batched("BGQS,BGJSK->BGJQK", q, split(state_BHSK)) * split(found.before_BHQ)[..., None]
    kept_BGJQK = split((v * found.after_BHQ[..., None]).astype(v.dtype))
    new_BGJSK = batched("BGQS,BGJQK->BGJSK", k, kept_BGJQK)
    state_BHSK = found.whole_BH[..., None, None] * state_BHSK + new_BGJSK.reshape(state_BHSK.shape)
    return state_BHSK, y_BGJQK.reshape(v.shape).astype(v.dtype)


def _by_channel(state_BHSK, q, k, v, decay, starts):
    """One chunk of linear attention with a decay for each channel of the keys (Yang et al., 2023).

    A quotient of two products of decays would overflow, so each pair's decay is formed by itself: chunks are short.
    """
    q_BHSQ, k_BHSQ, decay_BHSQ = (jnp.swapaxes(a.astype(jnp.float32), 2, 3) for a in (q, k, decay))
    found = _decays(decay_BHSQ, starts)
    weights_BHQq = (q_BHSQ[..., :, None] * k_BHSQ[..., None, :] * found.between_BHQq).sum(2)
    y_BHQK = batched("BHQq,BHqK->BHQK", weights_BHQq.astype(v.dtype), v)
    y_BHQK += batched("BHSQ,BHSK->BHQK", (q_BHSQ * found.before_BHQ).astype(q.dtype), state_BHSK)
    new_BHSK = batched("BHSQ,BHQK->BHSK", (k_BHSQ * found.after_BHQ).astype(k.dtype), v)
    return found.whole_BH[..., None] * state_BHSK + new_BHSK, y_BHQK.astype(v.dtype)


def _delta(state_BHSK, q, k, v, beta, decay, starts):
    """One chunk of the delta rule: u = (1 + beta tril(k k, -1))^-1 beta (v - k S), and then as linear attention."""
    found = _decays(decay, starts)
    overlap_BHQq = batched("BHQS,BHqS->BHQq", k, k) * found.between_BHQq * beta[..., None]
    known_BHQK = batched("BHQS,BHSK->BHQK", k, state_BHSK) * found.before_BHQ[..., None]
    right_BHQK = (v - known_BHQK) * beta[..., None]
    u_BHQK = jnp.einsum("BHQq,BHqK->BHQK", _inverse(overlap_BHQq), right_BHQK, precision=EXACT)
    weights_BHQq = batched("BHQS,BHqS->BHQq", q, k) * found.between_BHQq
    y_BHQK = batched("BHQq,BHqK->BHQK", weights_BHQq.astype(v.dtype), u_BHQK)
    y_BHQK += batched("BHQS,BHSK->BHQK", q, state_BHSK) * found.before_BHQ[..., None]
    new_BHSK = batched("BHQS,BHQK->BHSK", k, u_BHQK * found.after_BHQ[..., None])
    return found.whole_BH[..., None, None] * state_BHSK + new_BHSK, y_BHQK.astype(v.dtype)


def _inverse(a_BHQq):
    """The inverse of the matrix with ones on the diagonal and `a` below it: of its halves, and then of what is below.

    Products, for a triangular solve on CPU is a call of LAPACK, with which several at once were seen to hang.
    """
    size = a_BHQq.shape[-1]
    half = _power(size) // 2
    if size == 1:
        return jnp.ones_like(a_BHQq)
    fill = 2 * half - size
    a_BHQq = jnp.pad(a_BHQq, ((0, 0),) * (a_BHQq.ndim - 2) + ((0, fill), (0, fill)))
    first, second = _inverse(jnp.stack([a_BHQq[..., :half, :half], a_BHQq[..., half:, half:]]))
    below = -a_BHQq[..., half:, :half]
    if half > 1:
        below = jnp.matmul(jnp.matmul(second, below, precision=EXACT), first, precision=EXACT)
    rows = jnp.concatenate([first, jnp.zeros_like(first)], -1), jnp.concatenate([below, second], -1)
    return jnp.concatenate(rows, -2)[..., :size, :size]


def _power(size: int) -> int:
    """The power of 2 that is `size` or the next above it."""
    return 1 << (size - 1).bit_length()
