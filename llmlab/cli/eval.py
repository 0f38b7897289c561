"""`llmlab eval RUN`."""

from __future__ import annotations

import dataclasses
import json
import sys

from llmlab.cli.arguments import parse_run, positive, set_up


@dataclasses.dataclass
class Flags:
    """Score a run's newest good checkpoint on fixed windows of its validation split."""

    step: int | None = None
    """Another checkpoint, by its step."""
    batches: int | None = None
    """Only so many batches; the whole split by default."""
    cpu_devices: int | None = None
    """Host devices to show jax in place of one CPU."""


def main(arguments: list[str]) -> int:
    flags, experiment, directory = parse_run("eval", Flags, arguments)
    positive(flags, "batches")
    set_up(flags.cpu_devices)
    from llmlab.train.loop import evaluate
    from llmlab.train.restore import restore_model

    dataset = experiment.open_data(lambda text: print(text, file=sys.stderr))
    program, state, step = restore_model(directory, experiment, flags.step)
    metrics = evaluate(program, state, dataset, flags.batches)
    print(json.dumps({"run": str(directory), "step": step, **metrics}, indent=1))
    return 0
