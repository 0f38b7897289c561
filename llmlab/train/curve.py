"""A small picture of curves, as SVG that follows the colours of the page it stands in."""

from __future__ import annotations

import math

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 28, 44
COLOURS = ("#3b7dd8", "#d8703b", "#3ba55d", "#a34bc9")
Points = list[tuple[float, float]]


def draw(curves: dict[str, Points], across: str, up: str) -> str:
    """SVG of named curves with axes; curves without points are left out."""
    curves = {name: points for name, points in curves.items() if points}
    finite = [p for points in curves.values() for p in points if math.isfinite(p[1])] or [(0, 0)]
    x = _scale([p[0] for p in finite], LEFT, WIDTH - RIGHT)
    y = _scale([p[1] for p in finite], HEIGHT - BOTTOM, TOP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{up} against {across}" font-family="system-ui, sans-serif" font-size="12" fill="currentColor">'
    ]
    for value in _ticks([p[1] for p in finite]):
        lines.append(
            f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="currentColor" stroke-opacity=".15"/>'
            f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for value in _ticks([p[0] for p in finite]):
        lines.append(f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    for number, (name, points) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in points if math.isfinite(b))
        lines.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(points) < 40:
            lines += [
                f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour}"/>'
                for a, b in points
                if math.isfinite(b)
            ]
        lines.append(f'<text x="{LEFT + 8 + 110 * number}" y="{TOP - 10}" fill="{colour}">{name}</text>')
    lines.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{across}</text>')
    lines.append(f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{up}</text></svg>')
    return "\n".join(lines)


def _scale(values: list[float], low: float, high: float):
    least, most = min(values), max(values)
    span = (most - least) or 1.0
    return lambda value: low + (value - least) / span * (high - low)


def _ticks(values: list[float], wanted: int = 5) -> list[float]:
    """Round numbers inside the range of the values."""
    least, most = min(values), max(values)
    if least == most:
        return [least]
    raw = (most - least) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(least / step)
    return [round(i * step, 10) for i in range(first, math.floor(most / step) + 1)]
