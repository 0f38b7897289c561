"""The coordinate check: activations of a few steps against width (Yang et al., 2022, appendix D.1).

In muP they neither grow nor shrink with width, whatever the step. What is measured is the root mean square of the
residual stream at the end of the stack and of the logits, and of how both have moved since step 0; the last are what
tells: at step 0 a standard parametrisation is fine too. The logits of step 0 vanish with width in muP, as they should;
after some steps what was learned stands above that noise.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from llmlab.config import flatten, nodes, put
from llmlab.models.decoder import Model
from llmlab.optim.mup import mup
from llmlab.train.experiment import Experiment
from llmlab.train.program import Program

WIDE = ("hidden", "heads", "kv_heads")  # fields that grow with the width of the model; a head keeps its size
KINDS = ("stream", "logits", "stream moved", "logits moved")


def wider(experiment: Experiment, times: int) -> Experiment:
    """The experiment with every width of its model so many times as large; a convolution keeps its taps."""
    models = {f"{path}.width" if path else "width" for path, node in nodes(experiment.model) if isinstance(node, Model)}
    for path, value in flatten(experiment.model).items():
        if (path in models or path.rpartition(".")[2] in WIDE) and isinstance(value, int):
            experiment = put(experiment, f"model.{path}", times * value)
    return experiment


def in_mup(experiment: Experiment, base: Experiment) -> Experiment:
    """The experiment in muP, with the learning rate of its base."""
    model, optim = mup(experiment.model, experiment.optim, base.model)
    return dataclasses.replace(experiment, model=model, optim=optim)


def coordinates(experiment: Experiment, steps: int = 6) -> list[dict[str, float]]:
    """{kind: size} at each step of training on one batch."""
    program = Program(experiment, experiment.mesh.build(jax.devices()[:1]))
    batch, state = experiment.example(experiment.data.batch), program.init()

    @jax.jit
    def look(params, stats):
        from llmlab.nn.module import merge

        model = merge(program.structure, params, stats)
        ctx, _ = experiment.task.context(model, batch, None, jnp.float32)
        x_BLD, _ = model.stack(model.embed(batch["tokens_BL"], ctx), ctx)
        return x_BLD, model.logits(x_BLD if model.norm is None else model.norm(x_BLD))

    found, first = [], None
    for _ in range(steps):
        now = [np.asarray(a) for a in look(state["params"], state["stats"])]
        first = first or now
        sizes = [*now, *(a - b for a, b in zip(now, first))]
        found.append({kind: float(np.sqrt(np.mean(np.square(a)))) for kind, a in zip(KINDS, sizes)})
        state, _ = program.step(state, batch)
    return found


def slope(widths: list[int], sizes: list[float]) -> float:
    """Of log size against log width."""
    return float(np.polyfit([math.log(w) for w in widths], [math.log(s) for s in sizes], 1)[0])


def check(experiment: Experiment, times: tuple[int, ...] = (1, 2, 4), steps: int = 6) -> dict[str, dict[str, float]]:
    """{"muP" and "standard": {kind: slope at the last step}}; the experiment is the base, times 1."""
    found: dict[str, dict[str, float]] = {}
    for name in ("muP", "standard"):
        variants = [wider(experiment, n) for n in times]
        variants = [in_mup(v, experiment) for v in variants] if name == "muP" else variants
        sizes = [coordinates(variant, steps)[-1] for variant in variants]
        found[name] = {kind: slope(list(times), [size[kind] for size in sizes]) for kind in KINDS}
    return found
