"""What a benchmark leaves: JSON with rows, date, machine, versions, commit; and the ratio of rows to earlier ones."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path

import jax

SHAPE = ("suite", "name", "size", "precision", "rows", "length", "prompt", *"BLHGKDVCS")  # rows alike in it compare


def head() -> dict:
    """When, where, with what and of which code: all of a file but its rows."""
    folder = Path(__file__).parent
    git = lambda *words: subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True).stdout.strip()
    commit = git("rev-parse", "--short", "HEAD")
    installed = {package.name: package.version for package in importlib.metadata.distributions()}
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit + "+" * bool(git("status", "--porcelain", folder.parent)) if commit else None,
        "machine": machine(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {n: v for n, v in installed.items() if re.match(r"(llmlab|jax.*|flax|optax|numpy|libtpu)$", n)},
    }


def machine() -> dict:
    """The devices, and the processor with the cores that this process may use."""
    file, model = Path("/proc/cpuinfo"), None
    if file.is_file():
        model = re.search(r"model name\s*: (.*)", file.read_text())
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def earlier(folder: Path, here: dict) -> dict[tuple, dict]:
    """{shape: its last row}, of the files in `folder` that the same machine left."""
    files = [json.loads(file.read_text()) for file in sorted(folder.glob("bench-*.json"))]
    alike = [file for file in files if file["machine"] == here]
    return {shape(row): {"date": file["date"], **row} for file in alike for row in file["rows"] if "seconds" in row}


def shape(row: dict) -> tuple:
    return tuple(row.get(name) for name in SHAPE)


def against(row: dict, last: dict | None) -> dict:
    """The row with how many times faster it is than the last of its shape."""
    if last is None or "seconds" not in row:
        return row
    ratio = {"median": last["seconds"] / row["seconds"], "best": last["seconds_best"] / row["seconds_best"]}
    return row | {"ratio_to_last": {"date": last["date"], **{name: round(value, 3) for name, value in ratio.items()}}}


def write(file: Path, record: dict) -> None:
    """Rewritten after every row, so that a run that is cut short leaves what it has."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n  ".join(json.dumps(row) for row in record["rows"])
    rest = json.dumps({name: value for name, value in record.items() if name != "rows"}, indent=1)
    file.write_text(f'{rest[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n')


def line(row: dict) -> str:
    """A row for the terminal."""
    words = [f"{row['suite']:<12}{row['name']:<22}{row['precision']:<9}"]
    if "error" in row:
        error = row["error"]
        return words[0] + (error if isinstance(error, str) else told(row))
    speed = f"{row['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in row else ""
    words.append(f"{1e3 * row['seconds']:.2f} ms (best {1e3 * row['seconds_best']:.2f}) {speed}")
    words += [f"MFU {row['mfu']:.1%}"] if "mfu" in row else []
    words += [f"{row['bandwidth_share']:.0%} of bandwidth"] if "bandwidth_share" in row else []
    for key, than in (("ratio_to_torch", "PyTorch"), ("ratio_to_last", "the last")):
        words += [f"{row[key]['median']:.2f} times {than} (best {row[key]['best']:.2f})"] if key in row else []
    ran = "; ".join(f"{name}: {kernel}" for name, kernel in row["kernels"].items())
    return "  ".join(words) + (f"\n{'':12}{ran}" if ran else "")


def told(row: dict) -> str:
    """A row of correctness in words."""
    found = ", ".join(f"{part} {value:.1e}" for part, value in row["error"].items())
    ran = "; ".join(row["kernels"].values())
    return f"{'right' if row['right'] else 'WRONG'}: {found} (at most {row['bound']:g})  {ran}"
