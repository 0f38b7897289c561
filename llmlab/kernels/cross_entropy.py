"""The loss of a linear head, without its logits: the product with the vocabulary and the cross-entropy, in chunks.

The gradients are formed in the forward pass, chunk by chunk, while the logits of the chunk exist; the backward pass
only scales them. So three products are done, not four, and B x L x V numbers never exist. Each device cuts its own
positions.

Letters of this file: T, the positions of all rows on one device; t, those of one chunk.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llmlab import axes
from llmlab.kernels.matmul import dot
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
    return _fused(form, x_BLD, w_VD, bias_V, targets_BL, weights_BL)


def chunks(tokens: int, vocab: int) -> tuple[int, int]:
    """(chunks that keep the logits of a device small, positions that are added so that they are equal).

    None are added where at most a quarter more chunks than the fewest divide the tokens of the device.
    """
    most = CHUNK_ELEMENTS if axes.platform() == "cpu" else max(CHUNK_ELEMENTS, ROWS * vocab)
    fewest = max(1, min(tokens, -(-tokens * vocab // most)))
    count = next((n for n in range(fewest, min(fewest + fewest // 4, tokens) + 1) if tokens % n == 0), fewest)
    return count, -tokens % count


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(form, *given):
    return _run(form, *given, gradients=False)[0]


def _forward(form, *given):
    return _run(form, *given, gradients=True)


def _backward(form, gradients, cotangents):
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


def _run(form, x_BLD, w_VD, bias_V, targets_BL, weights_BL, gradients):
    """The sums; with `gradients`, also those with respect to x, w and bias.

    Over a mesh each device takes its rows, positions and entries of the vocabulary: the head is gathered once, before
    the loop, and its gradient summed over devices once, after it.
    """
    w_VD, found = w_VD.astype(x_BLD.dtype), axes.scope()
    given = (x_BLD, w_VD, bias_V, targets_BL, weights_BL)
    if found is None or found[0].size == 1:
        return _local(form, Place(), gradients, *given)
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
        partial(_local, form, place, gradients),
        mesh=mesh,
        in_specs=(narrow, entry, bias or None, row, row),
        out_specs=(sums, grads),
        check_vma=False,
    )
    return run(*given)


def _local(form, place: Place, gradients: bool, x_BLD, w_VD, bias_V, targets_BL, weights_BL):
    """What one device adds, chunk after chunk, and then the sums over devices."""
    tokens = targets_BL.size
    count, spare = chunks(tokens, len(w_VD))
    note("cross-entropy", f"fused linear, {count} chunk{'s' * (count > 1)}")
    chunk = partial(_chunk, form, place, w_VD, bias_V, gradients)
    given = [a.reshape(tokens, *a.shape[2:]) for a in (x_BLD, targets_BL, weights_BL)]
    if count == 1:
        sums, summed, *joined = chunk(*given)
    else:

        def body(carry, inputs):
            *added, hits_t, dx_tD = chunk(*inputs)
            return jax.tree.map(jnp.add, carry, added), (hits_t, dx_tD)

        given = [jnp.pad(a, ((0, spare), (0, 0))[: a.ndim]).reshape(count, -1, *a.shape[1:]) for a in given]
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(chunk, *(a[0] for a in given))[:2])
        (sums, summed), joined = jax.lax.scan(body, list(zero), given)
        joined = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:tokens], joined)
    hits_BL = joined[0].reshape(targets_BL.shape)
    loss, nll, correct = place.over_rows((*sums, (hits_BL * weights_BL).sum()))
    grads = ()
    if gradients:
        dw_VD, dbias_V = summed
        dbias_V = None if dbias_V is None else place.over_rows(dbias_V)
        grads = (joined[1].reshape(x_BLD.shape), _summed(dw_VD, place, x_BLD.dtype), dbias_V)
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


def _chunk(form: Form, place: Place, w_VD, bias_V, gradients, x_tD, targets_t, weights_t):
    """(sums, sums that are gradients of the head, hits, the gradient of x) of one chunk."""
    first = jax.lax.axis_index(place.entries) * w_VD.shape[0] if place.entries else 0
    entries_V = first + jnp.arange(w_VD.shape[0])
    total = partial(place.over_entries, jax.lax.psum)
    raw_tV = dot(x_tD, w_VD, 1, 1)
    logits_tV = finish(raw_tV, bias_V, form, entries_V)
    top_t = place.over_entries(jax.lax.pmax, logits_tV.max(-1))
    logz_t = top_t + jnp.log(total(jnp.exp(logits_tV - top_t[..., None]).sum(-1)))
    hit_tV = entries_V == targets_t[..., None]
    target_t = total(jnp.where(hit_tV, logits_tV, 0).sum(-1))
    nll_t = logz_t - target_t
    loss_t = nll_t + form.z_loss * logz_t**2
    if form.smoothing:
        mean_t = total(jnp.where(entries_V < form.vocab, logits_tV, 0).sum(-1)) / form.vocab
        loss_t += form.smoothing * (target_t - mean_t)
    alone_t = total((logits_tV >= top_t[..., None]).sum(-1)) == 1  # a tie is no hit
    hits_t = alone_t & (target_t >= top_t)
    sums = tuple((a_t * weights_t).sum() for a_t in (loss_t, nll_t))
    if not gradients:
        return sums, (), hits_t, None
    dlogits_tV = jnp.exp(logits_tV - logz_t[..., None]) * (1 + 2 * form.z_loss * logz_t)[..., None]
    dlogits_tV -= jnp.where(hit_tV, 1 - form.smoothing, 0) + form.smoothing / form.vocab
    if form.softcap is not None:
        dlogits_tV *= 1 - (logits_tV / form.softcap) ** 2
    dlogits_tV = jnp.where(entries_V < form.vocab, dlogits_tV, 0) * weights_t[..., None]  # padding may be inf here
    dbias_V = None if bias_V is None else dlogits_tV.sum(0)
    dlogits_tV = (form.scale * dlogits_tV).astype(x_tD.dtype)
    dx_tD = total(dot(dlogits_tV, w_VD, 1, 0))
    if axes.platform() == "cpu":  # the D x V product is twice as fast; the barrier keeps the transposition out of it
        dw_VD = jax.lax.optimization_barrier(dot(x_tD, dlogits_tV, 0, 0)).T
    else:
        dw_VD = dot(dlogits_tV, x_tD, 0, 0)
    return sums, (dw_VD, dbias_V), hits_t, dx_tD.astype(x_tD.dtype)


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
