"""A plan as a page of a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmlab.plan.report import Plan
from llmlab.plan.search import flags, told

BAR = 40
COLORS = {"parameters": "blue", "optimizer": "magenta", "batch": "cyan", "kept": "green", "temporaries": "yellow"}
WORDS = {
    "parameters": "parameters",
    "optimizer": "optimizer",
    "batch": "batch and statistics",
    "kept": "activations kept for the backward pass",
    "temporaries": "temporaries (gradients, layers at work, gathered weights)",
}


def show_plan(console: Console, plan: Plan, name: str) -> None:
    """The whole page: verdict, memory, work, messages, time, kernels."""
    experiment, topology = plan.experiment, plan.topology
    what = f"{topology.chip.name} chips" if topology.chip else "host devices"
    console.print(Text.assemble((name, "bold"), " on ", (topology.name, "bold"), f": {topology.chips:,} {what}"))
    data = experiment.data
    console.print(
        f"{plan.parameters:,} parameters, mesh {shown(plan)}, batch {data.batch:,} x {data.length:,} tokens"
        + (f" in {experiment.train.accumulate} parts" if experiment.train.accumulate > 1 else "")
    )
    console.print()
    show_memory(console, plan)
    show_work(console, plan)
    show_messages(console, plan)
    show_time(console, plan)
    for function, kernel in plan.kernels.items():
        console.print(f"  {function}: {kernel}", style="yellow" if "instead of" in kernel else "")
    spent = plan.seconds
    console.print(
        f"\ntraced in {spent['trace']:.1f}, compiled in {spent['cpu']:.1f} CPU seconds ({spent['wall']:.1f} s)",
        style="dim",
    )


def shown(plan: Plan) -> str:
    sizes = plan.experiment.mesh.resolve(len(plan.topology.devices))
    slices = f", {plan.experiment.mesh.slices} slices" if plan.experiment.mesh.slices > 1 else ""
    return (" x ".join(f"{axis} {n}" for axis, n in sizes.items() if n > 1) or "data 1") + slices


def show_memory(console: Console, plan: Plan) -> None:
    memory = plan.memory
    if plan.refusal:
        console.print(Text.assemble(("DOES NOT FIT ", "bold red"), plan.refusal))
    else:
        verdict = {True: ("FITS", "bold green"), False: ("DOES NOT FIT", "bold red"), None: ("MEMORY", "bold")}
        room = f" of {size(memory.capacity)} ({memory.peak / memory.capacity:.0%})" if memory.capacity else ""
        console.print(Text.assemble(verdict[plan.fits], f"  {size(memory.peak)}{room} of each device at the peak"))
    parts = {name: getattr(memory, name) for name in COLORS}
    whole = max(memory.capacity or 0, sum(parts.values()))
    bar = Text("  ")
    for name, value in parts.items():
        bar.append("█" * round(BAR * value / whole), style=COLORS[name])
    console.print(bar.append("░" * max(BAR + 2 - len(bar), 0), style="dim"))
    table = grid()
    for name, value in parts.items():
        table.add_row(Text("■", style=COLORS[name]), size(value), WORDS[name])
    console.print(table)


def show_work(console: Console, plan: Plan) -> None:
    flops = plan.flops
    console.print("\nwork of one device in a step", style="bold")
    table = grid()
    table.add_row("", work(flops["algorithmic"]), "algorithmic: what a mask shows, nothing twice")
    more = flops["executed"] / flops["algorithmic"] - 1
    table.add_row("", work(flops["executed"]), f"executed by products ({more:+.0%})")
    table.add_row("", work(flops["elementwise"]), "elementwise, apart")
    console.print(table)


def show_messages(console: Console, plan: Plan) -> None:
    if not plan.collectives:
        return
    console.print("\nmessages of one device in a step, loops multiplied in", style="bold")
    table = grid()
    for kind, row in sorted(plan.collectives.items(), key=lambda item: -item[1]["bytes"]):
        table.add_row(
            "", f"{row['count']:,.0f}", Text.assemble(f"{kind}  ", (size(row["bytes"]), "bold"), " of results")
        )
    console.print(table)
    if plan.between_slices:
        console.print(f"   {size(plan.between_slices)} of it between slices")


def show_time(console: Console, plan: Plan) -> None:
    times, steps = plan.times, plan.experiment.train.steps
    if times is None:
        return console.print()
    console.print(f"\na step takes {span(times.step)} at the least, bound by {times.bound}", style="bold")
    table = grid()
    for words, seconds in (
        ("products", times.compute),
        ("memory traffic (estimate)", times.memory),
        ("messages in the slice", times.link),
        ("messages between slices", times.network),
        ("of messages, not beside computation", times.exposed),
    ):
        if seconds:
            table.add_row("", span(seconds), words)
    console.print(table)
    console.print(
        f"\n  MFU {plan.mfu:.1%} at best, {plan.tokens / times.step:,.0f} tokens/s; {steps:,} steps of "
        f"{plan.tokens:,} tokens are {steps * plan.tokens:.3g} tokens: {span(86400 * plan.days)}, "
        f"{amount(plan.chip_hours)} chip-hours"
        + (f", {amount(plan.chip_hours * plan.price)} to pay" if plan.price else "")
    )
    console.print(f"  rates: {plan.topology.chip.source}\n", style="dim")


def show_arms(console: Console, made: dict[str, Plan]) -> None:
    """One line for each arm of a study."""
    table = Table(box=None, pad_edge=False)
    for column in ("arm", "parameters", "peak of a device", "step at the least", "MFU at best", "chip-hours"):
        table.add_column(column, no_wrap=True, justify="left" if column == "arm" else "right")
    for name, one in made.items():
        timed = (span(one.times.step), f"{one.mfu:.1%}", f"{one.chip_hours:,.1f}") if one.times else ("", "", "")
        peak = size(one.memory.peak) + (", does not fit" if one.fits is False else "")
        table.add_row(name, f"{one.parameters:,}", peak, *timed, style="red" if one.fits is False else "")
    console.print(table)


def show_search(console: Console, found: list[Plan], default: Plan | None) -> None:
    """The trades of step time against memory, and the experiment as it was written."""
    if not found:
        return console.print("no layout fits; take more devices, a smaller batch, or other parts", style="bold red")
    table = Table(box=None, pad_edge=False)
    for column in ("layout", "step at the least", "MFU at best", "peak of a device", "compiled in"):
        table.add_column(column, no_wrap=True, justify="left" if column == "layout" else "right")
    for one in found + [default] * (default is not None):
        words = told(one.experiment, len(one.topology.devices)) + (" (as written)" if one is default else "")
        took = f"{one.seconds['cpu']:.0f} CPU s"
        figures = (span(one.times.step), f"{one.mfu:.1%}") if one.times else ("does not fit", "")
        table.add_row(words, *figures, size(one.memory.peak), took, style="dim" if one is default else "")
    console.print(table)
    console.print("\nthe flags of each, in this order", style="bold")
    for one in found:
        console.print(f"  {flags(one.experiment, len(one.topology.devices))}")


def grid() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(width=1)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    return table


def size(count: float) -> str:
    return scaled(count, ("B", "kB", "MB", "GB", "TB"))


def work(flops: float) -> str:
    return scaled(flops, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def scaled(count: float, units: tuple[str, ...]) -> str:
    """Three digits and the unit."""
    for unit in units[:-1]:
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} {units[-1]}"


def span(seconds: float) -> str:
    """In the largest unit of which there are two.

    >>> span(0.0123), span(90), span(10_000), span(400_000)
    ('12.3 ms', '90.00 s', '2.8 hours', '4.6 days')
    """
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def amount(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
