"""What a compiled program does between devices: the collectives that it executes, read from XLA's own text.

Turns of loops are multiplied in (XLA's cost analysis counts a loop's body once), of a conditional the branch that moves
most is taken (the least, where the program calls the other rare), and an asynchronous collective counts once: at its
start. libtpu writes such a one three times, as a start, as the computation that hides it, and as a done.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import numpy as np

from llmlab.cost import RARE

ITEMSIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
ITEMSIZES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
KINDS += ("collective-broadcast", "send")

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(")
_ARRAY = re.compile(r"\b(f8\w+|[a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|called_computations|async_computation)=\{?([^,}]+(?:, ?%[\w.\-]+)*)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|true_computation=([^,]+), false_computation=([^,]+))")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of collective in one place of the program.

    bytes: of the result on one device, each time. members: devices that take part in one group. spans: whether a group
    has devices of several slices. hidden: whether it runs beside computation.
    """

    kind: str
    bytes: float
    members: int
    spans: bool
    hidden: bool
    times: int = 1

    @property
    def wire(self) -> float:
        """Bytes that a device sends in all, by the best algorithm on a ring."""
        share = (self.members - 1) / self.members
        each = {
            "all-gather": share * self.bytes,
            "all-reduce": 2 * share * self.bytes,
            "reduce-scatter": (self.members - 1) * self.bytes,
            "all-to-all": share * self.bytes,
            "ragged-all-to-all": share * self.bytes,
        }
        return self.times * each.get(self.kind, self.bytes)


def collectives(text: str, slices: tuple[int, ...] = ()) -> list[Collective]:
    """The collectives that one device executes; none are known of what the compiler refused, whose text is "".

    slices: the slice of each device in the program's order.
    """
    program = Program(text, slices)
    return program.walk(program.entry) if text else []


def by_kind(found: list[Collective]) -> dict[str, dict[str, float]]:
    """{kind: count and result bytes} of what is executed."""
    table: dict[str, dict[str, float]] = {}
    for one in found:
        row = table.setdefault(one.kind, {"count": 0, "bytes": 0.0})
        row["count"] += one.times
        row["bytes"] += one.times * one.bytes
    return table


def kernels(text: str) -> dict[str, int]:
    """{name: places} of the compiled kernels in the text, such as Pallas' or cuDNN's."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        target = re.search(r'custom_call_target="([^"]+)"', line)
        if target and ("tpu_custom_call" in target[1] or "cudnn" in target[1] or "triton" in target[1]):
            name = re.search(r'kernel_name[\\":= ]+([\w.\-]+)', line)
            found[name[1] if name else target[1]] = found.get(name[1] if name else target[1], 0) + 1
    return found


class Program:
    """The computations of a text, each a list of (name, shape, operation, line)."""

    def __init__(self, text: str, slices: tuple[int, ...] = ()):
        self.slices = slices
        self.computations: dict[str, list[tuple[str, str, str, str]]] = {}
        self.entry, lines = "", None
        for line in text.splitlines():
            if not line.startswith(" "):
                head = _HEAD.match(line) if "->" in line else None
                if head:
                    lines = self.computations.setdefault(head[2], [])
                    self.entry = head[2] if head[1] else self.entry
            elif lines is not None and (found := _LINE.match(line)):
                lines.append((*found.groups(), line))

    @functools.cache  # noqa: B019 (a program lives as long as its report is made)
    def walk(self, name: str) -> list[Collective]:
        found = []
        for label, shape, operation, line in self.computations[name]:
            kind = operation.removesuffix("-start")
            if operation.endswith(("-done", "-update")):
                continue
            if kind in KINDS:
                members, spans = self.group(line)
                if members > 1:
                    found.append(Collective(kind, result(kind, operation, shape), members, spans, kind != operation))
            elif operation == "while":
                body = re.search(r"body=%?([\w.\-]+)", line)[1]
                turns = self.turns(line)
                found += [dataclasses.replace(one, times=one.times * turns) for one in self.walk(body)]
            elif operation == "conditional":
                branches = [self.walk(branch) for branch in names(_BRANCHES, line)]
                choose = min if RARE in line else max
                found += choose(branches, key=lambda b: sum(one.times * one.bytes for one in b))
            elif not label.startswith("async-collective-done"):
                hidden = label.startswith("async-collective-start") or operation == "async-start"
                for called in names(_CALLED, line):
                    if called in self.computations and not called.startswith("async_collective_fusion"):
                        inner = self.walk(called)
                        found += [dataclasses.replace(one, hidden=True) for one in inner] if hidden else inner
        return found

    def turns(self, line: str) -> int:
        """How often a loop turns: what XLA knows, or the constant that its condition compares with."""
        known = re.search(r"known_trip_count[^\d]{0,12}(\d+)", line)
        if known:
            return int(known[1])
        condition = self.computations.get(re.search(r"condition=%?([\w.\-]+)", line)[1], [])
        constants = [int(n) for *_, text in condition for n in re.findall(r"constant\((\d+)\)", text)]
        return max(constants, default=1)

    def group(self, line: str) -> tuple[int, bool]:
        """(devices of one group, whether one has several slices)."""
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
        if pairs:
            found = [[int(n) for n in re.findall(r"\d+", pair)] for pair in pairs[1].split("},")]
        else:
            found = replica_groups(line, len(self.slices))
        spans = any(len({self.slices[i] for i in members}) > 1 for members in found) if self.slices else False
        return max(map(len, found), default=0), spans

    def stacks(self, where: str) -> list[list[str]]:
        """Shapes of the arrays that each loop of the entry carries, of loops whose `op_name` matches `where`."""
        loops = [line for *_, operation, line in self.computations[self.entry] if operation == "while"]
        results = [loop.split(" while(")[0] for loop in loops if re.search(where, loop)]
        return [re.findall(r"[a-z]+\d*\[[\d,]*\]", result) for result in results]


def names(pattern: re.Pattern, line: str) -> list[str]:
    """The computations that an instruction names."""
    texts = [found if isinstance(found, str) else " ".join(found) for found in pattern.findall(line)]
    return [name for text in texts for name in re.findall(r"[\w.\-]+", text)]


def array_bytes(shape: str) -> list[float]:
    """Bytes of each array in the text of a shape."""
    found = []
    for dtype, sizes in _ARRAY.findall(shape):
        itemsize = 1 if dtype.startswith("f8") else ITEMSIZES.get(dtype)
        if itemsize is not None:
            found.append(itemsize * math.prod(int(n) for n in sizes.split(",") if n))
    return found


def result(kind: str, operation: str, shape: str) -> float:
    """Bytes of the result. The start of an asynchronous one names operand, result and flags."""
    found = array_bytes(shape)
    if operation == kind or kind == "all-reduce":
        return sum(found)
    return min(size for size in found if size > 8) if kind == "reduce-scatter" else max(found)


def replica_groups(line: str, devices: int) -> list[list[int]]:
    """The groups of a collective, in the three ways that XLA writes them; one group of all where none are written."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'([\w.]+)'=(\d+)", mesh[1])}
        chosen = re.findall(r"'([\w.]+)'", mesh[2])
        grid = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        last = [i for i, name in enumerate(sizes) if name in chosen]
        grid = np.moveaxis(grid, last, range(grid.ndim - len(last), grid.ndim))
        return grid.reshape(-1, math.prod(sizes[name] for name in chosen)).tolist()
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        shape, source = ([int(n) for n in text.split(",")] for text in iota.groups()[:2])
        grid = np.arange(math.prod(source)).reshape(source)
        if iota[3]:
            grid = grid.transpose([int(n) for n in iota[3].split(",")])
        return grid.reshape(shape).tolist()
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", line)
    parts = re.findall(r"\{([\d,]+)\}", listed[1]) if listed else []
    groups = [[int(n) for n in part.split(",")] for part in parts]
    return groups or [list(range(max(devices, 2)))]
