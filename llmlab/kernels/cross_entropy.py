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
from jax.sharding import PartitionSpec

from llmlab import axes
from llmlab.kernels.matmul import flattens
from llmlab.kernels.receipt import note

CHUNK_ELEMENTS = 2**23  # logits that one device holds at a time (32 MiB in float32)
ROWS = 512  # but on accelerators not fewer rows than this, for which the head and its gradient are read anew


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
    most = CHUNK_ELEMENTS if axes.platform() == "cpu" else max(CHUNK_ELEMENTS, ROWS * vocab)
    fewest = max(1, min(length, -(-shape[0] * shape[1] * vocab // (most * devices))))
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


@dataclasses.dataclass(frozen=True)
class Place:
    """The mesh axes that share rows and positions, and entries of the vocabulary; of the first, those that a head's
    stored gradient is cut over along D."""

    rows: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()

    def over_entries(self, reduce, a):
        return reduce(a, self.entries) if self.entries else a

    def over_rows(self, a):
        return jax.lax.psum(a, self.rows) if self.rows else a


def _scan(form, count, x_BLD, w_VD, bias_V, targets_BL, weights_BL, gradients):
    """Sums over chunks; with `gradients`, also those with respect to x, w and bias.

    Over a mesh each device takes its rows, positions and entries of the vocabulary: the head is gathered once, before
    the loop, and its gradient summed over devices once, after it.
    """
    w_VD, found = w_VD.astype(x_BLD.dtype), axes.scope()
    given = (x_BLD, w_VD, bias_V, targets_BL, weights_BL)
    if found is None or found[0].size == 1:
        return _local(form, count, Place(), gradients, *given)
    mesh, rules = found
    part = lambda letters, shape, kind=rules.live: axes.spec(letters, shape, kind, dict(mesh.shape))
    row, entry, stored = part("BL", x_BLD.shape[:2]), part("Vd", w_VD.shape), part("VD", w_VD.shape, rules.stored)
    rows, entries = axes.flat(row), axes.flat(entry)
    cut = axes.flat(stored[1:]) if stored[0] == entry[0] and set(axes.flat(stored[1:])) <= set(rows) else ()
    place = Place(rows, entries, cut)
    whole, narrow, bias = PartitionSpec(), PartitionSpec(*row, None), bias_V is not None and PartitionSpec(entry[0])
    sums = (whole, {"nll": whole, "correct": whole, "hits_BL": row})
    grads = (narrow, stored if cut else entry, bias or None) if gradients else ()
    run = jax.shard_map(
        partial(_local, form, count, place, gradients),
        mesh=mesh,
        in_specs=(narrow, entry, bias or None, row, row),
        out_specs=(sums, grads),
        check_vma=False,
    )
    return run(*given)


def _local(form, count, place: Place, gradients: bool, *given):
    """What one device adds, chunk after chunk, and then the sums over devices."""
    x_BLD, w_VD, bias_V, targets_BL, weights_BL = given
    cut = lambda a: jnp.moveaxis(a.reshape(a.shape[0], a.shape[1] // count, count, *a.shape[2:]), 2, 0)
    chunk = partial(_chunk, form, place, w_VD, bias_V, gradients=gradients)
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
    loss, nll, correct = place.over_rows((*sums, (hits_BL * weights_BL).sum()))
    if gradients:
        dx_BLD, dw_VD, dbias_V = grads
        grads = (dx_BLD, _summed(dw_VD, place, x_BLD.dtype), None if dbias_V is None else place.over_rows(dbias_V))
        if place.rows:  # the whole gradient of the head is gone before the layers' backward pass begins
            grads = jax.lax.optimization_barrier(grads)
    return (loss, {"nll": nll, "correct": correct, "hits_BL": hits_BL}), grads


def _summed(dw_VD, place: Place, dtype):
    """The head's gradient summed over devices in the type of activations, as those of other weights; each keeps what it
    stores."""
    if not place.rows:
        return dw_VD
    dw_VD = dw_VD.astype(dtype)
    if place.cut:
        dw_VD = jax.lax.psum_scatter(dw_VD, place.cut, scatter_dimension=1, tiled=True)
    rest = tuple(axis for axis in place.rows if axis not in place.cut)
    return (jax.lax.psum(dw_VD, rest) if rest else dw_VD).astype(jnp.float32)


def _chunk(form: Form, place: Place, w_VD, bias_V, x_BLD, targets_BL, weights_BL, gradients):
    first = jax.lax.axis_index(place.entries) * w_VD.shape[0] if place.entries else 0
    entries_V = first + jnp.arange(w_VD.shape[0])
    total = partial(place.over_entries, jax.lax.psum)
    raw_BLV = jnp.einsum("BLD,VD->BLV", x_BLD, w_VD, preferred_element_type=jnp.float32)
    logits_BLV = finish(raw_BLV, bias_V, form, entries_V)
    top_BL = place.over_entries(jax.lax.pmax, logits_BLV.max(-1))
    logz_BL = top_BL + jnp.log(total(jnp.exp(logits_BLV - top_BL[..., None]).sum(-1)))
    hit_BLV = entries_V == targets_BL[..., None]
    target_BL = total(jnp.where(hit_BLV, logits_BLV, 0).sum(-1))
    nll_BL = logz_BL - target_BL
    loss_BL = nll_BL + form.z_loss * logz_BL**2
    if form.smoothing:
        mean_BL = total(jnp.where(entries_V < form.vocab, logits_BLV, 0).sum(-1)) / form.vocab
        loss_BL += form.smoothing * (target_BL - mean_BL)
    alone_BL = total((logits_BLV >= top_BL[..., None]).sum(-1)) == 1  # a tie is no hit
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
    dx_BLD = total(jnp.einsum("BLV,VD->BLD", dlogits_BLV, w_VD, preferred_element_type=jnp.float32))
    return sums, hits_BL, (dx_BLD.astype(x_BLD.dtype), _head_gradient(dlogits_BLV, x_BLD), dbias_V)


def _head_gradient(dlogits_BLV, x_BLD):
    if not flattens():
        return jnp.einsum("BLV,BLD->VD", dlogits_BLV, x_BLD, preferred_element_type=jnp.float32)
    # XLA's CPU backend makes the D x V product twice as fast; the barrier keeps it from folding the transposition in.
    dw_DV = jnp.einsum("BLD,BLV->DV", x_BLD, dlogits_BLV, preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(dw_DV).T


def finish(raw: jax.Array, bias_V: jax.Array | None, form: Form, entries_V: jax.Array | None = None) -> jax.Array:
    """Logits from the head's product, over any leading dimensions: scaled, biased, capped, without the padding.

    entries_V: which entries of the vocabulary they are, all by default.
    """
    logits = form.scale * raw
    if bias_V is not None:
        logits = logits + bias_V.astype(jnp.float32)
    if form.softcap is not None:
        logits = form.softcap * jnp.tanh(logits / form.softcap)
    if entries_V is None and logits.shape[-1] == form.vocab:
        return logits
    entries_V = jnp.arange(logits.shape[-1]) if entries_V is None else entries_V
    return jnp.where(entries_V < form.vocab, logits, -1e30)
