"""The most that the devices could do: the denominator of MFU."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

# Dense bf16 FLOP/s of one device, from the makers' data sheets.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(mesh: jax.sharding.Mesh) -> tuple[float, str]:
    """(FLOP/s of all devices of the mesh, where the figure is from).

    A kind that the table lacks, such as a CPU, is measured by a matrix product; host devices share one processor.
    """
    kind = mesh.devices.flat[0].device_kind
    for name in sorted(PEAKS, key=len, reverse=True):
        if kind.startswith(name):
            return PEAKS[name] * mesh.size, f"{name}, data sheet"
    flops = measure()
    return flops * (1 if mesh.devices.flat[0].platform == "cpu" else mesh.size), f"{kind}, float32 product measured"


def measure(size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of a float32 matrix product on the first local device, best of a few."""
    a = jax.device_put(jnp.ones((size, size)) / size, jax.local_devices()[0])
    product = jax.jit(lambda a, b: a @ b)
    product(a, a).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
