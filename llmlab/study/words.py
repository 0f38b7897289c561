"""Numbers and names as reports print them: one form for each, in every format."""

from __future__ import annotations

import math

MARKS = {"better": "▲", "worse": "▼", "equivalent": "=", "undecided": "?", "": "·"}
AXIS_NAMES = {
    "parameters": "parameters",
    "active": "active parameters",
    "flops": "training FLOPs",
    "tokens": "training tokens",
    "state_bytes": "state bytes",
    "seconds": "seconds",
}
CURVE_NAMES = {"step": "steps", "tokens": "tokens", "flops": "training FLOPs", "seconds": "seconds"}


def number(value: float | None) -> str:
    """Four significant digits, as short as they go.

    >>> number(1228800), number(8.02e13), number(0.00125), number(None)
    ('1.229M', '8.02e13', '0.00125', '-')
    """
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if 1e4 <= abs(value) < 1e12:
        for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= unit:
                return f"{value / unit:.4g}{name}"
    return f"{value:.4g}".replace("e+", "e")


def plain(value: float | None) -> str:
    """A metric, with as many decimals as its differences have.

    >>> plain(1.90066), plain(None)
    ('1.9007', '-')
    """
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{value:.4f}" if abs(value) < 1e3 else number(value)


def signed(value: float | None) -> str:
    """A difference, with the sign that it has.

    >>> signed(-0.0297), signed(0.0)
    ('−0.0297', '+0.0000')
    """
    if value is None or not math.isfinite(value):
        return number(value)
    text = f"{value:+.4f}" if 1e-3 <= abs(value) < 1e3 or value == 0 else f"{value:+.2e}"
    return text.replace("-", "−", 1) if value < 0 else text


def probability(p: float | None) -> str:
    """
    >>> probability(0.0078125), probability(3e-9), probability(None)
    ('0.0078', '< 0.0001', '-')
    """
    if p is None or math.isnan(p):
        return "-"
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def interval(sides: tuple[float, float], show=signed) -> str:
    """
    >>> interval((-0.0311, -0.0203))
    '−0.0311 … −0.0203'
    """
    return f"{show(sides[0])} … {show(sides[1])}" if all(map(math.isfinite, sides)) else "unknown"


def percent(share: float) -> str:
    """
    >>> percent(0.95), percent(1 - 0.05 / 3)
    ('95 %', '98.3 %')
    """
    return f"{100 * share:.3g} %"


def factor(found) -> str:
    """A speed-up with its interval; "at least" where it is a bound."""
    if found is None:
        return "-"
    sign = "" if not found.bound else "≥ " if found.factor > 1 else "≤ "
    return f"{sign}{found.factor:.2f}× ({found.low:.2f} … {found.high:.2f})"


def said(found) -> str:
    """The verdicts in one or two sentences."""
    if not found.complete:
        return f"No verdict on {found.study['name']} yet."
    groups = {word: [arm.name for arm in found.compared if arm.judged.verdict == word] for word in MARKS}
    base = found.base.name
    phrases = {"better": f"better than {base}", "worse": f"worse than {base}", "equivalent": f"equivalent to {base}"}
    parts = [
        f"{listed(names)} {verb(names)} {phrases[word]}" for word, names in groups.items() if names and word in phrases
    ]
    if groups["undecided"]:
        parts.append(f"{listed(groups['undecided'])} {verb(groups['undecided'])} undecided")
    return "; ".join(parts) + "." if parts else "There is no arm beside the base."


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def verb(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def diff_lines(arm: dict) -> list[tuple[str, str, str]]:
    """(path, value in the base, value in the arm) of what was asked, then of what matching set."""
    asked = [(path, str(old), str(new)) for path, (old, new) in arm["diff"].items()]
    return asked + [(path, "by matching", str(value)) for path, value in arm["free"].items()]


def facts(found) -> list[tuple[str, str]]:
    """What made the study."""
    study, cost = found.study, found.study["cost"]
    evaluation = next((row.evaluation for arm in found.arms for row in arm.rows if row.evaluation), {})
    spent = f"{cost['runs']} runs, {number(cost['flops'])} training FLOPs"
    spent += f", {number(cost['seconds'])} seconds" if cost["seconds"] else ""
    return [
        ("command", " ".join(study["command"])),
        ("check", "llmlab report DIRECTORY --check recomputes every number of this report"),
        ("started", study["started"]),
        ("code", study["code"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in study["versions"].items())),
        ("hardware", study["hardware"]),
        ("cost", spent),
        ("task", next((row.task for arm in found.arms for row in arm.rows), "-")),
        ("tokenizer", next((row.tokenizer for arm in found.arms for row in arm.rows), "-")),
        ("evaluation", ", ".join(f"{name} {value}" for name, value in evaluation.items()) or "-"),
    ]
