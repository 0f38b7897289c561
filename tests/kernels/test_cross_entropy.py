"""The fused loss of a head against the plain formula on full logits, which it never makes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmlab import axes
from llmlab.kernels import cross_entropy as kernel
from llmlab.kernels.cross_entropy import Form, chunks, cross_entropy
from llmlab.kernels.receipt import receipt
from llmlab.mesh import Mesh

VOCAB, PADDED, WIDTH, BATCH, LENGTH = 13, 16, 8, 2, 12
FORMS = [
    Form(vocab=PADDED),
    Form(vocab=VOCAB, smoothing=0.1),
    Form(vocab=VOCAB, z_loss=0.3, scale=0.5),
    Form(vocab=VOCAB, softcap=2.0),
    Form(vocab=VOCAB, smoothing=0.2, z_loss=0.1, softcap=3.0, scale=0.7),
]
RANDOM = np.random.default_rng(0)
ARRAYS = (
    RANDOM.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32),
    RANDOM.normal(size=(PADDED, WIDTH)).astype(np.float32),
    RANDOM.normal(size=PADDED).astype(np.float32),
)
TARGETS_BL = RANDOM.integers(0, VOCAB, (BATCH, LENGTH))
WEIGHTS_BL = RANDOM.choice(np.array([0, 0.5, 1], np.float32), (BATCH, LENGTH))


def plain(form: Form, x_BLD, w_VD, bias_V):
    """(loss, sums) by optax on full logits of the real vocabulary."""
    logits_BLV = form.scale * x_BLD @ w_VD[: form.vocab].T + (0 if bias_V is None else bias_V[: form.vocab])
    if form.softcap is not None:
        logits_BLV = form.softcap * jnp.tanh(logits_BLV / form.softcap)
    labels_BLV = jax.nn.one_hot(TARGETS_BL, form.vocab)
    smooth_BLV = optax.smooth_labels(labels_BLV, form.smoothing)
    loss_BL = optax.softmax_cross_entropy(logits_BLV, smooth_BLV)
    loss_BL += form.z_loss * jax.nn.logsumexp(logits_BLV, axis=-1) ** 2
    nll_BL = optax.softmax_cross_entropy(logits_BLV, labels_BLV)
    hits_BL = logits_BLV.argmax(-1) == TARGETS_BL
    sums = {"nll": (nll_BL * WEIGHTS_BL).sum(), "correct": (hits_BL * WEIGHTS_BL).sum(), "hits_BL": hits_BL}
    return (loss_BL * WEIGHTS_BL).sum(), sums


def fused(form: Form, x_BLD, w_VD, bias_V):
    return cross_entropy(x_BLD, w_VD, bias_V, TARGETS_BL, WEIGHTS_BL, form)


def graded(function, form, x_BLD, w_VD, bias_V):
    """((loss, sums), gradients); the gradient of twice the loss, so that the cotangent is not 1."""

    def twice(*arrays):
        loss, sums = function(form, *arrays)
        return 2 * loss, sums

    given = (0, 1) if bias_V is None else (0, 1, 2)
    return jax.value_and_grad(twice, given, has_aux=True)(x_BLD, w_VD, bias_V)


def close(found, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=tolerance, atol=tolerance * np.abs(b).max())


def test_value_and_gradients_equal_the_plain_formula(monkeypatch):
    counts = [1, 3, 9, 2, 24]  # chunks (9 do not divide the positions) of each form; every second has no bias

    @jax.jit
    def both(x_BLD, w_VD, bias_V):
        found = []
        for number, (form, count) in enumerate(zip(FORMS, counts)):
            arrays = (x_BLD, w_VD, None if number % 2 else bias_V)
            monkeypatch.setattr(kernel, "CHUNK_ELEMENTS", -(-BATCH * LENGTH * PADDED // count))
            assert chunks(BATCH * LENGTH, PADDED) == (count, -BATCH * LENGTH % count)
            found.append((graded(fused, form, *arrays), graded(plain, form, *arrays)))
        return found, fused(FORMS[-1], x_BLD, w_VD, bias_V)  # and without gradients

    found, without_gradients = both(*ARRAYS)
    for one, expected in found:
        close(one, expected)
    for form, ((_, (_, dw_VD, *_)), _) in zip(FORMS[1:], found[1:]):
        assert form.vocab == VOCAB and not np.any(dw_VD[VOCAB:])  # padding stays as it is
    loss, sums = found[-1][0][0]
    close(without_gradients, (loss / 2, sums))


def test_sharded_over_eight_devices_it_is_the_same(monkeypatch):
    mesh, rules, form = Mesh(fsdp=2, sequence=2, tensor=2).build(), axes.every(), FORMS[-1]
    monkeypatch.setattr(kernel, "CHUNK_ELEMENTS", BATCH * LENGTH * PADDED // 8 // 3)
    place = lambda a, letters: jax.device_put(a, axes.stored(letters, a.shape, mesh, rules))
    w_VD = place(ARRAYS[1], "VD")
    assert w_VD.addressable_shards[0].data.shape == (PADDED // 2, WIDTH // 2)

    @jax.jit
    def step(x_BLD, w_VD, bias_V):
        with axes.use(mesh, rules):
            return graded(fused, form, axes.shard(x_BLD, "BLD"), w_VD, bias_V)

    with receipt() as kernels:
        found = step(ARRAYS[0], w_VD, ARRAYS[2])
    assert kernels == {"cross-entropy": "fused linear, 3 chunks"}  # of the 1 x 6 positions and 8 entries of a device
    close(found, jax.jit(lambda *a: graded(plain, form, *a))(*ARRAYS))


def test_half_precision_is_near_and_gradients_keep_their_types():
    x_BLD = jnp.asarray(ARRAYS[0], jnp.bfloat16)
    form = FORMS[-1]
    ((loss, _), grads), ((wanted, _), expected) = jax.jit(
        lambda x_BLD, w_VD, bias_V: (
            graded(fused, form, x_BLD, w_VD, bias_V),
            graded(plain, form, x_BLD.astype(jnp.float32), w_VD, bias_V),
        )
    )(x_BLD, *ARRAYS[1:])
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]
    np.testing.assert_allclose(loss, wanted, rtol=1e-2)
    close(grads, expected, 3e-2)


def test_positions_without_weight_count_nothing_whatever_their_target():
    def loss(x_BLD, w_VD):
        return cross_entropy(x_BLD, w_VD, None, np.full((BATCH, LENGTH), -1), 0 * WEIGHTS_BL, FORMS[-1])

    (value, sums), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*ARRAYS[:2])
    assert not any(np.any(a) for a in jax.tree.leaves((value, sums, grads)))


def largest(jaxpr) -> int:
    """Elements of the largest array that a traced program makes."""
    inner = [
        sub for eqn in jaxpr.eqns for value in eqn.params.values() for sub in jax.tree.leaves(value, is_leaf=program)
    ]
    made = [getattr(out.aval, "size", 0) for eqn in jaxpr.eqns for out in eqn.outvars]
    return max([0, *made, *(largest(getattr(sub, "jaxpr", sub)) for sub in inner if program(sub))])


def program(value) -> bool:
    return hasattr(value, "eqns")


def test_full_logits_never_exist():
    batch, length, width, vocab = 2, 256, 4, 2**17
    full = batch * length * vocab
    arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((batch, length, width), (vocab, width))]

    def gradient(cut):
        targets_BL = jnp.zeros((batch, length), int)
        loss = lambda x, w: cross_entropy(x, w, None, targets_BL, jnp.ones((batch, length)), Form(vocab=vocab))[0]
        with receipt() as found:
            program = jax.make_jaxpr(jax.grad(loss, (0, 1)))(*arrays).jaxpr
        assert found == {"cross-entropy": f"fused linear, {cut} chunks"}
        return largest(program)

    assert full == 8 * kernel.CHUNK_ELEMENTS
    assert gradient(8) == kernel.CHUNK_ELEMENTS


@pytest.mark.parametrize(
    ("tokens", "count", "spare"),
    [(1, 1, 0), (2048, 8, 0), (2056, 9, 5), (2061, 9, 0), (7, 1, 0), (768, 3, 0)],
)
def test_chunks_are_few_small_and_equal(tokens, count, spare):
    assert chunks(tokens, 2**15) == (count, spare)


def test_a_chunk_has_a_position_however_large_the_vocabulary_is():
    assert chunks(6, 2**40) == (6, 0)
