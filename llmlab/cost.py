"""One definition of work: FLOPs, bytes and decode state of any part, and the traced program they are checked against.

A multiply-add counts 2. `algorithmic` counts exactly the pairs that a mask shows and recomputes nothing: it is the
number for MFU and for matching arms. `executed` is what the program does. Both are for one forward pass; training
is three times that.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
from jax.extend import core

from llmlab import axes


@dataclasses.dataclass(frozen=True)
class Shape:
    """The work given to a part: rows, queries in each row, and keys if they differ (`memory`).

    outputs: positions of each row that the head reads, None for all.
    """

    batch: int
    length: int
    memory: int | None = None
    outputs: int | None = None
    itemsize: int = 4  # bytes of an activation

    @property
    def tokens(self) -> int:
        return self.batch * self.length


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs of one forward pass, bytes it must move (operands read once, results written once), bytes of state."""

    algorithmic: float = 0.0
    executed: float = 0.0
    bytes: float = 0.0
    state: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))

    def __mul__(self, times: float) -> Cost:
        return Cost(*(times * a for a in dataclasses.astuple(self)))


def total(costs) -> Cost:
    return sum(costs, Cost())


def visible_pairs(length: int, memory: int, causal: bool, window: int | None = None) -> int:
    """How many (query, key) pairs of one row a mask shows; queries are the last `length` of `memory` positions."""
    if window is None and not causal:
        return length * memory
    window = memory if window is None else min(window, memory)

    def triangle(rows: int) -> int:  # causal pairs of the first rows of a square: a ramp up to the window, then flat
        ramp = min(rows, window)
        return ramp * (ramp + 1) // 2 + (rows - ramp) * window

    ahead = 0 if causal else length * (length - 1) // 2
    return triangle(memory) - triangle(memory - length) + ahead


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of a traced program. products: of matrix products, convolutions and kernels. elementwise: one for each
    number that an elementwise function gives and for each that a reduction reads; a program is bound by their bytes.
    received: bytes that devices get of others because a part says so: by an exchange that it writes itself, or by
    holding activations whole along positions that the mesh shares. What the partitioner adds is not in a trace.
    """

    products: int = 0
    elementwise: int = 0
    received: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))

    def __mul__(self, times: int) -> Work:
        return Work(*(times * a for a in dataclasses.astuple(self)))


def traced_flops(function, *args) -> int:
    """FLOPs of the matrix products in the traced program, loops multiplied by their trip counts."""
    return traced_work(function, *args).products


def traced_work(function, *args) -> Work:
    """All work of the traced program, over all devices. Raises ValueError for what has no static count."""
    return work(jax.make_jaxpr(function)(*args))


def work(program: core.ClosedJaxpr) -> Work:
    """The same of a program that is traced already."""
    return _count(program.jaxpr)


RARE = "rarely"  # the scope of a branch that seldom runs: of such a `cond` the least is counted
PRODUCTS_OF = "kernel whose products have this many FLOPs: "
ALL_OF = "function with this many FLOPs in all: "


def products_of(function, each: int):
    """`function`, with the declaration that each product in the bodies of its Pallas kernels does `each` FLOPs in all.

    For kernels without a `cost_estimate` of their own. The declaration is the name of a jitted function, which forward
    and backward pass keep.
    """
    return _named(function, f"{PRODUCTS_OF}{each}")


def flops_of(function, flops: int):
    """`function`, with the declaration that its products do so many FLOPs, whatever is traced of it."""
    return _named(function, f"{ALL_OF}{flops}")


def _named(function, name: str):
    named = functools.partial(function)
    named.__name__ = named.__qualname__ = name
    return jax.jit(named)


EXCHANGES = ("all_to_all", "ragged_all_to_all", "ppermute")
REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "cumsum", "cumprod", "cummax", "sort")
ELEMENTWISE = ("add", "sub", "mul", "div", "max", "min", "neg", "abs", "sign", "floor", "round", "clamp", "rem")
ELEMENTWISE += ("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erf_inv", "sin", "cos", "select_n")
ELEMENTWISE += ("add_any", "sqrt", "rsqrt", "square", "pow", "integer_pow")


def _count(jaxpr: core.Jaxpr, each: int | None = None) -> Work:
    """each: what `products_of` says of the kernels here."""
    found = Work()
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "pallas_call":
            found += Work(_kernel_flops(eqn, each))
            continue
        found += Work(_product_flops(eqn), _elementwise(eqn), _received(eqn))
        called = str(eqn.params.get("name", "")) if name in ("jit", "pjit") else ""
        if called.startswith(ALL_OF):
            found += Work(int(called.removeprefix(ALL_OF)))
            continue
        inside = int(called.removeprefix(PRODUCTS_OF)) if called.startswith(PRODUCTS_OF) else each
        inner = [_count(sub, inside) for sub in _subprograms(eqn)]
        if name == "cond":
            choose = min if RARE in str(eqn.source_info.name_stack) else max
            found += choose(inner, key=dataclasses.astuple)
        elif name == "while" and any(work.products for work in inner):
            raise ValueError("a while loop has no static trip count; write a scan, or declare the kernel's cost")
        else:
            found += sum(inner, Work()) * _times(eqn)
    return found


def _times(eqn) -> int:
    """How often the programs inside run: turns of a scan, devices of a shard_map."""
    if eqn.primitive.name == "shard_map":
        sizes, manual = dict(eqn.params["mesh"].shape), eqn.params.get("manual_axes")
        return math.prod(size for axis, size in sizes.items() if manual is None or axis in manual)
    return eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1


def _product_flops(eqn) -> int:
    name = eqn.primitive.name
    if name == "dot_general":
        (contract, _), (batch, _) = eqn.params["dimension_numbers"]
        left, right = (v.aval.shape for v in eqn.invars)
        inner = math.prod(left[i] for i in contract)
        shared = math.prod(left[i] for i in batch)
        return 2 * math.prod(left) * math.prod(right) // (inner * shared) if inner * shared else 0
    if name == "ragged_dot_general":
        return _ragged_flops(eqn)
    if name == "conv_general_dilated":
        kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    return 0


def _elementwise(eqn) -> int:
    name = eqn.primitive.name
    if name in ELEMENTWISE:
        return eqn.outvars[0].aval.size
    return eqn.invars[0].aval.size if name in REDUCTIONS else 0


def _received(eqn) -> int:
    """Of an exchange the results; in a `shard_map` these are of one device, and all are counted by its devices."""
    bytes_of = lambda v: v.aval.size * v.aval.dtype.itemsize
    if eqn.primitive.name in EXCHANGES:
        return sum(map(bytes_of, eqn.outvars))
    sharding = eqn.params.get("sharding")
    if eqn.primitive.name != "sharding_constraint" or eqn.outvars[0].aval.ndim < 3 or not hasattr(sharding, "spec"):
        return 0
    used = axes.flat(part for part in sharding.spec if isinstance(part, str | tuple))
    shared = sharding.mesh.shape.get("sequence", 1) if "data" in used and "sequence" not in used else 1
    return shared * bytes_of(eqn.outvars[0]) if shared > 1 else 0


def _kernel_flops(eqn, each: int | None) -> int:
    """What a Pallas kernel declares: its `cost_estimate`, or `each` for every product of its body."""
    estimate = eqn.params.get("cost_estimate")
    if estimate is not None:
        return int(estimate.flops)
    products = _products_inside(eqn.params["jaxpr"])
    if products and each is None:
        raise ValueError(
            f"the Pallas kernel {eqn.params.get('name', '')!r} declares no cost; give its pallas_call a cost_estimate, "
            "or call it through llmlab.cost.products_of"
        )
    return products * each if products else 0


def _products_inside(jaxpr: core.Jaxpr) -> int:
    """How many products the text of a kernel has; of branches those of the one with most."""
    found = 0
    for eqn in jaxpr.eqns:
        inner = [_products_inside(sub) for sub in _subprograms(eqn)]
        found += (eqn.primitive.name == "dot_general") + (max if eqn.primitive.name == "cond" else sum)(inner or [0])
    return found


def _ragged_flops(eqn) -> int:
    """A TPU computes each row for its own group; elsewhere XLA computes every row for every group (as of jax 0.12)."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (_, contract), (_, batch) = numbers.dot_dimension_numbers
    left, right, sizes = (v.aval.shape for v in eqn.invars[:3])
    summed = {*contract, *batch, *numbers.rhs_group_dimensions}
    columns = math.prod(size for i, size in enumerate(right) if i not in summed)
    return 2 * math.prod(left) * columns * (1 if axes.platform() == "tpu" else sizes[-1])


def _subprograms(eqn):
    if eqn.primitive.name.startswith("custom_"):  # what runs is the primal function; the rules are traced elsewhere
        names = ("call_jaxpr", "fun_jaxpr", "jaxpr")
        values = [eqn.params[name] for name in names if name in eqn.params][:1]
    else:
        values = eqn.params.values()
    for value in values:
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
