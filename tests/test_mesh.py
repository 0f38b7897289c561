"""Sizes of the mesh, and who started the processes of a job."""

import itertools
from types import SimpleNamespace

import jax
import pytest
from jax.experimental.mesh_utils import create_device_mesh

from llmlab.mesh import AXES, Mesh, launcher, placed, start_processes


def test_one_size_is_what_is_left():
    assert Mesh(fsdp=2, tensor=2).resolve(8) == dict(data=2, fsdp=2, expert=1, sequence=1, tensor=2)
    assert Mesh(data=1, fsdp=-1).resolve(8)["fsdp"] == 8
    assert Mesh(data=8).resolve(8)["data"] == 8
    assert Mesh(fsdp=4, tensor=2).shown() == "data -1 x fsdp 4 x tensor 2" and Mesh(data=1).shown() == "data 1"


@pytest.mark.parametrize(
    ("sizes", "devices", "message"),
    [
        (dict(fsdp=3), 8, "8 devices are not divided by the mesh data -1 x fsdp 3, .* make 3; change --mesh.fsdp"),
        (dict(fsdp=4, tensor=4), 8, "make 16; change --mesh.fsdp, --mesh.tensor"),
        (dict(data=2, tensor=2), 8, "data 2 x tensor 2 is of 4 devices and there are 8; .*--mesh.data -1"),
        (dict(slices=3), 8, "slices is 3, which does not divide the data axis of 8"),
    ],
)
def test_sizes_that_do_not_make_the_devices_are_refused(sizes, devices, message):
    with pytest.raises(ValueError, match=message):
        Mesh(**sizes).resolve(devices)


@pytest.mark.parametrize("sizes", [dict(data=0), dict(tensor=-2), dict(fsdp=-1), dict(slices=0)])
def test_impossible_sizes_are_refused(sizes):  # data is -1 already
    with pytest.raises(ValueError, match="Mesh"):
        Mesh(**sizes)


def test_the_mesh_has_all_axes_and_neighbours_share_the_last():
    mesh = Mesh(fsdp=2, tensor=2).build()
    assert mesh.axis_names == AXES and mesh.size == 8
    assert mesh.devices[0, 0, 0, 0].tolist() == jax.devices()[:2]
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_slices_are_outermost_on_data():
    mesh = Mesh(fsdp=2, slices=2).build()
    assert mesh.devices.shape == (4, 2, 1, 1, 1)
    assert mesh.devices[:2].flatten().tolist() == jax.devices()[:4]


SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n[1-4]"}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        (SLURM, "Slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "4"}, None),  # a batch script itself, not a step of it
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": ""}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU pod or GKE"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, "TPU pod or GKE"),
        (dict(JOBSET_NAME="a", JOB_COMPLETION_INDEX="0", KUBERNETES_SERVICE_HOST="b"), "Kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "b"}, None),
    ],
)
def test_the_environment_tells_the_launcher(environment, found):
    assert launcher(environment) == found


def test_processes_are_given_all_or_none(monkeypatch):
    with pytest.raises(ValueError, match="--coordinator, --processes and --process go together; got None, 2, 0"):
        start_processes(None, 2, 0)
    for name in (*SLURM, "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES", "JOBSET_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert start_processes() == "one process"


def test_the_processes_are_joined_as_told(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append((args, options)))
    assert start_processes("host:1", 2, 0) == "2 processes through host:1"  # the first process is number 0
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert start_processes().endswith("started by Slurm")
    assert [args for args, _ in calls] == [("host:1", 2, 0), ()]


def test_an_axis_that_no_ring_of_the_slice_has_is_cut_from_one():
    places = itertools.product(range(4), repeat=3)
    devices = [
        SimpleNamespace(id=i, platform="tpu", device_kind="TPU v5", process_index=0, coords=place, core_on_chip=0)
        for i, place in enumerate(places)
    ]
    with pytest.raises(NotImplementedError):
        create_device_mesh((8, 8), devices)
    grid = placed(create_device_mesh, (8, 8), devices)
    assert grid.shape == (8, 8) and {device.id for device in grid.flat} == set(range(64))
    assert placed(create_device_mesh, (4, 16), devices).tolist() == create_device_mesh((4, 16), devices).tolist()
