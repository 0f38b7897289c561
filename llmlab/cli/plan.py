"""`llmlab plan EXPERIMENT --topology v5e:16x16`: what will happen on devices that are not there."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from llmlab.cli.arguments import override, parse, positive, run_directory, set_up, target

WIDE = 240  # columns where the output is no terminal: no table is cut there


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
    """Try meshes, rules, remat policies and microbatches; show the trades of step time against memory."""
    all: bool = False
    """Plan every arm of a study: the file's study(), matched, in place of its config()."""
    tries: int = 6
    """How many layouts a search compiles at most."""
    cpu_devices: int | None = None
    """Host devices to show jax, for cpu:N topologies."""


def main(arguments: list[str]) -> int:
    if "--all" in arguments:
        return plan_study([word for word in arguments if word != "--all"])
    flags, experiment = parse("plan", Flags, arguments)
    console, topology, memory = prepare(flags)
    from llmlab.plan import plan
    from llmlab.plan.page import show_plan, show_search
    from llmlab.plan.search import search
    from llmlab.train.files import split_target

    if flags.search:
        default = plan(experiment, topology, memory)
        found = search(experiment, topology, memory, flags.tries, report=console.print)
        show_search(console, found, default)
        return 0 if found else 1
    made = plan(experiment, topology, memory, flags.price)
    show_plan(console, made, arguments[0])
    directory = flags.run or run_directory(*split_target(arguments[0]))
    console.print(f"kept in {made.save(directory)}", style="dim")
    return 1 if made.fits is False else 0


def plan_study(arguments: list[str]) -> int:
    """Every arm of every study of the file, one line each; leaves that are given are set in all of them."""
    from llmlab.study.load import load_studies
    from llmlab.study.matching import match
    from llmlab.study.study import override as moved
    from llmlab.train.files import split_target

    given = target("plan", "EXPERIMENT", arguments)
    file, name = split_target(given)
    studies = load_studies(file, "study" if name == "config" else name)
    flags, base = override(f"llmlab plan {given} --all", Flags, studies[0].base, arguments[1:], demand=False)
    console, topology, memory = prepare(flags)
    from llmlab.plan import plan
    from llmlab.plan.page import show_arms

    made = {}
    for study in studies:
        arms = match(moved(study, base) if study.base == studies[0].base else study).experiments
        for arm, experiment in arms.items():
            title = arm if len(studies) == 1 else f"{study.name}: {arm}"
            made[title] = plan(experiment, topology, memory, flags.price)
    show_arms(console, made)
    return 1 if any(one.fits is False for one in made.values()) else 0


def prepare(flags: Flags):
    """(console, topology, bytes of a device); no accelerator is looked for."""
    positive(flags, "memory", "price", "tries")
    import jax
    from rich.console import Console

    jax.config.update("jax_platforms", "cpu")
    set_up(flags.cpu_devices)
    jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache tells no compile time
    from llmlab.plan import topology

    memory = None if flags.memory is None else flags.memory * 1e9
    width = None if sys.stdout.isatty() else WIDE
    return Console(highlight=False, soft_wrap=True, width=width), topology(flags.topology), memory
