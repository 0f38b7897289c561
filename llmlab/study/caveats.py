"""What limits a verdict, found in the rows and said without being asked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from llmlab.study.findings import Arm, Findings
from llmlab.study.statistics import least_sign_flip

NOTICED = 0.005  # share by which an axis may differ before it is called unmatched, where matching names no tolerance


def caveats(found: Findings, looks: Sequence[int] = ()) -> list[str]:
    """Sentences, the gravest first. looks: ended replicates at each look at verdicts, in the order of the looks."""
    return [
        *of_runs(found, looks),
        *of_noise(found),
        *of_numbers(found),
        *of_tuning(found),
        *of_matching(found),
        *of_scope(found),
    ]


def of_runs(found: Findings, looks: Sequence[int]) -> Iterator[str]:
    for arm in found.arms:
        open_ = {s: n for s, n in arm.states.items() if s not in ("done", "diverged")}
        if open_:
            counts = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in open_.items())
            yield f"{arm.name}: {counts} of {sum(arm.states.values())} replicates; they are in no number here."
    for arm in found.arms:
        lost, n = arm.diverged
        if lost:
            yield f"{arm.name}: {lost} of {n} runs diverged; means and intervals are of those that finished."
    ended = sum(len(arm.values) for arm in found.arms)
    early = sorted({look for look in looks if look < ended})
    if early:
        yield (
            f"The numbers were looked at before, at {', '.join(map(str, early))} ended runs (now {ended}). Intervals "
            "and p-values hold for one look; going on until a verdict comes calls too often."
        )
    if found.set_aside:
        yield f"{found.set_aside} rows of other code than {found.study['code']} are set aside."


def of_noise(found: Findings) -> Iterator[str]:
    noise = found.noise
    if noise is None:
        yield "There is no A/A arm: nothing shows how far two equal arms differ."
    elif noise.judged.verdict in ("better", "worse"):
        yield (
            f"Alarm: the A/A arm is {noise.judged.verdict!r} than the base it equals. That happens to one study in "
            f"{1 / found.question.alpha:.0f}; read every small difference with that in mind."
        )


def of_numbers(found: Findings) -> Iterator[str]:
    n = max((arm.judged.effect.difference.n for arm in found.compared), default=0)
    alpha = found.question.alpha
    if n == 1:
        yield "One seed: nothing tells the noise of a run, and no verdict is possible."
    elif n > 1 and least_sign_flip(n) > alpha:
        yield (
            f"{n} pairs are too few for the sign-flip test: its p-value cannot go below {least_sign_flip(n):.4g}, so "
            f"that verdicts rest on the t-interval alone ({1 + math.ceil(-math.log2(alpha))} pairs reach {alpha:g})."
        )
    for arm in found.compared:
        r = arm.judged.effect.correlation
        if r <= 0:
            low, high = arm.judged.effect.unpaired.interval(arm.judged.level)
            yield (
                f"{arm.name}: pairing gained nothing (correlation {r:.2f}); Welch's interval without it is "
                f"{low:+.4g} to {high:+.4g}."
            )


def of_tuning(found: Findings) -> Iterator[str]:
    tuned = [arm for arm in found.arms if arm.tuning]
    if not tuned:
        yield "Nothing was tuned: every arm has the learning rate of its config, which may suit one better."
        return
    for arm in tuned:
        if arm.tuning.at_edge:
            yield (
                f"{arm.name}: its {arm.tuning.leaf} of {arm.tuning.chosen:.3g} is at the edge of the grid; a better "
                "one may lie outside."
            )
    trials = {len(arm.tuning.points) for arm in tuned}
    if len(trials) > 1:
        yield f"Arms had different numbers of trials, {min(trials)} to {max(trials)}."


def of_matching(found: Findings) -> Iterator[str]:
    matching, base = found.study["matching"], found.base
    tolerance = matching["tolerance"] or NOTICED
    if matching["axis"] is None:
        yield "Arms were matched on nothing."
    for arm in found.compared:
        far = [
            f"{axis.replace('_', ' ')} {value / base.axes[axis] - 1:+.1%}"
            for axis, value in arm.axes.items()
            if axis != "seconds" and differs(value, base.axes.get(axis), tolerance)
        ]
        if far:
            yield f"{arm.name} is not matched on every axis: {', '.join(far)}."
    for arm in found.compared:
        yield from unlike_declarations(arm, found)


def differs(value: float | None, base: float | None, tolerance: float) -> bool:
    return bool(value and base) and abs(value / base - 1) > tolerance


def unlike_declarations(arm: Arm, found: Findings) -> Iterator[str]:
    own, base = (found.study["arms"][name].get("declared", {}) for name in (arm.name, found.base.name))
    unlike = [name for name in own if own[name] != base.get(name)]
    if unlike:
        said = ", ".join(f"{name} {own[name]} against {base.get(name)}" for name in unlike)
        yield f"{arm.name} declares other properties than the base: {said}."


def of_scope(found: Findings) -> Iterator[str]:
    kinds = sorted({row.hardware for arm in found.arms for row in arm.rows if row.hardware})
    if len(kinds) > 1:
        yield f"Runs were on different devices ({', '.join(kinds)}): seconds are not ranked."
    yield (
        "One scale and one task: nothing here tells how the differences go with size, data or length. A ladder of "
        "studies does."
    )
