"""Like is ranked with like: what must be equal over the arms of a study, and the refusal where it is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import xxhash

from llmlab.config import show
from llmlab.data import Dataset, Supply
from llmlab.study.record import OUTCOMES, Row
from llmlab.tasks import Task

# What a task adds to the loss that is trained, which no metric contains: arms may differ in it.
TRAINED = ("auxiliary", "smoothing", "z_loss")


class Unlike(ValueError):
    """Arms or rows that may not be ranked against each other."""


def task_name(task: Task) -> str:
    """What a task asks, without what it adds to the loss that is trained."""
    fields = [field.name for field in dataclasses.fields(task) if field.name not in TRAINED]
    values = ", ".join(f"{name}: {' '.join(show(getattr(task, name)).split())}" for name in fields)
    return f"{type(task).__name__}({values})" if values else type(task).__name__


def tokenizer_name(data: Supply) -> str:
    """What turns text into ids, or the problem that draws them."""
    return " ".join(show(getattr(data, "tokenizer", getattr(data, "problem", data))).split())


def evaluation_of(dataset: Dataset) -> dict[str, str | float]:
    """The evaluation set: a fingerprint of all that is scored, and how many tokens (or rows) and bytes of text."""
    found, tokens, size = xxhash.xxh3_128(), 0.0, 0.0
    for batch in dataset.validation():
        for name in ("targets_BL", "label_B", "weights_BL", "weight_B"):
            if name in batch:
                found.update(name.encode())
                found.update(batch[name].tobytes())
        weights = batch.get("weights_BL", batch.get("weight_B"))
        tokens += float(weights.sum()) if weights is not None else 0.0
        size += float(batch["bytes_BL"].sum()) if "bytes_BL" in batch else 0.0
    return {"fingerprint": found.hexdigest(), "tokens": tokens, "bytes": size}


def hardware() -> str:
    """The devices that train."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


WHY = {
    "task": "their losses are likelihoods of other things; give all arms one task",
    "metric": "one number is compared; give the study one metric that every arm reports",
    "tokenizer": "a loss for each token depends on the tokens; give all arms one tokenizer, or compare bits_per_byte "
    "in a study of tokenizers",
    "evaluation": "the arms of a replicate are scored on the same tokens and bytes; give all arms the same data",
    "code": "a change of the code is no arm; run the study anew, its old cells stay under their old keys",
    "hardware": "seconds are compared on one kind of device; compare on another axis, or run the study on one machine",
}


def refuse(what: str, first: tuple[str, object], other: tuple[str, object]) -> None:
    """Raises Unlike: two arms differ in what must be equal."""
    raise Unlike(
        f"arms {first[0]!r} and {other[0]!r} differ in {what}, {first[1]!r} and {other[1]!r}, and are not ranked: "
        f"{WHY[what]}"
    )


def check_rows(rows: Iterable[Row], axis: str | None = None) -> None:
    """Raises Unlike unless the finished replicates may be ranked; axis: "seconds" where time is what is compared."""
    rows = [row for row in rows if row.phase == "replicate" and row.state in OUTCOMES]
    for what in ("task", "metric", "tokenizer", "code") + (("hardware",) if axis == "seconds" else ()):
        for row in rows:
            if getattr(row, what) != getattr(rows[0], what):
                refuse(what, (rows[0].arm, getattr(rows[0], what)), (row.arm, getattr(row, what)))
    first: dict[int, Row] = {}
    for row in rows:
        twin = first.setdefault(row.replicate, row)
        if row.evaluation != twin.evaluation:
            refuse("evaluation", (twin.arm, twin.evaluation), (row.arm, row.evaluation))
