"""Weights between files and parameters: read tensor by tensor straight onto the mesh, and written back so."""

from __future__ import annotations

import concurrent.futures
import math
import os
import re
import warnings
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from llmlab import names
from llmlab.interop.safetensors import DTYPES, FileError, Make, Stored
from llmlab.names import Bound
from llmlab.nn.module import Spec

ALIGNMENT = 64  # bytes
THREADS = min(8, os.cpu_count() or 1)
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


def read(
    bound: list[Bound],
    found: dict[str, Stored],
    specs: Specs,
    shardings: dict[Path, NamedSharding],
    dtype: str = "float32",
    matrices: str | None = None,
) -> dict[Path, jax.Array]:
    """{path: array} of the parameters, each on the devices of its sharding. Host memory holds two of them at a time.

    dtype: of the arrays. matrices: that of matrices whose tensors all have it in the file, so that nothing is lost;
    None for `dtype`.
    Threads copy each tensor to its place in memory that jax takes over; while one parameter is ended the next is begun.
    Raises FileError for a tensor of another shape, and for one that holds NaN or infinite values.
    """
    check_shapes(bound, found, specs)
    parts: dict[Path, list[tuple[Bound, int]]] = {path: [] for path in specs}
    for one in bound:
        for number, held in enumerate(one.pieces):
            parts[held.path].append((one, number))
    arrays, begun = {}, []

    def end(path: Path, buffers: dict[tuple, np.ndarray], work: list) -> None:
        for one in work:
            one.result()  # raises what a thread raised
        place = lambda index: buffers[_bounds(specs[path], index)]
        arrays[path] = jax.make_array_from_callback(specs[path].shape, shardings[path], place)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for path, spec in specs.items():
            held = {DTYPES.get(found[one.name].dtype) for one, _ in parts[path]}
            kept = matrices if matrices and spec.inputs and held == {np.dtype(matrices)} else dtype
            buffers = _buffers(spec, shardings[path], np.dtype(kept))
            work = [pool.submit(_fill, buffers, one, number, found[one.name], specs) for one, number in parts[path]]
            begun.append((path, buffers, work))
            if len(begun) > 1:
                end(*begun.pop(0))
        for last in begun:
            end(*last)
    return arrays


def check_shapes(bound: list[Bound], found: dict[str, Stored], specs: Specs) -> None:
    for one in bound:
        wanted, stored = names.file_shape(one, specs), found[one.name]
        if stored.shape != wanted:
            raise FileError(
                f"{stored.file}: {one.name} has the shape {stored.shape}, and the model of config.json has {wanted}"
            )


def _bounds(spec: Spec, index: tuple[slice, ...]) -> tuple:
    """First and last along each axis of a shard."""
    return tuple(cut.indices(size)[:2] for cut, size in zip(index, spec.shape))


def _buffers(spec: Spec, sharding: NamedSharding, dtype: np.dtype) -> dict[tuple, np.ndarray]:
    """{bounds: memory} of the shards of this process; the others are never made."""
    places = {_bounds(spec, index) for index in sharding.addressable_devices_indices_map(spec.shape).values()}
    return {bounds: aligned([stop - start for start, stop in bounds], dtype) for bounds in places}


def _fill(buffers: dict[tuple, np.ndarray], one: Bound, number: int, stored: Stored, specs: Specs) -> None:
    """Copies a piece of a tensor to the shards that hold some of it."""
    at = one.pieces[number].at
    holds = lambda bounds: all(start <= index < stop for index, (start, stop) in zip(at, bounds))
    homes = {bounds: buffer for bounds, buffer in buffers.items() if holds(bounds)}
    piece = _piece(one, number, stored, specs) if homes else None
    for bounds, buffer in homes.items():
        inner = bounds[len(at) :]
        cut = piece[tuple(slice(start, min(stop, size)) for (start, stop), size in zip(inner, piece.shape))]
        place = tuple(index - start for index, (start, _) in zip(at, bounds))
        _copy(buffer[(*place, *map(slice, cut.shape))], cut)


def _copy(target: np.ndarray, values: np.ndarray) -> None:
    if values.dtype == jnp.bfloat16 and target.dtype == np.float32:  # its bits are the upper half: twice as fast so
        np.left_shift(values.view(np.uint16), 16, out=target.view(np.uint32), dtype=np.uint32)
    else:
        target[...] = values


def _piece(one: Bound, number: int, stored: Stored, specs: Specs) -> np.ndarray:
    """A piece of a tensor as the parameter holds it."""
    whole = stored.load()
    if not jnp.issubdtype(whole.dtype, jnp.floating):
        raise FileError(f"{stored.file}: {one.name} has the type {stored.dtype}; weights are F64, F32, F16 or BF16")
    parts = [names.part(specs[held.path], held.at) for held in one.pieces]
    axes, shapes = [letters for letters, _ in parts], [shape for _, shape in parts]
    piece = names.from_file(whole, axes, shapes, [held.piece.letters for held in one.pieces], number)
    if not _finite(piece):
        raise FileError(f"{stored.file}: {one.name} holds values that are NaN or infinite; the file is damaged")
    return names.halves(piece, axes[number].index("K")) if one.pieces[number].piece.pairs else piece


def _finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite. A sum that is finite has none; one that is not may only have overflown."""
    with np.errstate(all="ignore"):
        total = values.sum(dtype=np.result_type(values.dtype, np.float32))
    return bool(np.isfinite(total) or np.isfinite(values).all())


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
