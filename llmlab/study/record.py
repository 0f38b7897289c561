"""What a study leaves on disk: one row for each cell, which is one training run of one arm.

    study.json         the resolved study: see `read_study`
    cells/<key>/       the run directory of a cell, and row.json
    groups/<key>/      cells that train as one program: their claim and their common checkpoints

The rows are all that statistics and reports read; nothing of them is computed from anything else.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

PHASES = ("tune", "replicate")
STATES = ("pending", "running", "done", "diverged", "crashed", "preempted", "out_of_memory")
OUTCOMES = ("done", "diverged")  # what a training run can come to; the others say that it has not come to anything


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One cell. `metrics` and `curve` are of the arm's own evaluation set, the whole of which the final one scores.

    study: its name. arm: the base's own name for the base. replicate: counts from 0; equal numbers are paired.
    trial: {dotted path: value} that the cell sets beside its arm (a tuned learning rate). seeds: init, data, dropout.
    key: of the cell, and the name of its directory. metrics: {name: value} of the last evaluation, such as loss,
    accuracy, bits_per_byte; empty until there is one. curve: {step, tokens, flops, seconds, and the metrics} of each
    evaluation, the last one too. axes: parameters, active, flops (of training, algorithmic), tokens, state_bytes (None
    where nothing is decoded), seconds. metric: the study's primary one. evaluation: fingerprint of the evaluation set,
    and how much it scored (tokens, bytes). batches: the primary metric on each batch of the last evaluation, in order.
    error: one line, or "".
    """

    study: str
    arm: str
    phase: str
    replicate: int
    trial: dict[str, float]
    seeds: dict[str, int]
    key: str
    state: str
    metrics: dict[str, float]
    curve: list[dict[str, float]]
    axes: dict[str, float | None]
    task: str
    metric: str
    tokenizer: str
    evaluation: dict[str, str | float]
    code: str
    hardware: str
    batches: list[float] = dataclasses.field(default_factory=list)
    error: str = ""

    def __post_init__(self):
        for name, known in (("phase", PHASES), ("state", STATES)):
            if getattr(self, name) not in known:
                raise ValueError(f"Row.{name} is {getattr(self, name)!r}; it is one of {', '.join(known)}")


def to_json(row: Row) -> str:
    """One row as JSON; `from_json` gives an equal one."""
    return json.dumps(dataclasses.asdict(row), indent=1)


def from_json(text: str) -> Row:
    return Row(**json.loads(text))


def read_rows(directory: str | Path) -> list[Row]:
    """The rows of a study, in the order of phase, arm, replicate and trial."""
    rows = [from_json(file.read_text()) for file in Path(directory).glob("cells/*/row.json")]
    return sorted(rows, key=lambda row: (row.phase != "tune", row.arm, row.replicate, sorted(row.trial.items())))


def write_row(directory: str | Path, row: Row) -> None:
    """Writes cells/<key>/row.json, whole or not at all."""
    replace(Path(directory) / "cells" / row.key / "row.json", to_json(row))


def read_study(directory: str | Path) -> dict:
    """study.json as a dict.

    name, question, metric, better ("lower" or "higher"), alpha, min_effect, seeds (replicates of an arm)
    study: the Study, as `llmlab.config.to_dict` gives it
    base, noise: names of the arm that the others are compared with, and of its A/A twin (None without one)
    arms: {name: {"experiment": its resolved config as a dict, "diff": {path: [value in base, value in arm]} of what was
        asked, "free": {path: value} of what matching set, "axes": {axis: reached}, "declared": {property: bool}}}
    matching: {"axis": name or None, "tolerance": share, "error": {arm: share away from the base}}
    cost: {"runs", "flops", "seconds" (None if not measured)}; command, code, versions, hardware, started
    """
    return json.loads((Path(directory) / "study.json").read_text())


def replace(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_text(text)
    os.replace(partial, path)
