"""The time loop: values and gradients of a plain scan, with no gradient of a weight inside the backward loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.cost import traced_flops
from llmlab.kernels.recurrence import Loop, recur

STEPS, BATCH, CHANNELS = 5, 2, 3
DRAW = np.random.default_rng(0)
OPERANDS = jax.tree.map(
    lambda shape: DRAW.normal(size=shape).astype(np.float32),
    {
        "carry": (BATCH, CHANNELS),
        "weights": ((CHANNELS, 2, CHANNELS), (4, CHANNELS)),
        "streams": ((STEPS, BATCH, 2, CHANNELS), None),
        "inputs": (STEPS, BATCH, CHANNELS),
        "shared": (CHANNELS, 4),
    },
    is_leaf=lambda node: isinstance(node, tuple) and isinstance(node[0], int),
)
HOLD_LB = DRAW.integers(0, 2, (STEPS, BATCH)) > 0


def cell(h_BC, x_BC, hold_B, shared, affine):
    """Two products that follow each other, a gate from the input, and something that all steps see."""
    a_BC, b_BC = jnp.unstack(affine(0, h_BC), axis=1)
    new_BC = jnp.tanh(affine(1, jnp.sin(a_BC) @ shared) + b_BC * x_BC)
    new_BC = jnp.where(hold_B[:, None], h_BC, new_BC)
    return new_BC, new_BC * h_BC


def plain(reverse, carry, weights, streams, inputs, shared):
    def step(carry, now):
        streams, x_BC, hold_B = now
        affine = lambda group, left: (0 if group else streams[0]) + jnp.tensordot(left, weights[group], 1)
        return cell(carry, x_BC, hold_B, shared, affine)

    return jax.lax.scan(step, carry, (streams, inputs, HOLD_LB), reverse=reverse)


@pytest.mark.parametrize("reverse, unroll", [(False, 1), (True, 2)])
def test_values_and_gradients_are_those_of_a_plain_scan(reverse, unroll):
    fast = lambda **operands: recur(Loop(cell, reverse, unroll), marks=HOLD_LB, **operands)
    weigh = lambda carry, y: (carry * 2).sum() + (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum()
    found, grads = jax.jit(jax.value_and_grad(lambda o: weigh(*fast(**o))))(OPERANDS)
    expected, right = jax.jit(jax.value_and_grad(lambda o: weigh(*plain(reverse, **o))))(OPERANDS)
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert jax.tree.structure(grads) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(right)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_backward_loop_adds_up_nothing_of_a_weights_size():
    loss = lambda o: recur(Loop(cell), marks=HOLD_LB, **o)[1].sum()
    scans = [e for e in jax.make_jaxpr(jax.grad(loss))(OPERANDS).eqns if e.primitive.name == "scan"]
    given = {v.aval.shape for e in scans for v in e.outvars}  # what a loop carries, and what it stacks
    assert (BATCH, CHANNELS) in given and OPERANDS["shared"].shape in given
    assert not {w.shape for w in OPERANDS["weights"]} & given


def test_gradients_have_the_types_of_what_they_belong_to():
    half = {k: v if k == "carry" else jax.tree.map(lambda a: a.astype(jnp.bfloat16), v) for k, v in OPERANDS.items()}
    grads = jax.eval_shape(jax.grad(lambda o: recur(Loop(cell), marks=HOLD_LB, **o)[1].sum()), half)
    assert jax.tree.map(lambda a: a.dtype, grads) == jax.tree.map(lambda a: a.dtype, half)


def test_the_products_of_every_step_are_counted():
    forward = lambda o: recur(Loop(cell), marks=HOLD_LB, **o)
    each = 2 * BATCH * (CHANNELS * 2 * CHANNELS + CHANNELS * 4 + 4 * CHANNELS)
    assert traced_flops(forward, OPERANDS) == STEPS * each
