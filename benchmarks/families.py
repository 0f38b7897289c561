"""What each family of experiments/families.py costs and learns: one row of a table each.

    python benchmarks/families.py --output benchmarks/results/families.json          (--only gpt mamba, --steps 30)

parameters; training FLOPs a token: algorithmic, executed, and those of the traced step (loss and gradients, where
recomputation is counted); tokens/s over the steps after the first ten; the task's own metrics on validation; bytes of
the decode state of one row at 256 and at 4,096 positions, in float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("gpt", "bert", "t5", "mamba", "moe", "hybrid", "rnn")


def measure(name: str, steps: int | None) -> dict:
    import jax

    from llmlab.cost import Shape, traced_flops
    from llmlab.nn.module import merge
    from llmlab.train.files import load_experiment
    from llmlab.train.loop import train
    from llmlab.train.program import Program

    experiment = load_experiment(ROOT / "experiments" / "families.py", name)
    short = {"steps": steps, "eval_every": None, "save_every": None} if steps else {}
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, prompt=None, **short))
    program = Program(experiment, experiment.mesh.build(jax.devices()[:1]))
    rows, length = experiment.data.batch, experiment.data.length
    batch, cost = experiment.example(rows), program.model.cost(experiment.shape(rows))

    def loss(params):
        model = merge(program.structure, params, program.abstract_state["stats"])
        return experiment.task.loss(model, batch, None, "float32").loss

    traced = traced_flops(jax.grad(loss), program.abstract_state["params"])
    state = {n: program.model.cost(Shape(1, n, memory=n)).state for n in (256, 4096)}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = train(experiment, Path(folder) / "run")
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_second"] for line in lines if line.get("step", 0) > 10 and "tokens_per_second" in line]
    return {
        "task": type(experiment.task).__name__,
        "parameters": sum(spec.size for spec in program.specs.values()),
        "flops_per_token": {
            "algorithmic": 3 * cost.algorithmic / (rows * length),
            "executed": 3 * cost.executed / (rows * length),
            "traced": traced / (rows * length),
        },
        "tokens_per_second": statistics.median(rates) if rates else None,
        "state_bytes": state if experiment.model.declared().decodable else None,
        "validation": result.validation,
        "steps": experiment.train.steps,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--steps", type=int, default=None, help="of each; the experiment's own by default")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = {}
    for name in options.only:
        found[name] = measure(name, options.steps)
        print(json.dumps({name: found[name]}), flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.strip(),
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("jax", "flax")},
        "families": found,
    }
    if options.output:
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
