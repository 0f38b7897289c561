"""Command lines: the flags of a command, and every leaf of an experiment beside them."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Annotated, TypeVar

from llmlab.cli import EXIT_CONFIG
from llmlab.config import REQUIRED, flatten
from llmlab.train.experiment import Experiment
from llmlab.train.files import load_experiment, split_target

Flags = TypeVar("Flags")


def parse(command: str, flags: type[Flags], arguments: list[str], demand=False) -> tuple[Flags, Experiment]:
    """(flags, experiment with its overrides) of `command FILE[:function] [flags] [--leaf value ...]`.

    demand: leaves that the experiment leaves open must be given.
    """
    given = target(command, "EXPERIMENT", arguments)
    experiment = load_experiment(*split_target(given))
    found, experiment = override(f"llmlab {command} {given}", flags, experiment, arguments[1:], demand)
    return found, experiment.filled()


def parse_run(command: str, flags: type[Flags], arguments: list[str]) -> tuple[Flags, Experiment, Path]:
    """The same of `command RUN`, with the experiment that the run has saved."""
    from llmlab.train.run import load

    directory = Path(target(command, "RUN", arguments))
    return *override(f"llmlab {command} {directory}", flags, load(directory), arguments[1:], True), directory


def parse_model(command: str, flags: type[Flags], arguments: list[str]) -> tuple[Flags, Experiment | None, Path]:
    """(flags, experiment, directory) of `command MODEL`: of a run, or of a checkpoint, which has no experiment."""
    directory = Path(target(command, "MODEL", arguments))
    if (directory / "run.json").is_file():
        return parse_run(command, flags, arguments)
    if len(arguments) == 1:
        return flags(), None, directory
    found = command_line(flags, f"llmlab {command} {directory}", arguments[1:], description=flags.__doc__)
    return found, None, directory


def target(command: str, kind: str, arguments: list[str]) -> str:
    if not arguments or arguments[0].startswith("-"):
        what = {
            "EXPERIMENT": "a Python file with config(), or FILE:function",
            "RUN": "a directory that `llmlab train` wrote",
            "MODEL": "a directory with a published checkpoint, or one that `llmlab train` wrote",
            "STUDY": "a Python file with study(), or FILE:function",
        }[kind]
        usage = f"usage: llmlab {command} {kind} [flags] [--leaf value ...]"
        if arguments and arguments[0] in ("-h", "--help"):
            print(f"{usage}\n{kind}: {what}; `llmlab {command} {kind} --help` lists the flags and every leaf")
            raise SystemExit(0)
        raise ValueError(f"{kind} comes first, {what}\n{usage}")
    return arguments[0]


def override(program: str, flags: type[Flags], experiment: Experiment, arguments: list[str], demand: bool):
    """(flags, experiment): what the arguments say of them; the experiment's own values are the defaults."""
    if not arguments and not (demand and REQUIRED in flatten(experiment).values()):
        return flags(), experiment  # nothing to parse, and no half second for it
    import tyro

    from llmlab.cli.leaves import mirror, restore

    kind, leaves = mirror(experiment, demand)
    bare = tyro.conf.arg(name="")
    both = dataclasses.make_dataclass("Both", [("flags", Annotated[flags, bare]), ("leaves", Annotated[kind, bare])])
    found = command_line(both, program, arguments, description=flags.__doc__, default=both(flags(), leaves))
    return found.flags, restore(experiment, found.leaves)


def command_line(flags: type[Flags], program: str, arguments: list[str], **more) -> Flags:
    """The flags of a command, by tyro; a wrong line ends the process with the exit code of a wrong config."""
    import tyro

    try:
        return tyro.cli(flags, prog=program, args=arguments, **more)
    except SystemExit as ended:
        raise SystemExit(EXIT_CONFIG if ended.code else 0) from None


def set_up(cpu_devices: int | None = None) -> None:
    """What jax needs to be told before it starts: host devices, and where compiled programs are kept."""
    import jax

    if cpu_devices is not None and cpu_devices < 1:
        raise ValueError(f"--cpu-devices {cpu_devices}: it is 1 or more")
    found = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if cpu_devices is not None and found and int(found[1]) != cpu_devices:
        raise ValueError(f"--cpu-devices {cpu_devices}: XLA_FLAGS asks for {found[1]}; drop one of them")
    if cpu_devices is not None and not found:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if jax.config.jax_compilation_cache_dir is None:
        from llmlab.data.cache import cache_folder

        jax.config.update("jax_compilation_cache_dir", str(cache_folder(None) / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def positive(flags, *names: str) -> None:
    """Raises ValueError for a flag that is given and not above 0."""
    for name in names:
        if (value := getattr(flags, name)) is not None and not value > 0:
            raise ValueError(f"--{name} {value}: it is above 0")


def run_directory(file: Path, name: str = "config") -> Path:
    """Where an experiment's run goes unless --run says: runs/<file>, or runs/<file>-<function> if one is named."""
    stem = Path(file).stem if name == "config" else f"{Path(file).stem}-{name}"
    return Path(os.environ.get("LLMLAB_RUNS", "runs")) / stem
