"""What rows say, what they are refused for, and the caveats that are found in them."""

import dataclasses
import json
import math

import numpy as np
import pytest

from llmlab.study.caveats import caveats
from llmlab.study.equivalents import speedup, step_equivalent
from llmlab.study.findings import find, read_findings
from llmlab.study.likeness import Unlike, check_rows
from llmlab.study.record import read_rows, read_study, write_row
from llmlab.study.verdict import Question, compare, judge
from tests.study.planted import RATES, plant


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    directory = plant(tmp_path_factory.mktemp("studies") / "activation", diverge=[("no norm", 2), ("no norm", 5)])
    return read_study(directory), read_rows(directory)


def changed(rows, which, **values):
    """Rows with those of an arm changed."""
    return [dataclasses.replace(row, **values) if which(row) else row for row in rows]


def of(arm):
    return lambda row: row.arm == arm and row.phase == "replicate"


def named(name, found):
    return next(arm for arm in found.arms if arm.name == name)


def said(study, rows, looks=()):
    return "\n".join(caveats(find(study, rows), looks))


def test_planted_differences_are_found(planted):
    found = find(*planted)
    verdicts = {arm.name: found.verdict(arm) for arm in found.arms}
    assert verdicts == {
        "gelu": "",
        "relu2": "better",
        "swiglu": "better",
        "no norm": "worse",
        "A/A": "equivalent",
    }
    effect = {arm.name: arm.judged.effect.difference.mean for arm in found.compared}
    assert effect["relu2"] == pytest.approx(-0.03, abs=0.005) and effect["no norm"] == pytest.approx(0.055, abs=0.005)
    assert [arm.diverged for arm in found.arms if arm.name == "no norm"] == [(2, 8)]
    assert [arm.name for arm in found.compared] == ["relu2", "swiglu", "no norm"]


def test_evaluation_batches_widen_the_nested_interval(planted):
    study, rows = planted
    assert all(arm.nested is None for arm in find(study, rows).arms)  # these rows keep no batches
    random = np.random.default_rng(0)
    spread = lambda row, sd: dataclasses.replace(row, batches=list(row.metrics["loss"] + sd * random.normal(size=9)))
    even = named("relu2", find(study, [spread(row, 0.0) if row.metrics else row for row in rows]))
    noisy = named("relu2", find(study, [spread(row, 0.2) if row.metrics else row for row in rows]))
    assert even.nested[0] < even.judged.effect.difference.mean < even.nested[1] < 0
    assert noisy.nested[1] - noisy.nested[0] > 2 * (even.nested[1] - even.nested[0])
    short = [dataclasses.replace(row, batches=[1.0] * (2 + (row.arm == "relu2"))) for row in rows]
    assert named("relu2", find(study, short)).nested is None  # other batches than the base's


def test_holm_counts_the_arms_and_not_the_twin(planted):
    levels = {arm.name: arm.judged.level for arm in find(*planted).arms if arm.judged}
    assert levels["relu2"] == pytest.approx(0.05 / 3) and levels["A/A"] == 0.05


def test_other_metrics_are_corrected_together(planted):
    arm = next(arm for arm in find(*planted).arms if arm.name == "relu2")
    assert [other.metric for other in arm.others] == ["accuracy", "bits_per_byte"]
    assert all(other.q >= other.effect.p for other in arm.others)
    assert arm.others[0].effect.difference.mean > 0 > arm.others[1].effect.difference.mean


@pytest.mark.parametrize(
    "field, value, why",
    [
        ("task", "MaskedLM", "differ in task, 'CausalLM' and 'MaskedLM', and are not ranked: their losses are"),
        ("metric", "accuracy", "differ in metric, 'loss' and 'accuracy'"),
        ("tokenizer", "Bytes", "differ in tokenizer, 'Characters' and 'Bytes'"),
        ("evaluation", {"fingerprint": "x", "tokens": 1.0, "bytes": 1.0}, "differ in evaluation"),
        ("code", "0123456789abcdef", "differ in code, '7f3a91c2d04be865' and '0123456789abcdef'"),
    ],
)
def test_unlike_rows_are_refused(planted, field, value, why):
    study, rows = planted
    with pytest.raises(Unlike, match=f"arms 'A/A' and 'relu2' {why}"):
        find(study, changed(rows, of("relu2"), **{field: value}))


def test_time_is_ranked_on_one_kind_of_device_only(planted):
    study, rows = planted
    rows = changed(rows, of("relu2"), hardware="8 x TPU v5e")
    with pytest.raises(Unlike, match="differ in hardware, '1 x cpu' and '8 x TPU v5e'.*compare on another axis"):
        check_rows(rows, axis="seconds")
    found = find(study, rows)
    assert not found.time_is_ranked and "seconds" not in found.arms[1].speedups and "flops" in found.arms[1].speedups
    assert "Runs were on different devices (1 x cpu, 8 x TPU v5e): seconds are not ranked." in caveats(found)


def test_rows_of_other_code_are_set_aside_and_counted(tmp_path):
    directory = plant(tmp_path / "a", seeds=3)
    old = next(row for row in read_rows(directory) if of("gelu")(row))
    write_row(directory, dataclasses.replace(old, code="0123456789abcdef", key="0000000000000000"))
    found = read_findings(directory)
    assert found.set_aside == 1
    assert "1 rows of other code than 7f3a91c2d04be865 are set aside." in caveats(found)


def test_two_rows_of_one_replicate_are_refused(planted):
    study, rows = planted
    twin = dataclasses.replace(next(row for row in rows if of("relu2")(row)), key="0000000000000000")
    with pytest.raises(ValueError, match="replicate 0 of arm 'relu2' has two rows"):
        find(study, [*rows, twin])


def test_a_study_that_runs_has_no_verdict(planted):
    study, rows = planted
    waiting = [row for row in rows if not (of("relu2")(row) and row.replicate == 7)]
    found = find(study, changed(waiting, lambda row: of("swiglu")(row) and row.replicate == 1, state="running"))
    assert not found.complete and {found.verdict(arm) for arm in found.compared} == {"unfinished"}
    text = "\n".join(caveats(found))
    assert "relu2: 1 pending of 8 replicates" in text and "swiglu: 1 running of 8 replicates" in text


def test_crashed_runs_are_no_outcome_and_are_said(planted):
    study, rows = planted
    found = find(study, changed(rows, lambda row: of("relu2")(row) and row.replicate == 1, state="crashed"))
    assert found.complete and found.arms[1].judged.effect.pairs == 7
    assert "relu2: 1 crashed of 8 replicates; they are in no number here." in caveats(found)


def test_a_loss_that_is_not_finite_has_diverged(planted):
    study, rows = planted
    found = find(study, changed(rows, lambda row: of("relu2")(row) and row.replicate == 1, metrics={"loss": math.nan}))
    assert found.arms[1].diverged == (1, 8)


def test_caveats_of_the_planted_study(planted):
    text = said(*planted, looks=(10, 40))
    assert "no norm: 2 of 8 runs diverged" in text
    assert "at 10 ended runs (now 40)" in text
    assert "no norm: its optim.peak of 0.001 is at the edge of the grid" in text
    assert "One scale and one task" in text
    for absent in ("A/A", "sign-flip", "not matched", "devices", "tuned"):
        assert absent not in text


def test_caveats_of_few_seeds(tmp_path):
    directory = plant(tmp_path / "few", seeds=3, arms={"gelu": 0.0, "relu2": -0.03})
    text = said(read_study(directory), read_rows(directory))
    assert "3 pairs are too few for the sign-flip test: its p-value cannot go below 0.25" in text
    assert "6 pairs reach 0.05" in text and "There is no A/A arm" in text
    directory = plant(tmp_path / "one", seeds=1)
    assert "One seed: nothing tells the noise of a run" in said(read_study(directory), read_rows(directory))


def test_caveats_of_matching_and_declarations(planted):
    study, rows = planted
    study = json.loads(json.dumps(study))
    study["arms"]["relu2"]["declared"]["causal"] = False
    rows = [dataclasses.replace(row, axes=row.axes | {"tokens": 2e6}) if of("relu2")(row) else row for row in rows]
    text = said(study, rows)
    assert "relu2 is not matched on every axis: tokens +62.8%." in text
    assert "relu2 declares other properties than the base: causal False against True." in text
    study["matching"]["axis"] = None
    assert "Arms were matched on nothing." in said(study, rows)


def test_an_alarming_twin_and_untuned_arms_are_said(planted):
    study, rows = planted
    moved = [
        dataclasses.replace(row, metrics={"loss": row.metrics["loss"] + 0.1}) if of("A/A")(row) else row
        for row in rows
        if row.phase == "replicate"
    ]
    text = said(study, moved)
    assert "Alarm: the A/A arm is 'worse' than the base it equals." in text and "Nothing was tuned" in text


def test_tuning_is_read_from_its_rows(planted):
    found = {arm.name: arm.tuning for arm in find(*planted).arms}
    assert found["A/A"] is None and found["gelu"].leaf == "optim.peak"
    assert [value for value, _, _ in found["gelu"].points] == list(RATES)
    assert (found["gelu"].chosen, found["gelu"].at_edge, found["no norm"].at_edge) == (2e-3, False, True)
    assert found["no norm"].points[-1][2] == 1 and math.isnan(found["no norm"].points[-1][1])


def power_law(factor=1.0, floor=1.0):
    """A curve of loss floor + (steps * factor)^-1/2, so that `factor` is the true speed-up."""
    curve = []
    for step in range(50, 1601, 50):
        axes = {"step": step, "tokens": step * 10, "flops": step * 1e9, "seconds": step / 10}
        curve.append(axes | {"loss": floor + (step * factor) ** -0.5})
    return curve


def test_a_planted_speed_up_is_found_on_both_sides_of_one():
    question = Question()
    for factor in (1.5, 1 / 1.5, 1.0):
        pairs = [(power_law(), power_law(factor * (1 + wobble))) for wobble in (-0.02, 0.0, 0.01, 0.02)]
        found = speedup("flops", pairs, question, 0.05)
        assert found.factor == pytest.approx(factor, rel=0.05) and found.low < factor < found.high and not found.bound


def test_a_speed_up_beyond_the_first_evaluation_is_a_bound():
    found = speedup("step", [(power_law(), power_law(100.0))] * 2, Question(), 0.05)
    assert found.bound and found.factor == pytest.approx(32)
    assert speedup("step", [(power_law()[-1:], power_law()[-1:])], Question(), 0.05) is None
    assert speedup("step", [], Question(), 0.05) is None


def test_a_step_equivalent_is_the_difference_over_the_slope():
    line = [{"step": step, "loss": 2.0 - 1e-4 * step} for step in range(0, 1001, 50)]
    base = {i: 1.9 + 0.001 * i for i in range(4)}
    question = Question()
    [judged] = judge([compare("a", base, {i: v - 0.01 - 1e-4 * (i % 2) for i, v in base.items()}, question)], question)
    found = step_equivalent(judged, [line, line])
    assert found.steps == pytest.approx(100.5) and found.low < 100.5 < found.high
    assert step_equivalent(judged, [line[:2]]) is None
