"""Maximal update parametrisation: a model whose learning rate is that of a smaller one (Yang et al., 2022, table 8).

The letters of every parameter tell what grows from the base to the model: those that a matrix contracts (`inputs`) and
those that it makes. With ratios r of fan-ins and d of depths, for Adam:

    matrices: learning rate / r, decay x r      embeddings, gains, biases: as they are
    tables that are a head of their own: initial values / r too      a tied table: logits / r
    scores of attention: 1 / K in the place of 1 / sqrt K, so that the base keeps its own
    depth (Yang et al., 2023): what writes into the stream has initial values / sqrt d and learning rate / d, what
    stands before it in a layer learning rate / sqrt d

The result is a plain model and optimizer: what was changed is seen in their config. Left out: optimizers other than
Adam's kind, whose directions have another size.
"""

from __future__ import annotations

import dataclasses
import math
import re

from llmlab.config import get, nodes, put
from llmlab.models.decoder import Model
from llmlab.models.heads import Pooled
from llmlab.nn import LinearHead, Scaled, TiedHead
from llmlab.nn.module import Spec, abstract, specs
from llmlab.optim.groups import Group, Path, assign
from llmlab.optim.optimizers import AdamW, Lion, Optimizer


def mup(model: Model, optim: Optimizer, base: Model) -> tuple[Model, Optimizer]:
    """(model, optimizer) that learn as `base` does under `optim`. Both models have the same parameters by name.

    Raises ValueError where they have not, and for an optimizer whose directions do not have Adam's size.
    """
    if not isinstance(optim, AdamW | Lion):
        raise ValueError(f"mup knows the rules of Adam and Lion, not those of {type(optim).__name__}")
    table, known = specs(abstract(model.build)), specs(abstract(base.build))
    odd = sorted(".".join(path) for path in table.keys() ^ known.keys())
    if odd:
        raise ValueError(f"the model and its base differ in more than sizes: {odd[0]} is in one of them alone")
    groups = assign(optim.groups, table)
    alike: dict[tuple[float, float], list[Path]] = {}
    for path, spec in table.items():
        peak, decay = multiples(spec, known[path])
        alike.setdefault((groups[path].peak * peak, groups[path].decay * decay), []).append(path)
    found = tuple(
        Group(match=f"^({'|'.join(re.escape('.'.join(path)) for path in paths)})$", peak=peak, decay=decay)
        for (peak, decay), paths in alike.items()
    )
    return values(model, base), dataclasses.replace(optim, groups=found)


def multiples(spec: Spec, base: Spec) -> tuple[float, float]:
    """(of the learning rate, of the decay) for one parameter; their product keeps what decay does in a step."""
    if not spec.inputs or spec.path[-2:] == ("embed", "table"):  # a look-up contracts nothing
        return 1.0, 1.0
    rate = 1 / ratio(spec, base, spec.inputs)
    if spec.axes.startswith("N"):
        deeper = ratio(spec, base, "N")
        rate /= deeper if writes(spec) else math.sqrt(deeper)
    return rate, 1 / rate


def ratio(spec: Spec, base: Spec, letters: str) -> float:
    """How much larger some letters of a parameter are than in the base."""
    here, there = (dict(zip(s.axes, s.unpadded or s.shape)) for s in (spec, base))
    return math.prod(here[letter] / there[letter] for letter in letters)


def writes(spec: Spec) -> bool:
    """Whether a matrix of a layer writes into the residual stream: it makes D from other letters."""
    return "D" in spec.axes and "D" not in spec.inputs


def values(model: Model, base: Model) -> Model:
    """The model with muP's initial values and multipliers."""
    deep = depth(model) / depth(base)
    for path, node in list(nodes(model)):
        under = f"{path}." if path else ""
        wider = _width(model, path) / _width(base, path)
        if isinstance(node, LinearHead | Pooled) and wider != 1:
            model = put(model, f"{under}init", Scaled(init=node.init, factor=1 / wider))
        elif isinstance(node, TiedHead) and wider != 1:  # D ** power is the multiplier of what the head reads
            model = put(model, f"{under}power", node.power - math.log(wider) / math.log(_width(model, path)))
        if hasattr(node, "heads") and hasattr(node, "scale"):
            size, old = _head(model, path, node), _head(base, path, get(base, path))
            if size != old:
                scale = node.scale or size**-0.5
                model = put(model, f"{under}scale", scale * math.sqrt(old / size))
        if hasattr(node, "out_init") and deep != 1:
            model = put(model, f"{under}out_init", Scaled(init=node.out_init, factor=deep**-0.5))
    return model


def depth(model: Model) -> int:
    """Layers of its stack."""
    found = [node.depth for _, node in nodes(model) if hasattr(node, "segments")]
    return max(found, default=1)


def _width(model: Model, path: str) -> int:
    """The width of the model that a node belongs to: that of the nearest one above it."""
    parts = path.split(".") if path else []
    for end in range(len(parts), -1, -1):
        node = get(model, ".".join(parts[:end])) if end else model
        if isinstance(node, Model):
            return node.width
    raise ValueError(f"{path} belongs to no model")


def _head(model: Model, path: str, node) -> int:
    return node.head_size or _width(model, path) // node.heads
