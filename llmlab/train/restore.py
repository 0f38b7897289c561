"""The model of a run that has been trained, without its optimizer."""

from __future__ import annotations

from pathlib import Path

import jax

from llmlab.train.checkpoint import Checkpoints
from llmlab.train.experiment import Experiment
from llmlab.train.program import Program
from llmlab.train.run import Run, RunError


def restore_model(
    directory: Path, experiment: Experiment, step: int | None = None, mesh: jax.sharding.Mesh | None = None
) -> tuple[Program, dict, int]:
    """(program, {"params", "stats"}, step) of the newest checkpoint that verifies, or of `step`.

    mesh: other devices than the experiment's. Raises RunError when the run has none.
    """
    program = Program(experiment, experiment.mesh.build() if mesh is None else mesh)
    checkpoints = Checkpoints(Run(directory, experiment).checkpoints)
    try:
        found = checkpoints.latest() if step is None else step
        if found is None:
            raise RunError(
                f"{directory} has no checkpoint that verifies; `llmlab train EXPERIMENT --run {directory}` makes one"
            )
        wanted = {part: program.abstract_state[part] for part in ("params", "stats")}
        return program, checkpoints.restore_parts(found, wanted), found
    finally:
        checkpoints.close()
