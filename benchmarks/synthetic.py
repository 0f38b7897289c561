"""What architectures learn on synthetic problems: each arm at its declared rates, with three seeds.

    python benchmarks/synthetic.py mqar

An arm is a function of experiments/<name>.py. A claim is that it reaches a bound at one of its learning rates at least,
or that it stays short of one at all of them, with two seeds of three. Runs that can no longer change the verdict are
left out; --all does them too. A seed is that of the parameters and of the order of the data. Runs are kept in
benchmarks/results/synthetic_<name>.json, and the same command again goes on with what is missing there or was made by
another experiment.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Claim:
    """reaches: whether one rate must get there, or all must stay there. above: on which side of `bound`."""

    reaches: bool
    metric: str
    above: bool
    bound: float
    rates: tuple[float, ...]

    def __str__(self):
        word, sign = ("reaches" if self.reaches else "stays at"), (">=" if self.above else "<=")
        return f"{word} {self.metric} {sign} {self.bound:g}"

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.above else value <= self.bound


def reaches(bound: float, *rates: float, metric: str = "accuracy") -> Claim:
    return Claim(True, metric, metric != "loss", bound, rates)


def stays(bound: float, *rates: float, metric: str = "accuracy") -> Claim:
    return Claim(False, metric, metric == "loss", bound, rates)


# The rate that does best comes first.
FIGURES = {
    "mqar": {"two_layers": reaches(0.99, 5e-3, 3e-3), "one_layer": stays(0.35, 5e-3, 3e-3)},
    "induction": {
        "two_layers": reaches(0.98, 5e-3, 3e-3),
        "mamba": reaches(0.99, 5e-3, 3e-3),
        "gru": reaches(0.99, 5e-3, 3e-3),
        "one_layer": stays(0.15, 5e-3, 3e-3),
    },
    "reversal": {
        "attention": reaches(0.98, 5e-3, 2e-3, metric="sequence_accuracy"),
        "no_attention": stays(0.75, 5e-3, 2e-3),
    },
    "parity": {
        "lstm": reaches(0.99, 1e-2, 3e-3),
        "rnn": reaches(0.99, 3e-3, 1e-3),
        "transformer": stays(0.65, 3e-3, 1e-3),
    },
    "copying": {"selective": reaches(0.97, 3e-3, 6e-3), "fixed": stays(0.6, 3e-3, 6e-3)},
    # 1.0887 is the conditional entropy: what the best predictor loses that sees both sides.
    "markov": {
        "both_sides": reaches(1.1087, 5e-3, 3e-3, metric="loss"),
        "past": stays(1.1087, 5e-3, 3e-3, metric="loss"),
    },
    "addition": {"config": reaches(0.98, 5e-3, 2e-3)},
}


def judge(claim: Claim, values: dict[float, list[float]]) -> str | None:
    """Says "holds" or "fails" by the values that each rate has so far; None while they do not decide."""
    most = SEEDS // 2 + 1
    good = [sum(map(claim.holds, values[rate])) >= most for rate in claim.rates]
    bad = [sum(not claim.holds(value) for value in values[rate]) >= most for rate in claim.rates]
    if claim.reaches:
        return "holds" if any(good) else "fails" if all(bad) else None
    return "holds" if all(good) else "fails" if any(bad) else None


def settled(claim: Claim, values: list[float]) -> bool:
    """Whether two seeds of a rate agree, so that the third says nothing."""
    held = sum(map(claim.holds, values))
    return max(held, len(values) - held) > SEEDS // 2


def measure(experiment, metric: str) -> dict:
    """Trains and gives the last validation over the whole split, and how the metric came there."""
    from llmlab.train.loop import train

    began, used = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        result = train(experiment, run)
        if not result.finished:
            raise SystemExit("stopped; the same command goes on with the runs that are missing")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = [[line["step"], round(line[metric], 4)] for line in lines if line["kind"] == "validation"]
    return {
        **{name: round(value, 4) for name, value in result.validation.items()},
        "curve": curve,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        "commit": commit(),
    }


def commit() -> str:
    """The hash of the code; with a + where files have changed since."""
    git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "llmlab", "experiments") else "")


def run(name: str, everything: bool, fresh: bool) -> None:
    from llmlab.config import digest, put
    from llmlab.train.files import load_experiment

    file = RESULTS / f"synthetic_{name}.json"
    old = json.loads(file.read_text())["runs"] if file.exists() and not fresh else []
    known, rows, verdicts = {row["key"]: row for row in old}, [], {}
    for arm, claim in FIGURES[name].items():
        base = load_experiment(ROOT / "experiments" / f"{name}.py", arm)
        values = {rate: [] for rate in claim.rates}
        for rate in claim.rates:
            for seed in range(SEEDS):
                if not everything and (judge(claim, values) or settled(claim, values[rate])):
                    break
                experiment = put(put(put(base, "optim.peak", rate), "seed", seed), "data.seed", seed)
                key = digest(experiment)
                if key not in known:
                    print(f"--- {arm}, rate {rate:g}, seed {seed}", flush=True)
                    known[key] = {"key": key, "arm": arm, "rate": rate, "seed": seed}
                    known[key] |= measure(experiment, claim.metric)
                rows.append(known[key])
                values[rate].append(known[key][claim.metric])
                write(file, name, rows + [row for row in old if row not in rows], verdicts)
        verdicts[arm] = f"{claim}: {judge(claim, values)}"
    write(file, name, rows, verdicts)
    show(name, rows, verdicts)


def write(file: Path, name: str, rows: list[dict], verdicts: dict[str, str]) -> None:
    import jax

    record = {"date": time.strftime("%Y-%m-%d"), "command": f"python benchmarks/synthetic.py {name}"}
    record |= {"machine": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))}
    record |= {"jax": jax.__version__, "python": platform.python_version()}
    head = json.dumps(record | {"verdicts": verdicts}, indent=1).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    file.parent.mkdir(exist_ok=True)
    file.write_text(f'{head},\n "runs": [\n  {lines}\n ]\n}}\n')


def show(name: str, rows: list[dict], verdicts: dict[str, str]) -> None:
    """Prints the table of runs and the verdicts."""
    print(f"\n{'arm':<26}{'rate':>8}{'seed':>6}  {'metric':<18}{'value':>8}{'CPU s':>7}")
    for row in rows:
        metric = FIGURES[name][row["arm"]].metric
        left = f"{row['arm']:<26}{row['rate']:>8g}{row['seed']:>6}"
        print(f"{left}  {metric:<18}{row[metric]:>8.4f}{row['cpu_seconds']:>7.0f}")
    for arm, verdict in verdicts.items():
        print(f"{arm} {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(FIGURES))
    parser.add_argument("--all", action="store_true", help="every rate with every seed")
    parser.add_argument("--fresh", action="store_true", help="use nothing of an earlier result")
    options = parser.parse_args()
    from llmlab.cli import use_huge_pages
    from llmlab.cli.arguments import set_up

    use_huge_pages()
    set_up()
    run(options.name, options.all, options.fresh)


if __name__ == "__main__":
    main()
