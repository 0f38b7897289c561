"""Writes the report of a study, and checks one against the rows.

report.html (one file, no network), report.md, table.csv and table.tex are pure functions of study.json, the rows and
looks.jsonl, the record of when verdicts were looked at. So `check` computes them again and compares.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from llmlab.study.caveats import caveats
from llmlab.study.findings import Findings, read_findings
from llmlab.study.page import page
from llmlab.study.record import replace
from llmlab.study.tables import HEAD, caption, lines, to_csv, to_markdown, to_tex
from llmlab.study.words import AXIS_NAMES, diff_lines, facts, number, said


class Mismatch(ValueError):
    """A report that does not say what the rows say."""

    exit_code = 65


def write(directory: str | Path) -> list[Path]:
    """Writes the report into the study's directory, and records the look. Returns the files."""
    directory = Path(directory)
    found = read_findings(directory)
    look(directory, found)
    texts = render(directory, found)
    for name, text in texts.items():
        replace(directory / name, text)
    return [directory / name for name in texts]


def render(directory: Path, found: Findings) -> dict[str, str]:
    """{file name: text}."""
    limits = caveats(found, looks(directory))
    return {
        "report.html": page(found, limits),
        "report.md": markdown(found, limits),
        "table.csv": to_csv(found),
        "table.tex": to_tex(found),
    }


def check(directory: str | Path) -> int:
    """Computes the report anew from the rows; the number of files that agree. Raises as `agree` does."""
    directory = Path(directory)
    texts = render(directory, read_findings(directory))
    for name, text in texts.items():
        agree(directory / name, text)
    return len(texts)


def agree(file: Path, text: str) -> None:
    """Raises Mismatch with the first line in which a file differs, and FileNotFoundError where it is not."""
    if not file.exists():
        raise FileNotFoundError(f"{file.parent} has no {file.name}; `llmlab report {file.parent}` writes it")
    old = file.read_text()
    if old != text:
        line, was, now = first_difference(old, text)
        raise Mismatch(
            f"{file} is not what the rows say; line {line} has\n  {was}\nand the rows give\n  {now}\n"
            f"`llmlab report {file.parent}` writes it anew"
        )


def first_difference(old: str, new: str) -> tuple[int, str, str]:
    """(line from 1, what one text has there, what the other has), with the places around the first difference."""
    pairs = list(zip([*old.splitlines(), ""], [*new.splitlines(), ""]))
    line, (was, now) = next((i, p) for i, p in enumerate([*pairs, ("(end)", "")], 1) if p[0] != p[1])
    start = max(0, len(os.path.commonprefix([was, now])) - 60)
    return line, was[start : start + 120], now[start : start + 120]


def look(directory: Path, found: Findings) -> None:
    """Records that verdicts or intervals were looked at with so many ended runs, unless the last look saw as many."""
    ended = sum(len(arm.values) for arm in found.arms)
    if ended and looks(directory)[-1:] != [ended]:
        with (directory / "looks.jsonl").open("a") as file:
            file.write(json.dumps({"ended": ended, "complete": found.complete}) + "\n")


def looks(directory: Path) -> list[int]:
    file = directory / "looks.jsonl"
    return [json.loads(line)["ended"] for line in file.read_text().splitlines()] if file.exists() else []


def markdown(found: Findings, limits: list[str]) -> str:
    return "\n".join(_markdown(found, limits)) + "\n"


def _markdown(found: Findings, limits: list[str]) -> Iterator[str]:
    axes = [axis for axis in AXIS_NAMES if any(arm.axes.get(axis) is not None for arm in found.arms)]
    yield f"# {found.study['question']}\n\n{said(found)}\n"
    yield to_markdown(HEAD, lines(found)) + f"\n\n{caption(found)}\n"
    yield "## Why\n"
    yield from (f"- {arm.name}: {arm.judged.reason}." for arm in found.arms if arm.judged)
    yield "\n## Matching\n"
    yield to_markdown(
        ["arm", *(AXIS_NAMES[axis] for axis in axes)],
        [[arm.name, *(number(arm.axes.get(axis)) for axis in axes)] for arm in found.arms],
    )
    yield "\n## Caveats\n"
    yield from (f"- {text}" for text in limits)
    yield "\n## Exact differences\n"
    for arm in found.arms:
        for path, old, new in diff_lines(found.study["arms"][arm.name]):
            yield f"- {arm.name}: `{path}`: `{old}` → `{new}`"
    yield "\n## Record\n"
    yield from (f"- {name}: {value}" for name, value in facts(found))
