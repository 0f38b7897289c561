"""The loop: what a resumed run, a finished one and one that goes wrong do. Runs have 6 steps, saved at 2, 4, 6."""

import dataclasses
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.config import config
from llmlab.tasks import CausalLM
from llmlab.train import Skip, Stop, checkpoint
from llmlab.train.checkpoint import Checkpoints, SaveError
from llmlab.train.loop import evaluate, train
from llmlab.train.meter import Diverged
from llmlab.train.program import Program
from llmlab.train.run import Run, RunError

pytestmark = pytest.mark.usefixtures("caches")


@config
class Poisoned(CausalLM):
    """The loss is not a number, by the scale of the last norm, on batches whose tokens have one of these sums."""

    sums: tuple[int, ...]

    def loss(self, model, batch, key, dtype):
        out = super().loss(model, batch, key, dtype)
        poison = jnp.where(jnp.isin(batch["tokens_BL"].sum(), jnp.array(self.sums)), jnp.nan, 0.0)
        return dataclasses.replace(out, loss=out.loss + poison * model.norm.scale[...].sum())


@pytest.fixture(scope="module")
def experiment(tiny):
    return tiny(save_every=2, eval_every=3, keep=3)


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory, caches):
    """(directory, result) of a run that nothing interrupts."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, train(experiment, directory)


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "copy")
    return tmp_path / "copy"


def check_equal(directory, result, whole, logged):
    """State, place in the data, logged numbers: all as in the run that nothing interrupted."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(result.state), jax.device_get(whole[1].state))
    assert logged(directory) == logged(whole[0])
    metas = [json.loads((d / "checkpoints/6/COMMITTED.json").read_text())["meta"] for d in (directory, whole[0])]
    assert metas[0] == metas[1] and metas[0]["data_index"] == 6 * 8


def test_a_resumed_run_ends_bit_identical(experiment, whole, copy, logged, capsys):
    for step in (4, 6):
        shutil.rmtree(copy / "checkpoints" / str(step))
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "ki')  # torn by a crash
    result = train(experiment, copy)
    assert "going on from step 2" in capsys.readouterr().out
    check_equal(copy, result, whole, logged)


def test_a_truncated_checkpoint_is_passed_over_with_a_warning(experiment, whole, copy, logged):
    files = [path for path in (copy / "checkpoints/6").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"step 6 is bad and was renamed to 6\.bad: .* bytes; .* were written"):
        result = train(experiment, copy)
    check_equal(copy, result, whole, logged)


def test_a_finished_run_says_so_and_trains_no_more(experiment, whole, copy, logged, capsys, monkeypatch):
    monkeypatch.setattr(Program, "init", None)
    result = train(experiment, copy)
    assert result.finished and "all 6 steps are done" in capsys.readouterr().out
    assert result.validation == whole[1].validation
    check_equal(copy, result, whole, logged)


def test_a_run_without_a_checkpoint_is_an_error_unless_fresh(experiment, whole, copy, logged):
    shutil.rmtree(copy / "checkpoints")
    before = {path: path.read_bytes() for path in copy.glob("*.json*")}
    with pytest.raises(RunError, match="has a run.json and no checkpoint that verifies.*--fresh.*--run"):
        train(experiment, copy)
    assert {path: path.read_bytes() for path in copy.glob("*.json*")} == before
    check_equal(copy, train(experiment, copy, fresh=True), whole, logged)


def test_a_run_of_another_experiment_is_an_error_that_shows_the_difference(tiny, copy):
    other = tiny({"optim.peak": 0.5, "train.log_every": 2}, save_every=2, eval_every=3, keep=3)
    with pytest.raises(RunError) as caught:
        train(other, copy)
    assert "holds another experiment; it differs in\n  optim.peak: 0.01 -> 0.5\n" in str(caught.value)
    assert "--run" in str(caught.value) and "log_every" not in str(caught.value)


def test_a_directory_serves_one_process_at_a_time(experiment, tmp_path):
    first = Run(tmp_path, experiment)
    first.open()
    with pytest.raises(RunError, match=r"is in use by process \d+; wait for it, or choose another --run"):
        Run(tmp_path, experiment).open()
    first.close()
    again = Run(tmp_path, experiment)
    assert again.open()
    again.close()


def test_a_full_disk_leaves_the_last_good_checkpoint(experiment, whole, tmp_path, logged, monkeypatch):
    usage = shutil.disk_usage
    with monkeypatch.context() as full:

        def free(path):
            left = 0 if (tmp_path / "run/checkpoints/2/COMMITTED.json").exists() else 1 << 40
            return usage(path)._replace(free=left)

        full.setattr(checkpoint.shutil, "disk_usage", free)
        with pytest.raises(SaveError, match="no room for the checkpoint of step 4.*The checkpoint of step 2 is whole"):
            train(experiment, tmp_path / "run")
    assert Checkpoints(tmp_path / "run/checkpoints").latest() == 2
    check_equal(tmp_path / "run", train(experiment, tmp_path / "run"), whole, logged)


def test_the_guard_stops_or_skips_and_applies_no_update(tiny, experiment, whole, tmp_path, logged, capsys):
    batches = whole[1].dataset.train(0)
    sums = [int(next(batches)["tokens_BL"].sum()) for _ in range(6)]
    batches.close()
    changes = {"task": Poisoned(sums=(sums[2], sums[4]))}
    settings = {"save_every": 1, "keep": 9}
    with pytest.raises(Diverged, match=r"step 3: loss nan, gradients not finite in norm\.scale; .*train\.guard"):
        train(tiny({**changes, "train.guard": Stop()}, **settings), tmp_path)
    with pytest.raises(Diverged, match="step 5: loss nan"):
        train(tiny({**changes, "train.guard": Skip(limit=1)}, **settings), tmp_path)
    assert "the update was skipped (1 of at most 1)" in capsys.readouterr().out
    assert [line.get("skipped", 0) for line in logged(tmp_path)] == [0, 0, 1, 1]
    result = train(tiny({**changes, "train.guard": Skip(limit=2)}, **settings), tmp_path)
    assert result.finished and logged(tmp_path)[-1].get("skipped", 2) == 2

    checkpoints, program = Checkpoints(tmp_path / "checkpoints"), result.program
    before, after, later = (checkpoints.restore(step, program.abstract_state)[0] for step in (2, 3, 4))
    assert (int(before["step"]), int(after["step"])) == (2, 3)
    for part in ("params", "opt"):
        jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
    assert not np.array_equal(after["params"]["norm"]["scale"], later["params"]["norm"]["scale"])


def test_evaluation_covers_the_whole_split_once(whole):
    """With the mean of the target ids in place of the loss, so that the result is known."""
    program, dataset = whole[1].program, whole[1].dataset

    def weigh(params, stats, batch):
        weights = batch["weights_BL"]
        return {"weight": weights.sum(), "nll": (batch["targets_BL"] * weights).sum(), "correct": 0.0}

    stand_in = types.SimpleNamespace(experiment=program.experiment, rows=program.rows, put=program.put, evaluate=weigh)
    tokens_T = np.asarray(dataset.examples["validation"].examples.corpus.tokens_T)
    assert len(tokens_T) % (8 * 16)  # the last batch is not full
    found = evaluate(stand_in, whole[1].state, dataset)
    assert found["loss"] == pytest.approx(tokens_T[1:].mean(), rel=1e-6)
    assert evaluate(stand_in, whole[1].state, dataset, 1)["loss"] == pytest.approx(tokens_T[1:129].mean(), rel=1e-6)
