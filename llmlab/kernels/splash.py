"""Attention on TPU: jax's splash kernel (blocks of scores that no query sees are skipped), on each device's share.

Rows, heads and queries are shared as the rules say; every device has all keys of its rows. Its gradient runs the kernel
again for queries and for keys: 2, 3 and 4 products over the blocks that are seen.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from llmlab import axes
from llmlab.cost import products_of

LANES = 128  # rows and keys come in multiples of this
BLOCKS = (512, 256, 128)


def refusal(q_BLHK, k_BMGK, mask, dropout, bias) -> str | None:
    """Why the kernel does not serve, None where it does."""
    length, memory = q_BLHK.shape[1], k_BMGK.shape[1]
    if not mask.by_index:
        return "order is not the index in the row"
    if mask.prefix_BM is not None:
        return "it has no prefix"
    if dropout is not None or bias is not None:
        return "it has no " + ("dropout" if dropout is not None else "position bias")
    if length != memory and (mask.causal or mask.window is not None):
        return f"{length} queries stand among {memory} keys"
    shards = dict(axes.scope()[0].shape).get("sequence", 1) if axes.scope() else 1
    if length % (LANES * shards) or memory % LANES:
        return f"{length} queries and {memory} keys are no multiples of {LANES * shards} and {LANES}"
    return None


def shared_alike(q_BLHK, k_BMGK, v_BMGK) -> tuple[jax.Array, jax.Array]:
    """Keys and values; where they have fewer heads than devices that share the query heads, each query head its own."""
    if axes.scope() and axes.scope()[0].size > 1:
        mesh, rules = axes.scope()
        part = lambda letters, a: axes.spec(letters, a.shape, rules.live, dict(mesh.shape))
        if part("BLHK", q_BLHK)[2] != part("BMGK", k_BMGK)[2]:
            share = q_BLHK.shape[2] // k_BMGK.shape[2]
            return jnp.repeat(k_BMGK, share, axis=2), jnp.repeat(v_BMGK, share, axis=2)
    return k_BMGK, v_BMGK


def splash(q_BLHK, k_BMGK, v_BMGK, mask, softcap: float | None = None, sink_H=None, interpret: bool = False):
    """softmax(q k^T) v -> BLHK over the pairs that `mask` shows; queries are scaled already."""
    mesh, rules = axes.scope() if axes.scope() and axes.scope()[0].size > 1 else (None, None)
    part = (lambda letters, a: axes.spec(letters, a.shape, rules.live, dict(mesh.shape))) if mesh else None
    k_BMGK, v_BMGK = shared_alike(q_BLHK, k_BMGK, v_BMGK)
    heads, rows = (part("BLHK", q_BLHK)[2], part("BLHK", q_BLHK)[1]) if mesh else (None, None)
    split = [1 if name is None else mesh.shape[name] for name in (heads, rows)] if mesh else [1, 1]
    shape, cut = (q_BLHK.shape[1], k_BMGK.shape[1]), rows
    if not mask.causal and mask.window is None:  # a full mask is alike for all; jax cannot cut one, as of 0.12
        shape, cut, split = (shape[0] // split[1], shape[1]), None, [split[0], 1]
    kernel, pairs = _kernel(shape, q_BLHK.shape[2], mask.causal, mask.window, softcap, tuple(split), interpret)
    segments = None if mask.segments_BL is None else (mask.segments_BL, mask.segments_BM)

    def local(kernel, q_BLHK, k_BMGK, v_BMGK, segments, sink_H):
        each = 2 * q_BLHK.shape[0] * q_BLHK.shape[2] * pairs // split[1] * max(q_BLHK.shape[3], v_BMGK.shape[3])
        return products_of(_run, each)(kernel, q_BLHK, k_BMGK, v_BMGK, segments, sink_H)

    given = (kernel, q_BLHK, k_BMGK, v_BMGK, segments, sink_H)
    if mesh is None:
        return local(*given)
    keys = "BMHK" if k_BMGK.shape[2] == q_BLHK.shape[2] else "BMGK"
    specs = (
        kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(heads, cut))),
        part("BLHK", q_BLHK),
        part(keys, k_BMGK),
        part(keys, v_BMGK),
        segments and (part("BL", segments[0]), part("BM", segments[1])),
        None if sink_H is None else PartitionSpec(heads),
    )
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs[1], check_vma=False)(*given)


def _run(kernel, q_BLHK, k_BMGK, v_BMGK, segments, sink_H):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel

    def row(q_LHK, k_MGK, v_MGK, segments):
        heads_first = (jnp.swapaxes(a, 0, 1) for a in (q_LHK, k_MGK, v_MGK))
        ids = segments and splash_kernel.SegmentIds(*segments)
        return jnp.swapaxes(kernel(*heads_first, ids, **({} if sink_H is None else {"sinks": sink_H})), 0, 1)

    return jax.vmap(row)(q_BLHK, k_BMGK, v_BMGK, segments)


def _kernel(shape, heads: int, causal: bool, window: int | None, softcap, split, interpret: bool):
    """(the kernel, the pairs that it computes)."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    if window is not None:
        one = masks.LocalMask(shape, (window - 1, 0 if causal else None), offset=0)
    else:
        one = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    rows, keys = block(shape[0] // split[1]), block(shape[1])
    sizes = splash_kernel.BlockSizes(
        block_q=rows, block_kv=keys, block_q_dkv=rows, block_kv_dkv=keys, block_q_dq=rows, block_kv_dq=keys
    )
    kernel = splash_kernel.make_splash_mha(
        mask=masks.MultiHeadMask([one] * heads),
        block_sizes=sizes,
        head_shards=split[0],
        q_seq_shards=split[1],
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name="mixed",
        interpret=interpret,
    )
    return kernel, block_pairs(*shape, rows, keys, causal, window)


def block(size: int) -> int:
    """The largest block that cuts so many rows evenly."""
    return next(n for n in BLOCKS if size % n == 0)


def block_pairs(length: int, memory: int, rows: int, keys: int, causal: bool, window: int | None) -> int:
    """Pairs of the blocks in which at least one is seen."""
    least, most = 0 if causal else -memory, memory + length if window is None else window - 1
    seen = sum(
        row + rows - 1 - column >= least and row - (column + keys - 1) <= most
        for row in range(0, length, rows)
        for column in range(0, memory, keys)
    )
    return seen * rows * keys
