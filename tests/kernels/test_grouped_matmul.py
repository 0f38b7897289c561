"""The grouped product against a loop over groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab import axes
from llmlab.cost import traced_flops
from llmlab.kernels.grouped_matmul import grouped_matmul, lay_out, plan_rows
from llmlab.kernels.receipt import receipt

D, F, E = 5, 3, 4
RANDOM = np.random.default_rng(0)
W = RANDOM.normal(size=(E, D, F)).astype(np.float32)


def outputs(x_AD, w_EDF, groups_A, block=None):
    """What each item becomes: zeros for one of no group."""
    groups, row_A = lay_out(groups_A, E, len(groups_A), block)
    x_RD = jnp.zeros((groups.rows, D), x_AD.dtype).at[row_A].set(x_AD, mode="drop")
    return grouped_matmul(x_RD, w_EDF, groups).at[row_A].get(mode="fill", fill_value=0)


def naive(x_AD, w_EDF, groups_A):
    picked_ADF = jnp.concatenate([w_EDF, jnp.zeros((1, D, F))])[groups_A]
    return (x_AD[:, :, None] * picked_ADF).sum(1)


def assert_equal_to_naive(block=None):
    """Values and gradients, for groups of every size: even, empty, all in one, items of none."""
    together = lambda function: jax.jit(
        lambda x, w, groups, dy: (lambda y, pull: (y, *pull(dy)))(*jax.vjp(lambda x, w: function(x, w, groups), x, w))
    )
    fast, slow = together(lambda x, w, groups: outputs(x, w, groups, block)), together(naive)
    for groups_A in (np.arange(20) % E, RANDOM.integers(0, E + 1, 20), np.full(20, 2), np.full(20, E), [1] * 19 + [3]):
        x_AD, dy_AF = (RANDOM.normal(size=(20, size)).astype(np.float32) for size in (D, F))
        given = (x_AD, W, jnp.asarray(groups_A), dy_AF)
        for found, expected in zip(fast(*given), slow(*given)):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [1, 4, 32])
def test_blocks_equal_a_loop_over_groups(block):
    assert_equal_to_naive(block)


def test_the_ragged_product_of_a_tpu_equals_it_too(monkeypatch):
    monkeypatch.setattr(axes, "platform", lambda: "tpu")
    with receipt() as found:
        assert_equal_to_naive()
    assert found == {"grouped matmul": "XLA's ragged product"} and plan_rows(20, E) == (20, 1)


def test_a_gpu_computes_empty_blocks_too(monkeypatch):
    monkeypatch.setattr(axes, "platform", lambda: "gpu")
    with receipt() as found:
        assert_equal_to_naive()
    assert found == {"grouped matmul": "blocks of 8 rows"}


def test_rows_hold_any_groups_and_no_more():
    for block in (1, 3, 8):
        for items in (1, 7, 24):
            rows, _ = plan_rows(items, E, block)
            worst = 0
            for first in range(items + 1):
                for second in range(items - first + 1):
                    for third in range(items - first - second + 1):
                        sizes = np.array([first, second, third, items - first - second - third])
                        worst = max(worst, int((-(-sizes // block) * block).sum()))
            assert rows == worst, (block, items)


def test_blocks_fit_the_share_of_a_group():
    assert plan_rows(4096, 4)[1] == 128 and plan_rows(12288, 64)[1] == 32 and plan_rows(4, 4)[1] == 8
    assert plan_rows(4096, 4)[0] == 4096 + 3 * 128  # four groups with an item in a last block cannot fill it


def test_flops_are_those_of_the_rows():
    x_RD = jnp.zeros((plan_rows(20, E, 8)[0], D))
    groups, _ = lay_out(jnp.arange(20) % E, E, 20, 8)
    assert traced_flops(lambda x, w: grouped_matmul(x, w, groups), x_RD, W) == 2 * groups.rows * D * F


def test_half_precision_accumulates_in_float32():
    groups, row_A = lay_out(jnp.zeros(8, int), E, 8)
    x_RD = jnp.ones((groups.rows, 4096), jnp.bfloat16)
    w_EDF = jnp.full((E, 4096, 1), 1 / 64, jnp.bfloat16).at[:, 0].set(64)
    y_RF = jax.jit(lambda x, w: grouped_matmul(x, w, groups))(x_RD, w_EDF)
    assert y_RF.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y_RF[row_A], np.float32), 128)  # in bfloat16, 64 + 1/64 is 64
