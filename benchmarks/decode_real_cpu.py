"""Greedy tokens a second of a real checkpoint on CPU, against transformers' generate with its cache.

    python benchmarks/decode_real_cpu.py DIR --torch-python PYTHON_WITH_TORCH

DIR: a checkpoint that both open, such as SmolLM2-135M. In float32, or --dtype bfloat16 for activations of both and for
weights of transformers (llmlab keeps those that the file has in it); prompts of 32 random tokens, 128 new ones, batch 1
and 8. Each peer is a process of its own that generates when told; rounds alternate between llmlab and transformers with
sdpa and with eager attention, on the same cores, and the ratio is to the faster of the two. Of a busy machine the ratio
of CPU seconds is the steadier one: pin all to one core (`taskset -c 0`), for OpenMP's threads spin while they wait.
Time to the first token is from the call to its id on the host. `same` is how many of all new tokens are those of
transformers.
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

PROMPT, NEW = 32, 128


def llmlab_run(directory: str, dtype: str):
    import numpy as np

    import llmlab
    from llmlab.generate import Sampling

    model = llmlab.from_pretrained(directory, dtype=dtype)

    def run(prompts: list[list[int]]):
        began, cpu = time.perf_counter(), time.process_time()
        stream = model.generator.stream(prompts, NEW, Sampling(temperature=0.0))
        parts = [next(stream)]
        first = time.perf_counter() - began
        parts += stream
        tokens = np.concatenate(parts, axis=1).tolist()
        return first, time.perf_counter() - began, time.process_time() - cpu, tokens

    return run


def torch_run(directory: str, dtype: str, attention: str):
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(directory, dtype=getattr(torch, dtype), attn_implementation=attention).eval()
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def run(prompts: list[list[int]]):
        ids = torch.tensor(prompts)
        mask = torch.ones_like(ids)
        began = time.perf_counter()
        model.generate(ids, attention_mask=mask, max_new_tokens=1, **options)
        first = time.perf_counter() - began
        began, cpu = time.perf_counter(), time.process_time()
        found = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, **options)
        return first, time.perf_counter() - began, time.process_time() - cpu, found[:, PROMPT:].tolist()

    return run


def work(peer: str, directory: str, dtype: str) -> None:
    """Generates for each line of standard input, which holds the prompts; answers with seconds and tokens."""
    run = llmlab_run(directory, dtype) if peer == "llmlab" else torch_run(directory, dtype, peer)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


def start(python: str, peer: str, directory: str, dtype: str) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if peer == "llmlab":
        environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # as the command sets it
    command = [python, __file__, directory, "--dtype", dtype, "--worker", peer]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(worker: subprocess.Popen, prompts: list[list[int]]) -> list:
    worker.stdin.write(json.dumps(prompts) + "\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def compare(workers: dict[str, subprocess.Popen], batch: int, rounds: int, vocab: int) -> dict:
    import numpy as np

    prompts = np.random.default_rng(batch).integers(3, vocab, (batch, PROMPT)).tolist()
    seen = {name: [] for name in workers}
    for number in range(rounds + 1):
        for name, worker in workers.items():
            answer = ask(worker, prompts)
            if number:  # the first compiles
                seen[name].append(answer)
    found = {"batch": batch, "load": round(os.getloadavg()[0], 1)}
    for name, answers in seen.items():
        firsts, walls, cpus, _ = zip(*answers)
        found[name] = {
            "tokens_per_second_best": round(batch * NEW / min(walls), 1),
            "tokens_per_second_median": round(batch * NEW / statistics.median(walls), 1),
            "tokens_per_cpu_second_best": round(batch * NEW / min(cpus), 1),
            "milliseconds_to_first_best": round(1e3 * min(firsts), 1),
            "milliseconds_to_first_median": round(1e3 * statistics.median(firsts), 1),
        }
    peers = [name for name in workers if name != "llmlab"]
    if peers:
        keys = ("tokens_per_second_best", "tokens_per_second_median", "tokens_per_cpu_second_best")
        found["ratio"] = {key: round(found["llmlab"][key] / max(found[p][key] for p in peers), 2) for key in keys}
        ours, theirs = (np.array(seen[name][0][3]) for name in ("llmlab", peers[0]))
        found["same"] = f"{int((ours == theirs).sum())} of {ours.size}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--torch-python", default=None, help="a Python that has torch and transformers")
    parser.add_argument("--attention", nargs="+", default=["sdpa", "eager"], help="of transformers")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.directory, options.dtype)
        return
    workers = {"llmlab": start(sys.executable, "llmlab", options.directory, options.dtype)}
    for peer in options.attention if options.torch_python else ():
        workers[peer] = start(options.torch_python, peer, options.directory, options.dtype)
    for name, worker in workers.items():
        while (line := worker.stdout.readline()).strip() != "ready":
            if not line:
                raise RuntimeError(f"the {name} worker ended")
    vocab = json.loads((Path(options.directory) / "config.json").read_text())["vocab_size"]
    rows = []
    for batch in options.batch:
        rows.append(compare(workers, batch, options.rounds, vocab))
        print(json.dumps(rows[-1], indent=1), flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    if options.output:
        record = {"date": time.strftime("%Y-%m-%d"), "cores": len(os.sched_getaffinity(0)), "rows": rows}
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
