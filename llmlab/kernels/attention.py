"""Softmax attention behind one function; the platform chooses the kernel, and the receipt says which ran.

Letters of this file: J, query heads that share one key/value head (H = G x J).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llmlab import axes
from llmlab.cost import visible_pairs
from llmlab.kernels.cudnn import cudnn, stand_in
from llmlab.kernels.matmul import FEW, add_bias, batched
from llmlab.kernels.receipt import note
from llmlab.kernels.splash import refusal, splash

save_only_these_names = jax.checkpoint_policies.save_only_these_names
HIDDEN = -1e30  # the score of a pair that is not visible; finite, so that an empty row gives no NaN
SPLASH, CUDNN = "splash attention (Pallas)", "cuDNN flash attention"
TILES = 4  # causal rows are computed in at most this many tiles of queries, each with the keys it can see
SMALLEST_TILE = 128
LONG = 512
BLOCK = 256  # rows longer than LONG that cannot be cut so are scanned in blocks of at most this many queries


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which (query, key) pairs are visible.

    causal: a key is seen by queries that do not come before it. window: at most so many keys back, the query's own
    included. order_BL, order_BM: the order that both read; None when it is the index in the row. A key of negative
    order is padding. segments: only pairs of one segment. prefix_BM: keys that the whole segment sees.
    """

    causal: bool = dataclasses.field(default=True, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    order_BL: jax.Array | None = None
    order_BM: jax.Array | None = None
    segments_BL: jax.Array | None = None
    segments_BM: jax.Array | None = None
    prefix_BM: jax.Array | None = None

    @property
    def by_index(self) -> bool:
        """Whether order is the index in the row."""
        return self.order_BL is None

    def orders(self, queries: slice, keys: slice, length: int, memory: int) -> tuple[jax.Array, jax.Array]:
        """(order_BL, order_BM) of a tile, B or 1 rows."""
        if self.by_index:
            return jnp.arange(length)[None, queries], jnp.arange(memory)[None, keys]
        return self.order_BL[:, queries], self.order_BM[:, keys]

    def visible(self, queries: slice, keys: slice, length: int, memory: int) -> jax.Array | None:
        """Booleans over B, L, M (B or 1 rows) for a tile; None when every pair of the tile is visible."""
        row, column = self.orders(queries, keys, length, memory)
        ahead_BLM = row[:, :, None] - column[:, None, :]
        terms = []
        if self.causal:
            seen_BLM = ahead_BLM >= 0
            if self.prefix_BM is not None:
                seen_BLM |= self.prefix_BM[:, None, keys]
            terms.append(seen_BLM)
        if self.window is not None:
            terms.append(ahead_BLM < self.window)
        if not self.by_index:
            terms.append(column[:, None, :] >= 0)
        if self.segments_BL is not None:
            terms.append(self.segments_BL[:, queries, None] == self.segments_BM[:, None, keys])
        if not terms:
            return None
        found = terms[0]
        for term in terms[1:]:
            found &= term
        return found


@dataclasses.dataclass(frozen=True)
class Added:
    """What joins the scores after the softcap.

    bias: a function (order_BL, order_BM) -> float32 of shape (B or 1, H, L, M); it is asked for one tile at a time.
    sink_H: a logit of each head that takes part in every softmax and has no value, so that a head may look away.
    """

    bias: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    sink_H: jax.Array | None = None


def attend(
    q_BLHK: jax.Array,
    k_BMGK: jax.Array,
    v_BMGK: jax.Array,
    mask: Mask,
    scale: float,
    softcap: float | None = None,
    dropout: tuple[float, jax.Array] | None = None,
    added: Added = Added(),
) -> jax.Array:
    """softmax(q k^T scale) v over the visible pairs -> BLHK; H is a multiple of G, and values may have another K.

    softcap: scores s become softcap * tanh(s / softcap) before the mask. dropout: (rate, key) on the probabilities.
    """
    fast, refused = _fast(q_BLHK, k_BMGK, v_BMGK, mask, softcap, dropout, added)
    if fast and refused is None:
        note("attention", fast)
        if fast == CUDNN:
            return (cudnn if axes.present() else stand_in)(q_BLHK, k_BMGK, v_BMGK, mask, scale)
        q_BLHK = (q_BLHK.astype(jnp.float32) * scale).astype(q_BLHK.dtype)
        return splash(q_BLHK, k_BMGK, v_BMGK, mask, softcap, added.sink_H)
    instead = fast and f"{fast} ({refused})"
    length, memory = q_BLHK.shape[1], k_BMGK.shape[1]

    def tile(q_BLHK, mask: Mask, queries: slice, keys: slice, number):
        """Queries that are cut already, against a slice of the keys; `mask` is of `queries`' whole row."""

        def run(q_BLHK, k_BMGK, v_BMGK):
            orders = mask.orders(queries, keys, length, memory)
            drawn = dropout and (dropout[0], jax.random.fold_in(dropout[1], number))
            bias_BHLM = None if added.bias is None else added.bias(*orders)
            visible_BLM = mask.visible(queries, keys, length, memory)
            scores_BGJLM = _scores(q_BLHK, k_BMGK, scale, softcap, bias_BHLM, visible_BLM)
            return _mix(scores_BGJLM, v_BMGK, added.sink_H, drawn)

        # Long rows save nothing of a tile, short ones the probabilities: what else there is, is recomputed.
        names = () if length > LONG else ("probabilities",)
        run = jax.checkpoint(run, prevent_cse=False, policy=save_only_these_names(*names))
        return run(q_BLHK, k_BMGK[:, keys], v_BMGK[:, keys])

    plan, count = tiles(length, memory, mask), blocks(length, memory, mask)
    if count > 1:
        note("attention", f"XLA, scan of {count} blocks of queries", instead)
        return _scan_blocks(q_BLHK, memory, mask, count, tile)
    note("attention", f"XLA, {len(plan)} tile{'s' * (len(plan) > 1)} of queries", instead)
    rows = [tile(q_BLHK[:, queries], mask, queries, keys, i) for i, (queries, keys) in enumerate(plan)]
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)


def tiles(length: int, memory: int, mask: Mask) -> list[tuple[slice, slice]]:
    """(queries, keys) of each tile: of a causal row every tile computes only the keys that it can see.

    One tile where queries do not stand on the last positions of the keys, or where L is sharded.
    """
    cut = mask.causal and mask.by_index and length == memory and mask.prefix_BM is None
    whole = not cut or length < 2 * SMALLEST_TILE or _sharded()
    count = 1 if whole else min(TILES, length // SMALLEST_TILE)
    edges = [round(i * length / count) for i in range(count + 1)]
    first_key = lambda start: max(0, start - mask.window + 1) if mask.window and not whole else 0
    return [
        (slice(start, stop), slice(first_key(start), memory if whole else stop))
        for start, stop in zip(edges, edges[1:])
    ]


def blocks(length: int, memory: int, mask: Mask) -> int:
    """How many blocks of queries a long row that is one tile is scanned in, so that its scores never are one array."""
    scanned = len(tiles(length, memory, mask)) == 1 and length > LONG and not _sharded()
    return -(-length // BLOCK) if scanned else 1


def pairs(length: int, memory: int, mask: Mask, whole: bool = False) -> tuple[int, int]:
    """(visible pairs, pairs that the XLA kernel computes) of one row; `whole`: a prefix keeps it from tiles."""
    cut = dataclasses.replace(mask, causal=False) if whole else mask
    count = blocks(length, memory, cut)
    executed = sum((q.stop - q.start) * (k.stop - k.start) for q, k in tiles(length, memory, cut))
    if count > 1:
        executed = -(-length // count) * count * memory
    return visible_pairs(length, memory, mask.causal, mask.window), executed


def _sharded() -> bool:
    """Whether L is."""
    found = axes.scope()
    return found is not None and dict(found[0].shape).get("sequence", 1) > 1


def _scan_blocks(q_BLHK, memory: int, mask: Mask, count: int, tile: Callable) -> jax.Array:
    """The tile of each block of queries with all keys, one after another; the last block is filled up."""
    batch, length, step = *q_BLHK.shape[:2], -(-q_BLHK.shape[1] // count)
    whole = slice(None)
    order_BL, order_BM = mask.orders(whole, whole, length, memory)

    def cut(a):
        filled = jnp.pad(a, [(0, 0), (0, count * step - length), *[(0, 0)] * (a.ndim - 2)])
        return jnp.moveaxis(filled.reshape(a.shape[0], count, step, *a.shape[2:]), 1, 0)

    def run(_, block):
        number, q_BLHK, order_BL, segments_BL = block
        own = dataclasses.replace(mask, order_BL=order_BL, order_BM=order_BM, segments_BL=segments_BL)
        return None, tile(q_BLHK, own, whole, whole, number)

    given = (jnp.arange(count), *jax.tree.map(cut, (q_BLHK, order_BL, mask.segments_BL)))
    y_BLHK = jnp.moveaxis(jax.lax.scan(run, None, given)[1], 0, 1)
    return y_BLHK.reshape(batch, count * step, *y_BLHK.shape[3:])[:, :length]


def _scores(q_BLHK, k_BMGK, scale, softcap, bias_BHLM, visible_BLM):
    """Scores of a tile in float32, of shape BGJLM."""
    batch, length, heads, size = q_BLHK.shape
    groups = k_BMGK.shape[2]
    q_BLGJK = q_BLHK.reshape(batch, length, groups, heads // groups, size)
    if length == 1:  # of a cache that holds each head's keys together: read where they lie
        scores_BGJLM = _dot("BGJK,BGMK->BGJM", q_BLGJK[:, 0], jnp.swapaxes(k_BMGK, 1, 2))[:, :, :, None] * scale
    else:
        scores_BGJLM = _compare(jnp.moveaxis(q_BLGJK, 1, 3), jnp.swapaxes(k_BMGK, 1, 2)) * scale
    if softcap is not None:
        scores_BGJLM = softcap * jnp.tanh(scores_BGJLM / softcap)
    if bias_BHLM is not None:
        if bias_BHLM.shape[1] != heads:
            raise ValueError(
                f"the stack's position bias has {bias_BHLM.shape[1]} heads, and the attention {heads}; "
                "give both the same `heads`"
            )
        bias_BGJLM = bias_BHLM.reshape(-1, *scores_BGJLM.shape[1:])
        one_row = bias_BGJLM.shape[0] == 1 < batch
        scores_BGJLM = add_bias(scores_BGJLM, bias_BGJLM[0]) if one_row else scores_BGJLM + bias_BGJLM
    if visible_BLM is not None:
        scores_BGJLM = jnp.where(visible_BLM[:, None, None], scores_BGJLM, HIDDEN)
    return scores_BGJLM


def _mix(scores_BGJLM, v_BMGK, sink_H, dropout):
    """Values weighed by the softmax of a tile's scores, of shape BLHK."""
    batch, groups, share, length, _ = scores_BGJLM.shape
    sink_GJ11 = None if sink_H is None else sink_H.astype(jnp.float32).reshape(groups, share, 1, 1)
    probs_BGJLM = _softmax(scores_BGJLM, sink_GJ11)
    if dropout is not None:
        rate, key = dropout
        probs_BGJLM = jnp.where(jax.random.bernoulli(key, 1 - rate, probs_BGJLM.shape), probs_BGJLM / (1 - rate), 0)
    probs_BGJLM = probs_BGJLM.astype(v_BMGK.dtype)
    if length == 1:
        y_BLGJK = _dot("BGJM,BGMK->BGJK", probs_BGJLM[:, :, :, 0], jnp.swapaxes(v_BMGK, 1, 2))[:, None]
    else:
        y_BLGJK = jnp.moveaxis(_weigh(probs_BGJLM, jnp.swapaxes(v_BMGK, 1, 2)), 3, 1)
    return y_BLGJK.reshape(batch, length, groups * share, -1).astype(v_BMGK.dtype)


# Products of a tile and their gradients, in the order in which XLA's CPU backend transposes nothing of its size.


@jax.custom_vjp
def _compare(q_BGJLK, k_BGMK):
    """Each query with each key, in float32."""
    return batched("BGJLK,BGMK->BGJLM", q_BGJLK, k_BGMK)


@jax.custom_vjp
def _weigh(probs_BGJLM, v_BGMK):
    """The values, weighed, in float32."""
    return batched("BGJLM,BGMK->BGJLK", probs_BGJLM, v_BGMK)


def _of_memory(a_BGJLK, tile_BGJLM, like_BGMK):
    """The gradient of keys or values."""
    return jnp.swapaxes(batched("BGJLK,BGJLM->BGKM", a_BGJLK, tile_BGJLM), 2, 3).astype(like_BGMK.dtype)


def _compare_backward(saved, d_BGJLM):
    q_BGJLK, k_BGMK = saved
    return _weigh(d_BGJLM, k_BGMK).astype(q_BGJLK.dtype), _of_memory(q_BGJLK, d_BGJLM, k_BGMK)


def _weigh_backward(saved, dy_BGJLK):
    probs_BGJLM, v_BGMK = saved
    return _compare(dy_BGJLK, v_BGMK).astype(probs_BGJLM.dtype), _of_memory(dy_BGJLK, probs_BGJLM, v_BGMK)


_compare.defvjp(lambda q, k: (_compare(q, k), (q, k)), _compare_backward)
_weigh.defvjp(lambda probs, v: (_weigh(probs, v), (probs, v)), _weigh_backward)


def _dot(spec: str, a_BGJX, b):
    """A product of a few rows of each key head; in bfloat16 on CPU of four at least, which are faster than one."""
    rows = a_BGJX.shape[2]
    more = max(FEW - rows, 0) if a_BGJX.dtype == jnp.bfloat16 and axes.platform() == "cpu" else 0
    a_BGJX = jnp.pad(a_BGJX, ((0, 0), (0, 0), (0, more), (0, 0)))
    return jnp.einsum(spec, a_BGJX, b, preferred_element_type=jnp.float32)[:, :, :rows]


@jax.custom_jvp
def _softmax(scores, sink):
    """Over the last dimension; a sink (None for none) is one more score, whose probability is not given."""
    highest = scores.max(-1, keepdims=True)
    if sink is not None:
        highest = jnp.maximum(highest, sink)
    weights = jnp.exp(scores - highest)
    whole = weights.sum(-1, keepdims=True)
    return weights / (whole if sink is None else whole + jnp.exp(sink - highest))


@_softmax.defjvp
def _softmax_jvp(given, tangents):
    """Named here, so that what a policy saves is what the backward pass reads: the scores are not made again."""
    (_, sink), (dscores, dsink) = given, tangents
    probs = checkpoint_name(_softmax(*given), "probabilities")
    mean = (probs * dscores).sum(-1, keepdims=True)
    if sink is not None:
        mean += (1 - probs.sum(-1, keepdims=True)) * dsink
    return probs, probs * (dscores - mean)


def _fast(q_BLHK, k_BMGK, v_BMGK, mask: Mask, softcap, dropout, added: Added) -> tuple[str | None, str | None]:
    """(the platform's fast kernel or None, why it does not serve or None)."""
    platform = axes.platform()
    if platform == "tpu":
        return SPLASH, refusal(q_BLHK, k_BMGK, mask, dropout, added.bias)
    if platform == "gpu":
        return CUDNN, _cudnn_refusal(q_BLHK, v_BMGK, mask, softcap, dropout, added)
    return None, None


def _cudnn_refusal(q_BLHK, v_BMGK, mask: Mask, softcap, dropout, added: Added) -> str | None:
    """cuDNN takes bf16 and fp16, heads of up to 128 in steps of 8, and masks by index; nothing joins its scores."""
    size = q_BLHK.shape[-1]
    if q_BLHK.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes 16-bit numbers, not {q_BLHK.dtype}"
    if size % 8 or size > 128 or size != v_BMGK.shape[-1]:
        return f"heads of {size} and {v_BMGK.shape[-1]}"
    if added.bias is not None or added.sink_H is not None or softcap is not None or dropout is not None:
        return "a bias, sink, softcap or dropout"
    if _sharded():
        return "positions are shared among devices"
    if not mask.by_index or mask.prefix_BM is not None or (mask.window is not None and not mask.causal):
        return "a mask that is not by index and causal"
    return None
