"""Checkpoints: whole or absent, verified, restored onto any mesh, and clear about what is wrong. Data is random."""

import contextlib
import os
import resource
import shutil
import threading
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llmlab.train import checkpoint, manifest
from llmlab.train.checkpoint import Checkpoints, CorruptError, MismatchError, MissingError, SaveError, verify

OPTIMIZER = optax.adamw(1e-3)


def values(seed, width=64):
    random = np.random.default_rng(seed)
    w, scale = random.normal(size=(8, width)).astype(np.float32), random.normal(size=(8,)).astype(np.float32)
    params = {"layers": {"0": {"w": w}}, "scale": scale}
    noise = jax.tree.map(lambda x: random.normal(size=x.shape).astype(x.dtype), OPTIMIZER.init(params))
    rng = random.integers(0, 2**32, 2, dtype=np.uint32)
    return {"step": np.int32(seed), "params": params, "stats": {}, "opt": noise, "rng": rng}


def placed(tree, sizes):
    mesh = jax.make_mesh(sizes, ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    return jax.tree.map(lambda x: NamedSharding(mesh, P("x", "y") if np.ndim(x) == 2 else P()), tree)


def state(seed, sizes=(2, 4)):
    return jax.device_put(values(seed), placed(values(seed), sizes))


def abstract(sizes=(2, 4), width=64):
    tree = values(0, width)

    def shape(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(shape, tree, placed(tree, sizes))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def data_file(directory):
    """The file that holds most of the arrays; the manifest itself can be larger."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != manifest.NAME)
    return max(files, key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with steps 1 and 2."""
    checkpoints = Checkpoints(tmp_path_factory.mktemp("saved") / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, state(step), {"step": step, "data_index": 10 * step})
    checkpoints.close()
    return checkpoints.directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


@pytest.mark.parametrize("sizes", [(4, 2), (1, 1)])
def test_restores_every_bit_onto_another_mesh(saved, sizes):
    checkpoints = Checkpoints(saved)
    assert checkpoints.latest() == 2
    found, meta = checkpoints.restore(2, abstract(sizes))
    same(found, values(2))
    jax.tree.map(
        lambda x, wanted: x.sharding == wanted.sharding or pytest.fail(str(x.sharding)), found, abstract(sizes)
    )
    assert meta == {"step": 2, "data_index": 20}
    same(checkpoints.restore_parts(1, {"params": abstract(sizes)["params"]})["params"], values(1)["params"])


def test_keeps_the_newest_and_multiples_and_what_was_there_when_save_was_called(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, keep_every=2)
    change = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    for step in (1, 2, 3, 4, 5):
        moving = state(step)
        checkpoints.save(step, moving, {})
        change(moving)
    checkpoints.close()
    assert checkpoints.steps() == [2, 4, 5] and not verify(tmp_path)
    same(checkpoints.restore(5, abstract())[0], values(5))


def test_a_truncated_file_is_named_and_the_previous_step_taken(copy):
    path = data_file(copy / "2")
    size = path.stat().st_size
    os.truncate(path, size - 100)
    checkpoints = Checkpoints(copy)
    assert verify(copy) == [f"{path} has {size - 100} bytes; {size} were written"]
    with pytest.raises(CorruptError, match="step 2 is bad.*were written"):
        checkpoints.restore(2, abstract())
    with pytest.warns(UserWarning, match=rf"step 2 .*renamed to 2\.bad.*{size - 100} bytes; {size} were written"):
        assert checkpoints.latest() == 1
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2.bad"]
    same(checkpoints.restore(1, abstract())[0], values(1))


def test_a_flipped_bit_is_found_and_when_nothing_is_left_that_is_said(copy):
    for step in (1, 2):
        path = data_file(copy / str(step))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    words = r"no checkpoint in .* verifies; set aside as bad: 1\.bad, 2\.bad"
    with pytest.warns(UserWarning, match="has hash .* was written"), pytest.raises(CorruptError, match=words):
        Checkpoints(copy).latest()
    with pytest.raises(CorruptError, match=words):  # and again at the next start
        Checkpoints(copy).latest()
    assert all("set aside" in problem for problem in verify(copy)[1:])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_text("{"), "is no manifest"),
        (lambda path: path.write_text(path.read_text().replace('"data_index": 20', '"data_index": 21')), "has changed"),
        (lambda path: data_file(path.parent).unlink(), "is missing"),
    ],
)
def test_a_damaged_manifest_or_missing_file_is_found(copy, damage, words):
    damage(copy / "2" / manifest.NAME)
    with pytest.warns(UserWarning, match=words):
        assert Checkpoints(copy).latest() == 1


def test_a_checkpoint_of_another_config_lists_what_differs(saved):
    wanted = abstract(width=32)
    wanted["params"]["bias"] = wanted["params"].pop("scale")
    with pytest.raises(MismatchError, match="of another config; 5 arrays differ") as caught:
        Checkpoints(saved).restore(2, wanted)
    assert "params.layers.0.w: float32[8,64] saved, float32[8,32] wanted" in str(caught.value)
    assert "params.scale: float32[8] saved, absent wanted" in str(caught.value)
    with pytest.raises(MismatchError, match=r"params\.bias: absent saved"):
        Checkpoints(saved).restore_parts(2, {"params": wanted["params"]})


def test_nothing_there(tmp_path, saved):
    assert Checkpoints(tmp_path).latest() is None and Checkpoints(tmp_path / "none").latest() is None
    assert verify(tmp_path) == [f"{tmp_path} has no checkpoint"]
    with pytest.raises(MissingError, match="no checkpoint of step 7 in .* its steps: 1, 2"):
        Checkpoints(saved).restore(7, abstract())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own tasks, not awaited
def test_disk_full_while_saving_keeps_the_last_good_one_and_gives_back_the_space(copy):
    checkpoints = Checkpoints(copy)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        checkpoints.save(3, state(3), {})
        with pytest.raises(
            SaveError, match=rf"step 3 was not saved in {copy}.*File too large.*free\. .*step 2 is whole"
        ):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    checkpoints.poll()  # told once
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2"]
    assert checkpoints.latest() == 2
    same(checkpoints.restore(2, abstract())[0], values(2))
    checkpoints.save(3, state(3), {})
    checkpoints.close()
    assert checkpoints.steps() == [2, 3] and not verify(copy)


def test_a_failing_manifest_is_a_failed_save(copy, monkeypatch):
    monkeypatch.setattr(
        manifest.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    checkpoints = Checkpoints(copy)
    checkpoints.save(3, state(3), {})
    checkpoints._thread.join()
    with pytest.raises(SaveError, match="OSError: .*No space left"):
        checkpoints.poll()
    checkpoints.close()
    assert checkpoints.latest() == 2 and not (copy / "3").exists()


def test_too_little_room_is_said_before_writing(copy, monkeypatch):
    usage = shutil.disk_usage(copy)._replace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SaveError, match=r"no room for .* step 3 in .* 0\.0 MB are free\. .*step 2 is whole"):
        Checkpoints(copy).save(3, state(3), {})
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2"]


def test_a_checkpoint_being_written_or_deleted_is_never_taken_for_whole(copy, tmp_path):
    """Copies of the directory, made while a save runs, are what a crash could leave."""
    checkpoints, images, done = Checkpoints(copy), [], threading.Event()

    def photograph():
        while not done.is_set():
            images.append(tmp_path / str(len(images)))
            _link(copy, images[-1])

    thread = threading.Thread(target=photograph)
    thread.start()
    checkpoints.save(3, state(3), {})
    checkpoints.close()
    done.set()
    thread.join()
    seen = [manifest.leftovers(image) != [] for image in images]
    assert any(seen), f"no image of {len(images)} caught the save"
    for image in images:
        assert Checkpoints(image).latest() in (2, 3) and not list(image.glob("*.bad*"))
    torn = Checkpoints(images[seen.index(True)])
    step = torn.latest()
    same(torn.restore(step, abstract())[0], values(step))
    torn.save(step + 5, state(step + 5), {})
    torn.close()
    assert torn.latest() == step + 5 and not verify(torn.directory)  # the next save has cleaned up


def _link(source, target):
    """A copy by hard links, manifests first; what vanishes meanwhile is left out."""
    files = [Path(folder, name) for folder, _, names in os.walk(source) for name in names]
    target.mkdir()
    for path in sorted(files, key=lambda path: path.name != manifest.NAME):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.link(path, place)


def test_a_deletion_cut_short_leaves_no_half_checkpoint(copy, monkeypatch):
    checkpoints = Checkpoints(copy)
    with monkeypatch.context() as crash:
        crash.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)
        checkpoints.save(3, state(3), {})
        checkpoints.close()
    assert checkpoints.steps() == [2, 3] and verify(copy) == [
        f"{copy / '1'} was not finished; the next save deletes it"
    ]


def test_wrong_use_is_refused(copy):
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(copy, keep=0)
    with pytest.raises(ValueError, match="'gs://bucket/run': give a local directory"):
        Checkpoints("gs://bucket/run")
    with pytest.raises(TypeError, match="not JSON serializable"):
        Checkpoints(copy).save(3, state(3), {"key": object()})
    with pytest.raises(SaveError, match="step 2 is already saved"):
        Checkpoints(copy).save(2, state(2), {})
