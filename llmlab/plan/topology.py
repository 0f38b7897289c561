"""Devices that are not there: TPU slices and GPU hosts by name, as the compiler sees them.

v5e:16x16      one slice of 256 chips              2*v5e:16x16    two slices, joined by the data-centre network
h100:8         one host of 8 GPUs                  h100:4x8       four hosts
cpu:8          host devices of this process, for trying things out
"""

from __future__ import annotations

import dataclasses
import math
import os
import re

import jax

from llmlab.chips import CHIPS, Chip
from llmlab.config import did_you_mean

# What libtpu would ask the machine for, at length, though no TPU is looked for; and several plans may be made at once.
QUIET = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}
QUIET |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
MEGACORE = ("v4", "v5p")  # whose two cores jax sees as one device


@dataclasses.dataclass(frozen=True)
class Topology:
    """name: as it was asked for. chip: None for host devices, of which no data sheet is known."""

    name: str
    chip: Chip | None
    slices: int
    devices: tuple[jax.Device, ...]

    @property
    def chips(self) -> int:
        return len(self.devices) // (self.chip.devices if self.chip else 1)

    def slice_of(self, device: jax.Device) -> int:
        """Which slice (or host of GPUs) a device is in: what is sent to another goes over the network."""
        index = getattr(device, "slice_index", None)
        return index if index is not None else device.process_index if device.platform == "cuda" else 0


def topology(name: str) -> Topology:
    """The devices of a name. Raises ValueError for one that is not understood, ImportError without its compiler."""
    found = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", name)
    known = {chip.name: chip for chip in CHIPS}
    if not found or found[2] not in {*known, "cpu"}:
        near = did_you_mean(found[2], known) if found else "" if ":" in name else ", it says no sizes"
        raise ValueError(
            f"topology {name!r} is not understood{near}; write "
            f"CHIP:SIZES or SLICES*CHIP:SIZES, such as v5e:16x16 or 2*v5p:4x4x8; chips are {', '.join(known)}, and cpu"
        )
    slices, sizes = int(found[1] or 1), [int(n) for n in found[3].split("x")]
    if found[2] == "cpu":
        return Topology(name, None, 1, _host(slices * math.prod(sizes)))
    chip = known[found[2]]
    if chip.kind.startswith("NVIDIA"):
        from llmlab.plan.gpu import gpus

        hosts = slices * math.prod(sizes[:-1])
        return Topology(name, chip, hosts, gpus(chip, hosts, sizes[-1]))
    return Topology(name, chip, slices, _tpus(chip, found[3], slices))


def _tpus(chip: Chip, sizes: str, slices: int) -> tuple[jax.Device, ...]:
    from jax.experimental import topologies

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise ImportError(
            f"the compiler for {chip.kind} is in libtpu, which is not installed: pip install 'llmlab[tpu]' (no TPU is "
            "needed)"
        ) from None
    options = {"num_slices": slices} if slices > 1 else {}
    if chip.name in MEGACORE:
        options["chip_config_name"] = "megacore"
    try:
        found = topologies.get_topology_desc(f"{chip.name}:{sizes}", platform="tpu", **options)
    except Exception as error:
        raise ValueError(f"libtpu knows no slice {chip.name}:{sizes}: {str(error).splitlines()[0]}") from error
    return tuple(found.devices)


def _host(count: int) -> tuple[jax.Device, ...]:
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"cpu:{count} needs {count} host devices, this process shows {len(devices)}: --cpu-devices {count}"
        )
    return tuple(devices[:count])
