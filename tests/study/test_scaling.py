"""Scaling fits return what was planted."""

import numpy as np
import pytest

from llmlab.study.scaling import Law, fit, iso_flop, trend

TRUTH = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # Hoffmann et al., 2022
N, D = (side.ravel() for side in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 6)))


def noisy(sd, seed=0):
    return TRUTH.loss(N, D) * np.exp(sd * np.random.default_rng(seed).normal(size=N.size))


def test_a_law_without_noise_is_recovered():
    found = fit(N, D, noisy(0), resamples=2).law
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(TRUTH, name), rel=2e-3), name


def test_a_law_of_noisy_runs_is_recovered_within_its_intervals():
    found = fit(N, D, noisy(0.002), resamples=60)
    for name in ("E", "alpha", "beta"):
        low, high = getattr(found.low, name), getattr(found.high, name)
        assert low < getattr(TRUTH, name) < high, name
        assert high - low < 0.5 * getattr(TRUTH, name), name
    low, high = found.interval(lambda law: law.loss(1e10, 1e12))
    assert low < TRUTH.loss(1e10, 1e12) < high < low * 1.02


def test_a_run_that_went_wrong_moves_the_law_little():
    losses = noisy(0.0005)
    losses[7] *= 1.3
    found = fit(N, D, losses, resamples=2).law
    assert (found.alpha, found.beta) == (pytest.approx(0.34, abs=0.02), pytest.approx(0.28, abs=0.02))


def test_small_models_are_fitted_too():
    truth = Law(E=1.2, A=20.0, B=90.0, alpha=0.3, beta=0.35)
    small, few = N / 2e3, D / 2e4
    found = fit(small, few, truth.loss(small, few), resamples=2).law
    assert (found.E, found.alpha) == (pytest.approx(1.2, rel=0.01), pytest.approx(0.3, rel=0.01))


def test_the_optimum_is_where_the_loss_is_least():
    parameters, tokens = TRUTH.optimum(1e21)
    assert 6 * parameters * tokens == pytest.approx(1e21)
    for factor in (0.9, 1.1):
        assert TRUTH.loss(parameters * factor, tokens / factor) > TRUTH.loss(parameters, tokens)


def test_runs_that_cannot_tell_a_law_are_refused():
    with pytest.raises(ValueError, match="1 different numbers of tokens; a law needs 3 or more of each: add rungs"):
        fit(N[:6], np.full(6, 1e9), noisy(0)[:6])
    with pytest.raises(ValueError, match="go together .correlation 1.000., so that alpha cannot be told from beta"):
        fit(N[:6] * 2, N[:6] * 40, noisy(0)[:6])
    with pytest.raises(ValueError, match="5 runs, all numbers above 0: a law of 5 parameters needs 6"):
        fit([1e6, 2e6, 3e6, 1e6, 2e6], [1e8, 2e8, 3e8, 2e8, 1e8], [3.0, 2.9, 2.8, 2.9, 3.0])


def test_iso_flop_curves_find_the_optimal_sizes():
    random = np.random.default_rng(0)
    budgets, sizes, losses = [], [], []
    for budget in (1e18, 1e19, 1e20, 1e21):
        for factor in (0.4, 0.6, 1.0, 1.6, 2.5):
            size = TRUTH.optimum(budget)[0] * factor
            budgets, sizes = [*budgets, budget], [*sizes, size]
            losses.append(TRUTH.loss(size, budget / 6 / size) * (1 + 2e-4 * random.normal()))
    found = iso_flop(budgets, sizes, losses, resamples=200)
    exponent = TRUTH.beta / (TRUTH.alpha + TRUTH.beta)
    assert found.interval[0] < exponent < found.interval[1]
    assert found.exponent == pytest.approx(exponent, abs=0.02)
    np.testing.assert_allclose(found.parameters, [TRUTH.optimum(b)[0] for b in found.budgets], rtol=0.15)
    with pytest.raises(ValueError, match="the runs of 1e.18 FLOPs have no minimum"):
        iso_flop(budgets[:2], sizes[:2], losses[:2])


def test_where_an_advantage_goes():
    random = np.random.default_rng(1)
    scales = np.repeat(np.geomspace(1e15, 1e17, 3), 5)
    noise = 0.002 * random.normal(size=15)
    shrinks = trend(scales, 0.03 - 0.012 * np.log10(scales / 1e15) + noise)
    assert shrinks.says == "shrinks" and shrinks.crossing == pytest.approx(10**17.5, rel=0.5)
    assert trend(scales, 0.01 * np.log10(scales / 1e15) + noise).says == "grows"
    assert (trend(scales, 0.02 + noise).says, trend(scales, 0.02 + noise).crossing) == ("unclear", None)
    with pytest.raises(ValueError, match="5 pairs at 1 scales; a trend needs"):
        trend(scales[:5], noise[:5])


@pytest.mark.soak
def test_intervals_of_the_law_cover_the_truth():
    found = [fit(N, D, noisy(0.002, seed), resamples=60, seed=seed) for seed in range(40)]
    inside = np.mean([each.low.alpha < TRUTH.alpha < each.high.alpha for each in found])
    assert inside > 0.8  # of percentile intervals of 95 %
