"""Products of activations and weights."""

import jax
import jax.numpy as jnp
import numpy as np

from llmlab.kernels.matmul import einsum
from llmlab.kernels.receipt import note, receipt


def test_half_precision_products_accumulate_in_float32():
    x_BD = jnp.ones((1, 4096), jnp.bfloat16)
    w_DF = jnp.full((4096, 2), 1 / 64, jnp.bfloat16).at[0].set(64)
    y_BF = jax.jit(lambda x, w: einsum("BD,DF->BF", x, w))(x_BD, w_DF)
    assert y_BF.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y_BF, np.float32), 128)  # in bfloat16, 64 + 1/64 is 64


def test_a_receipt_collects_each_kernel_once_and_ends_with_its_block():
    with receipt() as outer:
        note("scan", "fast")
        with receipt() as inner:
            note("scan", "slow")
        note("scan", "fast")
        note("scan", "faster")
    note("scan", "late")
    assert outer == {"scan": "fast, faster"} and inner == {"scan": "slow"}
