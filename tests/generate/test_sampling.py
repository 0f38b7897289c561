"""Which tokens each filter leaves, exactly, and how often they come."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.generate import Sampling

PROBABILITIES = np.array([0.2, 0.42, 0.08, 0.3])  # the likeliest are 1, 3, 0, 2
CASES = [
    (Sampling(temperature=0.0), {1}),
    (Sampling(), {0, 1, 2, 3}),
    (Sampling(top_k=1), {1}),
    (Sampling(top_k=2), {1, 3}),
    (Sampling(top_k=9), {0, 1, 2, 3}),
    (Sampling(top_p=0.4), {1}),
    (Sampling(top_p=0.45), {1, 3}),
    (Sampling(top_p=0.73), {0, 1, 3}),
    (Sampling(top_p=0.95), {0, 1, 2, 3}),
    (Sampling(min_p=0.72), {1}),
    (Sampling(min_p=0.7), {1, 3}),
    (Sampling(min_p=0.2), {0, 1, 3}),
    (Sampling(min_p=0.1), {0, 1, 2, 3}),
    (Sampling(top_k=3, top_p=0.77), {1, 3}),  # of three tokens the first two have 0.78
    (Sampling(top_p=0.77), {0, 1, 3}),
    (Sampling(temperature=0.5, top_p=0.6), {1, 3}),  # squared and normalised: 0.129, 0.568, 0.021, 0.290
    (Sampling(temperature=0.5, min_p=0.2), {0, 1, 3}),
    (Sampling(temperature=2.0, top_p=0.55), {1, 3}),  # of roots: 0.231, 0.335, 0.146, 0.283
]
ROWS = 800


def test_each_filter_leaves_exactly_its_tokens():
    logits_BV = jnp.broadcast_to(jnp.log(PROBABILITIES) + 7, (ROWS, 4))
    key = jax.random.key(0, impl="rbg")
    found = jax.jit(lambda logits: [sampling(logits, key) for sampling, _ in CASES])(logits_BV)
    for tokens_B, (sampling, expected) in zip(found, CASES):
        assert set(np.asarray(tokens_B).tolist()) == expected, sampling
        assert tokens_B.dtype == jnp.int32
    share = np.bincount(found[1], minlength=4) / ROWS
    np.testing.assert_allclose(share, PROBABILITIES, atol=0.06)
    share = np.bincount(found[3], minlength=4) / ROWS  # what is left is normalised
    np.testing.assert_allclose(share, [0, 0.42 / 0.72, 0, 0.3 / 0.72], atol=0.07)


def test_rows_are_filtered_apart():
    logits_BV = jnp.log(jnp.array([PROBABILITIES, PROBABILITIES[::-1]]))
    run = jax.jit(
        lambda logits: [Sampling(top_k=1)(logits, jax.random.key(0)), Sampling(temperature=0.0)(logits, None)]
    )
    for tokens_B in run(logits_BV):
        assert tokens_B.tolist() == [1, 2]


@pytest.mark.parametrize(
    "values", [dict(temperature=-0.1), dict(top_k=0), dict(top_p=0.0), dict(top_p=1.1), dict(min_p=-0.5)]
)
def test_wrong_values_are_refused(values):
    (name, value), *_ = values.items()
    with pytest.raises(ValueError, match=f"Sampling.{name} is {value}; it "):
        Sampling(**values)
