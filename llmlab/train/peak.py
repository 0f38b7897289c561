"""The most that the devices could do: the denominator of MFU."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from llmlab.chips import find

product = jax.jit(jnp.matmul)


def peak_flops(mesh: jax.sharding.Mesh) -> tuple[float, str]:
    """(FLOP/s of all devices of the mesh, where the figure is from).

    A kind that the table lacks, such as a CPU, is measured by a matrix product; host devices share one processor.
    """
    kind = mesh.devices.flat[0].device_kind
    chip = find(kind)
    if chip is not None:
        return chip.flops / chip.devices * mesh.size, f"{chip.kind}, {chip.source}"
    flops = measure()
    return flops * (1 if mesh.devices.flat[0].platform == "cpu" else mesh.size), f"{kind}, float32 product measured"


def measure(size: int = 1024, repeats: int = 5, dtype: str = "float32") -> float:
    """FLOP/s of a matrix product on the first local device, best of a few."""
    a = jax.device_put(jnp.ones((size, size), dtype) / size, jax.local_devices()[0])
    product(a, a).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
