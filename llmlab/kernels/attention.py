"""Softmax attention behind one function; the platform chooses the kernel, and the receipt says which ran.

Letters of this file: J, query heads that share one key/value head (H = G x J).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llmlab import axes
from llmlab.cost import visible_pairs
from llmlab.kernels.receipt import note

save_only_these_names = jax.checkpoint_policies.save_only_these_names
HIDDEN = -1e30  # the score of a pair that is not visible; finite, so that an empty row gives no NaN
TILES = 4  # causal rows are computed in at most this many tiles of queries, each with the keys it can see
SMALLEST_TILE = 128
LONG = 512


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

    def visible(self, queries: slice, keys: slice, length: int, memory: int) -> jax.Array | None:
        """Booleans over B, L, M (B or 1 rows) for a tile; None when every pair of the tile is visible."""
        row, column = jnp.arange(length)[None, queries], jnp.arange(memory)[None, keys]
        if not self.by_index:
            row, column = self.order_BL[:, queries], self.order_BM[:, keys]
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


def attend(
    q_BLHK: jax.Array,
    k_BMGK: jax.Array,
    v_BMGK: jax.Array,
    mask: Mask,
    scale: float,
    softcap: float | None = None,
    dropout: tuple[float, jax.Array] | None = None,
) -> jax.Array:
    """softmax(q k^T scale) v over the visible pairs -> BLHK; H is a multiple of G.

    softcap: scores s become softcap * tanh(s / softcap) before the mask. dropout: (rate, key) on the probabilities.
    """
    if _cudnn_serves(q_BLHK, mask, softcap, dropout):
        note("attention", "cuDNN flash attention")
        return _cudnn(q_BLHK, k_BMGK, v_BMGK, mask, scale)
    length, memory = q_BLHK.shape[1], k_BMGK.shape[1]
    plan = tiles(length, memory, mask)
    note("attention", f"XLA, {len(plan)} tile{'s' * (len(plan) > 1)} of queries")
    rows = []
    for number, (queries, keys) in enumerate(plan):
        drawn = dropout and (dropout[0], jax.random.fold_in(dropout[1], number))
        tile = lambda q, k, v, queries=queries, keys=keys, drawn=drawn: _tile(
            q, k, v, mask.visible(queries, keys, length, memory), scale, softcap, drawn
        )
        # Long rows save nothing of a tile, short ones the probabilities: what else there is, is recomputed.
        names = () if length > LONG else ("probabilities",)
        tile = jax.checkpoint(tile, prevent_cse=False, policy=save_only_these_names(*names))
        rows.append(tile(q_BLHK[:, queries], k_BMGK[:, keys], v_BMGK[:, keys]))
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)


def tiles(length: int, memory: int, mask: Mask) -> list[tuple[slice, slice]]:
    """(queries, keys) of each tile: of a causal row every tile computes only the keys that it can see.

    One tile where queries do not stand on the last positions of the keys, or where L is sharded.
    """
    found = axes.scope()
    whole = (
        not (mask.causal and mask.by_index and length == memory and mask.prefix_BM is None)
        or length < 2 * SMALLEST_TILE
        or (found is not None and dict(found[0].shape).get("sequence", 1) > 1)
    )
    count = 1 if whole else min(TILES, length // SMALLEST_TILE)
    edges = [round(i * length / count) for i in range(count + 1)]
    first_key = lambda start: max(0, start - mask.window + 1) if mask.window and not whole else 0
    return [
        (slice(start, stop), slice(first_key(start), memory if whole else stop))
        for start, stop in zip(edges, edges[1:])
    ]


def pairs(length: int, memory: int, mask: Mask, whole: bool = False) -> tuple[int, int]:
    """(visible pairs, pairs that the XLA kernel computes) of one row; `whole`: a prefix keeps it from tiles."""
    plan = tiles(length, memory, mask)
    executed = length * memory if whole else sum((q.stop - q.start) * (k.stop - k.start) for q, k in plan)
    return visible_pairs(length, memory, mask.causal, mask.window), executed


def _tile(q_BLHK, k_BMGK, v_BMGK, visible_BLM, scale, softcap, dropout):
    batch, length, heads, size = q_BLHK.shape
    groups = k_BMGK.shape[2]
    q_BLGJK = q_BLHK.reshape(batch, length, groups, heads // groups, size)
    scores_BGJLM = jnp.einsum("BLGJK,BMGK->BGJLM", q_BLGJK, k_BMGK, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores_BGJLM = softcap * jnp.tanh(scores_BGJLM / softcap)
    if visible_BLM is not None:
        scores_BGJLM = jnp.where(visible_BLM[:, None, None], scores_BGJLM, HIDDEN)
    probs_BGJLM = checkpoint_name(jax.nn.softmax(scores_BGJLM, axis=-1), "probabilities")
    if dropout is not None:
        rate, key = dropout
        probs_BGJLM = jnp.where(jax.random.bernoulli(key, 1 - rate, probs_BGJLM.shape), probs_BGJLM / (1 - rate), 0)
    y_BLGJK = jnp.einsum(
        "BGJLM,BMGK->BLGJK", probs_BGJLM.astype(v_BMGK.dtype), v_BMGK, preferred_element_type=jnp.float32
    )
    return y_BLGJK.reshape(batch, length, heads, size).astype(q_BLHK.dtype)


def _cudnn_serves(q_BLHK, mask: Mask, softcap, dropout) -> bool:
    """cuDNN takes bf16 and fp16, heads of up to 128 in steps of 8, and masks by index."""
    return (
        axes.platform() == "gpu"
        and q_BLHK.dtype in (jnp.bfloat16, jnp.float16)
        and q_BLHK.shape[-1] % 8 == 0
        and q_BLHK.shape[-1] <= 128
        and softcap is None
        and dropout is None
        and mask.by_index
        and mask.prefix_BM is None
        and (mask.window is None or mask.causal)
    )


def _cudnn(q_BLHK, k_BMGK, v_BMGK, mask: Mask, scale):
    same_B1LM = None
    if mask.segments_BL is not None:
        same_B1LM = (mask.segments_BL[:, :, None] == mask.segments_BM[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        q_BLHK,
        k_BMGK,
        v_BMGK,
        mask=same_B1LM,
        scale=scale,
        is_causal=mask.causal,
        local_window_size=None if mask.window is None else (mask.window - 1, 0),
        implementation="cudnn",
    )
