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
from llmlab.kernels.attention import Added, Mask, attend, blocks, pairs, tiles
from llmlab.kernels.receipt import receipt
from llmlab.mesh import Mesh

HEADS, SIZE = 4, 8


def arrays(batch: int, length: int, groups: int, memory: int | None = None):
    random = np.random.default_rng(length)
    shapes = ((batch, length, HEADS, SIZE), *[(batch, memory or length, groups, SIZE)] * 2)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def plain(q_BLHK, k_BMGK, v_BMGK, seen_BLM, scale, softcap=None, bias_BHLM=0.0, sink_H=None):
    """softmax(q k^T) v, one key/value head for each query head, in float64."""
    q, k, v = (a.astype(np.float64) for a in (q_BLHK, k_BMGK, v_BMGK))
    share = HEADS // k.shape[2]
    k, v = np.repeat(k, share, 2), np.repeat(v, share, 2)
    scores_BHLM = np.einsum("blhk,bmhk->bhlm", q, k) * scale
    if softcap is not None:
        scores_BHLM = softcap * np.tanh(scores_BHLM / softcap)
    probs_BHLM = np.where(seen_BLM[:, None], np.exp(scores_BHLM + bias_BHLM), 0)
    whole_BHL1 = probs_BHLM.sum(-1, keepdims=True)
    if sink_H is not None:
        whole_BHL1 += np.exp(np.asarray(sink_H, np.float64))[:, None, None]
    return np.einsum("bhlm,bmhk->blhk", probs_BHLM / whole_BHL1, v)


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


SINK_H = np.array([0.0, 3.0, -50.0, 60.0], np.float32)


def distances(order_BL, order_BM):
    """A bias that tells orders apart: a number for each head, key and query."""
    heads_H11 = np.arange(1, HEADS + 1)[:, None, None]
    return heads_H11 * (0.01 * order_BM[:, None, None] - 0.02 * order_BL[:, None, :, None])


def test_a_bias_and_a_sink_join_the_scores_of_every_tile():
    a = arrays(1, LONG, 2)
    row, column = np.arange(LONG)[:, None], np.arange(LONG)[None]
    added = Added(distances, SINK_H)
    found = jax.jit(lambda *a: [attend(*a, mask, 0.3, 1.5, added=added) for mask in (Mask(window=150), Mask())])(*a)
    bias_BHLM = distances(np.arange(LONG)[None], np.arange(LONG)[None])
    for y_BLHK, window in zip(found, (150, LONG)):
        seen_BLM = ((row >= column) & (row - column < window))[None]
        expected_BLHK = plain(*a, seen_BLM, 0.3, 1.5, bias_BHLM, SINK_H)
        np.testing.assert_allclose(y_BLHK, expected_BLHK, rtol=1e-4, atol=1e-5)
        assert np.abs(expected_BLHK[:, 0, 3]).max() < 1e-20  # its sink takes all


def test_gradients_of_a_bias_and_a_sink_are_those_of_the_formula():
    """Of rows and keys in one tile, B rows of scores and one of biases, and of B rows of both."""
    a = [jnp.asarray(x) for x in arrays(2, 6, 2)]
    table_HLM = jnp.asarray(np.random.default_rng(1).normal(size=(HEADS, 6, 6)), jnp.float32)
    sink_H, rows_BL = jnp.asarray(SINK_H / 20), np.tile(np.arange(6), (2, 1))

    def written(q, k, v, table_HLM, sink_H):
        scores = jnp.einsum("blhk,bmhk->bhlm", q, jnp.repeat(k, 2, 2)) * 0.3 + table_HLM
        weights = jnp.where(np.tri(6) > 0, jnp.exp(scores), 0)
        whole = weights.sum(-1, keepdims=True) + jnp.exp(sink_H)[:, None, None]
        return (jnp.einsum("bhlm,bmhk->blhk", weights / whole, jnp.repeat(v, 2, 2)) ** 2).sum()

    def loss(mask):
        bias = lambda table: lambda order_BL, order_BM: jnp.stack([table] * order_BL.shape[0])
        return lambda q, k, v, table, sink: (attend(q, k, v, mask, 0.3, added=Added(bias(table), sink)) ** 2).sum()

    losses = (written, loss(Mask()), loss(Mask(order_BL=rows_BL, order_BM=rows_BL)))
    expected, *found = jax.jit(lambda *a: [jax.grad(f, range(5))(*a) for f in losses])(*a, table_HLM, sink_H)
    for grads in found:
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), grads, expected)


def test_a_bias_of_other_heads_is_refused():
    added = Added(lambda order_BL, order_BM: jnp.ones((1, 3, 5, 5)))
    with pytest.raises(ValueError, match="position bias has 3 heads, and the attention 4; give both the same `heads`"):
        jax.eval_shape(lambda *a: attend(*a, Mask(), 1.0, added=added), *arrays(1, 5, 2))


def test_long_rows_that_are_no_tiles_are_scanned():
    """Prefill on a cache (left padding, slots without order), a prefix, a window without a direction, documents."""
    length, memory = 602, 640  # 3 blocks of 201, the last one filled up
    a = arrays(2, length, 2, memory)
    order_BL = np.stack([np.arange(length), np.maximum(np.arange(length) - 40, -1)])
    order_BM = np.full((2, memory), -1)
    order_BM[:, :length] = order_BL
    square = [x[:, :length] for x in a]
    segments_BL = np.stack([np.arange(length) // 250, np.arange(length) // 99])
    prefix_BM = np.arange(length)[None] % 7 == 0
    masks = [
        (a, Mask(order_BL=order_BL, order_BM=order_BM)),
        (square, Mask(prefix_BM=prefix_BM)),
        (square, Mask(causal=False, window=9, segments_BL=segments_BL, segments_BM=segments_BL)),
    ]
    added = Added(distances, SINK_H / 10)
    with receipt() as ran:
        found = jax.jit(lambda: [attend(*given, mask, 0.3, added=added) for given, mask in masks])()
    assert ran["attention"] == "XLA, scan of 3 blocks of queries" and blocks(602, 640, masks[0][1]) == 3
    ahead_BLM = order_BL[:, :, None] - order_BM[:, None]
    row, column = np.arange(length)[:, None], np.arange(length)[None]
    same_BLM = segments_BL[:, :, None] == segments_BL[:, None]
    seen = [
        (ahead_BLM >= 0) & (order_BM >= 0)[:, None],
        np.broadcast_to((row >= column) | prefix_BM, (2, length, length)),
        same_BLM & (row - column < 9),
    ]
    index_1L = np.arange(length)[None]
    for (given, mask), y_BLHK, seen_BLM in zip(masks, found, seen):
        orders = (index_1L, index_1L) if mask.by_index else (order_BL, order_BM)
        real = seen_BLM.any(-1)
        assert real.sum() >= 2 * length - 40
        expected_BLHK = plain(*given, seen_BLM, 0.3, None, distances(*orders), SINK_H / 10)
        np.testing.assert_allclose(np.asarray(y_BLHK)[real], expected_BLHK[real], rtol=1e-3, atol=1e-5)


def test_the_backward_pass_of_short_rows_makes_no_scores_again():
    a = arrays(1, 12, 2)
    product = 2 * HEADS * SIZE * 12 * 12
    gradient = jax.grad(lambda *a: attend(*a, Mask(), 0.3).sum(), (0, 1, 2))
    assert traced_flops(gradient, *a) == 6 * product


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
    monkeypatch.setattr(kernel, "cudnn", lambda q_BLHK, *rest: q_BLHK)
    gpu = SimpleNamespace(devices=np.array([SimpleNamespace(platform="cuda")]), shape={})
    cut = SimpleNamespace(devices=gpu.devices, shape={"sequence": 2})
    half = [jnp.asarray(a, jnp.bfloat16) for a in arrays(1, 4, 2)]
    ones = jnp.ones((1, 4), bool)

    def chosen(a, mask=Mask(), softcap=None, dropout=None, added=Added(), mesh=gpu):
        with receipt() as found, axes.use(mesh, axes.data()):
            jax.eval_shape(lambda *a: attend(*a, mask, 1.0, softcap, dropout, added), *a)
        return found["attention"]

    assert all("cuDNN" in chosen(half, m) for m in (Mask(), Mask(window=2), Mask(segments_BL=ones, segments_BM=ones)))
    assert "XLA, 1 tile of" in chosen([a.astype(jnp.float32) for a in half])
    assert "XLA" in chosen([a[..., :4] for a in half])
    assert "XLA" in chosen(half, added=Added(distances)) and "XLA" in chosen(half, added=Added(sink_H=jnp.ones(HEADS)))
    assert "XLA" in chosen([*half[:2], half[2][..., :4]])  # values of another size
    assert "positions are shared" in chosen(half, mesh=cut)
    assert "XLA" in chosen(half, softcap=5.0) and "XLA" in chosen(half, dropout=(0.1, jax.random.key(0)))
    for mask in (Mask(prefix_BM=ones), Mask(causal=False, window=2), Mask(order_BL=1 * ones, order_BM=1 * ones)):
        assert "XLA" in chosen(half, mask)
    with receipt() as found:
        jax.eval_shape(lambda *a: attend(*a, Mask(), 1.0), *half)  # here there is no such device
        jax.eval_shape(lambda *a: attend(*a, Mask(), 1.0), *arrays(1, 512, 2))
    assert found == {"attention": "XLA, 1 tile of queries, XLA, 4 tiles of queries"}
