"""Checkpoints of several processes, and of processes that are killed. Long: each child imports everything anew."""

import os
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from llmlab.train import manifest
from llmlab.train.checkpoint import Checkpoints, verify

STATE = """
import sys, jax, numpy as np, warnings
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from llmlab.train.checkpoint import Checkpoints

def values(step):
    w = np.random.default_rng(step).normal(size=(64, 512)).astype(np.float32)
    return {"step": np.int32(step), "params": {"w": w}, "stats": {}, "opt": {"m": w + 1}, "rng": np.uint32([1, 2])}

def spread(step):
    mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(AxisType.Auto,))
    put = lambda x: jax.make_array_from_callback(
        np.shape(x), NamedSharding(mesh, P("x") if np.ndim(x) == 2 else P()), lambda i: x[i])
    return jax.tree.map(put, values(step))

def same(found, step):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(values(step)), strict=True):
        for shard in x.addressable_shards:
            np.testing.assert_array_equal(shard.data, y[shard.index])
"""
FOREVER = """
checkpoints = Checkpoints(sys.argv[1], keep=2)
step = checkpoints.latest() or 0
while True:
    step += 1
    checkpoints.save(step, spread(step), {})
"""
TOGETHER = """
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
checkpoints = Checkpoints(sys.argv[1], keep=2)
assert checkpoints.latest() is None
for step in (1, 2, 3):
    checkpoints.save(step, spread(step), {"step": step})
checkpoints.wait()
assert checkpoints.steps() == [2, 3] and checkpoints.latest() == 3
state = spread(0)
abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
found, meta = checkpoints.restore(3, abstract)
same(found, 3)
if jax.process_index() == 0:
    with open(next(p for p in checkpoints.directory.glob("3/params/d/*")), "ab") as file:
        file.write(b"x")
assert checkpoints.latest() == 2
same(checkpoints.restore(2, abstract)[0], 2)
checkpoints.close()
print("restored")
"""


def child(script, *arguments, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-c", STATE + script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def whole(directory, step):
    """The arrays of a step, and those that were saved."""
    w = np.random.default_rng(step).normal(size=(64, 512)).astype(np.float32)
    abstract = {"w": jax.ShapeDtypeStruct(w.shape, w.dtype)}
    return np.asarray(Checkpoints(directory).restore_parts(step, {"params": abstract})["params"]["w"]), w


@pytest.mark.soak
def test_kill_at_random_moments(tmp_path):
    latest = 0
    for _ in range(5):
        process = child(FOREVER, tmp_path)
        deadline = time.time() + 120
        while (manifest.committed(tmp_path) or [0])[-1] < latest + 2 and time.time() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        time.sleep(random.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = Checkpoints(tmp_path).latest()
        assert found >= latest + 2 and not list(tmp_path.glob("*.bad*"))
        np.testing.assert_array_equal(*whole(tmp_path, found))
        latest = found


@pytest.mark.soak
def test_two_processes_save_and_one_restores(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [child(TOGETHER, tmp_path, address, i, devices=2) for i in range(2)]
    for process in processes:
        out, error = process.communicate(timeout=240)
        assert process.returncode == 0 and "restored" in out, error[-3000:]
    np.testing.assert_array_equal(*whole(tmp_path, 2))
    assert verify(tmp_path) == [f"{tmp_path / '3.bad'} was found bad and set aside"]
