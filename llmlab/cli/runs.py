"""`llmlab runs [DIR]`."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from llmlab.cli.arguments import command_line

HEAD = ("kind", "path", "experiment", "step", "loss", "accuracy", "bits_per_byte", "started", "code")


@dataclasses.dataclass
class Flags:
    """List the runs and studies below a directory, the newest first."""

    directory: tyro.conf.Positional[Path] = Path(os.environ.get("LLMLAB_RUNS", "runs"))
    """Where to look; runs/ by default."""
    filter: tuple[str, ...] = ()
    """KEY=VALUE that must hold: a column, or a leaf of the experiment such as model.width=256."""
    sort: str | None = None
    """Column or leaf to sort by, the smallest first."""
    columns: tuple[str, ...] = ()
    """Columns and leaves to show beside kind and path."""


def main(arguments: list[str]) -> int:
    flags = command_line(Flags, "llmlab runs", arguments)
    if not flags.directory.is_dir():
        raise FileNotFoundError(f"{flags.directory} is no directory; `llmlab train EXPERIMENT` makes runs under runs/")
    records = [record for record in find(flags.directory) if all(holds(record, text) for text in flags.filter)]
    if flags.sort:
        known = {name for record in records for name in record}
        if records and flags.sort not in known:
            columns = ", ".join(sorted(name for name in known if "." not in name))
            raise ValueError(f"--sort {flags.sort}: no run has it; they have {columns}, and leaves of experiments")
        records.sort(key=lambda record: order(record.get(flags.sort)))
    columns = ("kind", "path", *flags.columns) if flags.columns else HEAD
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=240)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column != "path", overflow="fold")
    for record in records:
        table.add_row(*(show(record.get(column)) for column in columns))
    console.print(table if records else f"nothing under {flags.directory} fits")
    return 0


def find(directory: Path) -> list[dict]:
    """A record for each run and each study: columns, and the experiment's leaves by their paths. Newest first.

    The cells of a study are its own matter and are not listed.
    """
    records = []
    for root, folders, files in os.walk(directory):
        if "study.json" in files:
            records.append(study_record(Path(root)))
            folders.clear()
        elif "run.json" in files:
            try:
                records.append(run_record(Path(root)))
            except (ValueError, TypeError, KeyError) as error:
                print(f"left out: {root}/run.json is not as a run wrote it ({error!r})", file=sys.stderr)
            folders.clear()
    return sorted(records, key=lambda record: record["started"], reverse=True)


def run_record(directory: Path) -> dict:
    run = json.loads((directory / "run.json").read_text())
    record = flat(run["experiment"]) | {"kind": "run", "path": str(directory), "started": run["started"]}
    record |= {"experiment": Path(run["file"]).stem if run["file"] else "-", "code": run["code"]}
    lines = directory / "metrics.jsonl"
    for line in lines.read_text().splitlines() if lines.exists() else ():
        try:
            metrics = json.loads(line)
        except json.JSONDecodeError:  # the torn last line of a run that was killed
            continue
        record["step"] = metrics.pop("step")
        if metrics.pop("kind") == "validation":
            record |= metrics
    return record


def study_record(directory: Path) -> dict:
    from llmlab.study.record import read_rows, read_study

    study, rows = read_study(directory), read_rows(directory)
    ended = sum(row.state in ("done", "diverged") for row in rows)
    record = {"kind": "study", "path": str(directory), "experiment": study["name"], "started": study["started"]}
    return record | {"step": f"{ended} of {study['cost']['runs']} cells", "code": study["code"]}


def flat(value, path: str = "") -> dict:
    """{dotted path: leaf} of a config as it is saved."""
    if isinstance(value, dict):
        items = [(key, child) for key, child in value.items() if key != "_type"]
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return {path: value}
    found = {}
    for key, child in items:
        found |= flat(child, f"{path}.{key}" if path else str(key))
    return found


def holds(record: dict, text: str) -> bool:
    name, equals, wanted = text.partition("=")
    if not equals:
        raise ValueError(f"--filter {text}: write KEY=VALUE, such as model.width=256")
    value = record.get(name)
    try:
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        return value is not None and str(value) == wanted


def order(value) -> tuple:
    """Numbers before words before nothing."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, value if not math.isnan(value) else math.inf
    return (1, str(value)) if value is not None else (2, "")


def show(value) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
