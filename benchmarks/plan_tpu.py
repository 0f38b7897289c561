"""What do models ask of TPU slices: peak memory, executed collectives, a bound of a step, CPU seconds to compile?

    python benchmarks/plan_tpu.py --cases llama2_7b llama3_8b --output benchmarks/results/plan_tpu.json

Each case is planned as `llmlab plan` does it, with libtpu and no TPU; its figures are written as soon as they are there
and join those of earlier cases in the file. Compile seconds are CPU time of the process: on a loaded machine they grow.
Not measured: anything on a TPU.
"""

import argparse
import datetime
import json
from pathlib import Path

import jax

from llmlab.config import put
from llmlab.plan import plan, topology
from llmlab.train.files import load_experiment

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
V5E, SLICES, V5P = "v5e:16x16", "2*v5e:16x16", "v5p:2x4x4"
CASES = {  # name: (file, function, topology, leaves)
    "llama2_7b": ("plan_llama2_7b.py", "config", V5E, {}),
    "llama3_8b": ("plan_pods.py", "config", V5P, {}),
    "mixtral_8x7b": ("plan_pods.py", "mixtral_8x7b", V5P, {"mesh.expert": 8}),
    "llama31_405b": ("plan_pods.py", "llama31_405b", "v5p:16x16x16", {"mesh.tensor": 8}),
}
SMALL = {name: ("families.py", name) for name in ("gpt", "bert", "t5", "mamba", "mamba2", "moe", "hybrid", "rnn")}
SMALL |= {"convolution": ("keywords.py", "config"), "plug-in": ("plugin_mixer.py", "config")}
for name, place in SMALL.items():
    CASES[name] = (*place, V5E, {"data.batch": 512})
    CASES[f"{name} on two slices"] = (*place, SLICES, {"data.batch": 512, "mesh.slices": 2})


def measure(name: str) -> dict:
    file, function, where, leaves = CASES[name]
    experiment = load_experiment(EXPERIMENTS / file, function)
    for path, value in leaves.items():
        experiment = put(experiment, path, value)
    found = plan(experiment, topology(where)).record()
    del found["experiment"], found["digest"]
    return {"leaves": leaves, "date": datetime.date.today().isoformat(), **found}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "plan_tpu.json")
    given = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    for name in given.cases:
        found = measure(name)
        known = json.loads(given.output.read_text()) if given.output.exists() else {}
        given.output.write_text(json.dumps(known | {name: found}, indent=1) + "\n")
        moved = sum(row["bytes"] for row in found["collectives"].values())
        print(
            f"{name}: peak {found['memory']['peak'] / 1e9:.2f} GB, {moved / 1e9:.2f} GB of collectives, "
            f"{found['seconds']['cpu']:.0f} CPU seconds"
        )


if __name__ == "__main__":
    main()
