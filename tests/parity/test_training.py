"""A checkpoint is read onto a mesh of 8 devices, trained for 10 steps there, and written as one that is read again."""

import jax
import numpy as np
import pytest

import llmlab
from llmlab import axes
from llmlab.config import put
from llmlab.interop.checkpoint import open_checkpoint, write_checkpoint
from llmlab.mesh import Mesh
from llmlab.optim import AdamW, Constant
from llmlab.tasks import Answers, CausalLM, Seq2Seq
from llmlab.train import Experiment, Train
from llmlab.train.program import Program
from tests.parity.test_parity import DATA, ONE, write

TASKS = {"llama": CausalLM(), "bert": Answers(), "t5": Seq2Seq(), "mamba": CausalLM()}
MESH, ROWS, LENGTH, STEPS = Mesh(data=2, fsdp=2, tensor=2), 8, 8, 10


def batch_of(case: str, vocab: int) -> dict:
    random = np.random.default_rng(0)
    draw = lambda: random.integers(3, vocab, (ROWS, LENGTH)).astype(np.int32)
    ones = np.ones((ROWS, LENGTH), np.int32)
    source = {"source_BM": draw(), "source_segments_BM": ones} if case == "t5" else {}
    return {"tokens_BL": draw(), "targets_BL": draw(), "weights_BL": ones.astype(np.float32), **source}


def real(params: dict, vocab: int) -> dict:
    """Without the rows that pad a vocabulary."""
    cut = lambda path, a: np.asarray(a)[:vocab] if path[-1].key == "table" and a.shape[0] > vocab else np.asarray(a)
    return jax.tree_util.tree_map_with_path(cut, params)


@pytest.mark.parametrize("case", TASKS)
def test_a_checkpoint_is_trained_on_eight_devices_and_written(case, tmp_path):
    (tmp_path / "read").mkdir()
    checkpoint = open_checkpoint(write(tmp_path / "read", case, np.load(DATA / f"{case}.npz")))
    model = put(checkpoint.model, "embed.multiple", 8)  # 61 ids are not shared by two
    experiment = Experiment(
        model=model,
        task=TASKS[case],
        optim=AdamW(peak=1e-2, schedule=Constant()),
        train=Train(steps=STEPS),
        mesh=MESH,
        rules=axes.every(),
    )
    program = Program(experiment, MESH.build(jax.devices()[:8]))
    before = checkpoint.params(program.mesh, experiment.rules, model=model)
    start = real(before, model.vocab)
    state = {**program.init(), "params": before}
    shared = [leaf for leaf in jax.tree.leaves(before) if leaf.addressable_shards[0].data.size < leaf.size]
    assert len(shared) > len(jax.tree.leaves(before)) / 2
    batch = program.put(batch_of(case, model.vocab), np.arange(ROWS), ROWS)
    losses = []
    for _ in range(STEPS):
        state, metrics = program.step(state, batch)
        losses.append(float(metrics["objective"]))
    assert losses[-1] < 0.95 * losses[0], losses
    trained = real(state["params"], model.vocab)
    assert not any(jax.tree.leaves(jax.tree.map(np.array_equal, start, trained)))
    write_checkpoint(tmp_path / "written", model, state["params"], checkpoint.family, checkpoint.settings)
    again = llmlab.from_pretrained(tmp_path / "written", mesh=ONE)
    assert again.config == checkpoint.model
    jax.tree.map(np.testing.assert_array_equal, real(again.params, model.vocab), trained)
