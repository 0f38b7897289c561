"""Rows of a table over devices: the same as a plain look-up, and its gradient, whichever way they travel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab import axes
from llmlab.kernels.lookup import look_up
from llmlab.kernels.receipt import receipt
from llmlab.mesh import Mesh

BATCH, LENGTH, WIDTH = 8, 6, 16
TRAVEL, WHOLE = "tokens travel to the table", "whole table on every device"


@pytest.mark.parametrize(
    ("sizes", "entries", "how"),
    [
        ({"fsdp": 8}, 64, TRAVEL),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 64, TRAVEL),
        ({"fsdp": 4, "sequence": 2}, 64, TRAVEL),
        ({"data": 2, "fsdp": 4}, 4, WHOLE),  # fewer rows than tokens
        ({"data": 8}, 64, WHOLE),
        ({"tensor": 8}, 64, WHOLE),
    ],
)
def test_it_is_the_plain_look_up(sizes, entries, how):
    mesh, rules = Mesh(**{"data": 1, **sizes}).build(), axes.every()
    random = np.random.default_rng(0)
    table_VD = random.normal(size=(entries, WIDTH)).astype(np.float32)
    tokens_BL = random.integers(0, entries, (BATCH, LENGTH))
    weights_BLD = random.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)

    def loss(table_VD, shared):
        if not shared:
            return (table_VD[tokens_BL] * weights_BLD).sum(), table_VD[tokens_BL]
        with axes.use(mesh, rules):
            x_BLD = look_up(table_VD, jnp.asarray(tokens_BL))
        return (x_BLD * weights_BLD).sum(), x_BLD

    step = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    placed_VD = jax.device_put(table_VD, axes.stored("VD", table_VD.shape, mesh, rules))
    with receipt() as found:
        gradient, x_BLD = step(placed_VD, True)
    expected, plain_BLD = step(table_VD, False)
    assert found == {"embedding": how}
    np.testing.assert_allclose(x_BLD, plain_BLD)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)
