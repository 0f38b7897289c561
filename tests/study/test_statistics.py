"""Intervals, tests and corrections against their definitions and against scipy.stats."""

import itertools

import numpy as np
import pytest
from scipy import stats

from llmlab.study import statistics
from llmlab.study.power import detectable_effect, power, power_of_equivalence, runs_needed, runs_needed_to_equate
from llmlab.study.statistics import estimate, welch


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_the_t_interval_and_its_p_are_those_of_scipy():
    values = normal(6) + 0.3
    known = stats.ttest_1samp(values, 0)
    found = estimate(values)
    np.testing.assert_allclose(found.interval(0.1), known.confidence_interval(0.9), rtol=1e-12)
    assert found.p == pytest.approx(known.pvalue, rel=1e-12)


def test_welch_is_that_of_scipy():
    base, arm = normal(5), 2 * normal(8, seed=1) + 1
    known = stats.ttest_ind(arm, base, equal_var=False)
    found = welch(base, arm)
    np.testing.assert_allclose(found.interval(0.05), known.confidence_interval(0.95), rtol=1e-12)
    assert (found.p, found.df) == (pytest.approx(known.pvalue), pytest.approx(known.df))


@pytest.mark.parametrize("n, two, paired", [(3, 2.27, 2.48), (5, 1.46, 1.24), (8, 1.07, 0.84), (10, 0.94, 0.72)])
def test_half_widths_in_units_of_the_standard_deviation(n, two, paired):
    values = normal(n)
    unit = (values - values.mean()) / values.std(ddof=1)
    assert estimate(unit).interval()[1] == pytest.approx(paired, abs=0.005)
    assert welch(unit, unit).interval()[1] == pytest.approx(two, abs=0.005)


def test_fewer_than_two_values_say_nothing():
    for values in ([], [1.0]):
        found = estimate(values)
        assert found.interval() == (-np.inf, np.inf)
        assert (found.p, found.tost(1.0)) == (1.0, 1.0)
    assert welch([1.0], [2.0, 3.0]).p == 1.0


def test_values_without_noise_have_p_zero_or_one():
    assert (estimate([0.0, 0.0]).p, estimate([1.0, 1.0]).p) == (1.0, 0.0)
    assert (estimate([1.0, 1.0]).tost(2.0), estimate([1.0, 1.0]).tost(0.5)) == (0.0, 1.0)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 11])
def test_sign_flip_counts_every_pattern(n):
    values = normal(n, seed=n).round(1)  # rounded, so that sums tie
    sums = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=n)]
    assert statistics.sign_flip(values) == np.mean(np.array(sums) >= abs(values.sum()) - 1e-9)


def test_sign_flip_of_thirty_pairs_is_near_the_t_test_and_of_more_than_forty_is_none():
    values = normal(30) + 0.4
    assert statistics.sign_flip(values) == pytest.approx(estimate(values).p, abs=0.005)
    assert statistics.sign_flip(normal(41)) is None


def test_sign_flip_cannot_go_below_its_least():
    for n in (2, 5, 6, 8):
        assert statistics.sign_flip(np.arange(1, n + 1)) == statistics.least_sign_flip(n)
    assert statistics.least_sign_flip(5) > 0.05 > statistics.least_sign_flip(6)


def test_corrections_are_those_of_scipy_and_of_the_definition():
    p = normal(7) ** 2 / 10
    np.testing.assert_allclose(statistics.benjamini_hochberg(p), stats.false_discovery_control(np.minimum(p, 1)))
    order = np.sort(p)
    stepped = np.minimum(1, np.maximum.accumulate(order * np.arange(7, 0, -1)))
    np.testing.assert_allclose(sorted(statistics.holm(p)), stepped)


def test_holm_levels_agree_with_adjusted_p_values():
    for seed in range(200):
        p = np.random.default_rng(seed).uniform(size=4) ** 4
        called = np.array(statistics.holm(p)) <= 0.05
        assert ((p <= statistics.holm_levels(p, 0.05)) == called).all()


@pytest.mark.parametrize("k, n", [(0, 8), (3, 8), (8, 8), (1, 100)])
def test_clopper_pearson_is_that_of_scipy(k, n):
    known = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(statistics.clopper_pearson(k, n), known, atol=1e-12)


def test_signed_ranks_are_those_of_wilcoxon():
    values = normal(9).round(1)
    np.testing.assert_allclose(statistics.signed_ranks(values), np.sign(values) * stats.rankdata(np.abs(values)))


def test_power_is_what_simulated_studies_find():
    values = 0.9 + normal(4000, 8)
    t = values.mean(1) / values.std(1, ddof=1) * np.sqrt(8)
    assert power(0.9, 1.0, 8) == pytest.approx((np.abs(t) > stats.t.ppf(0.975, 7)).mean(), abs=0.025)
    half = stats.t.ppf(0.95, 7) * (values - 0.9).std(1, ddof=1) / np.sqrt(8)
    inside = np.abs((values - 0.9).mean(1)) + half < 1.2
    assert power_of_equivalence(1.2, 1.0, 8) == pytest.approx(inside.mean(), abs=0.025)


def test_effect_runs_and_power_are_each_others_inverses():
    for samples in (1, 2):
        effect = detectable_effect(0.02, 6, samples=samples)
        assert power(effect, 0.02, 6, samples=samples) == pytest.approx(0.8, abs=1e-6)
        assert runs_needed(effect * 1.001, 0.02, samples=samples) == 6
    needed = runs_needed_to_equate(0.01, 0.02)
    assert power_of_equivalence(0.01, 0.02, needed) >= 0.8 > power_of_equivalence(0.01, 0.02, needed - 1)
    assert (power(0.1, 1.0, 1), detectable_effect(1.0, 1), runs_needed(0.0, 1.0)) == (0.0, np.inf, None)


def test_nested_bootstrap_has_the_noise_of_runs_and_of_documents():
    random = np.random.default_rng(0)
    groups = random.normal(size=(30, 1)) + random.normal(size=(30, 50))
    low, high = statistics.nested_bootstrap(groups, seed=1)
    assert high - low == pytest.approx(2 * 1.96 * groups.mean(1).std() / np.sqrt(30), rel=0.12)
    only_documents = statistics.nested_bootstrap([groups.ravel()], seed=1)
    assert only_documents[1] - only_documents[0] < (high - low) / 3
