"""Names of checkpoints: which tensor of a file holds which parameters, as data that is read in both directions.

A `Tensor` has the name in the file and the parameters it holds, whose dimensions there are written in the alphabet:
"HK D" is a matrix with one row for each element of each head, whatever the order of the letters in the parameter.
{N} in a name is the number of a layer, {E} that of an expert. A table lists all tensors that a family of models may
have; those of parameters that a model lacks, such as biases, fall away.

>>> import numpy as np
>>> q_DHK = np.arange(24).reshape(2, 3, 4)
>>> to_file([q_DHK], ["DHK"], ("HK D",)).shape
(12, 2)
>>> bool((from_file(to_file([q_DHK], ["DHK"], ("HK D",)), ["DHK"], [q_DHK.shape], ("HK D",), 0) == q_DHK).all())
True
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

JOIN = "+"  # in a dimension: the pieces of a tensor follow each other in what stands behind it
BACK = "<"  # before a letter: the elements of the file are counted from the last


@dataclasses.dataclass(frozen=True)
class Piece:
    """A parameter as it lies in a tensor of a file.

    path: of the parameter, within its layer or its model. letters: its dimensions in the file, those of one dimension
    together; "1" is a dimension of size 1. "+HK D" with other pieces: rows of one after rows of the other; "H+K D":
    the same within each head. "C 1 <J": taps of which the file has the oldest first. pairs: elements that rotary
    positions turn together are neighbours (K, as in Meta's files), and not in halves.
    """

    path: str
    letters: str
    pairs: bool = False


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file, of one piece or of several that are joined."""

    name: str
    pieces: tuple[Piece, ...]


def tensor(name: str, *pieces: str) -> Tensor:
    """A tensor whose pieces are given as "path: letters".

    >>> tensor("lm_head.weight", "head.table: V D").pieces
    (Piece(path='head.table', letters='V D', pairs=False),)
    """
    return Tensor(name, tuple(Piece(*(part.strip() for part in piece.split(":"))) for piece in pieces))


@dataclasses.dataclass(frozen=True)
class Table:
    """The names of a family. model: of what stands once. layers: {path of a stack: names within one of its layers}.

    heads: {kind of head: its names}, of what stands behind the model in place of a head of language.
    """

    model: tuple[Tensor, ...]
    layers: dict[str, tuple[Tensor, ...]]
    heads: dict[str, tuple[Tensor, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Held:
    """A piece in a model: the path of the parameter, and the place along its leading axes (layer, expert) it fills."""

    path: tuple[str, ...]
    at: tuple[int, ...]
    piece: Piece


@dataclasses.dataclass(frozen=True)
class Bound:
    """A tensor of a file of one model, by its final name."""

    name: str
    pieces: tuple[Held, ...]


def bind(table: Table, stacks: dict, specs: dict, head: str = "lm") -> list[Bound]:
    """The tensors of a model. stacks: {path: its config}, for the paths of table.layers; specs: of its parameters.

    Raises ValueError for a parameter that no tensor holds, and for a tensor of which the model has only some pieces.
    """
    found = []
    for one in table.model + table.heads.get(head, ()):
        found += _expand(one, "", (), one.name, specs)
    for path, tensors in table.layers.items():
        first = 0
        for number, segment in enumerate(stacks[path].segments):
            for repeat in range(segment.repeats):
                for place in range(len(segment.pattern)):
                    layer = first + repeat * len(segment.pattern) + place
                    prefix = f"{path}.segments.{number}.{place}."
                    for one in tensors:
                        found += _expand(one, prefix, (repeat,), one.name.replace("{N}", str(layer)), specs)
            first += segment.depth
    unnamed = specs.keys() - {held.path for one in found for held in one.pieces}
    if unnamed:
        raise ValueError(f"no name in a file for {', '.join(sorted('.'.join(path) for path in unnamed))}")
    return found


def _expand(one: Tensor, prefix: str, at: tuple[int, ...], name: str, specs: dict) -> list[Bound]:
    """A tensor as often as there are experts, or not at all where the model has none of its parameters."""
    paths = [tuple(f"{prefix}{piece.path}".split(".")) for piece in one.pieces]
    depth = len(at) + ("{E}" in name)
    known = [path in specs and _fits(piece, specs[path].axes[depth:]) for path, piece in zip(paths, one.pieces)]
    if not any(known):
        return []
    if not all(known):
        raise ValueError(f"{name} joins {', '.join('.'.join(path) for path in paths)}, and the model has only some")
    make = lambda name, at: Bound(name, tuple(Held(path, at, piece) for path, piece in zip(paths, one.pieces)))
    if "{E}" not in name:
        return [make(name, at)]
    experts = specs[paths[0]].shape[len(at)]
    return [make(name.replace("{E}", str(expert)), (*at, expert)) for expert in range(experts)]


def _fits(piece: Piece, axes: str) -> bool:
    """Whether a piece is of a parameter with these axes: two kinds of layers may have one path, such as "mixer.out"."""
    return sorted(_flat(piece.letters)) == sorted(axes)


def file_shape(one: Bound, specs: dict) -> tuple[int, ...]:
    """The shape of a tensor in the file; padding of a vocabulary is not in it."""
    shapes = [_dims(held.piece.letters, *part(specs[held.path], held.at)) for held in one.pieces]
    letters = one.pieces[0].piece.letters.split()
    joined = next((i for i, dim in enumerate(letters) if JOIN in dim), None)
    if joined is None:
        return shapes[0]
    return tuple(sum(shape[i] for shape in shapes) if i == joined else size for i, size in enumerate(shapes[0]))


def part(spec, at: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """(letters, shape) of what one tensor of a file fills of a parameter, without padding."""
    return spec.axes[len(at) :], tuple(spec.unpadded or spec.shape)[len(at) :]


def to_file(arrays: Sequence[np.ndarray], axes: Sequence[str], letters: Sequence[str]) -> np.ndarray:
    """The tensor of a file from its pieces: arrays with dimensions `axes`, written as `letters`."""
    laid = []
    for array, own, written in zip(arrays, axes, letters):
        sizes, array = dict(zip(own, array.shape)), _turned(array, own, written)
        order = _flat(written)
        if sorted(order) != sorted(own):
            raise ValueError(f"a parameter with the axes {own!r} cannot be written as {written!r}")
        laid.append(np.transpose(array, [own.index(letter) for letter in order]).reshape(_open(written, sizes)))
    axis = _join_axis(letters[0])
    whole = laid[0] if axis is None else np.concatenate(laid, axis=axis)
    return whole.reshape(_closed(letters[0], whole.shape))


def from_file(
    whole: np.ndarray, axes: Sequence[str], shapes: Sequence[tuple[int, ...]], letters: Sequence[str], number: int
) -> np.ndarray:
    """Piece `number` of a tensor of a file, with the dimensions `axes[number]`; a view where it can be one."""
    sizes = [dict(zip(own, shape)) for own, shape in zip(axes, shapes)]
    opened = [_open(written, size) for written, size in zip(letters, sizes)]
    axis = _join_axis(letters[0])
    if axis is None:
        cut = whole.reshape(opened[number])
    else:
        lengths = [shape[axis] for shape in opened]
        total = tuple(sum(lengths) if i == axis else size for i, size in enumerate(opened[0]))
        start = sum(lengths[:number])
        cut = whole.reshape(total)[(slice(None),) * axis + (slice(start, start + lengths[number]),)]
    order = _flat(letters[number])
    cut = cut.reshape([sizes[number][letter] for letter in order])
    return _turned(np.transpose(cut, [order.index(letter) for letter in axes[number]]), axes[number], letters[number])


def _turned(array: np.ndarray, axes: str, letters: str) -> np.ndarray:
    """The array with what is marked by BACK in the other order."""
    return np.flip(array, [axes.index(after) for mark, after in zip(letters, letters[1:]) if mark == BACK])


def halves(array: np.ndarray, axis: int) -> np.ndarray:
    """Elements that were neighbours, in two halves: 0 1 2 3 becomes 0 2 1 3."""
    cut = array.reshape(*array.shape[:axis], -1, 2, *array.shape[axis + 1 :])
    return np.swapaxes(cut, axis, axis + 1).reshape(array.shape)


def neighbours(array: np.ndarray, axis: int) -> np.ndarray:
    """The reverse of `halves`."""
    cut = array.reshape(*array.shape[:axis], 2, -1, *array.shape[axis + 1 :])
    return np.swapaxes(cut, axis, axis + 1).reshape(array.shape)


def _flat(letters: str) -> str:
    """The letters of a piece in the order of the file."""
    return "".join(letter for letter in letters if letter not in f" 1{JOIN}{BACK}")


def _dims(letters: str, axes: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a piece in the file."""
    sizes = dict(zip(axes, shape))
    if sorted(_flat(letters)) != sorted(axes):
        raise ValueError(f"a parameter with the axes {axes!r} cannot be written as {letters!r}")
    return tuple(math.prod(sizes[x] for x in _flat(dim)) for dim in letters.split())


def _open(letters: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape of a piece with the joined dimension in two: what stands before the join, and what is joined."""
    found = []
    for dim in letters.split():
        size = lambda text: math.prod(sizes[letter] for letter in _flat(text))
        found += [size(text) for text in dim.split(JOIN)]
    return tuple(found)


def _closed(letters: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The reverse of `_open` for the joined pieces."""
    axis = _join_axis(letters)
    return shape if axis is None else (*shape[: axis - 1], shape[axis - 1] * shape[axis], *shape[axis + 1 :])


def _join_axis(letters: str) -> int | None:
    """Which dimension of `_open` pieces are joined along."""
    return next((i + 1 for i, dim in enumerate(letters.split()) if JOIN in dim), None)
