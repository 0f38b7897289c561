"""Optimizers as values: each says how a gradient becomes a direction; clipping, decay and learning rate are shared.

A step is: clip the gradient by its global norm, turn it into a direction, add decay x parameter, multiply by minus the
learning rate. So decay is decoupled from the gradient and multiplied by the learning rate (Loshchilov and Hutter 2019).
The multiples of `groups` are constants of the program, not state: AdamW stores two moments and counts, nothing more.
Left out: optimizers that need the loss or a second gradient.
"""

from __future__ import annotations

import math

import jax
import optax

from llmlab.config import Config, config
from llmlab.nn.module import Spec
from llmlab.optim.groups import STANDARD, Group, Path, assign
from llmlab.optim.schedules import Cosine, Schedule, Step

Specs = dict[Path, Spec]
BATCH = "NE"  # layers and experts: an array of many matrices, each with its own update


@config
class Optimizer(Config):
    """What all optimizers share."""

    peak: float = 1e-3  # learning rate
    schedule: Schedule = Cosine()
    decay: float = 0.1  # weight decay per step, before the learning rate
    clip: float | None = 1.0  # largest global norm of the gradient
    groups: tuple[Group, ...] = STANDARD

    def check(self):
        if self.peak < 0 or self.decay < 0:
            raise ValueError(f"{type(self).__name__}: peak {self.peak} and decay {self.decay} must be 0 or more")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"{type(self).__name__}.clip is {self.clip}; it is a norm above 0, or None for none")
        for name in ("b1", "b2", "adam_b1", "adam_b2", "momentum"):
            value = getattr(self, name, None)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{type(self).__name__}.{name} is {value}; a moving average takes [0, 1)")

    def direction(self, specs: Specs) -> optax.GradientTransformation:
        """The part that differs: gradient to direction of ascent, before decay and learning rate."""
        raise TypeError(f"{type(self).__name__} must define direction(specs)")

    def learning_rate(self, step: Step, steps: int) -> jax.Array:
        """The learning rate at `step` of a run of `steps`, for groups with a multiple of 1."""
        return self.peak * self.schedule.factor(step, steps)

    def build(self, specs: Specs, steps: int) -> optax.GradientTransformation:
        """The update over nested dicts of parameters that have these specs. Raises ValueError when groups don't fit."""
        found = assign(self.groups, specs)
        decays = nest({path: self.decay * found[path].decay for path in specs})
        peaks = nest({path: found[path].peak for path in specs})
        return optax.chain(
            optax.identity() if self.clip is None else optax.clip_by_global_norm(self.clip),
            self.direction(specs),
            _add_decay(decays),
            _multiply(peaks),
            optax.scale_by_learning_rate(lambda count: self.learning_rate(count, steps)),
        )


@config
class AdamW(Optimizer):
    """Adam with decoupled decay (Kingma and Ba 2015; Loshchilov and Hutter 2019). State: 2 floats a parameter."""

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def direction(self, specs: Specs) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


@config
class Adafactor(Optimizer):
    """Second moments by row and column (Shazeer and Stern 2018): much less than 1 float a parameter without `momentum`.

    Updates are relative to the root mean square of the parameter, so `peak` is a relative step size, 1e-2 at first.
    Both that and `threshold` are taken for each layer of a scanned stack by itself. `momentum` averages directions
    before decay and learning rate.
    """

    peak: float = 1e-2
    exponent: float = 0.8  # the average forgets as 1 - step ** -exponent
    smallest: int | None = 128  # factor when two dimensions have at least this size; None: never
    threshold: float | None = 1.0  # largest root mean square of a direction
    momentum: float | None = None

    def direction(self, specs: Specs) -> optax.GradientTransformation:
        factored = self.smallest is not None
        parts = [optax.scale_by_factored_rms(factored, self.exponent, min_dim_size_to_factor=self.smallest or 0)]
        if self.threshold is not None:
            parts.append(_each_layer(optax.clip_by_block_rms(self.threshold), specs))
        parts.append(_each_layer(optax.scale_by_param_block_rms(), specs))
        if self.momentum is not None:
            parts.append(optax.ema(self.momentum, debias=False))
        return optax.chain(*parts)


@config
class Lion(Optimizer):
    """The sign of a momentum (Chen et al. 2023): `peak` 3-10 times below AdamW's, decay above. State: 1 float."""

    peak: float = 1e-4
    b1: float = 0.9
    b2: float = 0.99

    def direction(self, specs: Specs) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)


@config
class Muon(Optimizer):
    """Momentum orthogonalised by Newton-Schulz for matrices (Jordan 2024), Adam for the rest. State: 1 float, or 2.

    A matrix is a parameter that contracts letters and is no embedding or head (`table`): its `inputs` against its other
    letters, for each layer (N) and expert (E) by itself. Directions of matrices have a root mean square of about `rms`,
    which is Adam's, so that both share one learning rate and decay (Liu et al. 2025, section 2.2).
    """

    momentum: float = 0.95
    iterations: int = 5
    rms: float = 0.2
    adam_b1: float = 0.9
    adam_b2: float = 0.95
    adam_eps: float = 1e-8

    def direction(self, specs: Specs) -> optax.GradientTransformation:
        dimensions = {path: matrix(spec) for path, spec in specs.items()}
        known = nest({path: found or optax.MaskedNode() for path, found in dimensions.items()})
        labels = nest({path: "muon" if found else "adam" for path, found in dimensions.items()})
        scales = nest({path: self._scale(specs[path], found) for path, found in dimensions.items()})
        orthogonal = optax.contrib.scale_by_muon(
            ns_steps=self.iterations, beta=self.momentum, weight_dimension_numbers=known
        )
        adam = optax.scale_by_adam(self.adam_b1, self.adam_b2, self.adam_eps)
        return optax.chain(optax.partition({"muon": orthogonal, "adam": adam}, labels), _multiply(scales))

    def _scale(self, spec: Spec, found: optax.contrib.MuonDimensionNumbers | None) -> float:
        """An orthogonal m x n matrix has the root mean square max(m, n) ** -0.5."""
        if not found:
            return 1.0
        sides = [math.prod(spec.shape[i] for i in axes) for axes in found]
        return self.rms * math.sqrt(max(sides))


def matrix(spec: Spec) -> optax.contrib.MuonDimensionNumbers | None:
    """Which dimensions Muon takes as the rows (contracted) and columns of a matrix; None where there is no matrix."""
    inputs = tuple(i for i, letter in enumerate(spec.axes) if letter in spec.inputs)
    outputs = tuple(i for i, letter in enumerate(spec.axes) if letter not in spec.inputs + BATCH)
    if not inputs or not outputs or spec.path[-1] == "table":
        return None
    return optax.contrib.MuonDimensionNumbers(inputs, outputs)


def nest(flat: dict[Path, object]) -> dict:
    """Nested dicts of {path: value}."""
    tree: dict = {}
    for path, value in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree


def _multiply(factors: dict) -> optax.GradientTransformation:
    """Each update times the constant at its place."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda update, factor: update * factor, updates, factors))


def _add_decay(decays: dict) -> optax.GradientTransformation:
    """Each update plus its parameter times the constant at its place."""

    def add(update, parameter, decay):
        return update + decay * parameter if decay else update

    return optax.stateless(lambda updates, params: jax.tree.map(add, updates, params, decays))


def _each_layer(transformation: optax.GradientTransformation, specs: Specs) -> optax.GradientTransformation:
    """A stateless transformation of whole arrays, for each layer of a scanned stack (N first) by itself."""
    stacked = nest({path: spec.axes.startswith("N") for path, spec in specs.items()})

    def one(update, parameter):
        return transformation.update(update, optax.EmptyState(), parameter)[0]

    def run(update, parameter, layers):
        return (jax.vmap(one) if layers else one)(update, parameter)

    return optax.stateless(lambda updates, params: jax.tree.map(run, updates, params, stacked))
