"""Runs that begin with a checkpoint or with another run: the model, its tokenizer, its parameters, under any layout."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import llmlab
from llmlab.config import diff, put
from llmlab.data import Bytes, Data, Labelled, SentencePiece, TextFiles
from llmlab.interop.tokenizers import Published
from llmlab.mesh import Mesh
from llmlab.models import Last, Pooled
from llmlab.optim import AdamW
from llmlab.study.replicas import Replicas
from llmlab.tasks import Classification
from llmlab.train import Experiment, Fresh, Loaded, Pretrained, Train
from llmlab.train.experiment import check_vocab
from llmlab.train.loop import evaluate, train
from llmlab.train.program import Program

TRAIN = Train(steps=2, log_every=1)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. a dog ran. " * 60)
    return str(tmp_path / "text.txt")


@pytest.fixture
def labelled(tmp_path):
    lines = [{"text": f"{'the cat sat' if i % 2 else 'a dog ran'} {i}", "label": "ab"[i % 2]} for i in range(60)]
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(tmp_path / "labelled.jsonl")


def tuning(checkpoint, text, **changes) -> Experiment:
    data = Data(source=TextFiles(path=text), tokenizer=Published(), batch=8, length=16)
    base = dict(start=Pretrained(path=str(checkpoint)), model=Loaded(), data=data, train=TRAIN)
    return Experiment(**{**base, **changes})


def classifying(checkpoint, labelled, **changes) -> Experiment:
    data = Labelled(path=labelled, labels=("a", "b"), tokenizer=Published(), batch=8, length=24, validation=0.3)
    model = Pooled(trunk=Loaded(), classes=2, pooling=Last())
    base = dict(start=Pretrained(path=str(checkpoint)), model=model, task=Classification(), data=data, train=TRAIN)
    return Experiment(**{**base, **changes})


def equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_what_is_open_is_filled_in(checkpoint, text, labelled):
    filled, model = tuning(checkpoint, text).filled(), llmlab.from_pretrained(checkpoint).config
    assert filled.model == model and filled.data.tokenizer == Published(path=str(checkpoint), vocab=302)
    assert set(diff(tuning(checkpoint, text), filled)) >= {"start.content", "data.tokenizer.vocab"}
    check_vocab(filled)
    gone = put(filled, "start.path", "/gone")
    assert gone.filled() is gone  # a run that is filled needs its checkpoint no more
    assert classifying(checkpoint, labelled).filled().model.trunk == model
    plain = Experiment()
    assert plain.start == Fresh() and plain.filled() is plain


def test_parameters_are_those_of_the_checkpoint_wherever_they_lie(checkpoint, text, labelled):
    given = llmlab.from_pretrained(checkpoint).params
    experiment = tuning(checkpoint, text, mesh=Mesh(fsdp=4, tensor=2)).filled()
    program = Program(experiment, experiment.mesh.build())
    state = program.init()
    equal(state["params"], given)
    assert jax.tree.map(lambda a: a.sharding, state) == program.shardings
    experiment = classifying(checkpoint, labelled).filled()
    program = Program(experiment, experiment.mesh.build())
    state, drawn = program.init(), Program(dataclasses.replace(experiment, start=Fresh()), program.mesh).init()
    equal(state["params"]["trunk"], given)
    equal(state["params"]["out"], drawn["params"]["out"])
    assert np.abs(
        np.asarray(state["params"]["trunk"]["embed"]["table"] - drawn["params"]["trunk"]["embed"]["table"])
    ).max()


def test_tuning_begins_at_the_loss_of_the_checkpoint_and_is_saved_for_other_tools(checkpoint, text, tmp_path):
    model = llmlab.from_pretrained(checkpoint)
    still = tuning(checkpoint, text).filled()
    program = Program(still, still.mesh.build())
    loss = evaluate(program, program.init(), still.open_data(lambda line: None))["loss"]
    whole = Path(text).read_text()
    ids = np.append(model.tokenizer.encode(whole[int(len(whole) * 0.9) :]), model.tokenizer.end)
    parts = [ids[i : i + 17] for i in range(0, len(ids) - 1, 16)]
    sums = [float(model.loss(part[None], part[None])) * (len(part) - 1) for part in parts]
    assert loss == pytest.approx(sum(sums) / (len(ids) - 1), rel=1e-4)

    result = train(tuning(checkpoint, text, optim=AdamW(peak=1e-2)), tmp_path / "run")
    assert result.validation["loss"] < loss
    tuned = llmlab.from_pretrained(tmp_path / "run")
    llmlab.save_pretrained(tuned, tmp_path / "saved")
    again = llmlab.from_pretrained(tmp_path / "saved")
    equal(again.params, result.state["params"])
    assert again.tokenizer.encode("the cat").tolist() == model.tokenizer.encode("the cat").tolist()
    assert tuned.tokenizer.fingerprint == again.tokenizer.fingerprint


def test_a_run_can_begin_with_a_run(checkpoint, text, labelled, tmp_path):
    first = train(tuning(checkpoint, text, optim=AdamW(peak=1e-2)), tmp_path / "first")
    experiment = tuning(tmp_path / "first", text).filled()
    assert experiment.data.tokenizer == Published(path=str(checkpoint), vocab=302)
    equal(Program(experiment, experiment.mesh.build()).init()["params"], first.state["params"])
    experiment = classifying(tmp_path / "first", labelled).filled()
    equal(Program(experiment, experiment.mesh.build()).init()["params"]["trunk"], first.state["params"])
    before = tuning(tmp_path / "first", text).filled().start.content
    train(
        tuning(checkpoint, text, optim=AdamW(peak=1e-2), train=dataclasses.replace(TRAIN, steps=3)), tmp_path / "third"
    )
    assert tuning(tmp_path / "third", text).filled().start.content != before


def test_classification_learns(checkpoint, labelled, tmp_path):
    found = classifying(checkpoint, labelled, optim=AdamW(peak=1e-2), train=Train(steps=20))
    result = train(found, tmp_path / "run")
    assert result.validation["accuracy"] == 1.0


def test_replicas_begin_with_the_checkpoint_too(checkpoint, labelled):
    experiment = classifying(checkpoint, labelled).filled()
    seeds = [{"init": seed, "dropout": seed} for seed in (0, 1)]
    replicas = Replicas([experiment, dataclasses.replace(experiment, seed=1)], seeds)
    state = replicas.start()
    given = llmlab.from_pretrained(checkpoint).params
    for replica in (0, 1):
        equal(replicas.one(state, replica)["params"]["trunk"], given)
    heads = state["params"]["out"]["w"]
    assert np.abs(np.asarray(heads[0] - heads[1])).max() > 0  # each has a head of its own


def test_messages(checkpoint, text, labelled, tmp_path):
    with pytest.raises(ValueError, match="the checkpoint to begin with is not given; pass --start.path DIR"):
        tuning("x", text, start=Pretrained()).filled()
    with pytest.raises(ValueError, match="in Python take experiment.filled()"):
        check_vocab(tuning(checkpoint, text, start=Fresh()))
    with pytest.raises(ValueError, match="Labelled has 2 classes, and the model 3; --model.classes 2"):
        three = Pooled(trunk=Loaded(), classes=3)
        check_vocab(classifying(checkpoint, labelled, model=three).filled())
    with pytest.raises(FileNotFoundError, match="there is no checkpoint /nowhere"):
        tuning("/nowhere", text).filled()
    trained = tuning(checkpoint, text, data=dataclasses.replace(tuning(checkpoint, text).data, tokenizer=Bytes()))
    with pytest.raises(ValueError, match="Bytes has a vocabulary of 257, and the model one of 302"):
        check_vocab(trained.filled())
    own = Data(source=TextFiles(path=text), tokenizer=SentencePiece(vocab=300), batch=8, length=16)
    record = {"experiment": llmlab.config.to_dict(Experiment(data=own)), "file": None, "code": ""}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"was trained on its own text and is no file; .*SentencePiece\(model=FILE"):
        tuning(tmp_path, text).filled()
