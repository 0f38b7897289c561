"""Every shipped experiment builds abstractly, and its config is the text in tests/golden.

After a wanted change of a config: LLMLAB_GOLDEN=write python -m pytest tests/test_experiments.py
"""

import inspect
import os
from pathlib import Path

import jax
import pytest

from llmlab.config import from_json, put, show, to_json
from llmlab.train import Pretrained
from llmlab.train.experiment import check_vocab
from llmlab.train.files import import_file, load_experiment, returns_experiment
from llmlab.train.program import Program

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))


def variants():
    """Every function of the experiment files that gives an experiment."""
    for file in EXPERIMENTS:
        module = import_file(file)
        for name, value in vars(module).items():
            own = getattr(value, "__module__", "") == file.stem and returns_experiment(value)
            if own and not inspect.signature(value).parameters:
                yield pytest.param(value, id=f"{file.stem}:{name}")


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_config_is_golden_and_reloads(file):
    experiment = load_experiment(file)
    golden = ROOT / "tests" / "golden" / f"{file.stem}.txt"
    text = show(experiment) + "\n"
    if os.environ.get("LLMLAB_GOLDEN") == "write":
        golden.write_text(text)
    assert golden.exists() and golden.read_text() == text, f"the config of {file.name} is no longer {golden}"
    assert from_json(to_json(experiment)) == experiment


@pytest.mark.parametrize("make", list(variants()))
def test_state_and_step_build_abstractly(make, request):
    experiment = make()
    if isinstance(experiment.start, Pretrained):
        experiment = put(experiment, "start.path", str(request.getfixturevalue("checkpoint"))).filled()
    program = Program(experiment, experiment.mesh.build(jax.devices()[:1]))
    check_vocab(experiment)
    batch = experiment.example(experiment.data.batch)
    state, metrics = jax.eval_shape(program._step, program.abstract_state, batch)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(
        lambda a: (a.shape, a.dtype), program.abstract_state
    )
    assert metrics["objective"].shape == ()


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_header_tells_question_command_cost_and_expectation(file):
    text = file.read_text().split('"""')[1]
    assert "?" in text and f"experiments/{file.name}" in text and "Cost:" in text and "Expected:" in text
