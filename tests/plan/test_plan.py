"""Plans over host devices: the real step is compiled, and what is told of it is right."""

import dataclasses
import io
import json
from importlib.util import find_spec

import jax
import pytest
from rich.console import Console

from llmlab import axes
from llmlab.chips import CHIPS, find
from llmlab.data import Bytes, Data
from llmlab.ffn import Gated
from llmlab.mesh import Mesh
from llmlab.mixers import Attention
from llmlab.models import Block, Decoder
from llmlab.nn import repeat
from llmlab.plan import plan, topology
from llmlab.plan.gpu import target
from llmlab.plan.hlo import Collective
from llmlab.plan.page import show_plan
from llmlab.plan.roofline import Load, times
from llmlab.train import Experiment, Train
from llmlab.train.plans import check_plans, digest_of, plan_file
from llmlab.train.run import RunError

LAYERS, WIDTH, BATCH, LENGTH = 3, 32, 16, 64


@pytest.fixture(scope="module")
def experiment():
    block = Block(mixer=Attention(heads=4), ffn=Gated(hidden=64))
    return Experiment(
        model=Decoder(vocab=257, width=WIDTH, stack=repeat(block, LAYERS, remat="full")),
        data=Data(tokenizer=Bytes(), batch=BATCH, length=LENGTH),
        train=Train(steps=7),
        mesh=Mesh(data=2, fsdp=-1),
    )


@pytest.fixture(scope="module")
def made(experiment):
    return plan(experiment, topology("cpu:8"), memory=1e9)


def test_bytes_are_those_of_the_layout(made):
    layers = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * 64 + 2 * WIDTH)
    count = 2 * 257 * WIDTH + layers + WIDTH
    assert made.parameters == count
    assert made.memory.parameters == 4 * count / 4  # fsdp of 4 shares every one, data none
    assert made.memory.optimizer == pytest.approx(2 * made.memory.parameters, abs=16)  # moments and counts
    assert made.memory.kept >= LAYERS * (BATCH // 8) * LENGTH * WIDTH * 4  # each layer's input
    assert made.memory.peak > made.memory.parameters + made.memory.optimizer
    assert made.fits and dataclasses.replace(made, memory=dataclasses.replace(made.memory, capacity=10)).fits is False


def test_work_is_that_of_the_parts(made):
    matrices = 2 * (257 * WIDTH + LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * 64))
    pairs = LENGTH * (LENGTH + 1) // 2
    forward = BATCH * (LENGTH * matrices + LAYERS * 4 * WIDTH * pairs)
    assert made.flops["algorithmic"] * 8 == 3 * forward
    body, head = forward - BATCH * LENGTH * 2 * 257 * WIDTH, BATCH * LENGTH * 2 * 257 * WIDTH
    whole = LENGTH * LENGTH - pairs  # one tile computes the hidden half too
    down = BATCH * LENGTH * LAYERS * 2 * WIDTH * 64  # nothing reads a layer's output again
    recomputed = 4 * (body + BATCH * LAYERS * 4 * WIDTH * whole) - down + 3 * head
    assert made.flops["executed"] * 8 == pytest.approx(recomputed, rel=0.01)
    assert 0 < made.flops["elementwise"] < made.flops["executed"]


def test_messages_are_those_of_the_rules(made):
    assert made.collectives["all-gather"]["count"] >= 2 * LAYERS  # forward, and again backward
    assert made.between_slices == 0 and made.times is None  # host devices have no data sheet


def test_a_plan_is_kept_with_the_run_and_a_job_that_would_not_fit_is_refused(made, experiment, tmp_path):
    mesh = experiment.mesh.build(jax.devices())
    file = made.save(tmp_path)
    assert file == plan_file(tmp_path, "cpu:8") and json.loads(file.read_text())["memory"]["peak"] == made.memory.peak
    check_plans(experiment, tmp_path, mesh)
    dataclasses.replace(made, memory=dataclasses.replace(made.memory, capacity=1e5)).save(tmp_path)
    with pytest.raises(RunError, match=r"needs .* GB of each cpu and there are 0.0001; .*\(llmlab plan --search"):
        check_plans(experiment, tmp_path, mesh)
    check_plans(experiment, tmp_path, experiment.mesh.build(jax.devices()[:4]))  # other devices
    check_plans(dataclasses.replace(experiment, data=Data(batch=8)), tmp_path, mesh)  # another program


def test_what_does_not_change_the_program_does_not_change_its_name(experiment):
    same = dataclasses.replace(experiment, seed=3, train=Train(steps=9, log_every=1))
    other = dataclasses.replace(experiment, train=Train(accumulate=2))
    assert digest_of(same) == digest_of(experiment) != digest_of(other)


def test_the_page_tells_what_a_kernel_would_hold_that_cannot_be_compiled_here(experiment, monkeypatch):
    """4 x 2 devices share 16 rows; each has 2 rows of 64 queries, 4 heads of 8 elements, packed."""
    monkeypatch.setattr(axes, "platform", lambda: "gpu")
    monkeypatch.setattr(axes, "present", lambda: False)
    half = dataclasses.replace(experiment, train=Train(steps=7, precision="bfloat16", kernels="fast"))
    console = Console(width=240, record=True, file=io.StringIO())
    show_plan(console, plan(half, topology("cpu:8"), memory=1e9), "half")
    page = console.export_text()
    assert "attention: cuDNN flash attention, compiled as a stand-in with its memory" in page
    assert "keeps 0.0266 MB of a device for the backward pass and takes 0.0184 MB there; the peak has" in page


@pytest.mark.parametrize(
    "words",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.5G of 15.75G hbm.",
        "RESOURCE_EXHAUSTED: E1000: the memory required for HLO temporaries (21.5G) exceeds available HBM (15.75G).",
    ],
)
def test_what_the_compiler_refuses_is_told_in_its_words(experiment, monkeypatch, words):
    def refuse(lowered):
        raise jax.errors.JaxRuntimeError(words)

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    made = plan(experiment, topology("cpu:8"), memory=1e9)
    assert made.fits is False and made.times is None and made.collectives == {}
    assert made.memory.peak == 21.5 * 2**30 and made.refusal == words
    console = Console(width=240, record=True, file=io.StringIO())
    show_plan(console, made, "large")
    assert f"DOES NOT FIT {words}" in console.export_text()


def test_a_batch_that_the_mesh_does_not_divide_is_refused_as_in_training(experiment):
    with pytest.raises(ValueError, match="'B'"):
        plan(dataclasses.replace(experiment, data=Data(tokenizer=Bytes(), batch=6)), topology("cpu:8"))


def test_a_step_takes_the_longest_of_what_runs_side_by_side():
    chip = next(chip for chip in CHIPS if chip.name == "v5e")
    gather = Collective("all-gather", 200e9 * 4 / 3, 4, spans=False, hidden=True)
    found = times(Load(2 * chip.flops, chip.bandwidth, (gather,)), chip)
    assert (found.compute, found.memory, found.link) == pytest.approx((2, 1, 1))
    assert found.step == pytest.approx(2) and found.bound == "products"
    alone = dataclasses.replace(gather, hidden=False, times=3)
    assert times(Load(2 * chip.flops, 0, (alone,)), chip).step == pytest.approx(5)
    far = dataclasses.replace(gather, spans=True)
    assert times(Load(0, 0, (far,)), chip).network == pytest.approx(200e9 / 3.125e9)
    with pytest.raises(ValueError, match="no rate between slices"):
        times(Load(0, 0, (far,)), CHIPS[0])


@pytest.mark.parametrize(("kind", "name"), [("TPU v5 lite", "v5e"), ("TPU v5p", "v5p"), ("TPU v6 lite", "v6e")])
def test_chips_are_known_by_the_names_of_their_devices(kind, name):
    assert find(kind).name == name
    assert find("cpu") is None and find("NVIDIA H100 80GB HBM3").name == "h100"


@pytest.mark.parametrize("name", ["v5x:2x2", "v5e", "v5e:16by16", "16x16"])
def test_a_topology_that_is_not_understood_is_told(name):
    with pytest.raises(ValueError, match=r"is not understood.*CHIP:SIZES"):
        topology(name)


def test_host_devices_that_are_not_there_are_told():
    with pytest.raises(ValueError, match="--cpu-devices"):
        topology("cpu:64")


def test_slices_of_tpus_come_from_libtpu():
    pytest.importorskip("libtpu", reason="libtpu has the compiler for TPUs, and is not installed")
    found = topology("2*v5e:4x4")
    assert found.chips == 32 and {found.slice_of(d) for d in found.devices} == {0, 1}
    with pytest.raises(ValueError, match="libtpu knows no slice v5e:3x7"):
        topology("v5e:3x7")


def test_gpus_that_are_not_there_are_told_to_the_compiler():
    assert "device_memory_size: 141000000000" in target(find("NVIDIA H200")) and "major: 9" in target(
        find("NVIDIA H100")
    )
    with pytest.raises(ValueError, match="h100, h200 alone, not of b200"):
        topology("b200:8")
    if not find_spec("jax_cuda13_plugin"):
        with pytest.raises(ImportError, match="jax-cuda13-plugin"):
            topology("h100:2x8")
