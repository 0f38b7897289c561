"""A search over layouts: meshes, rules, remat policies and microbatches, ranked by a model and confirmed by compiling.

The model is rough on purpose (it sees no fusion and no schedule): it throws out what cannot fit or cannot be fast. What
a search returns was compiled, fits, and is told by the compiled program.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace

import jax
import jax.numpy as jnp

from llmlab import axes
from llmlab.axes import LayoutError, Rules
from llmlab.config import flatten, swap
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
SHARES = (1, 2, 4, 8)  # of tensor, sequence and expert
SLACK = 1.15  # how far over the capacity the model may be before a layout is not tried


@dataclasses.dataclass(frozen=True)
class Profile:
    """What one row of the batch asks for under a remat policy, whatever the mesh.

    flops: executed. kept: bytes of the width's shape that the backward pass reads. wide: bytes of other shapes, which
    `tensor` shares. received: bytes that its device gets of those that share experts or positions with it.
    """

    flops: float
    kept: float
    wide: float
    received: float


@dataclasses.dataclass(frozen=True)
class Guess:
    """A layout and what the model says of it: seconds of a step, bytes of a device."""

    experiment: Experiment
    seconds: float
    memory: float


def search(
    experiment: Experiment, topology: Topology, memory: float | None = None, tries: int = 8, report=print
) -> list[Plan]:
    """The Pareto set of step time against memory among at most `tries` compiled layouts, fastest first.

    Raises ValueError for a topology without a data sheet.
    """
    chip = topology.chip
    if chip is None:
        raise ValueError(f"{topology.name} has no data sheet, so layouts cannot be ranked; take a TPU or GPU topology")
    capacity = chip.memory / chip.devices if memory is None else memory
    found = sorted(guesses(experiment, topology), key=lambda guess: guess.seconds)
    fitting = [guess for guess in found if guess.memory <= SLACK * capacity]
    report(f"{len(found):,} layouts, {len(fitting):,} of which may fit; compiling {min(tries, len(fitting))}")
    made = []
    for guess in shortlist(fitting, tries):
        try:
            one = plan(guess.experiment, topology, memory)
        except LayoutError as error:  # of an array inside that no guess sees
            report(f"  {told(guess.experiment, len(topology.devices))}: {error}")
            continue
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
    program = Program(experiment, Mesh().build(jax.devices("cpu")[:1]))
    model = SimpleNamespace(cost=functools.cache(program.model.cost))
    traced = functools.cache(lambda policy, mesh: profile(recomputed(experiment, policy), topology, mesh))
    batch, arrays = experiment.data.batch, experiment.example(rows=1).items()
    for rules, mesh in itertools.product(variants(experiment.rules), meshes(program.specs, topology)):
        if rules != experiment.rules and mesh.tensor == 1:
            continue
        kinds = [Mesh(data=1, expert=min(mesh.expert, 2))]
        kinds += [Mesh(data=min(2, len(topology.devices) // 2), sequence=2)] * (mesh.sequence > 1)
        try:
            stored = stored_bytes(rules, program.specs, mesh)
            rows = {policy: merged([traced(policy, kind) for kind in kinds]) for policy in POLICIES}
            for parts in (n for n in PARTS if batch % n == 0):
                for name, array in arrays:
                    axes.spec(axes.letters_of(name), (batch // parts, *array.shape[1:]), rules.live, mesh.sizes)
                for policy, row in rows.items():
                    train = dataclasses.replace(experiment.train, accumulate=parts)
                    layout = dataclasses.replace(recomputed(experiment, policy), mesh=mesh, train=train, rules=rules)
                    yield guess(layout, topology, row, rows["none"], stored, model)
        except LayoutError:  # then smaller parts of the batch are not divided either
            continue


def variants(rules: Rules) -> list[Rules]:
    """The rules as they are, and with the stream shared over `tensor` too."""
    more = rules * axes.stream()
    return [rules] + [more] * (more.live != rules.live)


def meshes(specs, topology: Topology) -> Iterator[Mesh]:
    """Meshes of powers of two over the topology; slices share `data`."""
    devices, slices = len(topology.devices), topology.slices
    experts = {spec.shape[spec.axes.index("E")] for spec in specs.values() if "E" in spec.axes}
    shares = [n for n in SHARES if all(count % n == 0 for count in experts)] if experts else [1]
    powers = [2**i for i in range(devices.bit_length())]
    for fsdp, expert, sequence, tensor in itertools.product(powers, shares, SHARES, SHARES):
        data, uneven = divmod(devices, fsdp * expert * sequence * tensor)
        if data and not uneven and data % slices == 0:
            yield Mesh(data=data, fsdp=fsdp, expert=expert, sequence=sequence, tensor=tensor, slices=slices)


def recomputed(experiment: Experiment, policy: str) -> Experiment:
    """The experiment with one remat policy in all its stacks."""
    model = swap(experiment.model, Stack, lambda stack: dataclasses.replace(stack, remat=policy))
    return dataclasses.replace(experiment, model=model)


def profile(experiment: Experiment, topology: Topology, mesh: Mesh = Mesh(data=1)) -> Profile:
    """Traced with one row for each device along B of a small mesh; nothing is computed."""
    rows = mesh.data * mesh.expert
    train = dataclasses.replace(experiment.train, accumulate=1, precision="bfloat16")
    data = dataclasses.replace(experiment.data, batch=rows)
    alone = dataclasses.replace(experiment, train=train, data=data, mesh=mesh)
    program = Program(alone, mesh.build(topology.devices[: math.prod(mesh.sizes.values())]))
    state, batch = program.abstract_state, abstract_batch(program)

    def residuals(params, stats, batch):
        def loss(params):
            key = jax.random.key(0)
            out = alone.task.loss(merge(program.structure, params, stats), batch, key, jnp.dtype(program.dtype).name)
            return out.loss, out.sums

        return jax.vjp(loss, params, has_aux=True)[1]

    with axes.use(program.mesh, alone.rules):
        saved = jax.tree.leaves(jax.eval_shape(residuals, state["params"], state["stats"], batch))
        work = traced_work(program._step, state, batch)
    stored = {leaf.shape for leaf in jax.tree.leaves(state["params"])}
    width = alone.model.width
    size = lambda leaves: float(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves))
    saved = [leaf for leaf in saved if leaf.shape not in stored and jnp.issubdtype(leaf.dtype, jnp.number)]
    plain = [leaf for leaf in saved if leaf.shape and leaf.shape[-1] == width]
    return Profile(*(n / rows for n in (work.products, size(plain), size(saved) - size(plain), work.received)))


def merged(found: list[Profile]) -> Profile:
    """What ways of sharing ask for at once: the first one's memory, the messages of all."""
    received = sum(one.received for one in found)
    return dataclasses.replace(found[0], flops=max(one.flops for one in found), received=received)


def stored_bytes(rules: Rules, specs, mesh: Mesh) -> dict[str, float]:
    """Of one device: "parameters" as stored; in 16 bits one "layer" of them as it is used, all that is "gathered" for
    use, and what is sent to have gradients "summed" over the devices that use the same."""
    found = dict.fromkeys(("parameters", "layer", "gathered", "summed"), 0.0)
    devices = math.prod(mesh.sizes.values()) // mesh.slices
    for spec in specs.values():
        cut = lambda kind, spec=spec: axes.flat(axes.spec(spec.axes, spec.shape, kind, mesh.sizes))
        kept, used = (math.prod(mesh.sizes[axis] for axis in cut(kind)) for kind in (rules.stored, rules.live))
        whole = 2 * math.prod(spec.shape)
        found["parameters"] += 2 * whole / kept
        found["layer"] += whole / used / (spec.shape[0] if spec.axes.startswith("N") else 1)
        found["gathered"] += max(whole / used - whole / kept, 0.0)
        # XLA sums the whole gradients of a layer over all axes and then cuts them; it does not scatter.
        found["summed"] += 2 * (1 - used / devices) * whole / used
    return found


def guess(layout: Experiment, topology: Topology, row: Profile, plain: Profile, stored: dict, model) -> Guess:
    """Seconds and bytes by the usual arithmetic. Parameters are gathered twice in every part, beside products and the
    traffic of memory; sums of gradients, under `tensor` four of activations a layer, and what parts exchange wait.

    row: of the layout's policy; plain: where all is kept. One turn of the layers holds so much, and its gradients.
    """
    chip, sizes, parts = topology.chip, layout.mesh.sizes, layout.train.accumulate
    devices, tensor, batch = len(topology.devices), sizes["tensor"], layout.data.batch
    rows = batch / (devices / tensor)  # of one device in a step
    shape = (batch // parts, layout.data.length, getattr(layout.model, "width", 1))
    stream = axes.flat(axes.spec("BLD", shape, layout.rules.live, sizes))
    depth = sum(stack.depth for stack in stacks(layout.model))
    turns = sum(segment.repeats for stack in stacks(layout.model) for segment in stack.segments)
    share = lambda n: (n - 1) / n
    across = share(topology.slices) * stored["parameters"] * parts  # gradients in 16 bits, there and back
    one = 2 * shape[1] * shape[2]  # bytes of the stream of one row
    again = 4 + 2 * (row.kept + row.wide < 3 * depth * one)
    sums = 2 * share(tensor) * (again * depth + 3) * rows * one  # at the ends one of tokens, and one in 32 bits
    sums *= 1.5 if "tensor" in stream else 1.0  # nor are these scattered: they are summed, cut and gathered again
    exchanged = rows * row.received * share(max(sizes["expert"], sizes["sequence"]))
    compute = row.flops * batch / devices / chip.flops * chip.devices
    link, network = chip.link / chip.devices, (chip.network or math.inf) / chip.devices
    moved = traffic(layout, model, sizes, stored["parameters"], 2 * stored["parameters"])
    hidden = max(compute, moved / chip.bandwidth * chip.devices, 2 * stored["gathered"] * parts / link)
    seconds = hidden + (stored["summed"] * parts + sums + exchanged) / link + across / network
    cut = math.prod(sizes[axis] for axis in stream)
    held, most = (batch / parts * (kind.kept / cut + kind.wide / devices) for kind in (row, plain))
    memory = (4 + (parts > 1)) * stored["parameters"] + 2 * stored["layer"] + held + (2 * most - held) / turns
    return Guess(layout, seconds, memory)


def told(experiment: Experiment, devices: int) -> str:
    """A layout in words."""
    policies = ", ".join(sorted({stack.remat for stack in stacks(experiment.model)})) or "none"
    parts, rules = experiment.train.accumulate, experiment.rules.name
    sizes = experiment.mesh.resolve(devices)
    shown = " x ".join(f"{axis} {n}" for axis, n in sizes.items() if n > 1) or "data 1"
    shown += f", rules {rules}" if rules != axes.every().name else ""
    return f"{shown}, remat {policies}" + (f", {parts} parts" if parts > 1 else "")


def flags(experiment: Experiment, devices: int) -> str:
    """What makes the experiment that was searched into this layout, as words of a command line."""
    sizes = experiment.mesh.resolve(devices) | {"slices": experiment.mesh.slices}
    found = [f"--mesh.{name} {n}" for name, n in sizes.items()] + [f"--train.accumulate {experiment.train.accumulate}"]
    policies = {path: leaf for path, leaf in flatten(experiment.model, "model").items() if path.endswith(".remat")}
    return " ".join(
        found + [f"--{path} {leaf}" for path, leaf in policies.items()] + [f"--rules '{experiment.rules.name}'"]
    )
