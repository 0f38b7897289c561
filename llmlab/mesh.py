"""Devices and processes: the mesh that rules refer to, and the start of jobs on several hosts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType

from llmlab.config import Config, config

AXES = ("data", "fsdp", "expert", "sequence", "tensor")  # outermost first: neighbours on a ring share `tensor`


@config
class Mesh(Config):
    """Sizes of the mesh axes; one of them may be -1, for all devices that are left.

    slices: TPU slices (or hosts) joined by the slow network; they share the `data` axis, outermost.
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    sequence: int = 1
    tensor: int = 1
    slices: int = 1

    def check(self):
        sizes = self.sizes
        if any(n < 1 and n != -1 for n in sizes.values()) or list(sizes.values()).count(-1) > 1:
            raise ValueError(f"Mesh: sizes are positive and at most one is -1 (all that are left), not {sizes}")
        if self.slices < 1:
            raise ValueError(f"Mesh.slices is {self.slices}; it counts slices, 1 or more")

    @property
    def sizes(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in AXES}

    def resolve(self, devices: int) -> dict[str, int]:
        """The sizes with -1 filled in. Raises ValueError when they do not make `devices`."""
        sizes = self.sizes
        known = math.prod(n for n in sizes.values() if n != -1)
        if -1 in sizes.values():
            if devices % known:
                raise ValueError(
                    f"{devices} devices are not divided by the mesh {self.shown()}, whose fixed sizes make {known}; "
                    "change --mesh." + ", --mesh.".join(axis for axis, n in sizes.items() if n > 1)
                )
            sizes = {axis: devices // known if n == -1 else n for axis, n in sizes.items()}
        elif known != devices:
            raise ValueError(
                f"the mesh {self.shown()} is of {known} devices and there are {devices}; "
                "let one size be -1, such as --mesh.data -1"
            )
        if sizes["data"] % self.slices:
            raise ValueError(f"Mesh.slices is {self.slices}, which does not divide the data axis of {sizes['data']}")
        return sizes

    def shown(self) -> str:
        return " x ".join(f"{axis} {n}" for axis, n in self.sizes.items() if n != 1) or "data 1"

    def build(self, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
        """The mesh over these devices (all by default), with automatic axes."""
        devices = list(jax.devices() if devices is None else devices)
        sizes = self.resolve(len(devices))
        shape = tuple(sizes[axis] for axis in AXES)
        if self.slices > 1:
            grid = self._hybrid(shape, devices)
        elif devices[0].platform == "tpu":
            from jax.experimental import mesh_utils

            grid = placed(mesh_utils.create_device_mesh, shape, devices)
        else:
            grid = np.array(devices).reshape(shape)
        return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def _hybrid(self, shape, devices):
        """Slices outermost on `data`; without slice indices (GPU, CPU) a process counts as a slice."""
        from jax.experimental import mesh_utils

        inner = (shape[0] // self.slices, *shape[1:])
        outer = (self.slices,) + (1,) * (len(shape) - 1)
        by_process = getattr(devices[0], "slice_index", None) is None
        if not by_process or len({d.process_index for d in devices}) > 1:
            return placed(mesh_utils.create_hybrid_device_mesh, inner, outer, devices, process_is_granule=by_process)
        return np.array(devices).reshape(shape)  # one process: the layout of slices, for trying it out


def placed(make: Callable, *given, **own) -> np.ndarray:
    """The devices in the shape of a mesh whose axes are whole rings of the slice; parts of them if none fit."""
    try:
        return make(*given, **own)
    except NotImplementedError:  # an axis of 8 in a slice of 16 x 16 x 16
        return make(*given, **own, allow_split_physical_axes=True)


def launcher(environment: Mapping[str, str]) -> str | None:
    """Who started several processes of this job, read from the environment: a name, or None for a single process."""
    several = lambda name: environment.get(name, "1").isdigit() and int(environment.get(name, "1")) > 1
    if several("SLURM_NTASKS") and "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment:
        return "Slurm"
    if several("OMPI_COMM_WORLD_SIZE"):
        return "Open MPI"
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        return "TPU pod or GKE"
    if (
        "JOBSET_NAME" in environment
        and "JOB_COMPLETION_INDEX" in environment
        and "KUBERNETES_SERVICE_HOST" in environment
    ):
        return "Kubernetes"
    return None


def start_processes(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> str:
    """Joins the processes of a job and says how. Explicit arguments come before what the environment tells.

    Raises ValueError when only some of the three arguments are given.
    """
    given = [coordinator, processes, process]
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise ValueError(
                f"--coordinator, --processes and --process go together; got {coordinator}, {processes}, {process}"
            )
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=30)
        return f"{processes} processes through {coordinator}"
    found = launcher(os.environ)
    if found is None:
        return "one process"
    jax.distributed.initialize(heartbeat_timeout_seconds=30)
    return f"{jax.process_count()} processes started by {found}"
