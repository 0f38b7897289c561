"""The loop: one for every architecture, task and optimizer. It knows none of them."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import jax
import numpy as np

from llmlab.kernels.receipt import receipt
from llmlab.train.checkpoint import Checkpoints
from llmlab.train.experiment import Experiment, check_vocab
from llmlab.train.feed import Feed
from llmlab.train.meter import Meter
from llmlab.train.metrics import Log
from llmlab.train.plans import check_plans
from llmlab.train.program import Program, State
from llmlab.train.run import Run, RunError
from llmlab.train.signals import Signals


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
    experiment = experiment.filled()
    settings = experiment.train
    check_vocab(experiment)
    program = Program(experiment, experiment.mesh.build())
    program.rows(experiment.data.batch // settings.accumulate, experiment.data.length)  # refused before a run begins
    check_plans(experiment, directory, program.mesh)
    dataset = experiment.open_data(print if jax.process_index() == 0 else lambda _: None)
    check_prompt(experiment, program, dataset)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())  # from here on, to be stopped is to save first
        run = Run(directory, experiment, file)
        stack.callback(run.close)
        resume = run.open(fresh)
        log = Log(run.directory, settings.steps, active=jax.process_index() == 0, wandb=wandb)
        stack.callback(log.close)
        checkpoints = Checkpoints(run.checkpoints, keep=settings.keep)
        stack.callback(checkpoints.close)
        state, start, index, skipped = begin(program, dataset, checkpoints, run, resume)
        feed = Feed(program, dataset, index)
        stack.callback(feed.close)
        meter = Meter(program, log, skipped)
        kernels = stack.enter_context(receipt(settings.kernels == "fast"))
        validation, step, text = {}, start, dataset.fingerprint
        log.start(step)
        while True:
            last, stop = step == settings.steps, signals.asked(step)
            if last or (due(step, settings.eval_every) and step > start):
                meter.flush()
                validation = evaluate(program, state, dataset, None if last else settings.eval_batches)
                meter.validated(step, validation, new=step > start or not resume)
            if (last or stop or due(step, settings.save_every)) and (step > start or not resume):
                meter.flush()
                checkpoints.save(step, state, {"data_index": feed.index, "skipped": meter.skipped, "data": text})
                meter.pause()
            checkpoints.poll()
            if last or stop:
                break
            state, metrics = program.step(state, feed.next())
            step += 1
            meter.took(step, metrics, feed.waited())
            if step == start + 1:
                log.say("kernels: " + "; ".join(f"{name}: {kernel}" for name, kernel in kernels.items()))
        checkpoints.wait()
        return Result(state, validation, last, program, dataset)


def check_prompt(experiment: Experiment, program: Program, dataset) -> None:
    """Raises, before anything is trained, when the sample of the end could not be made."""
    prompt = experiment.train.prompt
    if prompt is None:
        return
    if not experiment.model.declared().decodable:
        raise ValueError(f"train.prompt is {prompt!r}, and the model is not decodable; set it to None")
    ids = dataset.encoder.encode(prompt).tolist()
    length, longest = len(experiment.task.ask(ids, experiment.data.vocab).tokens), program.model.longest
    if not 0 < length < (longest or length + 1):
        raise ValueError(f"train.prompt {prompt!r} is {length} tokens; it needs 1 or more, and fewer than {longest}")


def due(step: int, every: int | None) -> bool:
    return every is not None and step > 0 and step % every == 0


def begin(program: Program, dataset, checkpoints: Checkpoints, run: Run, resume: bool):
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
    if saved["data"] != dataset.fingerprint:
        raise RunError(
            f"{run.directory} was trained on other text than its source gives now; "
            "restore the text, start over with --fresh, or give another directory with --run"
        )
    run.truncate(step)
    done = step == program.experiment.train.steps
    if jax.process_index() == 0:
        print(f"{run.directory}: " + (f"all {step} steps are done" if done else f"going on from step {step}"))
    return state, step, saved["data_index"], saved["skipped"]


def evaluate(program: Program, state: State, dataset, limit: int | None = None) -> dict[str, float]:
    """Metrics over the fixed windows of the validation split, or its first `limit` batches."""
    sums: dict[str, float] = {}
    for batch in Feed(program, dataset, None, limit):
        for name, value in program.evaluate(state["params"], state["stats"], batch).items():
            sums[name] = sums.get(name, 0.0) + np.asarray(value, np.float64)
    return {name: float(value) for name, value in program.experiment.task.report(sums).items()}
