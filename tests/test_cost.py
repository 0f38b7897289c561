"""FLOPs: pairs that a mask shows, against brute force, and matrix products of traced programs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab import axes
from llmlab.cost import Cost, Shape, total, traced_flops, visible_pairs

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
