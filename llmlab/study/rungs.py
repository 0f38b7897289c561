"""Studies at several scales: where an arm's advantage goes, and the law of each arm's loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from llmlab.study.findings import Arm, Findings, read_findings
from llmlab.study.likeness import Unlike
from llmlab.study.page import document, section, table
from llmlab.study.plots import Line, plot
from llmlab.study.record import replace
from llmlab.study.report import agree
from llmlab.study.scaling import Fit, Trend, fit, iso_flop, trend
from llmlab.study.words import interval, number, plain, signed

NAME = "ladder.html"
SAME_BUDGET = 0.02  # share within which training FLOPs are one budget


def studies(directory: Path) -> list[Path]:
    """The study in a directory, or those in the directories inside it. Raises FileNotFoundError where there is none."""
    if (directory / "study.json").exists():
        return [directory]
    found = sorted(file.parent for file in directory.glob("*/study.json"))
    if not found:
        raise FileNotFoundError(
            f"{directory} holds no study: there is no study.json in it or one level below; `llmlab study FILE` makes "
            f"one, and `llmlab runs {directory}` lists single runs"
        )
    return found


def write(directory: Path) -> Path:
    """Writes ladder.html beside the studies of a ladder, whose own reports it links to."""
    replace(directory / NAME, render(directory))
    return directory / NAME


def check(directory: Path) -> Path:
    """Raises Mismatch unless ladder.html says what the rows say."""
    agree(directory / NAME, render(directory))
    return directory / NAME


def render(directory: Path) -> str:
    """The page. Raises Unlike when the rungs ask different things."""
    rungs = {path.name: read_findings(path) for path in studies(directory)}
    rungs = dict(sorted(rungs.items(), key=lambda rung: scale(rung[1]) or 0))
    every = list(rungs.values())
    for found in every:
        asked = [(f.question, f.study["base"]) for f in (every[0], found)]
        if asked[0] != asked[1]:
            raise Unlike(f"{directory}: its studies ask different things, {asked[0]} and {asked[1]}; part them")
    names = [arm.name for arm in every[0].compared if all(arm.name in f.study["arms"] for f in every)]
    body = [
        '<header><div class="eyebrow">Ladder of studies</div>'
        f"<h1>{escape(every[0].study['question'])}</h1>"
        '<button class="theme" title="light or dark" aria-label="light or dark">◐</button></header>',
        f'<p class="said">{escape(" ".join(say(name, trend_of(name, every)) for name in names))}</p>',
        section("Gains against scale", GAINS, gains(names, every)),
        section("Rungs", "Differences from the base, with their verdicts.", rung_table(names, rungs)),
        section("Laws", LAWS, laws([every[0].base.name, *names], every)),
        section("Iso-FLOP", ISO, isos([every[0].base.name, *names], every)),
    ]
    return document(every[0].study["question"], "\n".join(body))


GAINS = "Gain over the base (positive is better) against the base's training FLOPs, with the intervals that decide."
LAWS = "L(N, D) = E + A / N^α + B / D^β of each arm, over active parameters and training tokens; bootstrap intervals."
ISO = "The size that is best for a budget grows as FLOPs to this exponent; bootstrap interval."


def scale(found: Findings) -> float | None:
    return found.base.axes.get("flops")


def pairs(name: str, found: Findings) -> list[float]:
    """Gains of an arm's finished pairs."""
    arm, base = arm_of(name, found), found.base
    both = [(base.values[i], arm.values[i]) for i in arm.values if i in base.values]
    return [found.question.gain(own - old) for old, own in both if math.isfinite(own - old)]


def trend_of(name: str, every: Sequence[Findings]) -> Trend | str:
    """The trend, or why there is none."""
    points = [(scale(found), gain) for found in every for gain in pairs(name, found)]
    try:
        return trend(*zip(*points), alpha=every[0].question.alpha) if points else "no pair has finished"
    except ValueError as error:
        return str(error)


def say(name: str, found: Trend | str) -> str:
    if isinstance(found, str):
        return f"{name}: {found}."
    each = f"{signed(found.slope.mean)} for each tenfold of FLOPs ({interval(found.slope.interval())})"
    if found.says == "unclear":
        return f"Where the advantage of {name} goes with scale is unclear: {each}."
    crossing = f"; the line is at 0 for {number(found.crossing)} FLOPs" if found.crossing else ""
    return f"The advantage of {name} {found.says} with scale: {each}{crossing}."


def gains(names: Sequence[str], every: Sequence[Findings]) -> str:
    lines = []
    for index, name in enumerate(names, 1):
        means, intervals = [], []
        for found in every:
            judged, x = arm_of(name, found).judged, scale(found)
            means.append((x, found.question.gain(judged.effect.difference.mean)))
            intervals.append([(x, found.question.gain(side)) for side in judged.interval])
        lines.append(Line(name, index, means, intervals, dots=True))
    return plot(lines, "training FLOPs", "gain", log=True)


def arm_of(name: str, found: Findings) -> Arm:
    return next(arm for arm in found.arms if arm.name == name)


def rung_table(names: Sequence[str], rungs: dict[str, Findings]) -> str:
    rows = []
    for folder, found in rungs.items():
        cells = []
        for name in names:
            arm = arm_of(name, found)
            cells.append(f"{signed(arm.judged.effect.difference.mean)}<small>{escape(found.verdict(arm))}</small>")
        link = f'<a href="{escape(folder)}/report.html">{escape(folder)}</a>'
        rows.append([link, number(found.base.axes.get("active")), number(scale(found)), *cells])
    return table(["study", "active parameters", "training FLOPs", *map(escape, names)], rows)


def points_of(name: str, every: Sequence[Findings]) -> list[tuple[float, float, float, float]]:
    """(active parameters, tokens, FLOPs, value) of each finished run."""
    return [
        (row.axes["active"], row.axes["tokens"], row.axes["flops"], row.metrics[study.question.metric])
        for study in every
        for row in arm_of(name, study).rows
        if row.state == "done"
    ]


def laws(names: Sequence[str], every: Sequence[Findings]) -> str:
    rows = []
    for name in names:
        points = points_of(name, every)
        try:
            found = fit([p[0] for p in points], [p[1] for p in points], [p[3] for p in points])
            rows.append([escape(name), *law_cells(found)])
        except ValueError as error:
            rows.append([escape(name) + f"<small>{escape(str(error))}</small>", "-", "-", "-", "-", "-"])
    return table(["arm", "E", "A", "α", "B", "β"], rows)


def law_cells(found: Fit) -> list[str]:
    cells = []
    for name in ("E", "A", "alpha", "B", "beta"):
        value, low, high = (plain(getattr(law, name)) for law in (found.law, found.low, found.high))
        cells.append(f"{value}<small>{low} … {high}</small>")
    return cells


def isos(names: Sequence[str], every: Sequence[Findings]) -> str:
    rows = []
    for name in names:
        points = points_of(name, every)
        budgets = [round(math.log(flops) / math.log1p(SAME_BUDGET)) for _, _, flops, _ in points]
        budgets = [math.exp(budget * math.log1p(SAME_BUDGET)) for budget in budgets]
        try:
            found = iso_flop(budgets, [p[0] for p in points], [p[3] for p in points])
            best = ", ".join(f"{number(n)} at {number(c)}" for n, c in zip(found.parameters, found.budgets))
            rows.append([escape(name), f"{found.exponent:.3f}", interval(found.interval, plain), best])
        except ValueError as error:
            rows.append([escape(name) + f"<small>{escape(str(error))}</small>", "-", "-", "-"])
    return table(["arm", "exponent", "interval", "best sizes"], rows)
