"""Attention against a plain softmax in float64: masks, groups, caps, tiles; and what it says that it computes."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab import axes
from llmlab.cost import traced_flops
from llmlab.kernels import attention as kernel
from llmlab.kernels.attention import Mask, attend, pairs, tiles
from llmlab.kernels.receipt import receipt
from llmlab.mesh import Mesh

HEADS, SIZE = 4, 8


def arrays(batch: int, length: int, groups: int, memory: int | None = None):
    random = np.random.default_rng(length)
    shapes = ((batch, length, HEADS, SIZE), *[(batch, memory or length, groups, SIZE)] * 2)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def plain(q_BLHK, k_BMGK, v_BMGK, seen_BLM, scale, softcap=None):
    """softmax(q k^T) v, one key/value head for each query head, in float64."""
    q, k, v = (a.astype(np.float64) for a in (q_BLHK, k_BMGK, v_BMGK))
    share = HEADS // k.shape[2]
    k, v = np.repeat(k, share, 2), np.repeat(v, share, 2)
    scores_BHLM = np.einsum("blhk,bmhk->bhlm", q, k) * scale
    if softcap is not None:
        scores_BHLM = softcap * np.tanh(scores_BHLM / softcap)
    probs_BHLM = np.where(seen_BLM[:, None], np.exp(scores_BHLM), 0)
    return np.einsum("bhlm,bmhk->blhk", probs_BHLM / probs_BHLM.sum(-1, keepdims=True), v)


def seen(length: int, mask: Mask, batch: int) -> np.ndarray:
    """The pairs that a mask by index shows, written out."""
    found_BLM = np.zeros((batch, length, length), bool)
    for b, i, j in np.ndindex(*found_BLM.shape):
        visible = j <= i or not mask.causal or (mask.prefix_BM is not None and mask.prefix_BM[b, j])
        visible &= mask.window is None or i - j < mask.window
        visible &= mask.segments_BL is None or mask.segments_BL[b, i] == mask.segments_BM[b, j]
        found_BLM[b, i, j] = visible
    return found_BLM


SEGMENTS_BL = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12])
PREFIX_BL = np.array([[1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0], [0] * 12], bool)
SHORT = [  # mask, groups, scale, softcap
    (Mask(), 4, 0.3, None),
    (Mask(causal=False), 2, 0.3, None),
    (Mask(window=3), 1, 1.0, None),
    (Mask(window=1), 2, 1.0, None),
    (Mask(window=99), 2, 0.5, 1.5),
    (Mask(causal=False, window=4), 4, 0.3, 0.7),
    (Mask(segments_BL=SEGMENTS_BL, segments_BM=SEGMENTS_BL), 2, 0.3, None),
    (Mask(window=2, segments_BL=SEGMENTS_BL, segments_BM=SEGMENTS_BL), 2, 0.3, None),
    (Mask(prefix_BM=PREFIX_BL, segments_BL=SEGMENTS_BL, segments_BM=SEGMENTS_BL), 1, 0.3, None),
]


def test_short_rows_equal_the_plain_softmax():
    given = [arrays(2, 12, groups) for _, groups, _, _ in SHORT]
    found = jax.jit(lambda given: [attend(*a, mask, *rest) for a, (mask, _, *rest) in zip(given, SHORT)])(given)
    for a, y_BLHK, (mask, _, scale, softcap) in zip(given, found, SHORT):
        np.testing.assert_allclose(y_BLHK, plain(*a, seen(12, mask, 2), scale, softcap), rtol=1e-4, atol=1e-5)


LONG = 516  # 4 tiles of 129
TILED = [Mask(), Mask(window=40), Mask(window=129), Mask(window=300), Mask(window=LONG)]


def test_tiles_of_queries_equal_the_plain_softmax():
    a = arrays(1, LONG, 2)
    segments_BL = np.arange(LONG)[None] // 200
    masks = [*TILED, Mask(window=150, segments_BL=segments_BL, segments_BM=segments_BL)]
    cost = lambda *a: [attend(*a, mask, 0.3) for mask in masks]
    row, column = np.arange(LONG)[:, None], np.arange(LONG)[None]
    for y_BLHK, mask in zip(jax.jit(cost)(*a), masks):
        assert len(tiles(LONG, LONG, mask)) == 4
        seen_BLM = ((row >= column) & (row - column < (mask.window or LONG)))[None]
        if mask.segments_BL is not None:
            seen_BLM = seen_BLM & (segments_BL[:, :, None] == segments_BL[:, None])
        np.testing.assert_allclose(y_BLHK, plain(*a, seen_BLM, 0.3), rtol=1e-4, atol=1e-5)


def test_gradients_pass_through_tiles():
    """Recomputed tiles give the gradient of one whole tile."""
    a = arrays(1, LONG, 2)
    order_BL = np.arange(LONG)[None]  # the same mask by order, which is not cut into tiles
    whole = Mask(window=150, order_BL=order_BL, order_BM=order_BL)
    loss = lambda mask: lambda *a: (attend(*a, mask, 0.3) ** 2).sum()
    found, expected = jax.jit(lambda *a: [jax.grad(loss(m), (0, 1, 2))(*a) for m in (Mask(window=150), whole)])(*a)
    assert len(tiles(LONG, LONG, whole)) == 1
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mask", [*TILED, Mask(causal=False)], ids=lambda m: f"{m.causal}-{m.window}")
def test_the_pairs_it_declares_are_those_of_the_traced_program(mask):
    for length in (12, 256, LONG, 1000):
        visible, executed = pairs(length, length, mask)
        traced = traced_flops(lambda *a, mask=mask: attend(*a, mask, 0.3), *arrays(1, length, 2))
        assert traced == 4 * HEADS * SIZE * executed
        row, column = np.arange(length)[:, None], np.arange(length)[None]
        shown = (row - column < (mask.window or length)) & ((row >= column) | (not mask.causal))
        assert visible == shown.sum() <= executed


def test_tiles_need_a_causal_mask_by_index_and_an_unsharded_length():
    ones = np.ones((1, LONG), int)
    assert len(tiles(LONG, LONG, Mask())) == 4 and len(tiles(256, 256, Mask())) == 2
    for mask in (Mask(causal=False), Mask(prefix_BM=ones > 0), Mask(order_BL=ones, order_BM=ones)):
        assert tiles(LONG, LONG, mask) == [(slice(0, LONG), slice(0, LONG))]
    assert len(tiles(255, 255, Mask())) == 1 and len(tiles(LONG, 2 * LONG, Mask())) == 1
    for mesh, count in ((Mesh(sequence=2), 1), (Mesh(tensor=2), 4)):
        with axes.use(mesh.build(), axes.every()):
            assert len(tiles(LONG, LONG, Mask())) == count


def test_a_mask_by_order_hides_padding_and_gives_no_nan():
    q_BLHK, k_BMGK, v_BMGK = arrays(2, 3, 2, 6)
    order_BL = np.array([[4, 5, 6], [-1, 0, 1]])
    order_BM = np.array([[6, 5, -1, 4, 3, 7], [-1, -1, 0, 1, -1, -1]])  # a ring, and a row with padding
    mask = Mask(window=2, order_BL=order_BL, order_BM=order_BM)
    found_BLHK = np.asarray(jax.jit(lambda *a: attend(*a, mask, 0.3))(q_BLHK, k_BMGK, v_BMGK))
    ahead_BLM = order_BL[:, :, None] - order_BM[:, None]
    seen_BLM = (ahead_BLM >= 0) & (ahead_BLM < 2) & (order_BM >= 0)[:, None]
    assert np.isfinite(found_BLHK).all() and not seen_BLM[1, 0].any()
    seen_BLM[1, 0] = True
    expected_BLHK = plain(q_BLHK, k_BMGK, v_BMGK, seen_BLM, 0.3)
    real = order_BL >= 0
    np.testing.assert_allclose(found_BLHK[real], expected_BLHK[real], rtol=1e-4, atol=1e-5)


def test_dropout_keeps_the_expectation_and_differs_between_tiles():
    rate, rows = 0.4, 500
    q_BLHK, k_BMGK, v_BMGK = (jnp.asarray(a) for a in arrays(1, 4, 2))
    wide = lambda a: jnp.broadcast_to(a, (rows, *a.shape[1:]))
    ones = jnp.ones((1, 256, 1, 1))

    @jax.jit
    def run(key):
        short = attend(wide(q_BLHK), wide(k_BMGK), wide(v_BMGK), Mask(), 0.3, dropout=(rate, key))
        return (
            short,
            attend(q_BLHK, k_BMGK, v_BMGK, Mask(), 0.3),
            attend(ones, ones, ones, Mask(window=1), 1.0, dropout=(rate, key)),
        )

    short_BLHK, whole_BLHK, long_BLHK = (np.asarray(a) for a in run(jax.random.key(0, impl="rbg")))
    noise = short_BLHK.std(0) / math.sqrt(rows)
    assert noise.min() > 0 and (np.abs(short_BLHK.mean(0) - whole_BLHK[0]) < 5 * noise).all()
    assert np.allclose(long_BLHK * (1 - rate) % 1, 0)  # each sees itself alone, or nothing
    assert not np.allclose(long_BLHK[:, :128], long_BLHK[:, 128:])  # two tiles of one shape


def test_half_precision_accumulates_in_float32():
    a = [jnp.asarray(x, jnp.bfloat16) for x in arrays(2, 12, 2)]
    y_BLHK = jax.jit(lambda *a: attend(*a, Mask(), 0.3))(*a)
    assert y_BLHK.dtype == jnp.bfloat16
    expected = plain(*(np.asarray(x, np.float32) for x in a), seen(12, Mask(), 2), 0.3)
    np.testing.assert_allclose(np.asarray(y_BLHK, np.float32), expected, atol=0.03)


def test_the_platform_of_the_mesh_and_the_mask_choose_the_kernel(monkeypatch):
    monkeypatch.setattr(kernel, "_cudnn", lambda q_BLHK, *rest: q_BLHK)
    gpu = SimpleNamespace(devices=np.array([SimpleNamespace(platform="cuda")]), shape={})
    half = [jnp.asarray(a, jnp.bfloat16) for a in arrays(1, 4, 2)]
    ones = jnp.ones((1, 4), bool)

    def chosen(a, mask=Mask(), softcap=None, dropout=None):
        with receipt() as found, axes.use(gpu, axes.data()):
            jax.eval_shape(lambda *a: attend(*a, mask, 1.0, softcap, dropout), *a)
        return found["attention"]

    assert all("cuDNN" in chosen(half, m) for m in (Mask(), Mask(window=2), Mask(segments_BL=ones, segments_BM=ones)))
    assert "XLA, 1 tile of" in chosen([a.astype(jnp.float32) for a in half])
    assert "XLA" in chosen([a[..., :4] for a in half])
    assert "XLA" in chosen(half, softcap=5.0) and "XLA" in chosen(half, dropout=(0.1, jax.random.key(0)))
    for mask in (Mask(prefix_BM=ones), Mask(causal=False, window=2), Mask(order_BL=1 * ones, order_BM=1 * ones)):
        assert "XLA" in chosen(half, mask)
    with receipt() as found:
        jax.eval_shape(lambda *a: attend(*a, Mask(), 1.0), *half)  # here there is no such device
        jax.eval_shape(lambda *a: attend(*a, Mask(), 1.0), *arrays(1, 512, 2))
    assert found == {"attention": "XLA, 1 tile of queries, XLA, 4 tiles of queries"}
