"""Arms are matched within the tolerance or refused; nothing is allocated here."""

import dataclasses
import itertools
from pathlib import Path

import pytest

from llmlab.study.matching import Every, Leaf, Unmatched, match, measure, nearest
from llmlab.study.study import Arm, Study
from llmlab.train.files import import_file

ROOT = Path(__file__).parents[2]
FAMILIES = import_file(ROOT / "experiments" / "families.py")
HIDDEN = (Every(field="hidden"),)
# Mamba's blocks have no feed-forward: the width is coarse, and the states of each layer are the fine adjustment.
STATES = Leaf(paths=tuple(f"model.stack.segments.0.pattern.{i}.mixer.state" for i in range(4)))
KNOBS = {
    "gpt": HIDDEN,
    "bert": HIDDEN,
    "t5": HIDDEN,
    "mamba": (Leaf(paths=("model.width",)), STATES),
    "moe": HIDDEN,
    "hybrid": HIDDEN,
    "rnn": HIDDEN,
}


def study(base, arm, free, **settings) -> Study:
    return Study(question="?", base=base, arms=(Arm(name="arm", experiment=arm),), free=free, noise=None, **settings)


@pytest.mark.parametrize("pair", list(itertools.permutations(KNOBS, 2)), ids="-".join)
def test_every_pair_of_families_is_matched_in_flops(pair):
    base, arm = (getattr(FAMILIES, name)() for name in pair)
    found = match(study(base, arm, KNOBS[pair[1]]))
    assert found.errors["arm"] <= 0.005
    assert measure(found.experiments["arm"])["flops"] == pytest.approx(measure(base)["flops"], rel=0.005)


@pytest.mark.parametrize("axis", ["parameters", "active", "tokens", "state_bytes"])
def test_the_other_axes_are_matched_too(axis):
    knobs = {
        "tokens": (Leaf(paths=("train.steps",)),),
        "state_bytes": (Leaf(paths=("model.stack.segments.0.repeats",)),),
    }
    base = FAMILIES.gpt()
    other = FAMILIES.moe() if axis in ("parameters", "active") else dataclasses.replace(base, seed=1)
    if axis == "tokens":
        other = dataclasses.replace(other, train=dataclasses.replace(other.train, steps=77))
    found = match(study(base, other, knobs.get(axis, HIDDEN), match=axis))
    assert found.errors["arm"] <= 0.005
    assert found.sizes["arm"][axis] == pytest.approx(found.sizes["base"][axis], rel=0.005)


def test_active_parameters_count_the_chosen_experts_alone():
    sizes = measure(FAMILIES.moe())
    # 4 layers x 2 of 4 experts x 3 matrices of 192 x 256 are never met
    assert sizes["parameters"] - sizes["active"] == 4 * 2 * 3 * 192 * 256
    assert measure(FAMILIES.gpt())["active"] == measure(FAMILIES.gpt())["parameters"]


def test_beyond_the_tolerance_it_refuses_and_tells_the_mend():
    coarse = (Leaf(paths=("model.stack.segments.0.repeats",)),)
    with pytest.raises(Unmatched) as refused:
        match(study(FAMILIES.rnn(), FAMILIES.gpt(), coarse))
    text = str(refused.value)
    assert "arm 'arm' does not match 'base' on flops: it reaches" in text and "is wanted" in text
    assert "Give it a finer knob" in text


def test_what_decodes_nothing_has_no_state_to_match():
    with pytest.raises(Unmatched, match="arm 'arm' decodes nothing, so it has no state_bytes"):
        match(study(FAMILIES.gpt(), FAMILIES.bert(), HIDDEN, match="state_bytes"))
    with pytest.raises(Unmatched, match="the base 'base' decodes nothing"):
        match(study(FAMILIES.bert(), FAMILIES.gpt(), HIDDEN, match="state_bytes"))


def test_a_knob_that_no_part_has_is_named():
    with pytest.raises(Unmatched, match="no part of the model has a size 'hidden'"):
        match(study(FAMILIES.gpt(), FAMILIES.mamba(), HIDDEN))


@pytest.mark.parametrize("start", [1, 7, 1000])
@pytest.mark.parametrize("wanted", [3.0, 512.0, 70_001.0])
def test_the_nearest_value_is_found_from_anywhere(start, wanted):
    assert nearest(lambda n: float(n * n + 3 * n), wanted, start) == min(
        range(1, 400), key=lambda n: abs(n * n + 3 * n - wanted)
    )
