"""Replicas: runs that differ in seeds, or in numbers that change no shape, as one program.

Every array of the state has a leading axis R, one entry a replica, which a mesh axis of its own shares out over the
devices. The step is that of `llmlab.train.program`, for each replica: so is its result. A replica whose loss or
gradient is not finite is frozen where it was, by its experiment's guard, and the others go on.

form: "vmap" makes one batched program; "map" runs a device's replicas one after the other inside the program, which is
faster where batched products are slow (XLA on CPU) and gives the bits of separate runs. "auto" takes "map" on CPU.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from llmlab.config import flatten, get
from llmlab.nn.module import abstract, split
from llmlab.train.experiment import Experiment, Skip
from llmlab.train.program import Batch, Program, State
from llmlab.train.start import overlay

Form = Literal["auto", "vmap", "map"]
SEEDED = ("seed", "data.seed")


class Replicas:
    """The program of experiments that differ only in `numbers` and seeds; `seeds` are {"init", "dropout"} of each."""

    def __init__(self, experiments: list[Experiment], seeds: list[dict[str, int]], form: Form = "auto", devices=None):
        self.experiment, self.count = experiments[0], len(experiments)
        self.numbers = differing(experiments)
        self.seeds = {name: np.array([s[name] for s in seeds], np.uint32) for name in ("init", "dropout")}
        devices = list(devices or jax.devices())
        each = _one_replica(self.experiment.mesh)
        self.program = Program(self.experiment, each.build(devices[: math.prod(each.sizes.values())]))
        self.form = form if form != "auto" else "map" if devices[0].platform == "cpu" else "vmap"
        shared = math.gcd(self.count, len(devices)) if self.program.mesh.size == 1 else 1
        self.mesh = Mesh(np.array(devices[:shared]), ("replica",), axis_types=(AxisType.Auto,))
        self.init = self._compiled(self._init)
        self.step = self._compiled(self._step, donate_argnums=0)
        self.evaluate = self._compiled(self._evaluate)

    @property
    def limit(self) -> int:
        """Updates that may be skipped before a replica counts as diverged."""
        guard = self.experiment.train.guard
        return guard.limit if isinstance(guard, Skip) else 0

    @functools.cached_property
    def abstract_state(self) -> State:
        """Shapes, types and shardings of the state."""
        shapes = jax.eval_shape(self.init, self.seeds, self.numbers)
        place = self.sharding if self.mesh.size > 1 else None
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes)

    @property
    def sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec("replica"))

    def start(self) -> State:
        """The state of step 0. `stopped` is the step at which a replica diverged, 0 while it is alive."""
        state, given = self.init(self.seeds, self.numbers), self.experiment.start.load(self.program)
        return overlay(state, jax.tree.map(self._every, given))

    def _every(self, array) -> jax.Array:
        """An array of one replica, given to all."""
        shared = np.broadcast_to(np.asarray(array), (self.count, *array.shape))
        return jax.device_put(shared, self.sharding if self.mesh.size > 1 else self.mesh.devices.flat[0])

    def one(self, state: State, replica: int) -> State:
        """The train state of one replica, as `Program` has it."""
        return jax.tree.map(lambda a: a[replica], {k: v for k, v in state.items() if k not in ("stopped", "skipped")})

    def _compiled(self, function, **options):
        def every(*arguments):
            if self.form == "vmap":
                return jax.vmap(function)(*arguments)
            return jax.lax.map(lambda one: function(*one), arguments)

        if self.mesh.size == 1:
            return jax.jit(every, **options)
        part = PartitionSpec("replica")
        shared = jax.shard_map(every, mesh=self.mesh, in_specs=part, out_specs=part, check_vma=False)
        return jax.jit(shared, in_shardings=self.sharding, out_shardings=self.sharding, **options)

    # --- of one replica ----------------------------------------------------------------------------------------

    def _init(self, seeds, numbers) -> State:
        state = self.bound(numbers)._init(jax.random.key(seeds["init"]))
        rng = jax.random.key_data(jax.random.key(seeds["dropout"]))
        return {**state, "rng": rng, "stopped": jnp.zeros((), jnp.int32), "skipped": jnp.zeros((), jnp.int32)}

    def _step(self, state: State, batch: Batch, numbers) -> tuple[State, dict]:
        state = dict(state)
        stopped, skipped = state.pop("stopped"), state.pop("skipped")
        live = stopped == 0
        state, metrics = self.bound(numbers)._step(state, batch, live)
        skipped += live & ~metrics["finite"]
        stopped = jnp.where(live & (skipped > self.limit), state["step"], stopped)
        return {**state, "stopped": stopped, "skipped": skipped}, {"objective": metrics["objective"]}

    def _evaluate(self, params, stats, batch: Batch, numbers) -> dict:
        return self.bound(numbers)._evaluate(params, stats, batch)

    def bound(self, numbers: dict[str, jax.Array]) -> Program:
        """The program with one replica's numbers, traced, in the place of the config's."""
        if not numbers:
            return self.program
        experiment, program = self.experiment, copy.copy(self.program)
        for path, value in numbers.items():
            experiment = bind(experiment, path, Number(value))
        program.experiment = experiment
        program.optimizer = experiment.optim.build(program.specs, experiment.train.steps)
        if any(path.startswith("model.") for path in numbers):
            program.structure = split(abstract(experiment.model.build))[0]
        return program


def differing(experiments: list[Experiment]) -> dict[str, np.ndarray]:
    """{dotted path: its value in each replica} of the numbers that differ. Raises ValueError for anything else."""
    flat = [flatten(experiment) for experiment in experiments]
    found = {}
    for path, first in flat[0].items():
        values = [other.get(path, ...) for other in flat]
        if path in SEEDED or all(value == first and type(value) is type(first) for value in values):
            continue
        if not all(isinstance(value, float) for value in values) or path.partition(".")[0] not in ("optim", "model"):
            raise ValueError(
                f"{path} is {values[0]!r} here and {next(v for v in values if v != first)!r} there; replicas of one "
                "program differ in seeds and in real numbers of the optimizer and the model alone"
            )
        found[path] = np.array(values, np.float32)
    return found


class Number:
    """A traced number in the place of a config's: equal to itself alone, so that modules may keep it as metadata.

    It is no float: what would take its value out of the program, such as math.sqrt, fails loudly.
    """

    def __init__(self, value: jax.Array):
        self.value = value

    def __jax_array__(self) -> jax.Array:
        return self.value

    def _with(self, function, other):
        found = function(self.value, other.value if isinstance(other, Number) else other)
        return found if isinstance(other, jax.Array | np.ndarray) else Number(found)

    __add__ = __radd__ = lambda self, other: self._with(lambda a, b: a + b, other)
    __mul__ = __rmul__ = lambda self, other: self._with(lambda a, b: a * b, other)
    __sub__, __rsub__ = (lambda s, o: s._with(lambda a, b: a - b, o)), (lambda s, o: s._with(lambda a, b: b - a, o))
    __truediv__ = lambda self, other: self._with(lambda a, b: a / b, other)
    __rtruediv__ = lambda self, other: self._with(lambda a, b: b / a, other)
    __pow__, __rpow__ = (lambda s, o: s._with(lambda a, b: a**b, o)), (lambda s, o: s._with(lambda a, b: b**a, o))
    __neg__ = lambda self: Number(-self.value)


def bind(cfg, path: str, value):
    """`cfg` with the value at a dotted path replaced, unchecked: a `Number` is of no type that a config takes."""
    name, _, rest = path.partition(".")
    child = bind(get(cfg, name), rest, value) if rest else value
    if isinstance(cfg, tuple):
        return cfg[: int(name)] + (child,) + cfg[int(name) + 1 :]
    new = object.__new__(type(cfg))
    new.__dict__.update(cfg.__dict__)
    new.__dict__[name] = child
    return new


def _one_replica(mesh):
    """The mesh of one replica: an axis that takes what is left takes one device, the others are the replicas'."""
    return dataclasses.replace(mesh, **{f.name: 1 for f in dataclasses.fields(mesh) if getattr(mesh, f.name) == -1})
