"""The TPU kernel, run by an interpreter, against the plain softmax; what it computes, and where it does not serve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab import axes
from llmlab.cost import traced_flops
from llmlab.kernels.attention import Added, Mask, attend
from llmlab.kernels.receipt import receipt
from llmlab.kernels.splash import block, block_pairs, refusal, splash
from llmlab.mesh import Mesh

LENGTH, SIZE = 256, 128


def arrays(batch=1, heads=2, groups=1, length=LENGTH, memory=None):
    random = np.random.default_rng(0)
    shapes = ((batch, length, heads, SIZE), *[(batch, memory or length, groups, SIZE)] * 2)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


SEGMENTS_BL = np.arange(LENGTH)[None] // 100 + 1
CASES = [  # mask, softcap, sink
    (Mask(), None, None),
    (Mask(causal=False), 2.0, None),
    (Mask(window=70), None, None),
    (Mask(segments_BL=SEGMENTS_BL, segments_BM=SEGMENTS_BL), None, np.array([0.5, 3.0], np.float32)),
]


@pytest.mark.parametrize(("mask", "softcap", "sink_H"), CASES, ids=["causal", "whole", "window", "packed"])
def test_values_and_gradients_equal_the_plain_kernel(mask, softcap, sink_H):
    q, k, v = arrays()

    def fast(q, k, v):
        return splash(q * 0.1, k, v, mask, softcap, None if sink_H is None else jnp.asarray(sink_H), interpret=True)

    def slow(q, k, v):
        return attend(q, k, v, mask, 0.1, softcap, added=Added(sink_H=sink_H))

    together = lambda f: jax.value_and_grad(lambda *a: (lambda y: ((y**2).sum(), y))(f(*a)), (0, 1, 2), has_aux=True)
    (_, found), grads = jax.jit(together(fast))(q, k, v)
    (_, expected), wanted = jax.jit(together(slow))(q, k, v)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)
    for one, other in zip(grads, wanted):
        np.testing.assert_allclose(one, other, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("mask", [Mask(), Mask(causal=False)], ids=["causal", "whole"])
def test_each_device_runs_it_on_its_rows_heads_and_queries(mask):
    q, k, v = arrays(batch=2, heads=4, groups=1)
    expected = attend(q, k, v, mask, 0.1)
    mesh = Mesh(data=2, sequence=2, tensor=2).build()

    def run(q, k, v):
        with axes.use(mesh, axes.every()):
            return splash(q * 0.1, k, v, mask, interpret=True)

    np.testing.assert_allclose(jax.jit(run)(q, k, v), expected, rtol=2e-3, atol=2e-4)
    each = 2 * 2 * 4 * SIZE * LENGTH**2  # blocks of 128 queries and 256 keys: all are seen
    assert traced_flops(run, q, k, v) == 2 * each
    assert traced_flops(jax.grad(lambda *a: run(*a).sum(), (0, 1, 2)), q, k, v) == (2 + 3 + 4) * each + 2 * q.size


def test_blocks_that_no_query_sees_are_not_counted():
    q, k, v = arrays(length=384)
    run = lambda *a: splash(*a, Mask(), interpret=True)
    each = 2 * 2 * SIZE * 6 * 128**2  # six of nine blocks; two products forward, three and four backward
    assert traced_flops(run, q, k, v) == 2 * each
    assert traced_flops(jax.grad(lambda *a: run(*a).sum(), (0, 1, 2)), q, k, v) == (2 + 3 + 4) * each + 2 * q.size


def test_pairs_of_blocks_equal_brute_force():
    for length, memory, causal, window in [(512, 512, True, None), (512, 512, True, 100), (512, 512, True, 129)] + [
        (512, 256, False, None),
        (512, 512, False, 1),
    ]:
        ahead = np.arange(length)[:, None] - np.arange(memory)[None]
        seen = (ahead >= 0) | (not causal)
        seen &= ahead < (window or memory + length)
        blocks = seen.reshape(length // 128, 128, memory // 128, 128).any((1, 3)).sum()
        assert block_pairs(length, memory, 128, 128, causal, window) == blocks * 128**2
    assert block(2048) == 512 and block(384) == 128


def test_where_it_does_not_serve_is_told_and_can_be_refused(monkeypatch):
    monkeypatch.setattr(axes, "platform", lambda: "tpu")
    q, k, v = (a[:, :200] for a in arrays())
    with receipt() as found:
        jax.eval_shape(lambda *a: attend(*a, Mask(), 0.1), q, k, v)
    assert found["attention"] == (
        "XLA, 1 tile of queries instead of splash attention (Pallas) "
        "(200 queries and 200 keys are no multiples of 128 and 128)"
    )
    with receipt(demand=True), pytest.raises(ValueError, match="attention: XLA.* would run instead of splash"):
        jax.eval_shape(lambda *a: attend(*a, Mask(), 0.1), q, k, v)
    words = lambda *given: refusal(*arrays()[:2], *given)
    assert "dropout" in words(Mask(), (0.1, None), None) and "bias" in words(Mask(), None, lambda a, b: 0)
    assert "prefix" in words(Mask(prefix_BM=SEGMENTS_BL > 1), None, None)
    assert "order" in words(Mask(order_BL=SEGMENTS_BL, order_BM=SEGMENTS_BL), None, None)
    assert refusal(*arrays(memory=128)[:2], Mask(causal=False), None, None) is None
    assert "among 128 keys" in refusal(*arrays(memory=128)[:2], Mask(), None, None)
