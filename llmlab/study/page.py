"""The report of a study as one page of HTML that needs no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from llmlab.study.caveats import differs
from llmlab.study.equivalents import AXES
from llmlab.study.findings import Arm, Findings
from llmlab.study.plots import Bar, Line, forest, plot
from llmlab.study.statistics import clopper_pearson
from llmlab.study.words import (
    AXIS_NAMES,
    CURVE_NAMES,
    MARKS,
    diff_lines,
    factor,
    facts,
    interval,
    number,
    percent,
    plain,
    probability,
    said,
    sentence,
    signed,
)

HERE = Path(__file__).parent
ICON = (
    "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'>"
    "<path d='M1 8V5h2v3zm3 0V1h2v7zm3 0V3h2v5z'/></svg>"
)


def page(found: Findings, caveats: Sequence[str], live: str = "") -> str:
    """The page. live: the version that a served page compares with its server's, "" for a page on disk."""
    parts = [
        head(found, caveats),
        verdicts(found),
        matching(found),
        differences(found),
        curves(found),
        tunings(found),
        divergences(found),
        other_metrics(found),
        section("Caveats", "", f'<ul class="caveats">{"".join(f"<li>{escape(c)}</li>" for c in caveats)}</ul>'),
        diffs(found),
        record(found),
    ]
    return document(found.study["name"], "\n".join(part for part in parts if part), live)


def document(title: str, body: str, live: str = "") -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="{ICON}">'
        f"<style>{(HERE / 'page.css').read_text()}</style></head>\n"
        f'<body data-live="{escape(live)}"><main>{body}</main>\n'
        f"<script>{(HERE / 'page.js').read_text()}</script></body></html>\n"
    )


def section(title: str, note: str, body: str) -> str:
    about = f'<p class="note">{note}</p>' if note else ""
    name = title.lower().replace(" ", "-")
    return f'<section id="{name}"><h2>{escape(title)}</h2>{about}{body}</section>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def head(found: Findings, caveats: Sequence[str]) -> str:
    question, study = found.question, found.study
    match = study["matching"]["axis"]
    seeds = f"{study['seeds']} paired seed" + ("s" if study["seeds"] > 1 else "")
    about = (
        f"{escape(question.metric)}, {question.better} is better · {seeds} for each arm · "
        + (f"matched in {AXIS_NAMES.get(match, match)}" if match else "not matched")
        + f" · a difference of {question.min_effect:g} matters · α = {question.alpha:g}"
    )
    banner = ""
    if not found.complete:
        ended, wanted = sum(len(arm.values) for arm in found.arms), sum(sum(a.states.values()) for a in found.arms)
        cells = "".join(
            f'<i class="{s}" title="{escape(a.name)}: {s}"></i>' * n for a in found.arms for s, n in a.states.items()
        )
        banner = (
            f'<div class="banner"><b>Unfinished: {ended} of {wanted} replicates have ended.</b> No verdict is read '
            f'before all have; the numbers below will change.<div class="cells">{cells}</div></div>'
        )
    link = f'<a href="#caveats">{len(caveats)} caveat{"s" * (len(caveats) > 1)}</a>'
    return (
        f'<header><div class="eyebrow">Study · {escape(study["name"])}</div><h1>{escape(study["question"])}</h1>'
        f'<p class="about">{about}</p><button class="theme" title="light or dark" aria-label="light or dark">◐</button>'
        f'</header>{banner}<p class="said">{escape(said(found))} Read it with its {link}.</p>'
    )


def verdicts(found: Findings) -> str:
    return f'<ul class="verdicts">{"".join(verdict(found, arm) for arm in found.arms if arm.judged)}</ul>'


def verdict(found: Findings, arm: Arm) -> str:
    judged, text, base = arm.judged, found.verdict(arm), escape(found.base.name)
    effect, (tone, _, more) = judged.effect, text.partition(" ")
    twin = arm is found.noise
    lost = f"{arm.diverged[0]} of {arm.diverged[1]} diverged · " if arm.diverged[0] else ""
    tests = f"p {probability(judged.adjusted)} · sign-flip p {probability(effect.sign_flip)}" if found.complete else ""
    reason = sentence(judged.reason) if found.complete else ""
    means = f"{plain(arm.estimate.mean)} against {plain(effect.base.mean)} · {effect.difference.n} pairs"
    if arm.nested:
        means += f" · {interval(arm.nested)} over runs and evaluation batches"
    steps = ""
    if arm.steps:
        ahead = "ahead" if arm.steps.steps > 0 else "behind"
        steps = f"<br>{abs(arm.steps.steps):,.0f} steps of {base} {ahead}"
    return (
        f'<li class="{tone}{" control" if twin else ""}"><div class="name"><b>{escape(arm.name)}</b>'
        f'<span class="badge"><i>{MARKS.get(tone, "·")}</i>{tone}</span><small>{escape(more.strip("()"))}</small></div>'
        f'<div><span class="num big">{signed(effect.difference.mean)}</span> '
        f'<span class="num soft">{interval(judged.interval)} at {percent(1 - judged.level)}</span>'
        f'<small class="num">{lost}{tests}</small><small class="num">{means}</small></div>'
        f'<div><span class="num">{factor(arm.speedups.get("flops"))}</span>'
        f"<small>the compute that {base} needs for the same{steps}</small></div>"
        f"<p>{'The base again: the noise floor. ' if twin else ''}{escape(reason)}</p></li>"
    )


def matching(found: Findings) -> str:
    axes = [axis for axis in AXIS_NAMES if any(arm.axes.get(axis) is not None for arm in found.arms)]
    tolerance, base = found.study["matching"]["tolerance"], found.base

    def cell(arm: Arm, axis: str) -> str:
        value, own = arm.axes.get(axis), base.axes.get(axis)
        if arm is base or not value or not own:
            return number(value)
        off = "off" if axis != "seconds" and differs(value, own, tolerance) else ""
        return f'{number(value)}<small class="{off}">{value / own - 1:+.2%}</small>'

    rows = [[name_of(arm, found) + knob(found, arm), *(cell(arm, axis) for axis in axes)] for arm in found.arms]
    axis = found.study["matching"]["axis"]
    note = (
        f"Arms were made equal in {AXIS_NAMES.get(axis, axis)}, within {percent(tolerance)}, by what their names have "
        "under them."
        if axis
        else "Arms were not made equal on any axis."
    )
    return section("Matching", note, table(["arm", *(AXIS_NAMES[a] for a in axes)], rows))


def knob(found: Findings, arm: Arm) -> str:
    free = found.study["arms"][arm.name]["free"]
    return "".join(f"<small>{escape(ending(path))} = {escape(str(value))}</small>" for path, value in free.items())


def ending(path: str) -> str:
    """The last two names of a path; the whole of it stands in the exact differences."""
    return ".".join(path.split(".")[-2:])


def name_of(arm: Arm, found: Findings) -> str:
    return f'<span class="swatch k{found.arms.index(arm) % 8}"></span>{escape(arm.name)}'


def differences(found: Findings) -> str:
    bars = []
    for arm in found.arms:
        if arm.judged is None:
            continue
        text, effect = found.verdict(arm), arm.judged.effect
        low, high = arm.judged.interval
        singles = [
            (f"replicate {i}", arm.values[i] - found.base.values[i]) for i in arm.values if i in found.base.values
        ]
        tone = text.split()[0]
        bars.append(
            Bar(arm.name, tone, MARKS.get(tone, "·"), effect.difference.mean, low, high, singles, interval((low, high)))
        )
    noise = None
    if found.noise:
        low, high = found.noise.judged.interval
        noise = (high - low) / 2
    sides = ("better", "worse") if found.question.better == "lower" else ("worse", "better")
    note = (
        f"Paired differences from {escape(found.base.name)} in {escape(found.question.metric)}, with the intervals "
        f"that decide (after Holm). Small dots are single pairs; dashed lines are ±{found.question.min_effect:g}, the "
        + (
            "least that matters; the shaded band is the noise of the A/A arm."
            if noise is not None
            else "least that matters."
        )
    )
    return section("Differences", note, forest(bars, noise, found.question.min_effect, sides))


def curves(found: Findings) -> str:
    metric, figures = found.question.metric, []
    axes = [axis for axis in AXES if axis != "seconds" or found.time_is_ranked]
    ends = [
        point[metric]
        for arm in found.arms
        for row in arm.rows
        for point in row.curve
        if metric in point and point["step"] >= 0.3 * row.curve[-1]["step"]
    ]
    top = max((e for e in ends if math.isfinite(e)), default=None) if found.question.better == "lower" else None
    for axis in axes:
        lines = [curve_of(arm, i, axis, metric) for i, arm in enumerate(found.arms)]
        figures.append(plot(lines, CURVE_NAMES[axis], metric, axis, top=top))
    buttons = "".join(
        f'<button data-axis="{axis}" aria-pressed="{"true" if axis == "flops" else "false"}">{name}</button>'
        for axis, name in (("step", "steps"), ("tokens", "tokens"), ("flops", "FLOPs"), ("seconds", "seconds"))
        if axis in axes
    )
    note = (
        f"Validation {escape(metric)} of every run (faint) and the mean of those that finished. Many changes win on "
        "one axis and lose on another."
    )
    return section("Curves", note, f'<div data-panels><div class="switch">{buttons}</div>{"".join(figures)}</div>')


def curve_of(arm: Arm, number_: int, axis: str, metric: str) -> Line:
    runs = [[(p[axis], p[metric]) for p in row.curve if metric in p] for row in arm.rows]
    done = [run for run, row in zip(runs, arm.rows) if row.state == "done" and run] or [run for run in runs if run]
    middle = [tuple(sum(side) / len(done) for side in zip(*points)) for points in zip(*done)] if done else []
    return Line(arm.name, number_, middle, runs if len(runs) > 1 else ())


def tunings(found: Findings) -> str:
    tuned = [(i, arm) for i, arm in enumerate(found.arms) if arm.tuning and len(arm.tuning.points) > 1]
    if not tuned:
        return ""
    lines = []
    for i, arm in tuned:
        points = [(value, mean) for value, mean, _ in arm.tuning.points]
        marks = [point for point in points if point[0] == arm.tuning.chosen]
        lines.append(Line(arm.name, i, points, marks=marks, dots=True))
    lost = [(arm.name, value) for _, arm in tuned for value, _, n in arm.tuning.points if n]
    note = (
        "Each arm's trials, on seeds and a split that no replicate has. The ringed value is the one its replicates use."
    )
    if lost:
        note += " Diverged: " + ", ".join(f"{escape(name)} at {value:.3g}" for name, value in lost) + "."
    leaf = tuned[0][1].tuning.leaf
    return section("Tuning", note, f'<div class="small">{plot(lines, leaf, found.question.metric, log=True)}</div>')


def divergences(found: Findings) -> str:
    rows = []
    for arm in found.arms:
        k, n = arm.diverged
        low, high = clopper_pearson(k, n, found.question.alpha) if n else (0.0, 1.0)
        why = "; ".join(sorted({row.error for row in arm.rows if row.state == "diverged" and row.error}))
        rows.append([name_of(arm, found), f"{k} of {n}", f"{percent(low)} … {percent(high)}", escape(why) or "-"])
    note = f"A run that diverges is an outcome. The rate has its exact interval at {percent(1 - found.question.alpha)}."
    return section("Divergence", note, table(["arm", "diverged", "rate", "what was seen"], rows))


def other_metrics(found: Findings) -> str:
    rows = [
        [name_of(arm, found), escape(other.metric), plain(other.effect.own.mean), signed(other.effect.difference.mean)]
        + [interval(other.effect.difference.interval(found.question.alpha)), probability(other.q)]
        for arm in found.arms
        for other in arm.others
    ]
    if not rows:
        return ""
    level = f"{percent(1 - found.question.alpha)} interval"
    note = "They decide nothing. q is the p-value after Benjamini-Hochberg over arms and metrics."
    return section("Other metrics", note, table(["arm", "metric", "mean", "difference", level, "q"], rows))


def diffs(found: Findings) -> str:
    parts = []
    for arm in found.arms:
        lines = diff_lines(found.study["arms"][arm.name])
        if lines:
            body = "\n".join(
                f"{escape(path)}: <span>{escape(old)}</span> <em>→</em> <b>{escape(new)}</b>"
                for path, old, new in lines
            )
            parts.append(f'<details open><summary>{escape(arm.name)}</summary><pre class="diff">{body}</pre></details>')
    return (
        section("Exact differences", f"Of each arm's config from that of {escape(found.base.name)}.", "".join(parts))
        if parts
        else ""
    )


def record(found: Findings) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts(found))
    rows = [
        [escape(row.arm), str(row.replicate), row.state, plain(row.metrics.get(row.metric)), row.key]
        + [" ".join(f"{k} {v}" for k, v in row.seeds.items()), escape(row.hardware)]
        for arm in found.arms
        for row in arm.rows
    ]
    cells = table(["arm", "replicate", "state", found.question.metric, "key", "seeds", "hardware"], rows)
    return section(
        "Record", "", f'<dl class="facts">{items}</dl><details><summary>Every replicate</summary>{cells}</details>'
    )
