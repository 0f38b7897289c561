"""`llmlab train EXPERIMENT`."""

from __future__ import annotations

import dataclasses
import importlib.util
import shlex
from pathlib import Path

from llmlab.cli import EXIT_STOPPED
from llmlab.cli.arguments import parse, run_directory, set_up


@dataclasses.dataclass
class Flags:
    """Train an experiment. A directory with a run in it is gone on with from its last good checkpoint."""

    run: Path | None = None
    """Directory of the run; runs/<experiment> by default."""
    fresh: bool = False
    """Start over: what the directory holds of a run is deleted."""
    wandb: str | None = None
    """Weights & Biases project to log to (needs wandb)."""
    cpu_devices: int | None = None
    """Host devices to show jax in place of one CPU, for trying out meshes."""
    coordinator: str | None = None
    """HOST:PORT of process 0. Slurm, Open MPI, TPU pods and GKE are recognised without it."""
    processes: int | None = None
    """Processes of the job, with --coordinator."""
    process: int | None = None
    """This process, from 0, with --coordinator."""


def main(arguments: list[str]) -> int:
    flags, experiment = parse("train", Flags, arguments, demand=True)
    if flags.wandb and importlib.util.find_spec("wandb") is None:
        raise ValueError(f"--wandb {flags.wandb} needs a package: pip install 'llmlab[wandb]'")
    set_up(flags.cpu_devices)
    from llmlab.mesh import start_processes
    from llmlab.train.files import split_target
    from llmlab.train.finish import finish
    from llmlab.train.loop import train

    started = start_processes(flags.coordinator, flags.processes, flags.process)
    if started != "one process":
        print(started)
    file, name = split_target(arguments[0])
    directory = flags.run or run_directory(file, name)
    result = train(experiment, directory, file, flags.fresh, flags.wandb)
    if not result.finished:
        again = [argument for argument in arguments if argument != "--fresh"]
        print(f"stopped and saved; `{shlex.join(['llmlab', 'train', *again])}` goes on")
        return EXIT_STOPPED
    finish(result, directory)
    return 0
