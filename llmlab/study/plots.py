"""Plots as HTML that needs nothing else: lines are SVG stretched to their frame, words are HTML, so both fit any width.

A script of the page adds what a pointer shows; without it the plots are all there.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from html import escape

from llmlab.study.words import number

COLOURS = 8  # classes k0 to k7 of page.css; lines beyond are dashed
Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Line:
    """A named line with its faint companions (single runs); marks: points that stand out, dots: shown as points too."""

    name: str
    number: int
    points: Points
    runs: Sequence[Points] = ()
    marks: Points = ()
    dots: bool = False

    @property
    def colour(self) -> str:
        return f"k{self.number % COLOURS}"


@dataclasses.dataclass(frozen=True)
class Scale:
    """A range of numbers, and where in 0 to 1000 each lies."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        turn = math.log if self.log else float
        return 1000 * (turn(value) - turn(self.low)) / ((turn(self.high) - turn(self.low)) or 1)

    def ticks(self, wanted: int = 5) -> list[float]:
        if self.log:
            found = [m * 10.0**e for e in range(-12, 31) for m in (1, 2, 5)]
            inside = [x for x in found if self.low * 0.999 <= x <= self.high * 1.001]
            return inside if len(inside) <= 2 * wanted else [x for x in inside if math.log10(x) % 1 < 1e-9]
        raw = (self.high - self.low) / wanted or 1.0
        power = 10 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def plot(lines: Sequence[Line], across: str, up: str, axis: str = "", log=False, top: float | None = None) -> str:
    """A figure of lines. top: the largest value shown, for curves that begin far above where they end."""
    every = [p for line in lines for part in (line.points, *line.runs) for p in part if all(map(math.isfinite, p))]
    if not every:
        return f'<figure data-axis="{axis}"><p class="note">No point of {escape(up)} yet.</p></figure>'
    xs, ys = [p[0] for p in every], [p[1] for p in every if top is None or p[1] <= top]
    margin = 0.06 * ((max(ys) - min(ys)) or 1.0)
    x = Scale(min(xs) / 1.1, max(xs) * 1.1, log) if log else Scale(min(xs), max(xs))
    y = Scale(min(ys) - margin, max(ys) + margin)
    grid = "".join(f'<path class="grid" d="M0 {1000 - y(t):.1f}H1000"/>' for t in y.ticks())
    words = "".join(f'<span class="y" style="bottom:{y(t) / 10:.2f}%">{number(round(t, 10))}</span>' for t in y.ticks())
    words += "".join(f'<span class="x" style="left:{x(t) / 10:.2f}%">{number(t)}</span>' for t in x.ticks())
    legend = "".join(
        f'<li><button aria-pressed="true" data-series="{escape(line.name)}"><span class="swatch {line.colour}"></span>'
        f"{escape(line.name)}</button></li>"
        for line in lines
    )
    data = {
        "x": [x.low, x.high],
        "log": log,
        "across": across,
        "series": [{"name": line.name, "colour": line.colour, "points": finite(line.points)} for line in lines],
    }
    return (
        f'<figure data-axis="{axis}"><ul class="legend">{legend}</ul>'
        f'<div class="canvas" role="img" aria-label="{escape(up)} against {escape(across)}">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none">{grid}'
        f"{''.join(draw(line, x, y) for line in lines)}</svg>{words}</div>"
        f'<div class="across">{escape(across)}</div>'
        f'<script type="application/json">{script(data)}</script></figure>'
    )


def draw(line: Line, x: Scale, y: Scale) -> str:
    """One line as SVG; dots are strokes of no length, which stay round when the frame is stretched."""
    at = lambda p: f"{x(p[0]):.1f} {1000 - y(p[1]):.1f}"
    path = lambda points: "M" + "L".join(map(at, finite(points)))
    dots = lambda points: "".join(f"M{at(p)}h0" for p in finite(points))
    dashed = " dashed" if line.number >= COLOURS else ""
    parts = [f'<path class="run" d="{path(run)}"/>' for run in line.runs if finite(run)]
    if finite(line.points):
        parts.append(f'<path class="mean{dashed}" d="{path(line.points)}"/>')
        if line.dots:
            parts.append(f'<path class="points" d="{dots(line.points)}"/>')
        if line.marks:
            parts.append(f'<path class="chosen" d="{dots(line.marks)}"/>')
    return f'<g class="{line.colour}" data-series="{escape(line.name)}">{"".join(parts)}</g>'


def finite(points: Points) -> list[tuple[float, float]]:
    return [point for point in points if all(map(math.isfinite, point))]


def script(data) -> str:
    """JSON that cannot end its script element."""
    return json.dumps(data).replace("<", "\\u003c")


@dataclasses.dataclass(frozen=True)
class Bar:
    """A row of a forest plot: a point with its interval and single differences. tone: the class of its verdict."""

    name: str
    tone: str
    mark: str
    middle: float
    low: float
    high: float
    singles: Sequence[tuple[str, float]]
    value: str


def forest(bars: Sequence[Bar], noise: float | None, margin: float, sides: tuple[str, str]) -> str:
    """Differences from the base. noise: half the width of the A/A arm's interval; margin: the least that matters.

    sides: what a difference below 0, and one above it, means.
    """
    reach = [abs(v) for bar in bars for v in (bar.low, bar.high, *(single for _, single in bar.singles))]
    most = 1.06 * max(v for v in (margin, noise or 0.0, *reach) if math.isfinite(v))
    x = Scale(-most, most)
    at = lambda value: f"{min(1000, max(0, x(value))) / 10:.2f}%"
    span = lambda low, high: f"left:{at(low)};width:{(min(1000, x(high)) - max(0, x(low))) / 10:.2f}%"
    ground = f'<i class="margin" style="left:{at(-margin)}"></i><i class="margin" style="left:{at(margin)}"></i>'
    ground += f'<i class="zero" style="left:{at(0)}"></i>'
    if noise is not None and math.isfinite(noise):
        ground = f'<i class="band" style="{span(-noise, noise)}"></i>{ground}'
    rows = [_row(bar, ground, at, span) for bar in bars]
    ticks = "".join(f'<span style="left:{at(t)}">{number(round(t, 10))}</span>' for t in x.ticks(6))
    return (
        f'<div class="forest">{"".join(rows)}'
        f'<div class="row ticks"><span class="name"></span><div class="track">{ticks}</div></div>'
        f'<div class="row ticks"><span class="name"></span><div class="track sides"><b>← {sides[0]}</b>'
        f"<b>{sides[1]} →</b></div></div></div>"
    )


def _row(bar: Bar, ground: str, at, span) -> str:
    singles = "".join(
        f'<i class="pair" title="{escape(name)}: {value:+.4f}" style="left:{at(value)}"></i>'
        for name, value in bar.singles
        if math.isfinite(value)
    )
    own = ""
    if math.isfinite(bar.low) and math.isfinite(bar.high):
        own = f'<i class="bar" style="{span(bar.low, bar.high)}"></i>'
    if math.isfinite(bar.middle):
        own += f'<i class="dot" title="{escape(bar.value)}" style="left:{at(bar.middle)}"></i>'
    return (
        f'<div class="row {bar.tone}"><span class="name">{bar.mark} {escape(bar.name)}</span>'
        f'<div class="track">{ground}{singles}{own}</div><span class="value num">{escape(bar.value)}</span></div>'
    )
