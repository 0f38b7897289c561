"""What a run says of itself: lines of JSON, TensorBoard and Weights & Biases where wanted, and the live display."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Log:
    """Writes metrics of steps; one writer in a job, silent in the other processes."""

    def __init__(self, directory: Path, steps: int, active: bool, wandb: str | None = None):
        self.active, self.steps = active, steps
        self.console = Console(quiet=not active, highlight=False)
        self.file = (directory / "metrics.jsonl").open("a") if active else None
        self.board = self.tracker = None
        if active and importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(directory / "tensorboard"), write_to_disk=True)
        if active and wandb:
            import wandb as tracker

            self.tracker = tracker.init(project=wandb, name=directory.name, id=directory.name, resume="allow")
        self.progress = None

    def start(self, step: int) -> None:
        """Shows the progress bar, on a terminal."""
        if not (self.active and self.console.is_terminal):
            return
        columns = (TextColumn("step {task.completed}/{task.total}"), BarColumn(bar_width=24))
        self.progress = Progress(
            *columns, TextColumn("{task.description}"), TimeRemainingColumn(), console=self.console
        )
        self.task = self.progress.add_task("compiling", total=self.steps, completed=step)
        self.progress.start()

    def write(self, kind: str, step: int, metrics: dict[str, float]) -> None:
        """One line of JSON (`kind` is train or validation), and the same numbers to the other writers."""
        if not self.active:
            return
        self.file.write(json.dumps({"step": step, "kind": kind, **metrics}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in metrics.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)
        if self.tracker is not None:
            self.tracker.log({f"{kind}/{name}": value for name, value in metrics.items()}, step=step)
        if kind == "validation":
            self.say(f"step {step}: validation {summary(metrics)}")
        elif self.progress is None:
            self.say(f"step {step}/{self.steps} {summary(metrics)} {left(step, self.steps, metrics)}")

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """Moves the bar."""
        if self.progress is not None:
            self.progress.update(self.task, completed=step, description=summary(metrics))

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
        for writer in (self.file, self.board):
            if writer is not None:
                writer.close()
        if self.tracker is not None:
            self.tracker.finish()


def summary(metrics: dict[str, float]) -> str:
    """The metrics that a person watches."""
    shown = {
        "loss": "loss {:.3f}",
        "bits_per_byte": "{:.3f} bits/byte",
        "accuracy": "accuracy {:.3f}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "mfu": "MFU {:.0%}",
    }
    return ", ".join(text.format(metrics[name]) for name, text in shown.items() if name in metrics)


def left(step: int, steps: int, metrics: dict[str, float]) -> str:
    """The time that the rest of the run takes at the present rate."""
    if not metrics.get("seconds_per_step"):
        return ""
    seconds = (steps - step) * metrics["seconds_per_step"]
    return f"({int(seconds // 60)}:{int(seconds % 60):02d} left)"


class Clock:
    """Rates between two looks: tokens a second, MFU, and the share of time spent waiting for data."""

    def __init__(self, tokens_per_step: int, flops_per_step: float, peak: float):
        self.tokens, self.flops, self.peak = tokens_per_step, flops_per_step, peak
        self.waited = 0.0
        self.since, self.step = None, 0

    def look(self, step: int) -> dict[str, float]:
        """Rates since the last look; empty at the first, so that compilation is not counted."""
        now, found = time.perf_counter(), {}
        if self.since is not None and step > self.step:
            seconds = (now - self.since) / (step - self.step)
            found = {
                "tokens_per_second": self.tokens / seconds,
                "mfu": self.flops / seconds / self.peak if self.peak else math.nan,
                "seconds_per_step": seconds,
                "data_share": self.waited / (now - self.since),
            }
        self.since, self.step, self.waited = now, step, 0.0
        return found
