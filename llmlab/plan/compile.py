"""The real train step of an experiment, compiled ahead of time for devices that need not exist."""

from __future__ import annotations

import dataclasses
import re
import time

import jax

from llmlab import axes
from llmlab.cost import Work, work
from llmlab.kernels.receipt import receipt
from llmlab.plan.topology import Topology
from llmlab.train.experiment import Experiment
from llmlab.train.program import Program


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made. text: XLA's program, "" where it did not fit. peak: bytes of one device at the most.

    arguments: bytes of state and batch on one device. kernels: the receipt. executed: FLOPs over all devices.
    """

    program: Program
    text: str
    peak: float
    arguments: float
    kernels: dict[str, str]
    executed: Work
    trace_seconds: float
    cpu_seconds: float
    wall_seconds: float
    refusal: str | None = None  # what the compiler said, if the program does not fit


def abstract_batch(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a batch of training."""
    rows, found = program.experiment.data.batch, {}
    for name, array in program.experiment.example(rows=1).items():
        shape = (rows, *array.shape[1:])
        found[name] = jax.ShapeDtypeStruct(shape, array.dtype, sharding=program.batch_sharding(name, shape))
    return found


def compile_step(experiment: Experiment, topology: Topology) -> Compiled:
    """Traces and compiles the step over the topology's devices. Nothing is run and no memory of the model is taken.

    Raises ValueError where the rules and the mesh do not fit the experiment, as training would.
    """
    begun = time.process_time()
    mesh = experiment.mesh.build(topology.devices)
    program = Program(experiment, mesh)
    data = experiment.data
    axes.spec("BL", (data.batch // experiment.train.accumulate, data.length), experiment.rules.live, dict(mesh.shape))
    with receipt(experiment.train.kernels == "fast") as kernels:
        traced = program.step.trace(program.abstract_state, abstract_batch(program))
    with axes.use(mesh, experiment.rules):
        executed = work(traced.jaxpr)
    lowered = traced.lower()
    traced_at, wall = time.process_time(), time.perf_counter()
    spent = lambda: (traced_at - begun, time.process_time() - traced_at, time.perf_counter() - wall)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error))
        if needed is None:
            raise
        used, words = needed
        return Compiled(program, "", used, 0.0, kernels, executed, *spent(), refusal=words)
    memory = compiled.memory_analysis()
    peak = memory.peak_memory_in_bytes
    if mesh.devices.flat[0].platform != "tpu":  # elsewhere the compiler's peak leaves its temporaries out
        peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        peak += memory.temp_size_in_bytes
    return Compiled(program, compiled.as_text(), peak, memory.argument_size_in_bytes, kernels, executed, *spent())


def _needed(message: str) -> tuple[float, str] | None:
    """(bytes that the program wants, the compiler's words), of a refusal for want of memory."""
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return None
    # One line for all that is in memory, and one for temporaries alone.
    used = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of|\(([\d.]+)([KMGT])\) exceeds", message)
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    words = next((line.strip() for line in message.splitlines() if "Used" in line or "memory" in line), message[:200])
    count, unit = [part for part in used.groups() if part] if used else ("inf", "K")
    return float(count) * scale[unit], words
