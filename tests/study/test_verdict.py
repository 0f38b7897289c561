"""Verdicts: on planted values, and their rates over simulated studies whose truth is known."""

import math

import numpy as np
import pytest

from llmlab.study.power import power
from llmlab.study.verdict import DIVERGED, Question, compare, judge

LOSSES = [1.50, 1.53, 1.48, 1.51, 1.52, 1.49, 1.50, 1.54]
JITTER = [0.002, -0.001, 0.001, -0.002, 0.0015, -0.0005, 0.001, -0.002]
QUESTION = Question(min_effect=0.01)


def runs(values) -> dict[int, float]:
    return dict(enumerate(values))


def arm(shift: float, scale: float = 1.0) -> dict[int, float]:
    return runs(loss + shift + scale * jitter for loss, jitter in zip(LOSSES, JITTER))


def verdict(own, question=QUESTION, base=None):
    [found] = judge([compare("arm", runs(LOSSES) if base is None else base, own, question)], question)
    return found


def test_the_four_verdicts():
    assert str(verdict(arm(-0.02))) == "better"
    assert str(verdict(arm(0.02))) == "worse"
    assert str(verdict(arm(0.0))) == "equivalent"
    unsure = verdict(arm(0.0, scale=10))
    assert str(unsure) == f"undecided (needs n = {unsure.needs})" and unsure.needs > 8


def test_a_higher_metric_turns_the_verdict():
    higher = Question(better="higher", min_effect=0.01)
    assert (verdict(arm(-0.02), higher).verdict, verdict(arm(0.02), higher).verdict) == ("worse", "better")


def test_a_sure_difference_that_is_too_small_to_matter_says_so():
    assert str(verdict(arm(-0.004))) == "better (by less than matters)"


def test_the_interval_that_decides_leaves_out_zero_exactly_when_called():
    arms = [compare(str(i), runs(LOSSES), arm(shift, 4), QUESTION) for i, shift in enumerate((0.003, 0.006, 0.02))]
    for found in judge(arms, QUESTION):
        low, high = found.interval
        assert (low > 0 or high < 0) == (found.verdict in ("better", "worse"))


def test_one_pair_is_undecided_and_has_no_number_of_runs():
    found = verdict({0: 1.4})
    assert str(found) == "undecided" and "single pair" in found.reason


def test_pairs_are_by_replicate():
    found = verdict({i: loss - 0.02 for i, loss in reversed(list(enumerate(LOSSES))) if i != 3})
    assert found.effect.pairs == 7
    assert found.effect.difference.mean == pytest.approx(-0.02) and found.effect.difference.sd < 1e-9


def test_diverged_runs_count_against_their_arm():
    """The five runs that finished are better by far; three that diverged forbid the verdict."""
    own = arm(-0.2) | {0: DIVERGED, 3: DIVERGED, 6: DIVERGED}
    found = verdict(own)
    assert (found.effect.diverged, found.effect.pairs, found.effect.test) == (3, 8, "signed ranks")
    assert found.verdict == "undecided" and found.effect.difference.n == 5
    assert verdict(runs([DIVERGED] * 8)).verdict == "worse"
    assert verdict(arm(0.0), base=runs([DIVERGED] * 8)).verdict == "better"


def test_one_diverged_run_forbids_equivalent_and_not_what_many_pairs_show():
    assert verdict(arm(0.0) | {2: DIVERGED}).verdict == "undecided"
    assert verdict(arm(-0.02) | {2: DIVERGED}).verdict == "undecided"
    twice = runs([*LOSSES, *LOSSES])
    found = verdict({i: loss - 0.02 for i, loss in twice.items()} | {2: DIVERGED}, base=twice)
    assert (found.verdict, found.effect.test) == ("better", "signed ranks")


def test_pairs_of_two_diverged_runs_say_nothing():
    both = verdict(arm(-0.02) | {0: DIVERGED}, base=runs(LOSSES) | {0: DIVERGED})
    assert (both.effect.one_sided, both.effect.test, both.verdict) == (0, "paired t", "better")


def test_a_question_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="Question.better is 'smaller'; it is 'lower' or 'higher'"):
        Question(better="smaller")
    with pytest.raises(ValueError, match="Question.min_effect is 0; it is the least difference that matters"):
        Question(min_effect=0)


def simulate(studies: int, shifts, n=8, seed=0, loss=0.0, question=Question(min_effect=0.5)):
    """Judgements of so many studies: one row for each, one column for each arm, whose true effect is `shifts`.

    Runs of a replicate share half of their variance; a difference has standard deviation 1. loss: rate of divergence.
    """
    random = np.random.default_rng(seed)
    for _ in range(studies):
        shared = random.normal(size=n)
        values = random.normal(size=(1 + len(shifts), n)) / math.sqrt(2) + shared + np.array([[0.0, *shifts]]).T
        values[random.random(values.shape) < loss] = DIVERGED
        base, *arms = (runs(row) for row in values)
        yield judge([compare("arm", base, own, question) for own in arms], question)


def called(judgements) -> bool:
    return any(found.verdict in ("better", "worse") for found in judgements)


def test_one_arm_without_an_effect_is_called_at_the_rate_alpha():
    rate = np.mean([called(found) for found in simulate(2000, [0.0])])
    assert abs(rate - 0.05) <= 0.015


def test_several_arms_without_an_effect_are_called_at_most_at_the_rate_alpha():
    rate = np.mean([called(found) for found in simulate(2000, [0.0] * 4, n=5)])
    assert 0.02 < rate <= 0.065


def test_arms_without_an_effect_beside_a_real_one_keep_the_family_wise_rate():
    rate = np.mean([called(found[1:]) for found in simulate(2000, [3.0, 0.0, 0.0], seed=1)])
    assert 0.02 < rate <= 0.065


@pytest.mark.parametrize("n, effect", [(3, 2.0), (8, 1.0), (12, 0.9)])
def test_power_is_what_was_stated(n, effect):
    found = [judged.verdict == "worse" for [judged] in simulate(1000, [effect], n, seed=n)]
    assert abs(np.mean(found) - power(effect, 1.0, n)) <= 0.05


@pytest.mark.parametrize("n", [3, 8])
def test_intervals_cover_the_truth(n):
    found = [judged.effect for [judged] in simulate(2000, [0.7], n, seed=n)]
    covered = lambda estimates: np.mean([low <= 0.7 <= high for low, high in (e.interval() for e in estimates)])
    assert abs(covered([effect.difference for effect in found]) - 0.95) <= 0.02
    assert covered([effect.unpaired for effect in found]) > 0.97  # it knows nothing of what pairs share


def test_divergence_that_is_no_effect_is_called_at_most_at_the_rate_alpha():
    rate = np.mean([called(found) for found in simulate(2000, [0.0], loss=0.15, seed=2)])
    assert 0.02 < rate <= 0.065


def test_the_runs_that_are_needed_decide():
    """With the runs that an undecided arm needs, most arms without an effect are called equivalent."""
    unsure = next(
        found for [found] in simulate(50, [0.0], n=5, question=Question(min_effect=1.0)) if found.verdict == "undecided"
    )
    sd = unsure.effect.difference.sd
    question = Question(min_effect=1.0 / sd)  # the noise of the simulation is 1
    found = [judged.verdict for [judged] in simulate(300, [0.0], n=unsure.needs, question=question)]
    assert np.mean([verdict == "equivalent" for verdict in found]) > 0.7


def test_choosing_the_test_by_the_correlation_that_was_seen_would_call_too_often():
    """Why Welch's interval only stands beside the paired one."""
    seen = []
    for seed in range(4000):
        base, own = np.random.default_rng(seed).normal(size=(2, 5))
        effect = compare("arm", runs(base), runs(own), QUESTION)
        seen.append((effect.p, effect.unpaired.p if effect.correlation <= 0 else effect.p))
    paired, chosen = (np.array(seen) <= 0.05).mean(0)
    assert abs(paired - 0.05) < 0.01 < chosen - paired


@pytest.mark.soak
@pytest.mark.parametrize("n", [2, 3, 5, 8, 16])
def test_rates_over_many_studies(n):
    one = np.mean([called(found) for found in simulate(10_000, [0.0], n, seed=10 + n)])
    many = np.mean([called(found) for found in simulate(5000, [0.0] * 5, n, seed=20 + n)])
    assert abs(one - 0.05) <= 0.0075 and many <= 0.06
