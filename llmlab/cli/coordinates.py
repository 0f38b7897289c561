"""`llmlab coordinates EXPERIMENT`."""

from __future__ import annotations

import dataclasses

from rich.console import Console
from rich.table import Table

from llmlab.cli.arguments import parse, positive, set_up

LIMIT = 0.1  # of the slope in muP


@dataclasses.dataclass
class Flags:
    """The coordinate check of muP: how activations of a few steps grow with width, the experiment being the base."""

    times: tuple[int, ...] = (1, 2, 4)
    """Multiples of the base's width, hidden sizes and heads."""
    steps: int = 6
    """Steps of training on one random batch; the slopes are those of the last."""


def main(arguments: list[str]) -> int:
    flags, experiment = parse("coordinates", Flags, arguments)
    positive(flags, "steps")
    if min(flags.times, default=0) < 1 or len(set(flags.times)) < 2:
        raise ValueError(f"--times {' '.join(map(str, flags.times))}: a slope needs two multiples, each 1 or more")
    set_up()
    from llmlab.testing.coordinates import KINDS, check

    found = check(experiment, flags.times, flags.steps)
    table = Table(box=None, pad_edge=False)
    for column in ("slope of log size against log width", *found):
        table.add_column(column, justify="right" if column in found else "left")
    for kind in KINDS:
        table.add_row(kind, *(f"{slopes[kind]:+.2f}" for slopes in found.values()))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    most = max(abs(found["muP"][kind]) for kind in KINDS)
    console.print(f"largest slope in muP: {most:.2f} (at most {LIMIT} is wanted)")
    return 0 if most <= LIMIT else 1
