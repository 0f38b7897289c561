"""Attention on GPUs: cuDNN's flash attention by way of jax, and what stands in for it where there is no GPU.

cuDNN builds its kernels on the device, so a program for a GPU that is not there cannot hold one. The stand-in has the
kernel's operands, results, residuals and workspace, by the formula of `held`: the compiler then gives the program the
memory that it has with the kernel. It computes nothing of use, and never runs.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llmlab import axes
from llmlab.cost import flops_of, visible_pairs
from llmlab.kernels.receipt import note
from llmlab.kernels.splash import shared_alike

HIDDEN = -1e9  # what is added to the score of a pair that is not visible; any number takes the same memory


def cudnn(q_BLHK, k_BMGK, v_BMGK, mask, scale: float) -> jax.Array:
    same_B1LM = None
    if mask.segments_BL is not None:
        same_B1LM = (mask.segments_BL[:, :, None] == mask.segments_BM[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        q_BLHK,
        *shared_alike(q_BLHK, k_BMGK, v_BMGK),
        mask=same_B1LM,
        scale=scale,
        is_causal=mask.causal,
        local_window_size=None if mask.window is None else (mask.window - 1, 0),
        implementation="cudnn",
    )


def held(q_BLHK: tuple[int, ...], k_BMGK: tuple[int, ...], segments: bool) -> tuple[int, int]:
    """(bytes that one call keeps for its backward pass, bytes of workspace there), of shapes of 16-bit numbers.

    Kept are the output, the softmax's statistics of each query in float32, and for segments a bias of B x L x M. The
    workspace is the gradient of the queries and the sum of dO x O of each query, in float32; and where query heads
    share keys, what each gives to the gradients of keys and values. What cuDNN may take beyond that is not published.
    Sources: `_dot_product_attention_fwd_abstract` and `combine_bias_and_mask` in jax's fused_attention_stablehlo.py;
    `CompositeSDPABackwardNode` in scaled_dot_product_flash_attention.h of NVIDIA's cudnn-frontend, for cuDNN 9.
    """
    (batch, length, heads, size), (_, memory, groups, _) = q_BLHK, k_BMGK
    queries = batch * length * heads
    kept = 2 * queries * size + 4 * queries + 2 * segments * batch * length * memory
    return kept, 4 * queries * size + 4 * queries + 2 * (groups < heads) * 2 * batch * memory * heads * size


def stand_in(q_BLHK, k_BMGK, v_BMGK, mask, scale: float) -> jax.Array:
    """Something of the output's shape and type, with the kernel's memory; its products are declared as the kernel's."""
    k_BMGK, v_BMGK = shared_alike(q_BLHK, k_BMGK, v_BMGK)
    mesh, rules = axes.scope()
    queries, keys = (
        axes.spec(letters, a.shape, rules.live, dict(mesh.shape))
        for letters, a in (("BLHK", q_BLHK), ("BMHK" if k_BMGK.shape[2] == q_BLHK.shape[2] else "BMGK", k_BMGK))
    )
    local = lambda part, a: jax.sharding.NamedSharding(mesh, part).shard_shape(a.shape)
    bias_BLM = None
    if mask.segments_BL is not None:
        same_BLM = mask.segments_BL[:, :, None] == mask.segments_BM[:, None, :]
        bias_BLM = jnp.where(same_BLM, 0, HIDDEN).astype(q_BLHK.dtype)
    kept, work = held(local(queries, q_BLHK), local(keys, k_BMGK), bias_BLM is not None)
    note(
        "attention",
        f"compiled as a stand-in with its memory (each call keeps {kept / 1e6:.3g} MB of a device for the backward "
        f"pass and takes {work / 1e6:.3g} MB there; the peak has both)",
    )
    pairs = visible_pairs(q_BLHK.shape[1], k_BMGK.shape[1], mask.causal, mask.window)
    bias, statistics = PartitionSpec(queries[0]), PartitionSpec(queries[0], queries[2])
    given = (queries, keys, keys, bias if bias_BLM is not None else None)

    def on_each(function, products: int, inputs, outputs):
        """On each device's share. products: of queries and keys, that the kernel computes."""

        def declared(q_BLHK, *rest):
            flops = 2 * products * pairs * math.prod(q_BLHK.shape) // q_BLHK.shape[1]
            return flops_of(function, flops)(q_BLHK, *rest)

        return jax.shard_map(declared, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

    def forward(*operands):
        y_BLHK, stats_BHL = on_each(_forward, 2, given, (queries, statistics))(*operands)
        return y_BLHK, (*operands, y_BLHK, stats_BHL)

    def backward(residuals, dy_BLHK):
        inputs = (*given, queries, statistics, queries)
        return *on_each(_backward, 5, inputs, (queries, keys, keys))(*residuals, dy_BLHK), None

    call = jax.custom_vjp(lambda *operands: forward(*operands)[0])
    call.defvjp(forward, backward)
    return call(q_BLHK, k_BMGK, v_BMGK, bias_BLM)


def _forward(q_BLHK, k_BMGK, v_BMGK, bias_BLM):
    """(output, statistics), of every operand."""
    seen_B = k_BMGK.sum((1, 2, 3)) + v_BMGK.sum((1, 2, 3)) + (0 if bias_BLM is None else bias_BLM.sum((1, 2)))
    return q_BLHK * seen_B[:, None, None, None], jnp.swapaxes(q_BLHK.astype(jnp.float32).sum(-1), 1, 2)


def _backward(q_BLHK, k_BMGK, v_BMGK, bias_BLM, y_BLHK, stats_BHL, dy_BLHK):
    """Gradients of queries, keys and values: a loop carries them and the workspace, so that all are whole at once, and
    with them every operand, which no part of the loop's body reads without what is carried."""
    wide = lambda a: a.astype(jnp.float32)
    share = q_BLHK.shape[2] // k_BMGK.shape[2]
    each_BMHK = [jnp.zeros((*k_BMGK.shape[:2], *q_BLHK.shape[2:]), k_BMGK.dtype)] * 2 if share > 1 else []

    def turn(carried):
        count, _, dk_BMGK, dv_BMGK, sum_BLHK, total_BLH, each_BMHK = carried
        stats_BLH1 = jnp.swapaxes(stats_BHL, 1, 2)[..., None]
        sum_BLHK = ((sum_BLHK + wide(q_BLHK)) * wide(dy_BLHK) + stats_BLH1) * wide(y_BLHK)
        total_BLH = jnp.maximum(total_BLH, sum_BLHK.sum(-1))
        if bias_BLM is not None:
            total_BLH += jnp.maximum(wide(bias_BLM), total_BLH[:, :, :1]).sum(-1, keepdims=True)
        gain_B111 = total_BLH.sum((1, 2)).astype(k_BMGK.dtype)[:, None, None, None]
        dk_BMGK, dv_BMGK = (dk_BMGK + k_BMGK) * gain_B111, (dv_BMGK + v_BMGK) * gain_B111
        if share > 1:
            each_BMHK = [(a + jnp.repeat(b, share, 2)) * gain_B111 for a, b in zip(each_BMHK, (dk_BMGK, dv_BMGK))]
            dk_BMGK, dv_BMGK = (a.reshape(*k_BMGK.shape[:3], share, -1).sum(3) for a in each_BMHK)
        return count + 1, sum_BLHK.astype(q_BLHK.dtype), dk_BMGK, dv_BMGK, sum_BLHK, total_BLH, each_BMHK

    work = wide(jnp.zeros_like(q_BLHK)), jnp.zeros(q_BLHK.shape[:3], jnp.float32), each_BMHK
    begin = (0, *map(jnp.zeros_like, (q_BLHK, k_BMGK, v_BMGK)), *work)
    stop = stats_BHL[0, 0, 0].astype(jnp.int32)  # what no compiler knows
    return jax.lax.while_loop(lambda carried: carried[0] < stop, turn, begin)[1:4]
