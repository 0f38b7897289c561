"""Position biases: BLOOM's slopes and T5's buckets, on any order; shared by the layers of a stack, trained by all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.config import put
from llmlab.cost import Shape
from llmlab.mixers import Attention
from llmlab.models import Block
from llmlab.nn import Context, Normal, repeat
from llmlab.nn.bias import Alibi, Relative
from llmlab.nn.module import Rngs, merge, specs, split
from llmlab.nn.stack import Segment, Stack
from llmlab.testing.contract import check_model, small

SLOPES = {  # of transformers' BLOOM
    6: [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8],
    8: [2.0**-i for i in range(1, 9)],
    12: [*[2.0**-i for i in range(1, 9)], 0.707107, 0.353553, 0.176777, 0.0883883],
}
AHEAD = [-300, -128, -91, -64, -45, -32, -23, -16, -12, -11, -8, -7, -1, 0, 1, 7, 8, 12, 16, 32, 64, 90, 91, 300]
BUCKETS = [  # of transformers' T5, for keys that stand so far ahead of the query
    (Relative(bidirectional=True),
     [15, 15, 15, 14, 12, 12, 11, 10, 9, 8, 8, 7, 1, 0, 17, 23, 24, 25, 26, 28, 30, 30, 31, 31]),
    (Relative(), [31, 31, 29, 26, 23, 21, 18, 16, 12, 11, 8, 7, 1, *[0] * 11]),
    (Relative(buckets=16, distance=40, bidirectional=True),
     [7, 7, 7, 7, 7, 7, 7, 6, 5, 5, 5, 4, 1, 0, 9, 12, 13, 13, 14, 15, 15, 15, 15, 15]),
    (Relative(buckets=13, distance=64, bidirectional=True),
     [5, 5, 5, 5, 5, 5, 4, 4, 4, 4, 3, 3, 1, 0, 7, 9, 9, 10, 10, 11, 11, 11, 11, 11]),
    (Relative(buckets=9, distance=32),
     [8, 8, 8, 8, 8, 8, 8, 7, 6, 6, 5, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    (Relative(buckets=28, distance=1000, bidirectional=True),
     [12, 11, 10, 10, 9, 9, 8, 8, 7, 7, 7, 7, 1, 0, 15, 21, 21, 21, 22, 23, 24, 24, 24, 26]),
]  # fmt: skip


@pytest.mark.parametrize("heads", SLOPES)
def test_slopes_are_those_of_bloom_in_both_directions(heads):
    layer = Alibi(heads=heads).build({}, None)
    bias_BHLM = layer(jnp.array([[5, 7]]), jnp.array([[7, 4, 9]]))
    distance_LM = np.array([[2, 1, 4], [0, 3, 2]])
    np.testing.assert_allclose(bias_BHLM[0], -np.array(SLOPES[heads])[:, None, None] * distance_LM, rtol=1e-5)


@pytest.mark.parametrize("cfg", [cfg for cfg, _ in BUCKETS], ids=lambda cfg: f"{cfg.buckets}-{cfg.bidirectional}")
def test_buckets_are_those_of_t5(cfg):
    layer = cfg.build({"D": 4}, Rngs(params=0))
    layer.table[...] = jnp.arange(cfg.buckets)[:, None] + 100.0 * jnp.arange(8)
    query_BL = np.array([[1000], [17]])
    bias_BHLM = np.asarray(layer(query_BL, query_BL + np.array([AHEAD])))
    assert bias_BHLM.shape == (2, 8, 1, len(AHEAD)) and bias_BHLM.dtype == np.float32
    for head in (0, 7):
        np.testing.assert_array_equal(bias_BHLM[:, head, 0] - 100 * head, [dict(BUCKETS)[cfg]] * 2)


def test_the_table_begins_by_the_width_and_has_letters():
    stack = repeat(Block(mixer=Attention(heads=8, position=None), ffn=None), 1)
    stack = Stack(segments=stack.segments, bias=Relative(buckets=4096, distance=9999))
    built = stack.build({"D": 64}, Rngs(params=0))
    assert abs(float(built.bias.table[...].std()) * 8 - 1) < 0.02
    found = specs(built)["bias", "table"]
    assert (found.axes, found.shape, found.inputs) == ("WH", (4096, 8), "")
    assert built.cost(Shape(2, 8)) == repeat(stack.segments[0].pattern[0], 1).build({"D": 64}, Rngs(params=0)).cost(
        Shape(2, 8)
    )


def test_every_layer_trains_the_table_under_every_policy():
    """The gradient is that of a table for each layer, summed; padding and other documents give it nothing."""
    block = Block(mixer=Attention(heads=2, position=None), ffn=None)
    bias = Relative(heads=2, buckets=4, distance=6)
    segments_BL = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]])
    ctx = Context(positions_BL=np.tile(np.arange(7), (2, 1)), segments_BL=segments_BL)
    x_BLD = np.random.default_rng(0).normal(size=(2, 7, 8)).astype(np.float32)
    structure, params, stats = split(Stack(segments=(Segment(pattern=(block,), repeats=2),), bias=bias).build(
        {"D": 8}, Rngs(params=0)
    ))  # fmt: skip

    def loss(params, remat, unroll):
        stack = merge(structure, params, stats)
        stack.cfg = Stack(segments=stack.cfg.segments, bias=bias, remat=remat, unroll=unroll)
        return (stack(x_BLD, ctx)[0] ** 2).sum()

    def apart(tables, params):
        """The layers one by one, each with a table of its own."""
        y_BLD = x_BLD
        for i, table in enumerate(tables):
            stack = merge(structure, params, stats)
            one = jax.tree.map(lambda a, i=i: a[i], stack.segments[0])[0]
            stack.bias.table[...] = table
            y_BLD, _ = one(y_BLD, stack.share(ctx))
        return (y_BLD**2).sum()

    runs = (("none", 1), ("full", 1), ("mixed", 2), ("projections", 0))
    gradients = lambda params: [jax.grad(loss)(params, *run)["bias"]["table"] for run in runs]
    found = jax.jit(gradients)(params)
    table = params["bias"]["table"]
    first, second = jax.jit(jax.grad(apart))([table, table], params)
    assert np.abs(first).max() > 1e-3 and np.abs(second).max() > 1e-3
    for grad in found:
        np.testing.assert_allclose(grad, first + second, rtol=1e-4, atol=1e-5)


@pytest.mark.soak
def test_the_whole_contract_with_a_bias():
    mixer = Attention(heads=4, kv_heads=2, position=None, scale=1.0, sink=Normal(std=1.0))
    for bias in (Relative(heads=4, buckets=8, distance=12), Alibi(heads=4)):
        check_model(put(put(small(), "stack.bias", bias), "stack.segments.0.pattern.0.mixer", mixer))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Alibi(heads=0), "Alibi.heads is 0; it is that of the attention, 1 or more"),
        (lambda: Relative(heads=0), "Relative.heads is 0"),
        (lambda: Relative(buckets=1), "Relative.buckets is 1 and distance 128; buckets are 2 or more"),
        (lambda: Relative(buckets=3, bidirectional=True), "buckets are 4 or more"),
        (lambda: Relative(distance=16), "the distance is beyond the 16 that have their own"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
