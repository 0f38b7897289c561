"""What the metrics of a step tell: rates, what is logged, and whether the numbers are finite."""

from __future__ import annotations

import jax

from llmlab.train.experiment import Skip
from llmlab.train.metrics import Clock, Log
from llmlab.train.peak import peak_flops
from llmlab.train.program import Program


class Diverged(RuntimeError):
    """A loss or gradient that is not finite, after which the experiment's guard does not go on."""

    exit_code = 70


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
            self.refuse(step, float(values["objective"]), finite)
        if step % self.every == 0 or self.clock.since is None:
            own = {name: float(values.pop(name)) for name in ("objective", "grad_norm", "learning_rate")}
            found = {k: float(v) for k, v in self.program.experiment.task.report(values).items()} | own
            found |= self.clock.look(step) | ({"skipped": self.skipped} if self.skipped else {})
            if step % self.every == 0:
                self.log.write("train", step, found)
            self.log.show(step, found)

    def validated(self, step: int, metrics: dict[str, float], new: bool) -> None:
        """Takes an evaluation; the time that it took is no part of the rates."""
        if new:
            self.log.write("validation", step, metrics)
        self.pause()

    def pause(self) -> None:
        """Keeps the time until the next step out of the rates."""
        self.clock.since = None

    def refuse(self, step: int, loss: float, finite) -> None:
        names = [".".join(path) for path, good in zip(sorted(self.program.specs), finite) if not good]
        self.skipped += 1
        text = f"step {step}: loss {loss}, gradients not finite in {', '.join(names[:5]) or 'none'}"
        text += f" and {len(names) - 5} more" if len(names) > 5 else ""
        if isinstance(self.guard, Skip) and self.skipped <= self.guard.limit:
            self.log.say(f"{text}; the update was skipped ({self.skipped} of at most {self.guard.limit})")
            return
        raise Diverged(
            f"{text}; the update was not applied and the run has stopped. Lower optim.peak in a new run, or go on "
            "with a guard that skips such steps (train.guard = Skip())"
        )
