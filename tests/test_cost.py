"""FLOPs: pairs that a mask shows, against brute force, and matrix products of traced programs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab import axes
from llmlab.cost import RARE, Cost, Shape, flops_of, products_of, total, traced_flops, traced_work, visible_pairs

X, W = jnp.ones((4, 8)), jnp.ones((8, 8))
ONE = 2 * 4 * 8 * 8  # FLOPs of X @ W


@pytest.mark.parametrize("causal", [True, False])
def test_visible_pairs_equal_brute_force(causal):
    for length, memory, window in itertools.product(range(1, 9), range(1, 12), (None, *range(1, 13))):
        if length > memory:
            continue
        row, column = np.arange(memory - length, memory)[:, None], np.arange(memory)[None]
        seen = (row >= column) | (not causal)
        if window is not None:
            seen &= row - column < window
        assert visible_pairs(length, memory, causal, window) == seen.sum(), (length, memory, window)


def test_cross_attention_shows_all_pairs():
    assert visible_pairs(7, 3, causal=False) == 21


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda x, w: x @ w, 1),
        (lambda x, w: jnp.sin(x) + 1, 0),
        (lambda x, w: jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0], 5),
        (lambda x, w: jax.lax.fori_loop(0, 3, lambda _, x: x @ w, x), 3),
        (lambda x, w: jax.jit(lambda x: x @ w)(x @ w), 2),
        (lambda x, w: jax.lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x), 2),
        (jax.grad(lambda x, w: ((x @ w) ** 2).sum(), (0, 1)), 3),
        (jax.grad(jax.checkpoint(lambda x, w: (jnp.sin(x @ w) ** 2).sum()), (0, 1)), 4),
        (lambda x, w: jax.lax.scan(lambda x, _: (jax.checkpoint(lambda x: x @ w)(x), None), x, length=2)[0], 2),
        (lambda x, w: jnp.einsum("ij,jk->ik", x, w), 1),
        (lambda x, w: jax.vmap(jnp.dot, in_axes=(0, None))(x, w), 1),
    ],
)
def test_products_are_counted(function, products):
    assert traced_flops(function, X, W) == products * ONE


def test_of_a_branch_that_seldom_runs_the_other_is_counted():
    def run(x, w):
        def turn(x, _):
            with jax.named_scope(RARE):
                return jax.lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x, x), None

        return jax.lax.scan(turn, x @ w, length=3)[0].sum()

    assert traced_flops(run, X, W) == ONE
    assert traced_flops(jax.grad(run, (0, 1)), X, W) == 3 * ONE


def test_batched_products_and_empty_ones():
    assert traced_flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))) == 720
    assert traced_flops(jnp.dot, jnp.ones((3, 0)), jnp.ones((0, 2))) == 0


def test_what_runs_of_a_custom_gradient_is_counted():
    twice = jax.custom_vjp(lambda x, w: x @ w @ w)
    twice.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, dy: (dy @ saved[1].T, jnp.zeros_like(saved[1])))
    assert traced_flops(twice, X, W) == 2 * ONE  # the primal function
    assert traced_flops(jax.grad(lambda x, w: twice(x, w).sum()), X, W) == 2 * ONE  # one of each rule
    tangent = jax.custom_jvp(lambda x: x @ W)
    tangent.defjvp(lambda x, dx: (x[0] @ W, dx[0] @ W))
    assert traced_flops(tangent, X) == ONE


@pytest.mark.parametrize(("platform", "times"), [("tpu", 1), ("cpu", 2)])
def test_ragged_products_are_counted_as_the_platform_computes_them(monkeypatch, platform, times):
    monkeypatch.setattr(axes, "platform", lambda: platform)
    product = lambda x, w: jax.lax.ragged_dot(x, w, jnp.array([1, 3]))
    given = X, jnp.stack([W, W])  # the four rows of X in two groups
    assert traced_flops(product, *given) == times * ONE
    gradients = jax.grad(lambda x, w: (product(x, w) ** 2).sum(), (0, 1))
    assert traced_flops(gradients, *given) == 3 * times * ONE  # the product, and the gradients of x and of w


def test_a_loop_without_a_trip_count_is_refused():
    with pytest.raises(ValueError, match="no static trip count; write a scan"):
        traced_flops(lambda x, w: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x), X, W)
    assert traced_flops(lambda x, w: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x), X, W) == 0


def test_costs_add_and_repeat():
    one, two = Cost(1, 2, 3, 4), Cost(10, 20, 30, 40)
    assert total([one, two, one]) == Cost(12, 24, 36, 48) and one * 3 == Cost(3, 6, 9, 12)
    assert total([]) == Cost() and Shape(3, 5).tokens == 15


def test_convolutions_are_counted():
    """A product of the kernel with each place that it covers, for each group of channels."""
    x_BCL, w_FcK = jnp.ones((2, 6, 10)), jnp.ones((4, 3, 5))
    convolve = lambda x, w: jax.lax.conv_general_dilated(x, w, (1,), "VALID", feature_group_count=2)
    assert traced_flops(convolve, x_BCL, w_FcK) == 2 * (2 * 4 * 6) * (3 * 5)


def test_elementwise_work_is_reported_apart():
    found = traced_work(lambda x, w: jnp.tanh(x @ w + 1).sum(), X, W)
    assert found.products == ONE and found.elementwise == 3 * X.size  # tanh, +, and what the sum reads
    looped = traced_work(lambda x, w: jax.lax.scan(lambda x, _: (jnp.sin(x), None), x, length=5)[0], X, W)
    assert (looped.products, looped.elementwise) == (0, 5 * X.size)


def test_what_each_device_does_in_a_shard_map_is_counted_for_all():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    spec = jax.sharding.PartitionSpec
    shared = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(spec(("a", "b")), spec()), out_specs=spec(("a", "b")))
    assert traced_flops(shared, X, W) == ONE
    repeated = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(spec("a"), spec()), out_specs=spec("a"))
    assert traced_flops(repeated, X, W) == 2 * ONE  # each half of the rows on two devices


def kernel(x, w, **options):
    """A Pallas kernel of one product."""

    def body(x_ref, w_ref, out_ref):
        out_ref[...] = jnp.dot(x_ref[...], w_ref[...])

    from jax.experimental import pallas

    out = jax.ShapeDtypeStruct((len(x), w.shape[1]), x.dtype)
    return pallas.pallas_call(body, out_shape=out, interpret=True, **options)(x, w)


def test_a_pallas_kernel_declares_its_cost():
    from jax.experimental import pallas

    estimate = pallas.CostEstimate(flops=77, transcendentals=0, bytes_accessed=0)
    assert traced_flops(lambda x, w: kernel(x, w, cost_estimate=estimate), X, W) == 77
    assert traced_flops(lambda x, w: products_of(kernel, 55)(x, w), X, W) == 55
    with pytest.raises(ValueError, match="declares no cost; give its pallas_call a cost_estimate"):
        traced_flops(kernel, X, W)
    assert traced_flops(lambda x, w: flops_of(jnp.dot, 99)(x, w) @ w, X, W) == 99 + ONE


def test_what_is_traced_is_what_xla_counts_of_an_unrolled_program():
    """XLA counts elementwise work too, so the products are large."""
    from llmlab.ffn import Gated
    from llmlab.mixers import Attention
    from llmlab.models import Block, Decoder
    from llmlab.nn import Segment, Stack
    from llmlab.nn.module import abstract, merge, split
    from llmlab.nn.parts import Context

    block = Block(mixer=Attention(heads=4), ffn=Gated(hidden=512))
    cfg = Decoder(vocab=64, width=256, stack=Stack(segments=(Segment(pattern=(block,), repeats=2),), unroll=0))
    structure, params, _ = split(abstract(cfg.build))
    tokens_BL = jnp.zeros((2, 128), jnp.int32)

    def run(params):
        ctx = Context(positions_BL=jnp.broadcast_to(jnp.arange(128), (2, 128)))
        return merge(structure, params)(tokens_BL, ctx)[0].sum()

    traced = traced_work(jax.grad(run), params)
    analysis = jax.jit(jax.grad(run)).lower(params).cost_analysis()
    assert traced.products == pytest.approx(analysis["flops"], rel=0.02)
