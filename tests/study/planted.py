"""A study's directory whose rows are drawn: what arms truly do is known."""

import json
import math
import zlib
from pathlib import Path

import numpy as np

from llmlab.study.record import Row, write_row

STEPS = (50, 100, 150, 200, 250, 300, 350, 400)
ARMS = {"gelu": 0.0, "relu2": -0.030, "swiglu": -0.012, "no norm": 0.055, "A/A": 0.0}  # true difference in nats
RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def plant(directory: Path, name="activation", seeds=8, noise=0.004, arms=ARMS, diverge=(), **changes) -> Path:
    """Writes study.json and rows. diverge: (arm, replicate) of runs that do. changes: to fields of every row."""
    study = describe(name, seeds, arms)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "study.json").write_text(json.dumps(study))
    random = np.random.default_rng(len(name) + seeds)
    shared = random.normal(size=seeds) * 2 * noise
    for arm, shift in arms.items():
        for replicate in range(seeds):
            last = 1.9 + shift + shared[replicate] + noise * random.normal()
            lost = (arm, replicate) in diverge
            write_row(directory, row(study, arm, replicate, last, "diverged" if lost else "done", random, **changes))
        for rate in RATES if arm != "A/A" else ():
            last = 1.93 + shift + 0.05 * math.log2(rate / 3e-3) ** 2 + noise * random.normal()
            state = "diverged" if (arm, rate) == ("no norm", RATES[-1]) else "done"
            write_row(directory, row(study, arm, 0, last, state, random, phase="tune", trial={"optim.peak": rate}))
    return directory


def row(study, arm, replicate, last, state, random, phase="replicate", trial=None, **changes) -> Row:
    index = list(study["arms"]).index(arm)
    speed = 1.0 + 0.06 * index * (arm != "A/A")
    curve = []
    for step in STEPS[: 3 if state == "diverged" else None]:
        loss = last + 2.2 * (step**-0.5 - STEPS[-1] ** -0.5) + 0.002 * random.normal() * (step < STEPS[-1])
        point = {"step": step, "tokens": step * 3072, "flops": step * 2.0e11 * speed, "seconds": 0.11 * step * speed}
        curve.append(point | {"loss": loss, "accuracy": 0.62 - 0.2 * (loss - 1.9), "bits_per_byte": loss / math.log(2)})
    metrics = {} if state == "diverged" else {key: curve[-1][key] for key in ("loss", "accuracy", "bits_per_byte")}
    values = {
        "study": study["name"],
        "arm": arm,
        "phase": phase,
        "replicate": replicate,
        "trial": {"optim.peak": 2e-3 if arm != "no norm" else RATES[0]} if trial is None else trial,
        "seeds": {"init": 11 + replicate, "data": 23 + replicate, "dropout": 37 + replicate},
        "key": f"{zlib.crc32(f'{arm} {phase} {replicate} {trial}'.encode()):016x}",
        "state": state,
        "metrics": metrics,
        "curve": curve,
        "axes": study["arms"][arm]["axes"] | {"seconds": curve[-1]["seconds"]},
        "task": "CausalLM",
        "metric": "loss",
        "tokenizer": "Characters",
        "evaluation": {"fingerprint": "8c1f2a", "tokens": 111540.0, "bytes": 111540.0},
        "code": study["code"],
        "hardware": "1 x cpu",
        "error": "step 151: loss nan" if state == "diverged" else "",
    }
    return Row(**values | changes)


def describe(name, seeds, arms) -> dict:
    def arm(index, label) -> dict:
        index = 0 if label == "A/A" else index
        hidden = 512 - 11 * index
        delta = {} if index == 0 else {"model.stack.segments.0.pattern.0.ffn": ["Mlp(gelu)", f"Mlp({label})"]}
        return {
            "experiment": {},
            "diff": delta,
            "free": {} if index == 0 else {"ffn.hidden": hidden},
            "axes": {
                "parameters": 803_456 - 700 * index,
                "active": 803_456 - 700 * index,
                "flops": 8.0e13 * (1 + 0.0008 * index),
                "tokens": 1_228_800,
                "state_bytes": 32_768.0,
                "seconds": None,
            },
            "declared": {"causal": True, "decodable": True, "packing": True},
        }

    return {
        "name": name,
        "question": "Does ReLU² in the feed-forward beat GELU at equal training FLOPs?",
        "metric": "loss",
        "better": "lower",
        "alpha": 0.05,
        "min_effect": 0.01,
        "seeds": seeds,
        "study": {"power": 0.8, "tune": {"leaf": "optim.peak"}},
        "base": next(iter(arms)),
        "noise": "A/A" if "A/A" in arms else None,
        "arms": {label: arm(index, label) for index, label in enumerate(arms)},
        "matching": {
            "axis": "flops",
            "tolerance": 0.005,
            "error": {a: 0.0008 * i * (a != "A/A") for i, a in enumerate(arms)},
        },
        "cost": {"runs": 56, "flops": 4.5e15, "seconds": 2500.0},
        "command": ["llmlab", "study", "experiments/study_activation.py"],
        "code": "7f3a91c2d04be865",
        "versions": {"llmlab": "0.1.0", "jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8"},
        "hardware": "1 x cpu",
        "started": "2026-11-25T12:00:00+0000",
    }
