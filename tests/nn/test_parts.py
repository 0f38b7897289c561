"""What parts are given: contexts, dropout and declarations."""

import jax
import jax.numpy as jnp
import numpy as np

from llmlab.nn import Context, Declared
from llmlab.nn.parts import drop

X = jnp.ones((64, 256))


def test_dropout_keeps_the_mean_and_its_uses_differ():
    ctx = Context(positions_BL=jnp.zeros((1, 1), int), key=jax.random.key(0))
    first, again, other = (np.asarray(drop(X, 0.25, ctx, salt)) for salt in (1, 1, 2))
    assert set(np.unique(first)) == {0, np.float32(4 / 3)} and abs(first.mean() - 1) < 0.03
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    layers = [np.asarray(drop(X, 0.25, ctx.at(jnp.asarray(i)), 1)) for i in range(2)]
    assert not np.array_equal(*layers)
    assert drop(X.astype(jnp.bfloat16), 0.25, ctx, 1).dtype == jnp.bfloat16


def test_without_rate_or_key_nothing_is_dropped():
    ctx = Context(positions_BL=jnp.zeros((1, 1), int))
    assert drop(X, 0.5, ctx, 1) is X and ctx.at(jnp.asarray(3)).key is None
    assert drop(X, 0.0, Context(positions_BL=ctx.positions_BL, key=jax.random.key(0)), 1) is X


def test_a_whole_declares_what_holds_for_all_its_parts():
    assert Declared(causal=False) & Declared(isolated=False) == Declared(causal=False, isolated=False)
    assert Declared() & Declared() == Declared()
