"""Products of activations and weights."""

import jax
import jax.numpy as jnp
import numpy as np

from llmlab.kernels.matmul import batched, einsum, scores
from llmlab.kernels.receipt import note, receipt


def test_half_precision_products_accumulate_in_float32():
    x_BD = jnp.ones((1, 4096), jnp.bfloat16)
    w_DF = jnp.full((4096, 2), 1 / 64, jnp.bfloat16).at[0].set(64)
    y_BF = jax.jit(lambda x, w: einsum("BD,DF->BF", x, w))(x_BD, w_DF)
    assert y_BF.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y_BF, np.float32), 128)  # in bfloat16, 64 + 1/64 is 64


def test_few_rows_of_half_precision_give_what_many_do():
    x_BLD, w_VD = (
        jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i, shape in enumerate([(5, 1, 8), (3, 8)])
    )
    product = lambda x_BLD: einsum("BLD,DV->BLV", x_BLD, w_VD.T)
    for run in (product, lambda x_BLD: scores(x_BLD, w_VD)):
        rows = [np.asarray(jax.jit(run)(x_BLD[i : i + 1]), np.float32) for i in range(5)]
        np.testing.assert_allclose(np.concatenate(rows), np.asarray(jax.jit(run)(x_BLD), np.float32), rtol=1e-2)


def test_products_of_activations_take_half_precision_in_any_order():
    probs_BGQq, v_BqGK = jnp.ones((2, 3, 64, 64), jnp.bfloat16), jnp.ones((2, 64, 3, 16), jnp.bfloat16)
    y_BQGK = jax.jit(lambda a, b: batched("BGQq,BqGK->BQGK", a, b))(probs_BGQq, v_BqGK)
    assert y_BQGK.dtype == jnp.float32
    np.testing.assert_array_equal(y_BQGK, 64)


def test_a_receipt_collects_each_kernel_once_and_ends_with_its_block():
    with receipt() as outer:
        note("scan", "fast")
        with receipt() as inner:
            note("scan", "slow")
        note("scan", "fast")
        note("scan", "faster")
    note("scan", "late")
    assert outer == {"scan": "fast, faster"} and inner == {"scan": "slow"}
