"""Seconds and memory of loading a checkpoint on CPU, against transformers.

    python benchmarks/load_cpu.py DIR --torch-python PYTHON_WITH_TORCH

DIR: a checkpoint that both open, in safetensors, such as SmolLM2-135M. Every load is a process of its own, llmlab and
transformers by turns; the file is in the system's cache, and another process has just filled and left as much memory as
the weights take (a virtual machine that must first get it from its host needs a second for half a GB). Counted from a
process that has imported everything: wall and CPU seconds of loading in float32, the same until each weight has been
read once too (transformers maps the file where it can, and reads nothing before that), and by how much the most memory
that the process ever held (what it has mapped of files too) grew, as a share of the weights in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path


def peak() -> int:
    """The most bytes that this process has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def llmlab_load(directory: str):
    import jax
    import numpy as np

    import llmlab
    from llmlab import pretrained  # noqa: F401 - imported before the clock starts

    jax.devices()

    touch = lambda leaves: [np.asarray(leaf).sum() for leaf in leaves]
    return lambda: jax.tree.leaves(llmlab.from_pretrained(directory).params), touch, lambda leaf: leaf.size


def torch_load(directory: str):
    import torch
    import transformers
    from transformers.models.llama import modeling_llama  # noqa: F401 - imported before the clock starts

    torch.set_num_threads(len(os.sched_getaffinity(0)))

    read = transformers.AutoModelForCausalLM.from_pretrained
    touch = lambda leaves: [leaf.detach().sum().item() for leaf in leaves]
    return lambda: list(read(directory, dtype=torch.float32).parameters()), touch, lambda leaf: leaf.numel()


def work(peer: str, directory: str) -> None:
    load, touch, count = {"llmlab": llmlab_load, "transformers": torch_load}[peer](directory)
    file = sum(one.stat().st_size for one in Path(directory).glob("*.safetensors"))
    subprocess.run([sys.executable, "-c", f"import numpy; numpy.ones({3 * file}, 'uint8')"], check=True)
    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    spent = lambda: (time.perf_counter() - wall, time.process_time() - cpu)
    leaves = load()
    loaded = spent()
    touch(leaves)
    times = zip(("loaded", "loaded_cpu", "read", "read_cpu"), loaded + spent())
    print(json.dumps(dict(times) | {"share_of_weights": (peak() - before) / (4 * sum(map(count, leaves)))}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python", default=None, help="a Python that has torch and transformers")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.directory)
        return
    peers = {"llmlab": sys.executable} | ({"transformers": options.torch_python} if options.torch_python else {})
    seen = {name: [] for name in peers}
    for _ in range(options.rounds):
        for name, python in peers.items():
            command = [python, __file__, options.directory, "--worker", name]
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            seen[name].append(json.loads(answer.stdout.splitlines()[-1]))
    for name, answers in seen.items():
        found = {"load": round(os.getloadavg()[0], 1)}
        for key in answers[0]:
            values = [answer[key] for answer in answers]
            found |= {f"{key}_best": round(min(values), 3), f"{key}_median": round(statistics.median(values), 3)}
        print(json.dumps({name: found}, indent=1))


if __name__ == "__main__":
    main()
