"""What the makers say of their accelerators: the denominators of MFU and of every predicted time.

Figures are of dense bf16 products and of one direction of a link; makers give both directions of links together.
"""

from __future__ import annotations

import dataclasses

GB, GIB = 1e9, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip. kind: how jax names its devices. devices: how many jax sees in it. flops: FLOP/s. memory: bytes.

    bandwidth: of that memory, bytes/s. link: bytes/s that it sends to neighbours in its slice or host. network: bytes/s
    that it sends to other slices or hosts; None where the maker does not say.
    """

    name: str
    kind: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float | None
    source: str
    devices: int = 1


_CLOUD = "https://docs.cloud.google.com/tpu/docs"
_NVIDIA = "https://www.nvidia.com/en-us/data-center"
CHIPS = (
    Chip("v4", "TPU v4", 275e12, 32 * GIB, 1200 * GB, 150 * GB, None, f"{_CLOUD}/v4"),
    Chip("v5e", "TPU v5 lite", 197e12, 16 * GIB, 819 * GB, 200 * GB, 6.4e12 / 8 / 256, f"{_CLOUD}/v5e"),
    Chip("v5p", "TPU v5", 459e12, 95 * GIB, 2765 * GB, 600 * GB, 50e9 / 8, f"{_CLOUD}/tpu7x"),
    Chip("v6e", "TPU v6 lite", 918e12, 32 * GIB, 1638 * GB, 400 * GB, 100e9 / 8, f"{_CLOUD}/tpu7x"),
    Chip("tpu7x", "TPU7x", 2307e12, 192 * GIB, 7380 * GB, 600 * GB, 100e9 / 8, f"{_CLOUD}/tpu7x", devices=2),
    Chip("a100", "NVIDIA A100", 312e12, 80 * GB, 2039 * GB, 300 * GB, 25 * GB, f"{_NVIDIA}/a100"),
    Chip("h100", "NVIDIA H100", 989e12, 80 * GB, 3350 * GB, 450 * GB, 50 * GB, f"{_NVIDIA}/h100"),
    Chip("h200", "NVIDIA H200", 989e12, 141 * GB, 4800 * GB, 450 * GB, 50 * GB, f"{_NVIDIA}/h200"),
    Chip("b200", "NVIDIA B200", 2250e12, 180 * GB, 8000 * GB, 900 * GB, 50 * GB, f"{_NVIDIA}/dgx-b200"),
)
ALIASES = {"TPU v5e": "TPU v5 lite", "TPU v5p": "TPU v5", "TPU v6e": "TPU v6 lite"}


def find(kind: str) -> Chip | None:
    """The chip whose devices jax names so; None for one that is not in the table, such as a CPU."""
    kind = ALIASES.get(kind, kind)
    known = [chip for chip in CHIPS if kind.startswith(chip.kind)]
    return max(known, key=lambda chip: len(chip.kind), default=None)
