"""The loop: one for every architecture, task and optimizer. It knows none of them."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from llmlab.config import digest
from llmlab.data import check_vocab
from llmlab.kernels.receipt import receipt
from llmlab.train.checkpoint import Checkpoints
from llmlab.train.experiment import Experiment, Skip
from llmlab.train.metrics import Clock, Log
from llmlab.train.peak import peak_flops
from llmlab.train.program import Program, State
from llmlab.train.run import Run, RunError
from llmlab.train.signals import Signals


class Diverged(Exception):
    """A loss or gradient that is not finite, after which the experiment's guard does not go on."""


@dataclasses.dataclass
class Result:
    """What a run leaves: its state, its last validation, whether all steps were done, and what made it."""

    state: State
    validation: dict[str, float]
    finished: bool
    program: Program
    dataset: object


def train(experiment: Experiment, directory: Path, file: Path | None = None, fresh=False, wandb=None) -> Result:
    """Trains, or goes on with, the run in `directory`; see llmlab/train/run.py for what it may find there."""
    run = Run(directory, experiment, file)
    resume = run.open(fresh)
    settings = experiment.train
    log = Log(run.directory, settings.steps, active=jax.process_index() == 0, wandb=wandb)
    checkpoints = None
    try:
        dataset = experiment.data.open(report=log.say)
        check_vocab(experiment.data.tokenizer, experiment.model.vocab)
        program = Program(experiment, experiment.mesh.build())
        checkpoints = Checkpoints(run.checkpoints, keep=settings.keep)
        state, step, index, skipped = begin(program, checkpoints, run, resume, log)
        feed = Feed(program, dataset, index)
        meter = Meter(program, log, skipped)
        validation = {}
        log.start(step)
        with Signals() as signals, receipt() as kernels:
            first = step
            while True:
                last, stop = step == settings.steps, signals.asked(step)
                new = step > first or not resume
                if (last or due(step, settings.eval_every)) and new or last:
                    meter.flush()
                    validation = evaluate(program, state, dataset, settings.eval_batches)
                    if new:
                        log.write("validation", step, validation)
                    meter.clock.since = None
                if (last or stop or due(step, settings.save_every)) and step > first:
                    meter.flush()
                    checkpoints.save(step, state, meta(experiment, step, feed.index, meter.skipped))
                checkpoints.poll()
                if last or stop:
                    break
                state, metrics = program.step(state, feed.next())
                step += 1
                meter.took(step, metrics, feed.waited())
                if step == first + 1:
                    log.say("kernels: " + "; ".join(f"{name}: {kernel}" for name, kernel in kernels.items()))
        meter.flush()
        checkpoints.wait()
        return Result(state, validation, last, program, dataset)
    finally:
        log.close()
        if checkpoints is not None:
            checkpoints.close()
        run.close()


def due(step: int, every: int | None) -> bool:
    return every is not None and step > 0 and step % every == 0


def begin(program: Program, checkpoints: Checkpoints, run: Run, resume: bool, log: Log):
    """(state, step, data index, skipped steps): from the last good checkpoint, or new."""
    if not resume:
        return program.init(), 0, 0, 0
    step = checkpoints.latest()
    if step is None:
        raise RunError(
            f"{run.directory} has a run.json and no checkpoint that verifies; nothing was changed: "
            "start over with --fresh, or give another directory with --run"
        )
    state, saved = checkpoints.restore(step, program.abstract_state)
    run.truncate(step)
    done = step == program.experiment.train.steps
    log.say(f"{run.directory}: " + (f"all {step} steps are done" if done else f"going on from step {step}"))
    return state, step, saved["data_index"], saved["skipped"]


def meta(experiment: Experiment, step: int, index: int, skipped: int) -> dict:
    return {"step": step, "data_index": index, "skipped": skipped, "experiment": digest(experiment)}


def evaluate(program: Program, state: State, dataset, limit: int | None = None) -> dict[str, float]:
    """Metrics over the fixed windows of the validation split, or its first `limit` batches."""
    feed = Feed(program, dataset, None, limit)
    sums: dict[str, float] = {}
    for batch in feed:
        for name, value in program.evaluate(state["params"], state["stats"], batch).items():
            sums[name] = sums.get(name, 0.0) + np.asarray(value, np.float64)
    return {name: float(value) for name, value in program.experiment.task.report(sums).items()}


class Feed:
    """Batches on the devices: of training from an index, or of validation once (index None)."""

    def __init__(self, program: Program, dataset, index: int | None, limit: int | None = None):
        data = program.experiment.data
        self.program, self.total = program, data.batch
        self.rows = program.rows(data.batch, data.length)
        share = self.rows[1] - self.rows[0]
        place = {"process": self.rows[0] // share, "processes": data.batch // share}
        self.batches = dataset.validation(limit, **place) if index is None else dataset.train(index, **place)
        self.seconds = 0.0

    @property
    def index(self) -> int:
        """The global example that comes next: all that a checkpoint needs of the data."""
        return self.batches.next_index

    def next(self):
        began = time.perf_counter()
        batch = self.program.put(next(self.batches), self.rows, self.total)
        self.seconds += time.perf_counter() - began
        return batch

    def __iter__(self):
        for batch in self.batches:
            yield self.program.put(batch, self.rows, self.total)

    def waited(self) -> float:
        """Seconds spent on data since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Meter:
    """Reads the metrics of a step while the next one runs, and guards against numbers that are not finite."""

    def __init__(self, program: Program, log: Log, skipped: int):
        experiment = program.experiment
        self.program, self.log, self.skipped = program, log, skipped
        self.guard, self.every = experiment.train.guard, experiment.train.log_every
        rows = experiment.data.batch
        peak, source = peak_flops(program.mesh)
        log.say(f"MFU is of {peak / 1e12:.2f} TFLOP/s ({source})")
        self.clock = Clock(rows * experiment.data.length, rows * program.flops_per_row, peak)
        self.pending: tuple[int, dict] | None = None

    def took(self, step: int, metrics: dict, waited: float) -> None:
        """Takes the metrics of update number `step`, and deals with those of the update before."""
        self.flush()
        self.pending = (step, metrics)
        self.clock.waited += waited

    def flush(self) -> None:
        """Deals with what is pending; waits for its step to end."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        values = jax.device_get(metrics)
        finite = values.pop("finite_grads")
        if not values.pop("finite"):
            self.refuse(step, float(values["loss"]), finite)
        if step % self.every == 0 or self.clock.since is None:
            own = {name: float(values.pop(name)) for name in ("grad_norm", "learning_rate")}
            found = {k: float(v) for k, v in self.program.experiment.task.report(values).items()} | own
            found |= self.clock.look(step) | ({"skipped": self.skipped} if self.skipped else {})
            if step % self.every == 0:
                self.log.write("train", step, found)
            self.log.show(step, found)

    def refuse(self, step: int, loss: float, finite) -> None:
        names = [".".join(path) for path, good in zip(sorted(self.program.specs), finite) if not good]
        self.skipped += 1
        text = f"step {step}: loss {loss}, gradients not finite in {', '.join(names[:5]) or 'none'}"
        text += f" and {len(names) - 5} more" if len(names) > 5 else ""
        if isinstance(self.guard, Skip) and self.skipped <= self.guard.limit:
            self.log.say(f"{text}; the update was skipped ({self.skipped} of at most {self.guard.limit})")
            return
        raise Diverged(
            f"{text}; the update was not applied and the run has stopped. Lower optim.peak, or let the guard skip "
            "such steps (train.guard = Skip())"
        )
