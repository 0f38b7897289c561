"""A search over layouts: meshes, remat policies and microbatches, ranked by a model and confirmed by compiling.

The model is rough on purpose (it sees no fusion and no schedule): it throws out what cannot fit or cannot be fast. What
a search returns was compiled, fits, and is told by the compiled program.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from llmlab import axes
from llmlab.axes import LayoutError
from llmlab.config import swap
from llmlab.cost import traced_work
from llmlab.mesh import Mesh
from llmlab.nn.module import merge
from llmlab.nn.stack import POLICIES, Stack
from llmlab.plan.compile import abstract_batch
from llmlab.plan.report import Plan, plan, stacks, traffic
from llmlab.plan.topology import Topology
from llmlab.train.experiment import Experiment
from llmlab.train.program import Program

PARTS = (1, 2, 4, 8)  # microbatches
TENSOR = (1, 2, 4, 8)
SLACK = 1.15  # how far over the capacity the model may be before a layout is not tried


@dataclasses.dataclass(frozen=True)
class Profile:
    """What one row of the batch asks for under a remat policy, whatever the mesh.

    flops: executed. kept: bytes of the width's shape that the backward pass reads. wide: bytes of other shapes, which
    `tensor` shares.
    """

    flops: float
    kept: float
    wide: float


@dataclasses.dataclass(frozen=True)
class Guess:
    """A layout and what the model says of it: seconds of a step, bytes of a device."""

    experiment: Experiment
    seconds: float
    memory: float


def search(
    experiment: Experiment,
    topology: Topology,
    memory: float | None = None,
    tries: int = 8,
    report: Callable[[str], None] = print,
) -> list[Plan]:
    """The Pareto set of step time against memory among at most `tries` compiled layouts, fastest first.

    Raises ValueError for a topology without a data sheet.
    """
    chip = topology.chip
    if chip is None:
        raise ValueError(
            f"{topology.name} has no data sheet, so layouts cannot be ranked; search a TPU or GPU topology"
        )
    capacity = chip.memory / chip.devices if memory is None else memory
    found = sorted(guesses(experiment, topology), key=lambda guess: guess.seconds)
    fitting = [guess for guess in found if guess.memory <= SLACK * capacity]
    report(f"{len(found):,} layouts, {len(fitting):,} of which may fit; compiling {min(tries, len(fitting))}")
    made = []
    for guess in shortlist(fitting, tries):
        one = plan(guess.experiment, topology, memory)
        words = f"{one.times.step:.3g} s, {one.memory.peak / 1e9:.3g} GB" if one.fits else "does not fit"
        report(f"  {told(guess.experiment, len(topology.devices))}: {words} (guessed {guess.seconds:.3g} s)")
        made += [one] if one.fits else []
    return pareto(made)


def shortlist(fitting: list[Guess], tries: int) -> list[Guess]:
    """The fastest, and the fastest of those with less and less memory, so that trades are seen."""
    chosen, least = [], math.inf
    for guess in fitting:
        if guess.memory < 0.9 * least:
            chosen.append(guess)
            least = guess.memory
    rest = [guess for guess in fitting if guess not in chosen]
    half = max(tries // 2, 1)
    return (chosen[:half] + rest + chosen[half:])[:tries]


def pareto(plans: list[Plan]) -> list[Plan]:
    """Those than which no other is both faster and smaller, fastest first."""
    kept: list[Plan] = []
    for one in sorted(plans, key=lambda one: (one.times.step, one.memory.peak)):
        if not kept or one.memory.peak < kept[-1].memory.peak:
            kept.append(one)
    return kept


def guesses(experiment: Experiment, topology: Topology) -> Iterator[Guess]:
    """Every layout whose sizes fit the model and the batch, with what the model says of it."""
    profiles = {policy: profile(recomputed(experiment, policy)) for policy in POLICIES}
    program = Program(experiment, Mesh().build(jax.devices("cpu")[:1]))
    specs = program.specs
    for mesh in meshes(specs, topology):
        for parts in PARTS:
            shape = (experiment.data.batch // parts, experiment.data.length)
            try:
                axes.spec("BL", shape, experiment.rules.live, mesh.sizes)
                stored = stored_bytes(experiment, specs, mesh.sizes)
            except LayoutError:
                continue
            if experiment.data.batch % parts:
                continue
            for policy, found in profiles.items():
                train = dataclasses.replace(experiment.train, accumulate=parts)
                layout = dataclasses.replace(recomputed(experiment, policy), mesh=mesh, train=train)
                yield guess(layout, topology, found, stored, program.model)


def meshes(specs, topology: Topology) -> Iterator[Mesh]:
    """Meshes of powers of two over the topology; slices share `data`."""
    devices, slices = len(topology.devices), topology.slices
    experts = {spec.shape[spec.axes.index("E")] for spec in specs.values() if "E" in spec.axes}
    shares = [n for n in TENSOR if all(count % n == 0 for count in experts)] if experts else [1]
    for tensor in TENSOR:
        for expert in shares:
            rest, uneven = divmod(devices, tensor * expert)
            for fsdp in [] if uneven else (2**i for i in range(rest.bit_length())):
                if rest % fsdp == 0 and (rest // fsdp) % slices == 0:
                    yield Mesh(data=rest // fsdp, fsdp=fsdp, expert=expert, tensor=tensor, slices=slices)


def recomputed(experiment: Experiment, policy: str) -> Experiment:
    """The experiment with one remat policy in all its stacks."""
    model = swap(experiment.model, Stack, lambda stack: dataclasses.replace(stack, remat=policy))
    return dataclasses.replace(experiment, model=model)


def profile(experiment: Experiment) -> Profile:
    """Traced with one row on one host device; nothing is computed."""
    train = dataclasses.replace(experiment.train, accumulate=1, precision="bfloat16")
    data = dataclasses.replace(experiment.data, batch=1)
    alone = dataclasses.replace(experiment, train=train, data=data, mesh=Mesh())
    program = Program(alone, Mesh().build(jax.devices("cpu")[:1]))
    state, batch = program.abstract_state, abstract_batch(program)

    def residuals(params, stats, batch):
        def loss(params):
            key = jax.random.key(0)
            out = alone.task.loss(merge(program.structure, params, stats), batch, key, jnp.dtype(program.dtype).name)
            return out.loss, out.sums

        return jax.vjp(loss, params, has_aux=True)[1]

    saved = jax.tree.leaves(jax.eval_shape(residuals, state["params"], state["stats"], batch))
    stored = {leaf.shape for leaf in jax.tree.leaves(state["params"])}
    width = alone.model.width
    size = lambda leaves: float(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves))
    saved = [leaf for leaf in saved if leaf.shape not in stored and jnp.issubdtype(leaf.dtype, jnp.number)]
    plain = [leaf for leaf in saved if leaf.shape and leaf.shape[-1] == width]
    flops = traced_work(program._step, state, batch).products
    return Profile(flops, size(plain), size(saved) - size(plain))


def stored_bytes(experiment: Experiment, specs, sizes: dict[str, int]) -> dict[str, float]:
    """Of one device: parameters as stored, "gathered" in 16 bits without `fsdp`, and of one "layer" of those."""
    found = {"parameters": 0.0, "gathered": 0.0, "layer": 0.0}
    for spec in specs.values():
        partition = axes.spec(spec.axes, spec.shape, experiment.rules.stored, sizes)
        names = axes.flat(partition)
        whole = math.prod(spec.shape)
        found["parameters"] += 4 * whole / math.prod(sizes[name] for name in names)
        gathered = 2 * whole / math.prod(sizes[name] for name in names if name != "fsdp")
        found["gathered"] += gathered
        found["layer"] += gathered / (spec.shape[0] if spec.axes.startswith("N") else 1)
    return found


def guess(layout: Experiment, topology: Topology, row: Profile, stored: dict[str, float], model) -> Guess:
    """Seconds and bytes by the usual arithmetic. Parameters are gathered twice in every part, beside products and the
    traffic of memory; sums of gradients, and under `tensor` four of activations a layer, wait for what they sum."""
    chip, sizes, parts = topology.chip, layout.mesh.sizes, layout.train.accumulate
    devices, tensor = len(topology.devices), sizes["tensor"]
    rows = layout.data.batch / (devices / tensor)  # of one device in a step
    width = getattr(layout.model, "width", 1)
    depth = sum(stack.depth for stack in stacks(layout.model))
    share = lambda n: (n - 1) / n
    gathers = 2 * share(sizes["fsdp"]) * stored["gathered"] * parts
    inside = sizes["data"] // topology.slices
    kept_by = stored["gathered"] / sizes["fsdp"]
    # XLA sums the whole gradients of a layer over both axes and then cuts them; it does not scatter.
    reduced = 2 * share(inside * sizes["fsdp"]) * stored["gathered"] * parts
    across = 2 * share(topology.slices) * kept_by * parts if topology.slices > 1 else 0.0
    again = 4 + 2 * (row.kept + row.wide < 3 * depth * layout.data.length * width * 2)
    sums = 2 * share(tensor) * again * depth * rows * layout.data.length * width * 2
    compute = row.flops * layout.data.batch / devices / chip.flops * chip.devices
    link, network = chip.link / chip.devices, (chip.network or math.inf) / chip.devices
    moved = traffic(layout, model, sizes, stored["parameters"], 2 * stored["parameters"])
    hidden = max(compute, moved / chip.bandwidth * chip.devices, gathers / link)
    activations = rows / parts * (row.kept + row.wide / tensor)
    memory = 4 * stored["parameters"] + 2 * stored["layer"] + activations + (stored["parameters"] if parts > 1 else 0)
    return Guess(layout, hidden + (reduced + sums) / link + across / network, memory)


def told(experiment: Experiment, devices: int) -> str:
    """A layout in words."""
    policies = ", ".join(sorted({stack.remat for stack in stacks(experiment.model)})) or "none"
    parts = experiment.train.accumulate
    sizes = experiment.mesh.resolve(devices)
    shown = " x ".join(f"{axis} {n}" for axis, n in sizes.items() if n > 1) or "data 1"
    return f"{shown}, remat {policies}" + (f", {parts} parts" if parts > 1 else "")
