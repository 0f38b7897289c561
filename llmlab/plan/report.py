"""The plan of an experiment on a topology: everything that is known before a chip is rented, as one value."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
from pathlib import Path

import jax

from llmlab import axes
from llmlab.config import swap, to_dict
from llmlab.nn.stack import Stack
from llmlab.plan.compile import Compiled, abstract_batch, compile_step
from llmlab.plan.hlo import Program as Text
from llmlab.plan.hlo import array_bytes, by_kind, collectives
from llmlab.plan.roofline import Load, Times, times
from llmlab.plan.topology import Topology
from llmlab.train.experiment import Experiment
from llmlab.train.plans import digest_of, plan_file
from llmlab.train.program import Program


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device. kept: what the forward loops over layers keep for the backward pass. peak: the compiler's.

    capacity: what there is; None where no data sheet is known and nothing was said.
    """

    parameters: float
    optimizer: float
    batch: float
    kept: float
    temporaries: float
    peak: float
    capacity: float | None

    @property
    def fits(self) -> bool | None:
        return None if self.capacity is None else self.peak <= self.capacity


@dataclasses.dataclass(frozen=True)
class Plan:
    """flops: of one device and step, `algorithmic`, `executed` and `elementwise`. price: of a chip-hour, or None."""

    experiment: Experiment
    topology: Topology
    parameters: int
    memory: Memory
    flops: dict[str, float]
    collectives: dict[str, dict[str, float]]
    between_slices: float
    times: Times | None
    kernels: dict[str, str]
    seconds: dict[str, float]
    refusal: str | None = None
    price: float | None = None

    @property
    def fits(self) -> bool | None:
        return False if self.refusal else self.memory.fits

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.experiment.data.batch * self.experiment.data.length

    @property
    def mfu(self) -> float:
        """The share of the data sheet's FLOP/s that algorithmic FLOPs are, if a step takes its bound."""
        return self.flops["algorithmic"] / self.times.step / (self.topology.chip.flops / self.topology.chip.devices)

    @property
    def chip_hours(self) -> float:
        return self.topology.chips * self.days * 24

    @property
    def days(self) -> float:
        return self.experiment.train.steps * self.times.step / 86400

    def record(self) -> dict:
        """The plan as JSON; `digest` names the experiment without what may change in a run."""
        timed = self.times is not None
        found = {
            "topology": self.topology.name,
            "device": self.topology.devices[0].device_kind,
            "devices": len(self.topology.devices),
            "digest": digest_of(self.experiment),
            "fits": self.fits,
            "refusal": self.refusal,
            "parameters": self.parameters,
            "memory": dataclasses.asdict(self.memory),
            "flops": self.flops,
            "collectives": self.collectives,
            "bytes_between_slices": self.between_slices,
            "kernels": self.kernels,
            "seconds": self.seconds,
            "versions": {name: importlib.metadata.version(name) for name in ("llmlab", "jax", "jaxlib")},
            "experiment": to_dict(self.experiment),
        }
        if timed:
            found["times"] = dataclasses.asdict(self.times) | {"step": self.times.step}
            found |= {"mfu": self.mfu, "tokens_per_second": self.tokens / self.times.step}
            found |= {"chip_hours": self.chip_hours, "days": self.days}
        return found

    def save(self, directory: Path) -> Path:
        """Writes it where a job that starts in this run's directory looks for it."""
        file = plan_file(directory, self.topology.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".tmp")
        partial.write_text(json.dumps(self.record(), indent=1))
        os.replace(partial, file)
        return file


def plan(experiment: Experiment, topology: Topology, memory: float | None = None, price: float | None = None) -> Plan:
    """Compiles the train step for the topology and reads off what it needs.

    memory: bytes that a device may use; None for what the data sheet says. price: of a chip-hour.
    """
    compiled = compile_step(experiment, topology)
    program, chip = compiled.program, topology.chip
    found = collectives(compiled.text, tuple(topology.slice_of(d) for d in program.mesh.devices.flat))
    devices = program.mesh.size
    executed = compiled.executed
    flops = {
        "algorithmic": program.flops_per_row * experiment.data.batch / devices,
        "executed": executed.products / devices,
        "elementwise": executed.elementwise / devices,
    }
    sizes = measure(program, compiled, chip.memory / chip.devices if chip and memory is None else memory)
    with axes.use(program.mesh, experiment.rules):
        moved = traffic(experiment, program.model, dict(program.mesh.shape), sizes.parameters, sizes.optimizer)
    load = Load(flops["executed"], moved, tuple(found))
    return Plan(
        experiment=experiment,
        topology=topology,
        parameters=sum(spec.size for spec in program.specs.values()),
        memory=sizes,
        flops=flops,
        collectives=by_kind(found),
        between_slices=sum(one.wire for one in found if one.spans),
        times=times(load, chip) if chip and compiled.text else None,
        kernels=dict(compiled.kernels),
        seconds={"trace": compiled.trace_seconds, "cpu": compiled.cpu_seconds, "wall": compiled.wall_seconds},
        refusal=compiled.refusal,
        price=price,
    )


def measure(program: Program, compiled: Compiled, capacity: float | None) -> Memory:
    """Where the bytes of one device go."""
    state = program.abstract_state
    parameters, optimizer = share(state["params"]), share(state["opt"])
    batch = share(abstract_batch(program)) + share(state["stats"])
    stored = parameters + optimizer + batch
    keeps, peak = kept(program, compiled.text), compiled.peak
    return Memory(parameters, optimizer, batch, keeps, max(peak - stored - keeps, 0.0), peak, capacity)


def share(tree) -> float:
    """Bytes of a tree of sharded shapes that one device holds."""
    each = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return float(sum(each(leaf) for leaf in jax.tree.leaves(tree)))


def kept(program: Program, text: str) -> float:
    """Bytes that the loops of the forward pass stack up: what they carry beside the layers' parameters."""
    if not text:
        return 0.0
    known = {
        ",".join(map(str, leaf.sharding.shard_shape(leaf.shape)))
        for leaf in jax.tree.leaves(program.abstract_state["params"])
    }
    found = 0.0
    for shapes in Text(text).stacks(r'op_name="(?![^"]*transpose)[^"]*jvp\('):
        for shape in shapes:
            sizes = shape[shape.index("[") + 1 : -1]
            if sizes.count(",") >= 2 and sizes not in known:
                found += sum(array_bytes(shape))
    return found


def traffic(experiment: Experiment, model, sizes: dict[str, int], parameters: float, optimizer: float) -> float:
    """Bytes to and from the memory of one device in a step: for each part of the batch the built model's own count
    forward and twice that backward, once more where layers are recomputed; and parameters, gradients and optimizer,
    read and written.

    sizes: of the mesh. parameters, optimizer: bytes that the device stores of them.
    """
    parts = experiment.train.accumulate
    rows = experiment.data.batch // parts // math.prod(sizes[axis] for axis in ("data", "fsdp", "expert"))
    cost = model.cost(experiment.shape(max(rows, 1), 4 if experiment.train.precision == "float32" else 2))
    passes = 3 + any(stack.remat != "none" for stack in stacks(experiment.model))
    summed = 2 * parts * parameters if parts > 1 else 0.0  # each part's gradients, added to those before
    once = 4 * parameters + 2 * optimizer + summed
    return parts * passes * cost.bytes / (sizes["tensor"] * sizes["sequence"]) + once


def stacks(model) -> list[Stack]:
    """The stacks of layers of a model, wherever they stand in its config."""
    found: list[Stack] = []
    swap(model, Stack, lambda stack: found.append(stack) or stack)
    return found
