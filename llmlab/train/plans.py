"""Plans that are kept with a run (`llmlab plan` writes them): a job does not start where one says that it will not fit.

RUN/plans/v5e-16x16.json     one file for each topology
"""

from __future__ import annotations

import json
from pathlib import Path

import jax

from llmlab.config import digest, flatten
from llmlab.train.experiment import Experiment
from llmlab.train.run import RunError

# What changes neither the program nor its memory; of the data only the shapes of its batches do.
IRRELEVANT = (
    "data.",
    "seed",
    "start",
    "train.steps",
    "train.guard",
    "train.log_every",
    "train.eval_every",
    "train.save_every",
)
IRRELEVANT += ("train.eval_batches", "train.keep", "train.prompt")


def plan_file(directory: Path, topology: str) -> Path:
    """Where the plan for a topology is kept."""
    return Path(directory) / "plans" / (topology.replace(":", "-").replace("*", "x-") + ".json")


def digest_of(experiment: Experiment) -> str:
    """Names what decides the compiled step."""
    kept = {path: repr(leaf) for path, leaf in flatten(experiment).items() if not path.startswith(IRRELEVANT)}
    shapes = {name: f"{array.dtype}{array.shape[1:]}" for name, array in experiment.example(rows=1).items()}
    return digest(json.dumps([kept, shapes, experiment.data.batch], sort_keys=True))


def check_plans(experiment: Experiment, directory: Path, mesh: jax.sharding.Mesh) -> None:
    """Raises RunError when a plan of this experiment for these devices says that it does not fit."""
    device, wanted = mesh.devices.flat[0].device_kind, digest_of(experiment)
    for file in sorted((Path(directory) / "plans").glob("*.json")):
        plan = json.loads(file.read_text())
        same = plan["device"] == device and plan["devices"] == mesh.size and plan["digest"] == wanted
        if same and plan["fits"] is False:
            memory = plan["memory"]
            raise RunError(
                f"{file} says that this experiment needs {memory['peak'] / 1e9:.3g} GB of each {device} and there are "
                f"{(memory['capacity'] or 0) / 1e9:.3g}; change the mesh, remat or batch (llmlab plan --search), or "
                "delete the plan to try all the same"
            )
