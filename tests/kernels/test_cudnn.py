"""cuDNN's attention where no GPU is: what a stand-in must hold, and that it does."""

import jax
import jax.numpy as jnp
import pytest

from llmlab import axes
from llmlab.cost import traced_flops
from llmlab.kernels.attention import Mask
from llmlab.kernels.cudnn import held, stand_in
from llmlab.kernels.receipt import receipt
from llmlab.mesh import Mesh

B, L, H, K = 4, 16, 4, 8


def test_the_bytes_of_a_case_that_is_counted_by_hand():
    """2 rows of 8 queries with 4 heads of 16: an array of 16-bit numbers has 2,048 bytes, statistics have 256."""
    q, few = (2, 8, 4, 16), (2, 8, 2, 16)
    assert held(q, q, segments=False) == (2048 + 256, 4096 + 256)
    assert held(q, few, segments=False) == (2304, 4352 + 2 * 2048)  # gradients of four heads' keys and values
    assert held(q, q, segments=True) == (2304 + 2 * 2 * 8 * 8, 4352)


def shapes(groups):
    array = lambda heads: jax.ShapeDtypeStruct((B, L, heads, K), jnp.bfloat16)
    return array(H), array(groups), array(groups)


@pytest.mark.parametrize(("groups", "packed"), [(H, False), (2, False), (1, True)])
def test_the_stand_in_keeps_and_does_what_the_kernel_would(groups, packed):
    """On 2 x 2 devices that share rows and heads; one head of keys is made each query head's own."""
    mesh = Mesh(data=2, tensor=2).build(jax.devices()[:4])
    segments = jnp.ones((B, L), jnp.int32) if packed else None
    mask = Mask(segments_BL=segments, segments_BM=segments)
    run = lambda *a: stand_in(*a, mask, 1.0)
    given, own = shapes(groups), H if groups % 2 else groups
    kept, work = held((B // 2, L, H // 2, K), (B // 2, L, own // 2, K), packed)
    with axes.use(mesh, axes.every()), receipt() as found:
        left = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(run, *a)[1], *given))
        gradients = jax.grad(lambda *a: run(*a).astype(jnp.float32).sum(), (0, 1, 2))
        assert jax.eval_shape(gradients, *given) == given
        assert traced_flops(gradients, *given) == (2 + 5) * 2 * B * H * K * (L * (L + 1) // 2)
    bytes_of = lambda leaf: leaf.size * leaf.dtype.itemsize
    operands = bytes_of(given[0]) + 2 * B * L * own * K * 2
    shared = 2 if packed else 0  # a bias is shared by rows alone
    assert sum(map(bytes_of, left)) - operands == 4 * kept - shared * B // 2 * L * L * 2
    assert f"each call keeps {kept / 1e6:.3g} MB of a device" in found["attention"]
    assert f"takes {work / 1e6:.3g} MB there" in found["attention"]
