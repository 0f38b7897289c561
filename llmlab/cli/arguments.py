"""Command lines: the flags of a command, and every leaf of an experiment beside them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from llmlab.config import REQUIRED, flatten
from llmlab.train.experiment import Experiment
from llmlab.train.files import load_experiment

Flags = TypeVar("Flags")


def parse(command: str, flags: type[Flags], arguments: list[str]) -> tuple[Flags, Experiment, Path]:
    """(flags, experiment with its overrides, the experiment's file) of `command FILE [flags] [--leaf value ...]`."""
    file = target(command, "EXPERIMENT", arguments)
    experiment = load_experiment(file)
    return *override(f"llmlab {command} {file}", flags, experiment, arguments[1:]), file


def parse_run(command: str, flags: type[Flags], arguments: list[str]) -> tuple[Flags, Experiment, Path]:
    """The same of `command RUN`, with the experiment that the run has saved."""
    from llmlab.train.run import load

    directory = target(command, "RUN", arguments)
    return *override(f"llmlab {command} {directory}", flags, load(directory), arguments[1:]), directory


def target(command: str, kind: str, arguments: list[str]) -> Path:
    if not arguments or arguments[0].startswith("-"):
        what = "a Python file with config()" if kind == "EXPERIMENT" else "a directory that `llmlab train` wrote"
        message = f"usage: llmlab {command} {kind} [flags] [--leaf value ...]\n{kind}: {what}"
        if arguments and arguments[0] in ("-h", "--help"):
            print(f"{message}; `llmlab {command} {kind} --help` lists the flags and every leaf")
            raise SystemExit(0)
        raise ValueError(f"{message} comes first")
    return Path(arguments[0])


def override(
    program: str, flags: type[Flags], experiment: Experiment, arguments: list[str]
) -> tuple[Flags, Experiment]:
    """Parses flags and leaves; the experiment's own values are the defaults."""
    both = dataclasses.make_dataclass(
        "Both",
        [
            ("flags", Annotated[flags, tyro.conf.arg(name="")]),
            ("experiment", Annotated[Experiment, tyro.conf.arg(name="")]),
        ],
    )
    found = tyro.cli(
        both,
        prog=program,
        description=(flags.__doc__ or "").strip(),
        default=both(flags(), experiment),
        args=arguments,
        config=(tyro.conf.AvoidSubcommands,),
    )
    return found.flags, found.experiment


def require(experiment: Experiment) -> None:
    """Raises ValueError for leaves that every user must give."""
    missing = [path for path, value in flatten(experiment).items() if value == REQUIRED]
    if missing:
        raise ValueError("; ".join(f"{path} is required: pass --{path} VALUE" for path in missing))


def set_up(cpu_devices: int | None = None) -> None:
    """What jax needs to be told before it starts: host devices, and where compiled programs are kept."""
    import jax

    if cpu_devices is not None:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if jax.config.jax_compilation_cache_dir is None:
        from llmlab.data.cache import cache_folder

        jax.config.update("jax_compilation_cache_dir", str(cache_folder(None) / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def run_directory(file: Path) -> Path:
    """Where an experiment's run goes unless --run says: runs/<name of the file>."""
    return Path(os.environ.get("LLMLAB_RUNS", "runs")) / Path(file).stem
