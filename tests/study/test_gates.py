"""A study that would rank unlike things is refused before it trains, and rows that are unlike are not ranked."""

import dataclasses

import pytest

from llmlab.config import put, swap
from llmlab.ffn import Capacity, Gated, MoE
from llmlab.mixers import Attention, Bidirectional
from llmlab.models import Block
from llmlab.nn import Normal, repeat
from llmlab.study import Arm, gates
from llmlab.study.gates import Refused, check_arms, check_contracts
from llmlab.study.likeness import Unlike, check_rows, task_name
from llmlab.study.matching import match
from llmlab.study.open import clear, open_study, write
from llmlab.tasks import Answers, CausalLM
from llmlab.train.run import RunError

TASK = CausalLM(auxiliary=(("load_balance", 0.01),), smoothing=0.1, z_loss=1e-4)


def arms(tiny, **changes):
    """A study with one arm that has these values."""
    study = tiny(match=None)
    experiment = study.base
    for path, value in changes.items():
        experiment = put(experiment, path.replace("__", "."), value)
    return dataclasses.replace(study, arms=(Arm(name="arm", experiment=experiment),))


def refusal(study) -> str:
    with pytest.raises(ValueError) as refused:
        check_arms(study, match(study).experiments)
    return str(refused.value)


def test_another_task_is_refused(tiny):
    text = refusal(arms(tiny, task=Answers()))
    assert text.startswith("arms 'base' and 'arm' differ in task, 'CausalLM' and 'Answers', and are not ranked: their ")


def test_what_a_task_adds_to_the_loss_that_is_trained_is_no_other_task(tiny):
    assert task_name(TASK) == task_name(CausalLM()) == "CausalLM"
    study = arms(tiny, task=dataclasses.replace(TASK, auxiliary=()))
    assert len(check_arms(study, match(study).experiments)) == 3


def test_another_tokenizer_is_refused(tiny):
    from llmlab.data import Characters

    study = arms(tiny, data__tokenizer=Characters(alphabet=" abcdefgh"), model__vocab=9)
    assert "differ in tokenizer, 'Bytes' and" in refusal(study)


def test_a_metric_that_is_not_reported_is_refused(tiny):
    study = dataclasses.replace(arms(tiny), metric="perplexity")
    assert "'base' reports no 'perplexity'; it reports loss, accuracy, bits_per_byte" in refusal(study)


def test_other_evaluation_tokens_are_refused(tiny):
    assert "differ in evaluation" in refusal(arms(tiny, data__source__validation=0.2))
    assert "are scored on the same tokens and bytes" in refusal(arms(tiny, data__length=7))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "MaskedLM"}, "differ in task, 'CausalLM' and 'MaskedLM'"),
        ({"metric": "accuracy"}, "differ in metric, 'loss' and 'accuracy'"),
        ({"tokenizer": "Characters"}, "differ in tokenizer"),
        ({"code": "new"}, "differ in code, 'c' and 'new', and are not ranked: a change of the code is no arm"),
        ({"evaluation": {"fingerprint": "f", "tokens": 63.0, "bytes": 64.0}}, "differ in evaluation"),
        ({"evaluation": {"fingerprint": "f", "tokens": 64.0, "bytes": 63.0}}, "differ in evaluation"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_unlike_rows_are_not_ranked(row, changes, words):
    rows = [row, dataclasses.replace(row, arm="other")]
    check_rows(rows)
    with pytest.raises(Unlike, match=words):
        check_rows([row, dataclasses.replace(row, arm="other", **changes)])


def test_seconds_of_other_hardware_are_not_ranked_and_losses_are(row):
    rows = [row, dataclasses.replace(row, arm="other", hardware="gpu")]
    check_rows(rows)
    with pytest.raises(Unlike, match="seconds are compared on one kind of device"):
        check_rows(rows, "seconds")


def test_the_evaluation_set_may_differ_between_replicates_alone(row):
    other = dataclasses.replace(row, replicate=2, evaluation={**row.evaluation, "fingerprint": "drawn anew"})
    check_rows([row, other])


def test_an_arm_that_breaks_what_it_declares_is_refused_by_name(tiny, monkeypatch):
    study = tiny()
    monkeypatch.setattr(Bidirectional, "declared", lambda self: gates.Declared())
    looks = swap(study.base.model, Attention, lambda old: dataclasses.replace(old, view=Bidirectional()))
    with pytest.raises(Refused, match="arm 'ahead' does not keep the contract: causality: looks ahead"):
        check_contracts({"ahead": dataclasses.replace(study.base, model=looks)}, print)


def test_an_initial_loss_that_knows_too_much_is_refused(tiny):
    loud = put(tiny().base, "model.embed.init", Normal(std=3.0))
    with pytest.raises(Refused, match=r"initial loss: \d+\.\d+, and a model that knows nothing has 5.549"):
        gates.contract(loud, only=())


def test_properties_are_declared(tiny):
    block = Block(mixer=Attention(heads=2), ffn=MoE(experts=4, expert=Gated(hidden=8), form=Capacity()))
    experts = put(tiny().base, "model.stack", repeat(block, 1))
    assert gates.declared(tiny().base) == {"causal": True, "packing_safe": True, "decodable": True}
    assert gates.declared(experts)["causal"] is False


def test_it_is_written_down_and_another_study_is_refused(tiny, tmp_path):
    study = tiny()
    opened = open_study(study, None, contracts=False)
    write(tmp_path, opened)
    record = opened.record()
    assert record["cost"]["runs"] == 6 and record["cost"]["seconds"] > 0
    assert record["arms"]["silu"]["diff"] == {
        "model.stack.segments.0.pattern.0.ffn.activation": ["gelu_tanh", "silu"],
    }
    assert record["matching"]["error"] == {"base": 0.0, "silu": 0.0, "A/A": 0.0}
    write(tmp_path, dataclasses.replace(opened, study=tiny(seeds=5)))
    changed = tiny({"optim.peak": 2e-2})
    with pytest.raises(RunError, match="holds another study; it differs in\n  base.optim.peak: 0.01 -> 0.02"):
        write(tmp_path, dataclasses.replace(opened, study=changed))
    with pytest.raises(RunError, match="the code has changed since .* rows of two kinds are not mixed"):
        write(tmp_path, dataclasses.replace(opened, code="new"))
    with pytest.raises(RunError, match="the data has changed"):
        write(tmp_path, dataclasses.replace(opened, data={**opened.data, "silu": "other"}))
    clear(tmp_path)
    write(tmp_path, dataclasses.replace(opened, study=changed))
