"""`llmlab plan EXPERIMENT --topology v5e:16x16`: what will happen on devices that are not there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from llmlab.cli.arguments import parse, run_directory, set_up


@dataclasses.dataclass
class Flags:
    """Compile an experiment's train step for a topology, and tell memory, messages, time and cost. Nothing runs."""

    topology: str = "v5e:16x16"
    """CHIP:SIZES or SLICES*CHIP:SIZES, such as v5e:16x16, 2*v5p:4x4x8, h100:8, cpu:8."""
    run: Path | None = None
    """Directory of the run that the plan is kept with; runs/<experiment> by default."""
    memory: float | None = None
    """GB that a device may use; by default what its data sheet says."""
    price: float | None = None
    """Price of a chip-hour, in any currency."""
    search: bool = False
    """Try meshes, remat policies and microbatches; show the trades of step time against memory."""
    tries: int = 6
    """How many layouts a search compiles at most."""
    cpu_devices: int | None = None
    """Host devices to show jax, for cpu:N topologies."""


def main(arguments: list[str]) -> int:
    flags, experiment = parse("plan", Flags, arguments)
    prepare(flags)
    from rich.console import Console

    from llmlab.plan import plan, topology
    from llmlab.plan.page import show_plan, show_search
    from llmlab.plan.search import search
    from llmlab.train.files import split_target

    console = Console(highlight=False, soft_wrap=True)
    target = topology(flags.topology)
    memory = None if flags.memory is None else flags.memory * 1e9
    directory = flags.run or run_directory(*split_target(arguments[0]))
    if flags.search:
        default = plan(experiment, target, memory)
        found = search(experiment, target, memory, flags.tries, report=console.print)
        show_search(console, found, default)
        return 0 if found else 1
    made = plan(experiment, target, memory, flags.price)
    show_plan(console, made, arguments[0])
    console.print(f"kept in {made.save(directory)}", style="dim")
    return 1 if made.fits is False else 0


def prepare(flags: Flags) -> None:
    """No accelerator is looked for: the compiler of another machine is asked."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    set_up(flags.cpu_devices)
    jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache tells no compile time
