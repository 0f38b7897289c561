"""The numbers of a study as CSV, LaTeX, Markdown and text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from llmlab.study.findings import Arm, Findings, read_findings
from llmlab.study.statistics import clopper_pearson
from llmlab.study.words import AXIS_NAMES, factor, interval, plain, probability, signed

HEAD = ("arm", "mean", "difference", "interval", "p (Holm)", "sign-flip p", "compute", "verdict")


def lines(found: Findings) -> list[tuple[str, ...]]:
    """A line for each arm under HEAD, as people read it."""
    return [(arm.name, mean(arm), *compared(found, arm)) for arm in found.arms]


def mean(arm: Arm) -> str:
    estimate = arm.estimate
    return f"{plain(estimate.mean)} ± {plain(estimate.sd)}" if estimate.n > 1 else plain(estimate.mean)


def compared(found: Findings, arm: Arm) -> tuple[str, ...]:
    judged = arm.judged
    if judged is None:
        return "", "", "", "", "", "base"
    return (
        signed(judged.effect.difference.mean),
        interval(judged.interval),
        probability(judged.adjusted),
        probability(judged.effect.sign_flip),
        factor(arm.speedups.get("flops")),
        found.verdict(arm),
    )


def verdict_table(directory: str | Path, width: int = 120) -> str:
    """The verdicts of a study's directory as text, for the end of `llmlab study`."""
    found = read_findings(directory)
    console = Console(file=io.StringIO(), width=width, highlight=False)
    table = Table(title=found.study["question"], caption=caption(found), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    rows = lines(found)
    kept = fitting(rows, width)
    for name in kept:
        table.add_column(name, justify="left" if name in ("arm", "verdict") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell for name, cell in zip(HEAD, row) if name in kept))
    console.print(table)
    return console.file.getvalue()


def fitting(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The columns that a terminal has room for; what a report has anyway is left out first."""
    wide = {name: 2 + max(map(len, cells)) for name, *cells in zip(HEAD, HEAD, *rows)}
    for name in ("mean", "p (Holm)", "sign-flip p", "compute"):
        if sum(wide.values()) > width:
            del wide[name]
    return list(wide)


def caption(found: Findings) -> str:
    q, match = found.question, found.study["matching"]["axis"]
    return (
        f"{q.metric}, {q.better} is better; mean ± sd over {found.study['seeds']} seeds; paired differences from "
        f"{found.base.name}, intervals at {1 - q.alpha:.0%} after Holm; at least {q.min_effect:g} matters; "
        + (f"matched in {AXIS_NAMES.get(match, match)}" if match else "not matched")
        + "; compute: what the base needs for the same"
    )


def to_csv(found: Findings) -> str:
    """Every number of every arm and metric, unrounded: one line for each."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    records = [record for arm in found.arms for record in records_of(found, arm)]
    names = list(dict.fromkeys(name for record in records for name in record))
    writer.writerow(names)
    for record in records:
        writer.writerow([record.get(name, "") for name in names])
    return out.getvalue()


def records_of(found: Findings, arm: Arm) -> list[dict]:
    estimate, alpha = arm.estimate, found.question.alpha
    low, high = estimate.interval(alpha)
    k, n = arm.diverged
    rate = clopper_pearson(k, n, alpha) if n else ("", "")
    head = {"arm": arm.name, "metric": found.question.metric, "n": estimate.n, "mean": estimate.mean, "sd": estimate.sd}
    head |= {"low": low, "high": high, "diverged": k, "runs": n, "diverged_low": rate[0], "diverged_high": rate[1]}
    head |= {axis: "" if value is None else value for axis, value in arm.axes.items()}
    if arm.judged is None:
        return [head]
    judged = arm.judged
    head |= {**effect_record(judged.effect, judged.level), "p": judged.effect.p, "test": judged.effect.test}
    head |= {"level": judged.level, "adjusted_p": judged.adjusted, "equivalence_p": judged.equivalence}
    head |= {"verdict": found.verdict(arm), "needs": judged.needs or ""}
    if arm.nested:
        head |= {"nested_low": arm.nested[0], "nested_high": arm.nested[1]}
    for axis, each in arm.speedups.items():
        head |= {f"factor_{axis}": each.factor, f"factor_{axis}_low": each.low, f"factor_{axis}_high": each.high}
    if arm.steps:
        head |= {"steps": arm.steps.steps, "steps_low": arm.steps.low, "steps_high": arm.steps.high}
    others = [
        {"arm": arm.name, "metric": other.metric, "n": other.effect.own.n, "mean": other.effect.own.mean}
        | {"sd": other.effect.own.sd, **effect_record(other.effect, alpha), "p": other.effect.p, "q": other.q}
        for other in arm.others
    ]
    return [head, *others]


def effect_record(effect, level: float) -> dict:
    low, high = effect.difference.interval(level)
    welch = effect.unpaired.interval(level)
    return {
        "pairs": effect.difference.n,
        "difference": effect.difference.mean,
        "difference_sd": effect.difference.sd,
        "difference_low": low,
        "difference_high": high,
        "sign_flip_p": "" if effect.sign_flip is None else effect.sign_flip,
        "correlation": effect.correlation,
        "welch_low": welch[0],
        "welch_high": welch[1],
    }


def to_tex(found: Findings) -> str:
    """A table for a paper (booktabs)."""
    rows = " \\\\\n".join(" & ".join(map(tex, line)) for line in lines(found))
    return (
        f"% {tex(caption(found))}\n"
        f"\\begin{{tabular}}{{l{'r' * (len(HEAD) - 2)}l}}\n\\toprule\n"
        f"{' & '.join(map(tex, HEAD))} \\\\\n\\midrule\n{rows} \\\\\n\\bottomrule\n\\end{{tabular}}\n"
    )


TEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "×": r"$\times$", "…": r"\ldots{}", "≥": r"$\ge$", "≤": r"$\le$"}
TEX |= {"²": r"$^2$", "∞": r"$\infty$", "−": "$-$", "<": r"$<$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}


def tex(text: str) -> str:
    """
    >>> tex("50 % of a_b ± 1")
    '50 \\\\% of a\\\\_b $\\\\pm$ 1'
    """
    return "".join(TEX.get(sign, sign) for sign in text)


def to_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its first column to the left."""
    clean = lambda cells: "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
    rule = "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|"
    return "\n".join([clean(head), rule, *map(clean, rows)])
