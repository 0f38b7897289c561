"""Weights between files and parameters: read tensor by tensor straight onto the mesh, and written back so."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from llmlab import names
from llmlab.interop.safetensors import FileError, Make, Stored
from llmlab.names import Bound
from llmlab.nn.module import Spec

ALIGNMENT = 64  # bytes
Path = tuple[str, ...]
Specs = dict[Path, Spec]


def match(bound: list[Bound], stored: dict[str, Stored], prefixes: Iterable[str], ignored: Iterable[str], where: str):
    """{final name: tensor of the file}. A prefix may be missing in the file, or be there where none is expected.

    ignored: patterns of names that hold no weights. Warns of further names; raises FileError for missing ones.
    """

    def bare(name: str) -> str:
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        return name

    known: dict[str, str] = {}
    for name in stored:
        known.setdefault(bare(name), name)
    wanted = {one.name: known.get(bare(one.name)) for one in bound}
    missing = [name for name, found in wanted.items() if found is None]
    if missing:
        raise FileError(f"{where} lacks {_some(missing)}; it has {len(stored)} tensors, such as {_some(list(stored))}")
    left = [name for name in stored if name not in set(wanted.values())]
    left = [name for name in left if not any(re.search(pattern, name) for pattern in ignored)]
    if left:
        warnings.warn(f"{where} has tensors that the model has no place for: {_some(left)}", stacklevel=3)
    return {name: stored[found] for name, found in wanted.items()}


def read(bound: list[Bound], found: dict[str, Stored], specs: Specs, shardings: dict[Path, NamedSharding], dtype: str):
    """{path: array} of the parameters, each on the devices of its sharding. Host memory holds one of them at a time.

    Raises FileError for a tensor of another shape, and for one that holds NaN or infinite values.
    """
    check_shapes(bound, found, specs)
    parts: dict[Path, list[tuple[Bound, int]]] = {path: [] for path in specs}
    for one in bound:
        for number, held in enumerate(one.pieces):
            parts[held.path].append((one, number))
    arrays = {}
    for path, spec in specs.items():
        pieces = ((one.pieces[number].at, _piece(one, number, found[one.name], specs)) for one, number in parts[path])
        arrays[path] = _place(spec, pieces, shardings[path], np.dtype(dtype))
    return arrays


def check_shapes(bound: list[Bound], found: dict[str, Stored], specs: Specs) -> None:
    for one in bound:
        wanted, stored = names.file_shape(one, specs), found[one.name]
        if stored.shape != wanted:
            raise FileError(
                f"{stored.file}: {one.name} has the shape {stored.shape}, and the model of config.json has {wanted}"
            )


def _piece(one: Bound, number: int, stored: Stored, specs: Specs) -> np.ndarray:
    """A piece of a tensor as the parameter holds it."""
    whole = stored.load()
    if not jnp.issubdtype(whole.dtype, jnp.floating):
        raise FileError(f"{stored.file}: {one.name} has the type {stored.dtype}; weights are F64, F32, F16 or BF16")
    if whole.size and not (np.isfinite(whole.min()) and np.isfinite(whole.max())):
        raise FileError(f"{stored.file}: {one.name} holds values that are NaN or infinite; the file is damaged")
    parts = [names.part(specs[held.path], held.at) for held in one.pieces]
    axes, shapes = [letters for letters, _ in parts], [shape for _, shape in parts]
    piece = names.from_file(whole, axes, shapes, [held.piece.letters for held in one.pieces], number)
    return names.halves(piece, axes[number].index("K")) if one.pieces[number].piece.pairs else piece


def _place(spec: Spec, pieces, sharding: NamedSharding, dtype: np.dtype) -> jax.Array:
    """The parameter, of which only the shards of this process are ever made."""
    places = sharding.addressable_devices_indices_map(spec.shape)
    key = lambda index: tuple(cut.indices(size)[:2] for cut, size in zip(index, spec.shape))
    buffers = {bounds: None for bounds in map(key, places.values())}
    for bounds in buffers:
        buffers[bounds] = aligned([stop - start for start, stop in bounds], dtype)
    for at, piece in pieces:
        for bounds, buffer in buffers.items():
            if all(start <= index < stop for index, (start, stop) in zip(at, bounds)):
                inner = bounds[len(at) :]
                cut = piece[tuple(slice(start, min(stop, size)) for (start, stop), size in zip(inner, piece.shape))]
                place = tuple(index - start for index, (start, _) in zip(at, bounds))
                buffer[(*place, *map(slice, cut.shape))] = cut
    return jax.make_array_from_callback(spec.shape, sharding, lambda index: buffers[key(index)])


def aligned(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """Zeros whose memory jax takes over on CPU: what is not aligned it copies."""
    count = math.prod(shape) * dtype.itemsize
    raw = np.zeros(count + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count].view(dtype).reshape(shape)


def tensors(bound: list[Bound], params: dict[Path, jax.Array], specs: Specs) -> list[Make]:
    """What `write_directory` takes: every tensor of the file, made from the parameters when it is asked for."""

    def maker(one: Bound):
        def make() -> np.ndarray:
            arrays, axes = [], []
            for held in one.pieces:
                letters, shape = names.part(specs[held.path], held.at)
                array = np.asarray(params[held.path][held.at] if held.at else params[held.path])
                array = array[tuple(map(slice, shape))]
                arrays.append(names.neighbours(array, letters.index("K")) if held.piece.pairs else array)
                axes.append(letters)
            return names.to_file(arrays, axes, [held.piece.letters for held in one.pieces])

        return make

    return [(one.name, names.file_shape(one, specs), maker(one)) for one in bound]


def _some(found: list[str], most: int = 4) -> str:
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
