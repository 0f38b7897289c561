"""The compiled program of an experiment on a mesh: its state, its train step, its evaluation step.

The state is a plain dict {step, params, stats, opt, rng} of arrays, free of Flax; the step is a pure function of it
and of a batch, jitted once with the state donated.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from llmlab import axes
from llmlab.config import did_you_mean
from llmlab.nn.module import Param, Rngs, Statistic, abstract, merge, specs, split
from llmlab.optim import state_shardings
from llmlab.train.experiment import Experiment
from llmlab.train.start import overlay

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
State = dict
Batch = dict[str, jax.Array]


class Program:
    """Everything that follows from an experiment and a mesh, before any memory is taken."""

    def __init__(self, experiment: Experiment, mesh: jax.sharding.Mesh):
        self.experiment, self.mesh = experiment, mesh
        self.model = abstract(experiment.model.build)
        self.structure = split(self.model)[0]
        self.specs = specs(self.model)
        self.optimizer = experiment.optim.build(self.specs, experiment.train.steps)
        self.dtype = precision(experiment.train.precision, mesh)
        self.abstract_state = self._abstract_state()
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=(self.shardings, self.replicated))
        self.evaluate = jax.jit(self._evaluate, out_shardings=self.replicated)

    # --- state -------------------------------------------------------------------------------------------------

    def init(self) -> State:
        """The state of step 0, made where it lives: no device holds more than its share."""
        # Random numbers take XLA's CPU backend long to compile and little to run: three times less at level 1.
        options = {"xla_backend_optimization_level": 1} if self.mesh.devices.flat[0].platform == "cpu" else None
        make = jax.jit(self._init, out_shardings=self.shardings, compiler_options=options)
        state = make(jax.random.key(self.experiment.seed))
        return jax.device_put(overlay(state, self.experiment.start.load(self)), self.shardings)

    def _init(self, key: jax.Array) -> State:
        build, dropout = jax.random.split(key)
        _, params, stats = split(self.experiment.model.build(Rngs(params=build)))
        return {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            "stats": stats,
            "opt": self.optimizer.init(params),
            "rng": jax.random.key_data(dropout),
        }

    def _abstract_state(self) -> State:
        """Shapes, types and shardings of the state."""
        state = jax.eval_shape(self._init, jax.random.key(0))
        rules = self.experiment.rules
        place = lambda tree, kind: state_shardings(tree, specs(self.model, kind), self.mesh, rules)
        self.shardings = {
            "step": self.replicated,
            "params": place(state["params"], Param),
            "stats": place(state["stats"], Statistic),
            "opt": state_shardings(state["opt"], self.specs, self.mesh, rules),
            "rng": self.replicated,
        }
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            self.shardings,
        )

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    # --- batches -----------------------------------------------------------------------------------------------

    def batch_sharding(self, name: str, shape: tuple[int, ...]) -> NamedSharding:
        """Where an array of the batch lives; its letters are the end of its name."""
        live = self.experiment.rules.live
        return NamedSharding(self.mesh, axes.spec(axes.letters_of(name), shape, live, dict(self.mesh.shape)))

    def rows(self, batch: int, length: int) -> np.ndarray:
        """The rows of the global batch that this process feeds, in order; on a pod they need not be neighbours."""
        places = self.batch_sharding("tokens_BL", (batch, length)).addressable_devices_indices_map((batch, length))
        return np.unique(np.concatenate([np.arange(batch)[index[0]] for index in places.values()]))

    def put(self, batch: dict, rows: np.ndarray, total: int) -> Batch:
        """This process's rows of a batch (numpy) as global arrays of `total` rows."""
        if self.mesh.size == 1:
            return batch  # jit moves them itself, in less time
        shardings = {name: self.batch_sharding(name, (total, *array.shape[1:])) for name, array in batch.items()}
        if jax.process_count() == 1:
            return jax.device_put(batch, shardings)
        placed = {}
        for name, array in batch.items():
            pick = lambda index, array=array: select(array, rows, index, total)
            placed[name] = jax.make_array_from_callback((total, *array.shape[1:]), shardings[name], pick)
        return placed

    # --- steps -------------------------------------------------------------------------------------------------

    def _step(self, state: State, batch: Batch, live: bool | jax.Array = True) -> tuple[State, dict]:
        """live: False where the update is not to be applied, whatever the batch gives."""
        with axes.use(self.mesh, self.experiment.rules):
            key = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), state["step"])
            grads, weight, loss, sums, stats = self._gradients(state, batch, key)
            weight = jnp.maximum(weight, 1.0)
            grads = jax.tree.map(lambda g: g / weight, grads)
            squares = jnp.stack([jnp.square(g.astype(jnp.float32)).sum() for g in jax.tree.leaves(grads)])
            norm = jnp.sqrt(squares.sum())
            finite = jnp.isfinite(loss) & jnp.isfinite(norm) & live

            # The schedule's own count: a skipped update does not advance it.
            rate = self.experiment.optim.learning_rate(state["opt"][-1].count, self.experiment.train.steps)

            def update(state):
                updates, opt = self.optimizer.update(grads, state["opt"], state["params"])
                params = optax.apply_updates(state["params"], updates)
                return {**state, "params": params, "opt": opt, "stats": overlay(state["stats"], stats, "stats")}

            state = jax.lax.cond(finite, update, lambda state: state, state)
            metrics = {"objective": loss / weight, "weight": weight, "grad_norm": norm, "learning_rate": rate, **sums}
            metrics |= {"finite": finite, "finite_grads": jnp.isfinite(squares)}
            return {**state, "step": state["step"] + 1}, metrics

    def _gradients(self, state: State, batch: Batch, key):
        """Sums over the batch, in `accumulate` parts: (gradients, weight, loss, metric sums, statistics)."""
        parts = self.experiment.train.accumulate

        def loss(params, batch, key):
            model = merge(self.structure, params, state["stats"])
            out = self.experiment.task.loss(model, batch, key, self.dtype)
            return out.loss, out

        def part(batch, key):
            (_, out), grads = jax.value_and_grad(loss, has_aux=True)(state["params"], batch, key)
            return (grads, out.weight, out.loss, out.sums), out.stats

        if parts == 1:
            sums, stats = part(batch, key)
            return *sums, stats
        # Part i takes rows i, i + parts, ...: each device keeps the rows that it has.
        cut = {name: jnp.moveaxis(a.reshape(-1, parts, *a.shape[1:]), 1, 0) for name, a in batch.items()}
        zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(part, jax.tree.map(lambda a: a[0], cut), key)[0])

        def body(carry, inputs):
            index, batch = inputs
            batch = {name: axes.shard(a, axes.letters_of(name)) for name, a in batch.items()}
            sums, stats = part(batch, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, carry, sums), stats

        sums, stats = jax.lax.scan(body, zero, (jnp.arange(parts), cut))
        return *sums, jax.tree.map(lambda a: a.mean(0), stats)

    def _evaluate(self, params, stats, batch: Batch) -> dict:
        with axes.use(self.mesh, self.experiment.rules):
            out = self.experiment.task.loss(merge(self.structure, params, stats), batch, None, self.dtype)
            return {"weight": out.weight, **out.sums}

    @functools.cached_property
    def flops_per_row(self) -> float:
        """Algorithmic training FLOPs of one row of the batch: three times the forward pass."""
        return 3 * self.model.cost(self.experiment.shape(rows=1)).algorithmic


def precision(name: str, mesh: jax.sharding.Mesh) -> str:
    """A type of numbers: "auto" is bfloat16 on accelerators and float32 on CPU. Raises ValueError for no known one."""
    if name not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise ValueError(f"there is no type {name!r}{did_you_mean(name, PRECISIONS)}; known are {known}")
    if name != "auto":
        return name
    return "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"


def select(array: np.ndarray, rows: np.ndarray, index: tuple[slice, ...], total: int) -> np.ndarray:
    """A shard of a global array of `total` rows, of which `array` holds `rows`."""
    places = np.searchsorted(rows, np.arange(total)[index[0]])
    return array[(places, *index[1:])]
