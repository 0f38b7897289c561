"""The loss of a linear head, without its logits: the product with the vocabulary and the cross-entropy, in chunks.

The gradients are formed in the forward pass, chunk by chunk, while the logits of the chunk exist; the backward pass
only scales them. So three products are done, not four, and B x L x V numbers never exist. Chunks interleave the
positions (chunk i of n holds positions i, i + n, ...), which keeps B and L sharded as they are.

Letters of this file: n, chunks; l, positions of one chunk.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from llmlab import axes
from llmlab.axes import shard
from llmlab.kernels.matmul import flattens
from llmlab.kernels.receipt import note

CHUNK_ELEMENTS = 2**23  # logits that one device holds at a time (32 MiB in float32)


@dataclasses.dataclass(frozen=True)
class Form:
    """How logits become a loss. vocab: entries that are real, not padding."""

    vocab: int
    smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    scale: float = 1.0


def cross_entropy(
    x_BLD: jax.Array,
    w_VD: jax.Array,
    bias_V: jax.Array | None,
    targets_BL: jax.Array,
    weights_BL: jax.Array,
    form: Form,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(sum of weighted losses, {"nll", "correct", "hits_BL"}).

    nll: sum of weighted -log p(target). hits_BL: where the target's logit is the largest; correct: their weighted sum.

    logits = scale * x w^T + bias, capped if asked; the loss adds label smoothing and z_loss * log(Z)^2 (PaLM).
    Differentiable in x, w and bias, through the first result alone.
    """
    count, spare = chunks(x_BLD.shape[:2], w_VD.shape[0])
    note("cross-entropy", f"fused linear, {count} chunk{'s' * (count > 1)}")
    if not spare:
        return _fused(form, count, x_BLD, w_VD, bias_V, targets_BL, weights_BL)
    longer = lambda a: jnp.pad(a, ((0, 0), (0, spare), (0, 0))[: a.ndim])
    loss, sums = _fused(form, count, longer(x_BLD), w_VD, bias_V, longer(targets_BL), longer(weights_BL))
    return loss, {**sums, "hits_BL": sums["hits_BL"][:, : x_BLD.shape[1]]}


def chunks(shape: tuple[int, int], vocab: int) -> tuple[int, int]:
    """(chunks that keep the logits of a device small, positions that are added so that they are equal).

    None are added where at most a quarter more chunks than the fewest divide L.
    """
    found = axes.scope()
    sizes = dict(found[0].shape) if found else {}
    devices = found[0].size if found else 1
    length = shape[1] // sizes.get("sequence", 1)
    fewest = max(1, min(length, -(-shape[0] * shape[1] * vocab // (CHUNK_ELEMENTS * devices))))
    count = next((n for n in range(fewest, min(fewest + fewest // 4, length) + 1) if length % n == 0), fewest)
    return count, sizes.get("sequence", 1) * (-length % count)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(form, count, x_BLD, w_VD, bias_V, targets_BL, weights_BL):
    return _scan(form, count, x_BLD, w_VD, bias_V, targets_BL, weights_BL, gradients=False)[0]


def _forward(form, count, x_BLD, w_VD, bias_V, targets_BL, weights_BL):
    return _scan(form, count, x_BLD, w_VD, bias_V, targets_BL, weights_BL, gradients=True)


def _backward(form, count, gradients, cotangents):
    dx_BLD, dw_VD, dbias_V = gradients
    scale = cotangents[0]
    dbias_V = None if dbias_V is None else (scale * dbias_V)
    return (scale * dx_BLD).astype(dx_BLD.dtype), (scale * dw_VD), dbias_V, None, None


_fused.defvjp(_forward, _backward)


def _scan(form, count, x_BLD, w_VD, bias_V, targets_BL, weights_BL, gradients):
    """Sums over chunks; with `gradients`, also those with respect to x, w and bias."""
    w_VD = shard(w_VD.astype(x_BLD.dtype), "VD")  # gathered once, before the loop
    cut = lambda a: jnp.moveaxis(a.reshape(a.shape[0], a.shape[1] // count, count, *a.shape[2:]), 2, 0)
    chunk = partial(_chunk, form, w_VD, bias_V, gradients=gradients)
    if count == 1:
        sums, hits_BL, grads = chunk(x_BLD, targets_BL, weights_BL)
    else:

        def body(carry, inputs):
            sums, hits_Bl, grads = chunk(*inputs)
            dx_BlD = grads[0] if gradients else None
            carry = jax.tree.map(jnp.add, carry, (sums, grads[1:] if gradients else ()))
            return carry, (hits_Bl, dx_BlD)

        inputs = (cut(x_BLD), cut(targets_BL), cut(weights_BL))
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(chunk, *(a[0] for a in inputs)))
        (sums, summed), joined = jax.lax.scan(body, (zero[0], zero[2][1:] if gradients else ()), inputs)
        hits_BL, dx_BLD = jax.tree.map(
            lambda a: jnp.moveaxis(a, 0, 2).reshape(a.shape[1], a.shape[2] * count, *a.shape[3:]), joined
        )
        grads = (dx_BLD, *summed) if gradients else ()
    loss, nll = sums
    return (loss, {"nll": nll, "correct": (hits_BL * weights_BL).sum(), "hits_BL": hits_BL}), grads


def _chunk(form: Form, w_VD, bias_V, x_BLD, targets_BL, weights_BL, gradients):
    raw_BLV = jnp.einsum("BLD,VD->BLV", x_BLD, w_VD, preferred_element_type=jnp.float32)
    logits_BLV = finish(shard(raw_BLV, "BLV"), bias_V, form)
    entries_V = jnp.arange(w_VD.shape[0])
    top_BL = logits_BLV.max(-1)
    logz_BL = top_BL + jnp.log(jnp.exp(logits_BLV - top_BL[..., None]).sum(-1))
    hit_BLV = entries_V == targets_BL[..., None]
    target_BL = jnp.where(hit_BLV, logits_BLV, 0).sum(-1)
    nll_BL = logz_BL - target_BL
    loss_BL = nll_BL + form.z_loss * logz_BL**2
    if form.smoothing:
        mean_BL = jnp.where(entries_V < form.vocab, logits_BLV, 0).sum(-1) / form.vocab
        loss_BL += form.smoothing * (target_BL - mean_BL)
    alone_BL = (logits_BLV >= top_BL[..., None]).sum(-1) == 1  # a tie is no hit
    hits_BL = alone_BL & (target_BL >= top_BL)
    sums = tuple((a_BL * weights_BL).sum() for a_BL in (loss_BL, nll_BL))
    if not gradients:
        return sums, hits_BL, ()
    dlogits_BLV = jnp.exp(logits_BLV - logz_BL[..., None]) * (1 + 2 * form.z_loss * logz_BL)[..., None]
    dlogits_BLV -= jnp.where(hit_BLV, 1 - form.smoothing, 0) + form.smoothing / form.vocab
    if form.softcap is not None:
        dlogits_BLV *= 1 - (logits_BLV / form.softcap) ** 2
    dlogits_BLV = jnp.where(entries_V < form.vocab, dlogits_BLV, 0) * weights_BL[..., None]  # padding may be inf here
    dbias_V = None if bias_V is None else dlogits_BLV.sum((0, 1))
    dlogits_BLV = (form.scale * dlogits_BLV).astype(x_BLD.dtype)
    dx_BLD = jnp.einsum("BLV,VD->BLD", dlogits_BLV, w_VD, preferred_element_type=jnp.float32)
    dw_VD = _head_gradient(dlogits_BLV, x_BLD)
    return sums, hits_BL, (shard(dx_BLD.astype(x_BLD.dtype), "BLD"), shard(dw_VD, "VD"), dbias_V)


def _head_gradient(dlogits_BLV, x_BLD):
    if not flattens():
        return jnp.einsum("BLV,BLD->VD", dlogits_BLV, x_BLD, preferred_element_type=jnp.float32)
    # XLA's CPU backend makes the D x V product twice as fast; the barrier keeps it from folding the transposition in.
    dw_DV = jnp.einsum("BLD,BLV->DV", x_BLD, dlogits_BLV, preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(dw_DV).T


def finish(raw: jax.Array, bias_V: jax.Array | None, form: Form) -> jax.Array:
    """Logits from the head's product, over any leading dimensions: scaled, biased, capped, without the padding."""
    logits = form.scale * raw
    if bias_V is not None:
        logits = logits + bias_V.astype(jnp.float32)
    if form.softcap is not None:
        logits = form.softcap * jnp.tanh(logits / form.softcap)
    padded = logits.shape[-1]
    return logits if padded == form.vocab else jnp.where(jnp.arange(padded) < form.vocab, logits, -1e30)
