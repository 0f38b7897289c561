"""`llmlab study FILE[:function]`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from llmlab.cli import EXIT_MACHINE, EXIT_STOPPED, on_cpu
from llmlab.cli.arguments import override, run_directory, set_up, target

SHOWN = {"parameters": "parameters", "active": "active", "flops": "training FLOPs", "tokens": "tokens"}
SHOWN |= {"state_bytes": "decode-state bytes"}


@dataclasses.dataclass
class Flags:
    """Run a study: arms are matched and looked at, then trained with paired seeds, then judged. Leaves of the base
    follow, such as --data.source.path FILE; they are set in every arm that does not vary them."""

    run: Path | None = None
    """Directory of the study; runs/<file>-study by default. One that is not finished is gone on with."""
    only: str | None = None
    """The one study of this name, of a ladder."""
    seeds: int | None = None
    """Replicates of each arm, in place of the study's."""
    workers: int = 1
    """Processes of this machine that train; 1 is this one."""
    slurm: int = 0
    """Jobs of Slurm that train in place of processes here (needs submitit: the extra `cluster`)."""
    partition: str | None = None
    """Slurm's partition, with --slurm."""
    dry: bool = False
    """Match, look and tell the cost; train nothing."""
    fresh: bool = False
    """Start over: what the directory holds of a study is deleted."""
    retry: bool = False
    """Train anew what crashed or ran out of memory."""
    contracts: bool = True
    """Check causality, decoding and the initial loss of every arm first."""
    prices: bool = True
    """Measure memory and time of every arm first."""
    worker: bool = False
    """Only train, for a study that another process has opened."""
    cpu_devices: int | None = None
    """Host devices that replicas are shared over, where jax runs on CPU; one for each core by default."""


def main(arguments: list[str]) -> int:
    from llmlab.study.group import Place
    from llmlab.study.load import load_studies
    from llmlab.study.runner import python
    from llmlab.study.study import override as moved
    from llmlab.train.files import split_target
    from llmlab.train.run import code_digest

    given = target("study", "STUDY", arguments)
    file, name = split_target(given)
    name = "study" if name == "config" else name
    studies = load_studies(file, name)
    flags, base = override(f"llmlab study {given}", Flags, studies[0].base, arguments[1:], demand=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    set_up(flags.cpu_devices or (max(1, cores // flags.workers) if on_cpu() else None))
    console = Console(soft_wrap=True, highlight=False)
    root, code = flags.run or run_directory(file, name), 0
    if flags.only not in (None, *(study.name for study in studies)):
        raise ValueError(f"--only {flags.only}: there are {', '.join(study.name for study in studies)}")
    for study in studies:
        if flags.only not in (None, study.name):
            continue
        study = moved(study, base) if study is studies[0] else moved_rung(study, studies[0], base)
        if flags.seeds is not None:
            study = dataclasses.replace(study, seeds=flags.seeds)
        directory = root / study.name if len(studies) > 1 else root
        command = python("study", *arguments, "--worker", "--run", str(root), "--only", study.name)
        code = max(code, run(console, study, Place(directory, file, code_digest(file)), flags, command))
    return code


def moved_rung(study, first, base):
    """Another rung of a ladder, with the leaves that were given for the first."""
    from llmlab.config import diff, put
    from llmlab.study.study import override as moved

    rung = study.base
    for path, (_, value) in diff(first.base, base).items():
        rung = put(rung, path, value)
    return moved(study, rung)


def run(console: Console, study, place, flags: Flags, command: list[str]) -> int:
    """One study from beginning to end, or one worker of it. command: starts a worker."""
    from llmlab.study.group import Preempted
    from llmlab.study.open import clear, open_study, write
    from llmlab.study.runner import Worker, retry

    if flags.worker:
        opened = open_study(study, place.file, contracts=False, prices=False)
        try:
            return 0 if Worker(place, opened.cells).work() else EXIT_MACHINE
        except Preempted as stopped:
            print(stopped)
            return EXIT_STOPPED
    console.print(f"[bold]{study.question}[/bold]\n")
    with console.status("looking at the study") as status:
        show = lambda found: show_arms(console, found)
        opened = open_study(study, place.file, show, status.update, flags.contracts, flags.prices)
    show_gates(console, opened)
    if flags.dry:
        return 0
    place.directory.mkdir(parents=True, exist_ok=True)
    if flags.fresh:
        clear(place.directory)
    write(place.directory, opened)
    if flags.retry:
        retry(place.directory)
    try:
        finished = train(console, opened, place, flags, command)
    except (Preempted, KeyboardInterrupt) as stopped:
        console.print(f"{stopped or 'stopped'}; the same command goes on", markup=False)
        return EXIT_STOPPED
    show_end(console, place.directory, finished)
    return 0 if finished else EXIT_MACHINE


def train(console: Console, opened, place, flags: Flags, command: list[str]) -> bool:
    """Whether every cell has come to something: by this process, or by workers that it starts and watches."""
    from llmlab.study.cells import settled
    from llmlab.study.record import read_rows
    from llmlab.study.runner import Here, Pool, Slurm, Worker

    backend = Pool(workers=flags.workers) if flags.workers > 1 else Here()
    if flags.slurm:
        backend = Slurm(workers=flags.slurm, partition=flags.partition, folder=str(place.directory / "slurm"))
    worker = Worker(place, opened.cells, say=lambda text: console.print(text, markup=False))
    standing = lambda: progress(place.directory)
    with Live(console=console, get_renderable=standing, refresh_per_second=1, transient=True):
        backend.run(worker.work, command)
    rows = read_rows(place.directory)
    return settled(opened.cells.wanted(rows), rows)


def progress(directory: Path) -> Table:
    """Where every group stands."""
    import json

    from llmlab.study.cells import groups
    from llmlab.study.record import read_rows

    states = {row.key: row.state for row in read_rows(directory)}
    table = Table(box=None, pad_edge=False)
    for column in ("arm", "phase", "cells", "state", "step"):
        table.add_column(column)
    for group in groups(directory):
        found = [states.get(key, "pending") for key in group["cells"]]
        step = directory / "groups" / group["name"] / "progress.json"
        at = json.loads(step.read_text()) if step.exists() else None
        shown = ", ".join(f"{found.count(state)} {state}" for state in dict.fromkeys(found))
        where = f"{at['step']}/{at['steps']}" if at and "running" in found else ""
        table.add_row(group["arm"], group["phase"], str(len(found)), shown, where)
    return table


def show_arms(console: Console, opened) -> None:
    """The exact difference of every arm, and what matching made of it."""
    study, matched = opened.study, opened.matched
    for name, experiment in study.variants().items():
        lines = changes(study.base, experiment)
        if name == study.base_name:
            lines = "  what the others are compared with"
        elif name == study.noise:
            lines = "  the base again, with initial and dropout seeds of its own"
        turned = "".join(f"\n  matched by {path} = {value}" for path, value in matched.set[name].items())
        console.print(f"{name}\n{lines}{turned}", markup=False)
    table = Table(box=None, pad_edge=False)
    for column in ("arm", *SHOWN.values(), "off by"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, sizes in matched.sizes.items():
        numbers = ["-" if sizes[axis] is None else f"{sizes[axis]:,.4g}" for axis in SHOWN]
        table.add_row(name, *numbers, f"{matched.errors[name]:.2%}" if study.match else "-")
    what = f"matched on {SHOWN[study.match]} within {study.tolerance:.2%}" if study.match else "not matched"
    console.print(f"\n{what}")
    console.print(table)


def changes(base, arm) -> str:
    """The difference of an arm, a line a leaf; of a part that was exchanged, the new part as one."""
    from llmlab.config import Config, brief, diff, get

    def part(config, path: str):
        try:
            return get(config, path)
        except KeyError:
            return ...

    found = diff(base, arm)
    sides = {path: (part(base, path), part(arm, path)) for path in found}
    whole = [path for path, both in sides.items() if any(isinstance(side, Config | tuple) for side in both)]
    lines = []
    for path, (old, new) in sides.items():
        if not any(path.startswith(f"{other}.") for other in whole):
            name = type(old).__name__ if isinstance(old, Config) else "absent" if old is ... else repr(old)
            lines.append(f"  {path}: {name} -> {'absent' if new is ... else brief(new)}")
    return "\n".join(lines)


def show_gates(console: Console, opened) -> None:
    """Contract, declarations, memory, cost, and what can be found."""
    from llmlab.study.gates import declared
    from llmlab.study.power import detectable_effect

    study = opened.study
    console.print("\ntask, metric, tokenizer, evaluation tokens and bytes: the same for every arm")
    table = Table(box=None, pad_edge=False)
    for column in ("arm", "declares", "contract", "memory", "step", "compile"):
        table.add_column(column)
    for name, experiment in opened.matched.experiments.items():
        holds = ", ".join(what.replace("_", "-") for what, is_so in declared(experiment).items() if is_so) or "-"
        seen = opened.contracts.get(name)
        kept = (
            "not looked at"
            if seen is None
            else "holds: " + ", ".join(check for check, text in seen.items() if not text.startswith("not applicable"))
        )
        price = opened.prices.get(name)
        memory = f"{price.bytes / 1e6:,.0f} MB" if price and price.bytes else "-"
        times = (f"{1e3 * price.seconds:,.0f} ms", f"{price.compile:.0f} s") if price else ("-", "-")
        table.add_row(name, holds, kept, memory, *times)
    console.print(table)
    cost = opened.cost
    seconds = "" if cost["seconds"] is None else f", about {cost['seconds'] / 60:.1f} minutes on one worker here"
    console.print(f"\n{cost['runs']} runs, {cost['flops']:.3g} FLOPs{seconds}")
    least = detectable_effect(1.0, study.seeds, study.alpha, study.power) if study.seeds > 1 else None
    found = f"{least:.2f} standard deviations of a paired difference" if least else "nothing: one seed has no spread"
    console.print(f"{study.seeds} seeds find, with a power of {study.power:.0%} at {study.alpha:g}: {found}\n")


def show_end(console: Console, directory: Path, finished: bool) -> None:
    """The verdicts, what failed, and where the report is."""
    from llmlab.study.record import read_rows
    from llmlab.study.report import write as write_report
    from llmlab.study.runner import FAILED
    from llmlab.study.tables import verdict_table

    rows = read_rows(directory)
    for row in rows:
        if row.error:
            console.print(f"{row.arm} {row.phase} {row.replicate}: {row.state}: {row.error}", markup=False)
    if any(row.state in FAILED for row in rows):
        console.print("some cells have failed; --retry trains them anew")
    elif not finished:
        console.print("every worker has ended before the study has; the same command goes on")
    console.print(verdict_table(directory, console.width), markup=False)
    console.print(f"report: {write_report(directory)[0]}", markup=False)
