"""Studies as values: arms from deltas, seeds, overrides."""

import dataclasses

import pytest

from llmlab.config import diff, from_json, get, put, to_json
from llmlab.models import Decoder
from llmlab.study.study import (
    Arm,
    Study,
    Tune,
    factorial,
    ladder,
    leave_one_out,
    one_at_a_time,
    override,
)
from llmlab.train import Experiment

BASE = Experiment(model=Decoder(width=32))
FFN = "model.stack.segments.0.pattern.0.ffn.activation"
DELTAS = {"wide": {"model.width": 64}, "quick": lambda e: put(e, "optim.peak", 1e-2)}


def study(**settings) -> Study:
    return Study(question="?", base=BASE, **{"arms": one_at_a_time(BASE, DELTAS)} | settings)


def changed(arm: Arm, base=BASE) -> dict:
    return {path: new for path, (_, new) in diff(base, arm.experiment).items()}


def test_one_at_a_time_and_leave_one_out():
    assert [changed(arm) for arm in one_at_a_time(BASE, DELTAS)] == [{"model.width": 64}, {"optim.peak": 1e-2}]
    base, arms = leave_one_out(BASE, DELTAS)
    assert [arm.name for arm in arms] == ["no wide", "no quick"]
    assert [changed(arm) for arm in arms] == [{"optim.peak": 1e-2}, {"model.width": 64}]
    assert changed(Arm(name="all", experiment=base)) == {"model.width": 64, "optim.peak": 1e-2}


def test_a_grid_leaves_out_the_combination_that_is_the_base():
    widths = {str(n): {"model.width": n} for n in (32, 64)}
    arms = factorial(BASE, {"width": widths, "peak": {"low": {"optim.peak": 1e-4}, "old": {}}})
    assert [arm.name for arm in arms] == ["width 32, peak low", "width 64, peak low", "width 64, peak old"]
    assert changed(arms[1]) == {"model.width": 64, "optim.peak": 1e-4}


def test_a_ladder_is_a_study_for_each_scale():
    small, large = ladder(study(), {"2": {"train.steps": 2}, "4": {"train.steps": 4}})
    assert (small.name, large.name) == ("study-2", "study-4")
    assert [get(e, "train.steps") for e in large.variants().values()] == [4, 4, 4, 4]


def test_replicates_are_paired_and_the_twin_has_seeds_of_its_own():
    one = study()
    base, wide, twin = (one.seeds_of(name, 1) for name in ("base", "wide", "A/A"))
    assert base == wide and base["data"] == twin["data"]
    assert base["init"] != twin["init"] and base["dropout"] != twin["dropout"]
    others = (one.seeds_of("base", 0), one.seeds_of("base", 1, "tune"), study(name="other").seeds_of("base", 1))
    for other in others:
        assert all(base[kind] != other[kind] for kind in base)


def test_a_leaf_of_the_command_line_reaches_every_arm_but_those_that_vary_it():
    found = override(study(), put(put(BASE, "train.steps", 7), "model.width", 16))
    assert [get(e, "train.steps") for e in found.variants().values()] == [7, 7, 7, 7]
    assert [get(e, "model.width") for e in found.variants().values()] == [16, 64, 16, 16]


def test_it_is_saved_and_reloaded():
    found = study(tune=Tune(), arms=one_at_a_time(BASE, {"wide": {"model.width": 64}}))
    assert from_json(to_json(found)) == found


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base_name": "wide"}, "two arms are called 'wide'"),
        ({"seeds": 0}, "Study.seeds is 0; it is 1 or more"),
        ({"alpha": 5.0}, "Study.alpha is 5.0; it is a share between 0 and 1"),
        ({"min_effect": 0.0}, "Study.min_effect is 0.0; it is the least difference that matters"),
    ],
)
def test_what_does_not_fit_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        study(**settings)
    with pytest.raises(ValueError, match="rising multiples above 0"):
        dataclasses.replace(Tune(), grid=(2.0, 1.0))
