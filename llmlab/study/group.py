"""Training of one group of cells as one program, from its last checkpoint to rows that are final.

    groups/<name>/claim.*, progress.json, checkpoints/    while it trains; the checkpoints go when the rows are written
    cells/<key>/run.json, metrics.jsonl, checkpoints/     what `llmlab eval` and `generate` read, one replica each

The last checkpoint is committed before the first row is final, so a worker may die at any moment: whoever takes the
group over computes the same rows again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from pathlib import Path

import jax
import numpy as np

from llmlab.study.cells import Cell
from llmlab.study.claim import Claim
from llmlab.study.likeness import evaluation_of, hardware, task_name, tokenizer_name
from llmlab.study.matching import measure
from llmlab.study.record import OUTCOMES, Row, from_json, replace, write_row
from llmlab.study.replicas import Replicas
from llmlab.study.study import Study
from llmlab.train.checkpoint import Checkpoints
from llmlab.train.loop import due
from llmlab.train.run import Run
from llmlab.train.signals import Signals

SAVE_SECONDS = 60.0  # between checkpoints, where the experiment does not say


class Preempted(Exception):
    """The worker was told to stop and has saved."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a study runs: its directory, its file, and the digest of its code."""

    directory: Path
    file: Path | None
    code: str


class Clock:
    """Seconds of training steps alone: no compilation, evaluation or checkpoint."""

    def __init__(self, spent: float = 0.0, steps: int = 0):
        self.spent, self.steps, self.since = spent, steps, None

    def step(self) -> None:
        """A step has ended; the first after a pause only starts the clock."""
        now = time.perf_counter()
        if self.since is not None:
            self.spent, self.steps = self.spent + now - self.since, self.steps + 1
        self.since = now

    def pause(self) -> None:
        self.since = None

    def at(self, step: int) -> float:
        """Seconds that so many steps take."""
        return self.spent / self.steps * step if self.steps else 0.0


class Group:
    """Cells that train together."""

    def __init__(self, place: Place, study: Study, name: str, cells: list[Cell]):
        self.place, self.study, self.cells = place, study, cells
        self.folder = Path(place.directory) / "groups" / name
        self.experiment = cells[0].experiment
        self.settings = self.experiment.train
        self.sizes = measure(self.experiment)
        self.clock = Clock()
        self.curves: list[list[dict]] = [[] for _ in cells]

    def run(self, claim: Claim) -> None:
        """Trains to the end and writes the rows. Raises Preempted, Lost, or what went wrong."""
        self.datasets = [cell.experiment.open_data(lambda _: None) for cell in self.cells]
        self.evaluations = [evaluation_of(dataset) for dataset in self.datasets]
        self.replicas = Replicas([c.experiment for c in self.cells], [c.seeds for c in self.cells])
        with contextlib.ExitStack() as stack:
            checkpoints = Checkpoints(self.folder / "checkpoints", keep=1)
            stack.callback(checkpoints.close)
            signals = stack.enter_context(Signals())
            state, step = self.begin(checkpoints)
            self.write("running")
            state = self.train(state, step, checkpoints, claim, signals)
            checkpoints.wait()
            claim.check()
            self.finish(state)
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    def begin(self, checkpoints: Checkpoints):
        """(state, step): of the last checkpoint that verifies, or new."""
        step = checkpoints.latest()
        if step is None:
            return self.replicas.start(), 0
        state, meta = checkpoints.restore(step, self.replicas.abstract_state)
        self.curves, self.clock = meta["curves"], Clock(*meta["clock"])
        return state, step

    def train(self, state, step: int, checkpoints: Checkpoints, claim: Claim, signals: Signals):
        """The state after the last step, saved."""
        settings, begun = self.settings, step
        batches = [dataset.train(step * self.experiment.data.batch) for dataset in self.datasets]
        previous, saved, looked = None, time.monotonic(), 0.0
        try:
            while True:
                last, stop = step == settings.steps, signals.asked(step)
                if due(step, settings.eval_every) and not last and step > begun:
                    self.evaluate(state, step, settings.eval_batches)
                    self.write("running")
                if (last or stop or self.save_due(step, saved)) and step not in checkpoints.steps():
                    self.save(checkpoints, state, step)
                    saved = time.monotonic()
                if time.monotonic() - looked > 1:
                    claim.check()
                    self.tell(step)
                    looked = time.monotonic()
                if last:
                    return state
                if stop:
                    checkpoints.wait()
                    raise Preempted(f"stopped at step {step} of {settings.steps}, and saved")
                batch = stacked([next(source) for source in batches])
                state, metrics = self.replicas.step(state, batch, self.replicas.numbers)
                step += 1
                jax.block_until_ready(previous)  # at most one step ahead of the devices
                previous = metrics["objective"]
                self.clock.step()
        finally:
            for source in batches:
                source.close()

    def save_due(self, step: int, saved: float) -> bool:
        every = self.settings.save_every
        return step > 0 and (due(step, every) if every else time.monotonic() - saved > SAVE_SECONDS)

    def save(self, checkpoints: Checkpoints, state, step: int) -> None:
        meta = {"curves": self.curves, "clock": [self.clock.spent, self.clock.steps]}
        checkpoints.save(step, state, meta)
        self.clock.pause()

    def evaluate(self, state, step: int, limit: int | None) -> tuple[list[dict[str, float]], list[list[float]]]:
        """The metrics of every replica, which join its curve while it is alive, and the primary one on every batch."""
        sums: dict[str, np.ndarray] = {}
        parts: list[list[float]] = [[] for _ in self.cells]
        for batches in zip(*(dataset.validation(limit) for dataset in self.datasets)):
            out = self.replicas.evaluate(state["params"], state["stats"], stacked(batches), self.replicas.numbers)
            out = {name: np.asarray(values, np.float64) for name, values in jax.device_get(out).items()}
            for part, report in zip(parts, self.reports(out)):
                part.append(report[self.study.metric])
            sums = {name: sums.get(name, 0.0) + values for name, values in out.items()}
        stopped, found = np.asarray(state["stopped"]), self.reports(sums)
        for i, curve in enumerate(self.curves):
            if not stopped[i]:
                curve.append({"step": step, **self.spent(step), **found[i]})
        self.clock.pause()
        return found, parts

    def reports(self, sums: dict[str, np.ndarray]) -> list[dict[str, float]]:
        """What the sums of every replica say."""
        report = lambda i: self.experiment.task.report({name: values[i] for name, values in sums.items()})
        return [{name: float(value) for name, value in report(i).items()} for i in range(len(self.cells))]

    def spent(self, step: int) -> dict[str, float]:
        """What one cell has cost after so many steps; of time, its share of the program's."""
        share = step / self.settings.steps
        seconds = self.clock.at(step) / len(self.cells)
        return {"tokens": self.sizes["tokens"] * share, "flops": self.sizes["flops"] * share, "seconds": seconds}

    # --- what is written ---------------------------------------------------------------------------------------

    def tell(self, step: int) -> None:
        """Progress, for whoever watches."""
        replace(self.folder / "progress.json", json.dumps({"step": step, "steps": self.settings.steps}))

    def row(self, number: int, state: str, metrics: dict[str, float], error: str = "", batches=()) -> Row:
        cell, study = self.cells[number], self.study
        known = hasattr(self, "evaluations")
        return Row(
            study=study.name,
            arm=cell.arm,
            phase=cell.phase,
            replicate=cell.replicate,
            trial=cell.trial,
            seeds=cell.seeds,
            key=cell.key,
            state=state,
            metrics=metrics,
            curve=self.curves[number],
            axes={**self.sizes, "seconds": self.spent(self.settings.steps)["seconds"]},
            task=task_name(cell.experiment.task),
            metric=study.metric,
            tokenizer=tokenizer_name(cell.experiment.data),
            evaluation=self.evaluations[number] if known else {},
            code=self.place.code,
            hardware=hardware(),
            batches=list(batches),
            error=error,
        )

    def write(self, state: str, error: str = "") -> None:
        """A row for every cell that has come to nothing yet."""
        for number, cell in enumerate(self.cells):
            if not final(self.place.directory, cell.key):
                curve = self.curves[number]
                metrics = {name: v for name, v in curve[-1].items() if name not in COSTS} if curve else {}
                write_row(self.place.directory, self.row(number, state, metrics, error))

    def finish(self, state) -> None:
        """Scores the whole evaluation set and writes what each cell came to."""
        found, parts = self.evaluate(state, self.settings.steps, None)
        stopped = np.asarray(jax.device_get(state["stopped"]))
        host = jax.device_get(state)
        for number, cell in enumerate(self.cells):
            if final(self.place.directory, cell.key):
                continue
            self.keep(number, host)
            if stopped[number]:
                error = f"loss or gradient not finite at step {stopped[number]}"
                row = self.row(number, "diverged", {}, error)
            else:
                row = self.row(number, "done", found[number], batches=parts[number])
            write_row(self.place.directory, row)

    def keep(self, number: int, state) -> None:
        """The run directory of one cell: its experiment, its curve, its parameters."""
        cell = self.cells[number]
        run = Run(Path(self.place.directory) / "cells" / cell.key, cell.experiment, self.place.file)
        run.open(fresh=True)
        lines = ({"step": p["step"], "kind": "validation", **p} for p in self.curves[number])
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        checkpoints = Checkpoints(run.checkpoints)
        one = self.replicas.one(state, number)
        meta = {
            "data_index": self.settings.steps * self.experiment.data.batch,
            "skipped": int(state["skipped"][number]),
        }
        checkpoints.save(self.settings.steps, {k: one[k] for k in ("step", "params", "stats", "rng")}, meta)
        checkpoints.close()
        run.close()


COSTS = ("step", "tokens", "flops", "seconds")


def final(directory: Path, key: str) -> bool:
    """Whether a cell has come to something."""
    path = Path(directory) / "cells" / key / "row.json"
    return path.exists() and from_json(path.read_text()).state in OUTCOMES


def stacked(batches) -> dict[str, np.ndarray]:
    """Batches of all replicas as one, with the replica's axis first."""
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
