"""Gates: what is looked at before anything trains, and what a study is refused for.

Like must be ranked with like; every arm must keep the contract as it declares; its memory and time are measured from a
few steps of the program that will train it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import jax

from llmlab.config import put
from llmlab.nn.parts import Declared
from llmlab.study.group import stacked
from llmlab.study.likeness import evaluation_of, refuse, task_name, tokenizer_name
from llmlab.study.replicas import Replicas
from llmlab.study.study import Study
from llmlab.testing.contract import CHECKS, LENGTH, NotApplicable, Subject, Violation
from llmlab.train.experiment import Experiment, check_vocab
from llmlab.train.program import Program

CONTRACT = ("causality", "decode = teacher forcing")
STEPS = 3  # timed, after one that is not


class Refused(ValueError):
    """An arm that may not enter the study."""


@dataclasses.dataclass(frozen=True)
class Price:
    """What a group of one arm takes, measured: seconds of a step of all its cells and of compiling, bytes of memory."""

    together: int
    seconds: float
    compile: float
    bytes: float | None


def check_arms(study: Study, experiments: dict[str, Experiment]) -> dict[str, dict]:
    """{arm: its evaluation set}. Raises Unlike or ValueError unless the arms may be ranked; opens their data."""
    sets: dict[str, dict] = {}
    names = {"task": lambda e: task_name(e.task), "tokenizer": lambda e: tokenizer_name(e.data)}
    known: dict[tuple, dict] = {}
    for name, experiment in experiments.items():
        check_vocab(experiment)
        for what, name_of in names.items():
            here, base = name_of(experiment), name_of(study.base)
            if here != base:
                refuse(what, (study.base_name, base), (name, here))
        given = metrics(experiment)
        if study.metric not in given:
            raise Refused(f"arm {name!r} reports no {study.metric!r}; it reports {', '.join(given)}: set Study.metric")
        seeded = put(experiment, "data.seed", study.seeds_of(name, 0)["data"])
        key = (seeded.data, seeded.task)
        if key not in known:
            known[key] = evaluation_of(seeded.open_data(lambda _: None))
        sets[name] = known[key]
        if sets[name] != sets[study.base_name]:
            refuse("evaluation", (study.base_name, sets[study.base_name]), (name, sets[name]))
    return sets


def metrics(experiment: Experiment) -> list[str]:
    """The names of what an evaluation of the experiment reports; nothing is computed."""
    program = Program(experiment, experiment.mesh.build(jax.devices()[:1]))
    state = program.abstract_state
    sums = jax.eval_shape(program._evaluate, state["params"], state["stats"], experiment.example(experiment.data.batch))
    return list(experiment.task.report({name: 1.0 for name in sums}))


def contract(experiment: Experiment, only=CONTRACT) -> dict[str, str]:
    """{check: what was seen, or why it does not apply}. Raises Refused for what is violated undeclared."""
    subject = Subject(experiment.model, experiment.task, experiment.data.short(LENGTH))
    seen = {}
    for name in only:
        try:
            seen[name] = CHECKS[name](subject)
        except NotApplicable as reason:
            seen[name] = f"not applicable: {reason}"
        except Violation as violation:
            raise Refused(f"{name}: {violation}") from violation
    loss, expected = float(jax.jit(subject.loss)(subject.params)), math.log(subject.config.outcomes)
    if not abs(loss - expected) < 0.5:
        raise Refused(f"initial loss: {loss:.3f}, and a model that knows nothing has {expected:.3f}")
    return seen | {"initial loss": f"{loss:.3f}, ln of the outcomes {expected:.3f}"}


def check_contracts(experiments: dict[str, Experiment], say: Callable[[str], None]) -> dict[str, dict[str, str]]:
    """{arm: {check: what was seen}}, equal models once. Raises Refused with the arm's name."""
    found: dict[str, dict[str, str]] = {}
    known: dict[tuple, dict[str, str]] = {}
    with jax.default_matmul_precision("highest"):
        for name, experiment in experiments.items():
            key = (experiment.model, experiment.task)
            say(f"checking the contract of {name}")
            try:
                found[name] = known[key] if key in known else contract(experiment)
            except Refused as refused:
                raise Refused(
                    f"arm {name!r} does not keep the contract: {refused}; `llmlab check` tells more"
                ) from refused
            known[key] = found[name]
    return found


def declared(experiment: Experiment) -> dict[str, bool]:
    """The properties that hold for the model as it declares them."""
    names = {"causal": "causal", "isolated": "packing_safe", "decodable": "decodable"}
    found: Declared = experiment.model.declared()
    return {shown: getattr(found, name) for name, shown in names.items()}


def price(study: Study, experiment: Experiment) -> Price:
    """What a group of the arm's replicates takes: a few steps of its program on random batches."""
    together = min(study.seeds, study.together)
    replicas = Replicas([experiment] * together, [{"init": i, "dropout": i} for i in range(together)])
    batch = stacked([experiment.example(experiment.data.batch, seed=i) for i in range(together)])
    state, began = replicas.start(), time.perf_counter()
    step = replicas.step.lower(state, batch, replicas.numbers).compile()
    compiled = time.perf_counter() - began
    memory = step.memory_analysis()
    used = memory and memory.argument_size_in_bytes + memory.temp_size_in_bytes
    state, metrics = step(state, batch, replicas.numbers)
    jax.block_until_ready(metrics)
    began = time.perf_counter()
    for _ in range(STEPS):
        state, metrics = step(state, batch, replicas.numbers)
    jax.block_until_ready(metrics)
    return Price(together, (time.perf_counter() - began) / STEPS, compiled, float(used) if used else None)


def cost(study: Study, experiments: dict[str, Experiment], sizes: dict, prices: dict[str, Price]) -> dict:
    """The whole study: runs, algorithmic FLOPs, and seconds of training on one worker (None if not measured)."""
    trials = len(study.tune.grid) * study.tune.seeds if study.tune else 0
    runs = {name: study.seeds + (trials if name != study.noise else 0) for name in experiments}
    flops = sum(runs[name] * sizes[name]["flops"] for name in experiments)
    seconds = None
    if prices:
        each = {name: prices[name].seconds * e.train.steps / prices[name].together for name, e in experiments.items()}
        seconds = sum(runs[name] * each[name] + 2 * prices[name].compile for name in experiments)
    return {"runs": sum(runs.values()), "flops": flops, "seconds": seconds}
