"""What the framework costs beside the arithmetic: a step's Python, the loader, the start of the command.

    python benchmarks/overhead.py --output benchmarks/results/overhead.json

step: milliseconds of one step of the whole loop (data, dispatch, metrics) for a model too small to compute anything, so
an upper bound of the overhead. loader: its share of a step of experiments/quickstart.py. start: CPU seconds of
`llmlab train experiments/quickstart.py` until its first loss, without and with the cache of compiled programs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "experiments" / "quickstart.py"
TINY = {
    "model.width": 16,
    "model.stack.segments.0.pattern.0.mixer.heads": 2,
    "model.stack.segments.0.pattern.0.ffn.hidden": 16,
    "data.batch": 1,
    "data.length": 8,
    "train.log-every": 100,
    "train.steps": 3000,
    "train.save-every": 3000,
    "train.eval-every": 3000,
    "train.eval-batches": 1,
}


def until(words: str, arguments: list[str], cache: Path) -> tuple[float, list[str]]:
    """CPU seconds of a command until it prints `words`, and its lines; the command is ended then."""
    command = [sys.executable, "-m", "llmlab", *arguments]
    environment = {**os.environ, "LLMLAB_CACHE": str(cache), "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    lines = []
    for line in child.stdout:
        lines.append(line.rstrip())
        if line.startswith(words):
            break
    child.kill()
    _, _, usage = os.wait4(child.pid, 0)
    return usage.ru_utime + usage.ru_stime, lines


def rows(run: Path) -> list[dict]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train" and "seconds_per_step" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache, train = Path(folder) / "cache", ["train", str(QUICKSTART), "--fresh"]
        started = [*train, "--run", f"{folder}/start", "--train.log-every", "1"]
        until("encoding the validation", started, cache)
        until("MFU is of", started, cache)  # tokenizer and token ids are there from here on
        cold, _ = until("step 1/", started, cache)
        warm, _ = until("step 1/", started, cache)
        until("step 60/", [*train, "--run", f"{folder}/loader"], cache)
        shares = [row["data_share"] for row in rows(Path(folder) / "loader")]
        leaves = [word for leaf, value in TINY.items() for word in (f"--{leaf}", str(value))]
        until("step 3000:", [*train, "--run", f"{folder}/tiny", *leaves], cache)
        steps = [row["seconds_per_step"] for row in rows(Path(folder) / "tiny")]
    import jax

    found = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "step_milliseconds_best": round(1e3 * min(steps), 3),
        "step_milliseconds_median": round(1e3 * statistics.median(steps), 3),
        "loader_share_median": round(statistics.median(shares), 4),
        "start_cpu_seconds_cold": round(cold, 1),
        "start_cpu_seconds_warm": round(warm, 1),
    }
    print(json.dumps(found, indent=1))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
