"""Hopper GPUs that are not there, for the CUDA compiler: its wheels compile without a GPU and without CUDA's libraries.

What cannot be compiled so is cuDNN's attention; llmlab/kernels/cudnn.py has what stands in for it.
"""

from __future__ import annotations

import jax

from llmlab.chips import Chip

# What the compiler asks of an SM90 device: limits of the CUDA C++ Programming Guide (compute capability 9.0), and the
# processors, cache and clock of NVIDIA's data sheets.
HOPPER = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "shared_memory_per_block": 48 * 2**10,
    "shared_memory_per_block_optin": 227 * 2**10,
    "shared_memory_per_core": 228 * 2**10,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "core_count": 132,
    "fpus_per_core": 128,
    "l2_cache_size": 50 * 2**20,
    "clock_rate_ghz": 1.98,
}
KNOWN = ("h100", "h200")


def gpus(chip: Chip, hosts: int, each: int) -> tuple[jax.Device, ...]:
    """So many GPUs on so many hosts. Raises ImportError without the compiler's wheels."""
    from jax.experimental import topologies

    if chip.name not in KNOWN:
        raise ValueError(f"the compiler is told of {', '.join(KNOWN)} alone, not of {chip.name}")
    try:
        found = topologies.get_topology_desc(
            chip.name, platform="cuda", topology=f"1x{hosts}x{each}", target_config=target(chip)
        )
    except Exception as error:
        raise ImportError(
            f"the compiler for {chip.kind} did not start ({str(error).splitlines()[0]}); it is in jax's CUDA plugin: "
            "pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt, of jax's own version (no GPU is needed)"
        ) from error
    return tuple(found.devices)


def target(chip: Chip) -> str:
    """The device as the compiler's text format has it."""
    lines = [f"  {name}: {value}" for name, value in HOPPER.items()]
    lines += [f"  memory_bandwidth: {chip.bandwidth:.0f}", f"  device_memory_size: {chip.memory:.0f}"]
    lines += ["  cuda_compute_capability { major: 9 }"]
    version = 'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 7 }\n'
    return "gpu_device_info {\n" + "\n".join(lines) + "\n}\n" + version + f'device_description_str: "{chip.kind}"'
