"""Schedules at their edges, against formulas written out by hand."""

import jax
import numpy as np
import pytest

from llmlab.optim.schedules import Constant, Cosine, InverseSquareRoot, Linear, Schedule, WarmupStableDecay


def curve(schedule, steps):
    return np.asarray(jax.vmap(lambda step: schedule.factor(step, steps))(np.arange(steps + 20)))


def test_cosine_is_nanogpt():
    got = curve(Cosine(warmup=10, floor=0.1), 50)
    for step, value in enumerate(got):
        if step < 10:
            expected = (step + 1) / 11
        elif step > 50:
            expected = 0.1
        else:
            expected = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (step - 10) / 40))
        assert value == pytest.approx(expected, abs=1e-6), step


def test_constant_linear_and_inverse_square_root():
    assert np.all(curve(Constant(), 5) == 1)
    np.testing.assert_allclose(curve(Constant(warmup=3), 5)[:5], [0.25, 0.5, 0.75, 1, 1])
    linear = curve(Linear(warmup=4, floor=0.2), 24)
    np.testing.assert_allclose(linear[[3, 4, 14, 24, 30]], [0.8, 1, 0.6, 0.2, 0.2], rtol=1e-6)
    root = curve(InverseSquareRoot(warmup=3), 100)
    np.testing.assert_allclose(root[[0, 2, 3, 15, 99]], [0.25, 0.75, 1, 0.5, 0.2], rtol=1e-6)


def test_warmup_stable_decay_is_flat_until_its_last_part():
    got = curve(WarmupStableDecay(warmup=9, decay=0.2, floor=0.1), 100)
    assert got[0] == pytest.approx(0.1) and np.all(got[9:81] == 1)
    np.testing.assert_allclose(got[[90, 100, 110]], [0.55, 0.1, 0.1], rtol=1e-5)


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), WarmupStableDecay(), InverseSquareRoot(), Constant(warmup=9)])
def test_a_run_shorter_than_its_warmup_stays_in_range(schedule):
    got = curve(schedule, 3)[:3]
    assert np.all(np.isfinite(got)) and np.all(got > 0) and np.all(got <= 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cosine(warmup=-1), "warmup is -1"),
        (lambda: Linear(floor=1.5), "floor is 1.5"),
        (lambda: WarmupStableDecay(decay=0.0), "decay is 0.0"),
    ],
)
def test_values_out_of_range_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_schedule_without_formula_says_so():
    with pytest.raises(TypeError, match=r"Schedule must define factor\(step, steps\)"):
        Schedule().factor(0, 1)
