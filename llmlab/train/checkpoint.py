"""Checkpoints that can be trusted: saved in the background, whole or absent, verified before use.

    directory/<step>/params, stats, opt, loop    one Orbax item each, so that parameters can be read alone
    directory/<step>/COMMITTED.json              written last (llmlab/train/manifest.py)

Trees are stored as nested dicts by path, free of the types of Flax and Optax, and restore onto any mesh. Orbax's
`CheckpointManager` is not used: it lists steps from memory, failed ones too; here the disk alone says what exists.
The directory is local or mounted, and shared by all processes; process 0 writes manifests, verifies and deletes.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
import warnings
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from llmlab.optim.optimizers import nest
from llmlab.optim.sharding import names
from llmlab.train import manifest
from llmlab.train.agree import agree
from llmlab.train.manifest import CheckpointError, CorruptError, MismatchError, verify

__all__ = ["CheckpointError", "Checkpoints", "CorruptError", "MismatchError", "MissingError", "SaveError", "verify"]

ROOM = 1.2  # free bytes asked for before a save, as a multiple of the state's
LOOP = "loop"  # the item of the arrays that stand in the state without a tree: step, rng


class SaveError(CheckpointError):
    """A checkpoint could not be written; those before it are as they were."""


class MissingError(CheckpointError):
    """There is no such checkpoint."""


class Checkpoints:
    """The checkpoints of one run. One job at a time may save into a directory; all its processes call alike."""

    def __init__(self, directory: str | Path, keep: int = 2, keep_every: int | None = None):
        """Keeps the newest `keep` good ones, and every one whose step is a multiple of `keep_every`."""
        if "://" in str(directory):
            raise ValueError(f"checkpoints in {str(directory)!r}: give a local directory, or mount the bucket")
        if keep < 1 or (keep_every is not None and keep_every < 1):
            raise ValueError(f"keep is {keep} and keep_every {keep_every}; they count checkpoints and steps, 1 or more")
        self.directory = Path(directory).absolute()
        self._keep, self._keep_every = keep, keep_every
        self._verified: set[int] = set()
        self._writer = None
        self._thread: threading.Thread | None = None
        self._error: SaveError | None = None

    def steps(self) -> list[int]:
        """The committed steps, oldest first."""
        return manifest.committed(self.directory)

    def save(self, step: int, state: dict, meta: dict) -> None:
        """Starts to save the train state and the loop's own JSON values; returns when the arrays may change again.

        Waits for the save before it. Raises SaveError when that one failed, when space is short, or the step exists.
        """
        import orbax.checkpoint as ocp

        self.wait()
        meta = json.loads(json.dumps(meta))  # a copy; and what is no JSON fails here, not in the background
        items, needed = _items(state), _bytes(state)
        self._make_room(step, needed)
        arguments = {item: ocp.args.StandardSave(nest(leaves)) for item, leaves in items.items() if leaves}
        if self._writer is None:
            self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        try:
            self._writer.save(self.directory / str(step), args=ocp.args.Composite(**arguments))
        except Exception as error:
            raise self._failure(step, needed, error) from error
        self._thread = threading.Thread(target=self._commit, args=(step, needed, _describe(items), meta), name="commit")
        self._thread.start()

    def poll(self) -> None:
        """Raises the SaveError of a save that failed in the background, once. Returns at once.

        With several processes it waits for `wait` or the next `save`, where all of them raise together.
        """
        if jax.process_count() == 1:
            self._raise()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Returns when the save under way counts, or raises its SaveError."""
        self._join()
        self._raise()

    def close(self) -> None:
        """Waits, and ends the threads of the writer."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def latest(self) -> int | None:
        """The newest step that is committed and verifies; None where nothing was ever committed.

        Bad ones on the way are renamed to `<step>.bad` with a warning. Raises CorruptError when only bad ones exist.
        """
        self._join()
        found = agree(self._search)
        if found >= 0:
            self._verified.add(found)
            return found
        bad = sorted(path.name for path in self.directory.glob("*.bad*"))
        if bad:
            raise CorruptError(
                f"no checkpoint in {self.directory} verifies; set aside as bad: {', '.join(bad)}. "
                "Restore the directory from a copy, or start a fresh run"
            )
        return None

    def restore(self, step: int, abstract: dict) -> tuple[dict, dict]:
        """(state, meta) of a step, as `abstract` says: its tree of ShapeDtypeStructs with shardings of any mesh.

        Raises MissingError, CorruptError, or MismatchError with the paths that differ.
        """
        content = self._open(step)
        return self._read(step, abstract, content["arrays"]), content["meta"]

    def restore_parts(self, step: int, abstract: dict) -> dict:
        """Only the parts of a state that `abstract` names, such as params and stats; errors as of `restore`."""
        arrays = self._open(step)["arrays"]
        wanted = {path: array for path, array in arrays.items() if path.partition(".")[0] in abstract}
        return self._read(step, abstract, wanted)

    def _join(self) -> None:
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if jax.process_count() > 1:  # all go on when process 0 has written the manifest, or all fail
            failed = multihost_utils.process_allgather(np.int32(self._error is not None))
            if failed.any() and self._error is None:
                self._error = SaveError(f"process {int(failed.argmax())} could not save; its message says why")

    def _commit(self, step: int, needed: int, arrays: dict[str, str], meta: dict) -> None:
        """Runs in the background: Orbax's commit, then ours, then the deletion of old ones."""
        try:
            self._writer.wait_until_finished()
            if jax.process_index() == 0:
                manifest.write(self.directory / str(step), arrays, meta)
        except Exception as error:
            self._error = self._failure(step, needed, error)
            self._error.__cause__ = error
            return
        try:
            if jax.process_index() == 0:
                self._prune()
        except OSError as error:
            self._error = SaveError(
                f"step {step} is saved in {self.directory}, but old ones cannot be deleted: {error}"
            )

    def _failure(self, step: int, needed: int, error: Exception) -> SaveError:
        """The error to raise; what the failed save has written is deleted, so that the disk has room again."""
        free = shutil.disk_usage(self.directory).free
        for _ in range(10):  # writes of other arrays, still under way, may make the directory anew
            self._sweep()
            time.sleep(0.1)
        reason = str(error).strip().partition("\n")[0]
        reason = reason if len(reason) <= 200 else f"... {reason[-200:]}"  # TensorStore names the cause last
        return SaveError(
            f"the checkpoint of step {step} was not saved in {self.directory}: {type(error).__name__}: {reason}. "
            f"It needs {_show(needed)}, {_show(free)} were free. {self._survivor()}"
        )

    def _survivor(self) -> str:
        steps = self.steps()
        return f"The checkpoint of step {steps[-1]} is whole" if steps else "There is no earlier checkpoint"

    def _make_room(self, step: int, size: int) -> None:
        """Removes what unfinished saves left, and checks that the new one can be written."""
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._sweep()
        needed = int(ROOM * size)
        if not agree(lambda: int(shutil.disk_usage(self.directory).free >= needed)):
            raise SaveError(
                f"no room for the checkpoint of step {step} in {self.directory}: it needs {_show(needed)}, "
                f"{_show(shutil.disk_usage(self.directory).free)} are free. {self._survivor()}. "
                f"Free some space, or keep fewer checkpoints (now {self._keep})"
            )
        if agree(lambda: int(step in self.steps())):
            raise SaveError(
                f"step {step} is already saved in {self.directory}; to train again from an earlier step, "
                "move the later checkpoints away or use another directory"
            )

    def _sweep(self) -> None:
        """Deletes what is not committed. Called only while nothing of this job is being written."""
        if jax.process_index() == 0:
            for path in manifest.leftovers(self.directory):
                shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        """Deletes old checkpoints while `keep` whole ones stay. The manifest goes first: none is ever half a one."""
        whole = [s for s in self.steps() if not manifest.find_problems(self.directory / str(s), hashes=False)]
        for step in whole[: -self._keep]:
            if self._keep_every is None or step % self._keep_every:
                (self.directory / str(step) / manifest.NAME).unlink()
                shutil.rmtree(self.directory / str(step), ignore_errors=True)

    def _search(self) -> int:
        """The newest good step, or -1; sets bad ones aside."""
        for step in reversed(self.steps()):
            path = self.directory / str(step)
            problems = manifest.find_problems(path)
            if not problems:
                return step
            if (path / manifest.NAME).is_file():  # else its writer deleted it meanwhile
                aside = _unused(path.with_name(f"{step}.bad"))
                path.rename(aside)
                warnings.warn(
                    f"the checkpoint of step {step} is bad and was renamed to {aside.name}: {_some(problems)}",
                    stacklevel=4,
                )
        return -1

    def _open(self, step: int) -> dict:
        """The manifest of a step that verifies."""
        self._join()
        path = self.directory / str(step)
        if not agree(lambda: int(step in self.steps())):
            known = ", ".join(map(str, self.steps())) or "none"
            raise MissingError(f"there is no checkpoint of step {step} in {self.directory}; its steps: {known}")
        if step not in self._verified:
            problems = manifest.find_problems(path) if jax.process_index() == 0 else ["process 0 tells what is wrong"]
            if agree(lambda: len(problems)):
                raise CorruptError(f"the checkpoint of step {step} is bad: {_some(problems)}")
            self._verified.add(step)
        return manifest.read(path)

    def _read(self, step: int, abstract: dict, saved: dict[str, str]) -> dict:
        """The arrays of `abstract` from disk, in its tree."""
        import orbax.checkpoint as ocp

        path, items = self.directory / str(step), _items(abstract)
        manifest.compare(path, saved, _describe(items))
        wanted = {
            item: nest({k: _placed(leaf) for k, leaf in leaves.items()}) for item, leaves in items.items() if leaves
        }
        reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
        try:
            arguments = {item: ocp.args.StandardRestore(tree) for item, tree in wanted.items()}
            found = dict(reader.restore(path, args=ocp.args.Composite(**arguments)).items())
        finally:
            reader.close()
        whole = {**found.pop(LOOP, {}), **found}

        def pick(keys, _):
            leaf = whole
            for name in names(keys):
                leaf = leaf[name]
            return leaf

        return jax.tree_util.tree_map_with_path(pick, abstract)


def _items(state: dict) -> dict[str, dict[tuple[str, ...], jax.Array]]:
    """{item: {path: leaf}}: each tree of the state is an item, and its bare arrays are one together."""
    trees = {key: value for key, value in state.items() if not hasattr(value, "shape")}
    trees[LOOP] = {key: value for key, value in state.items() if key not in trees}
    return {
        item: {names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for item, tree in trees.items()
    }


def _describe(items: dict[str, dict[tuple[str, ...], jax.Array]]) -> dict[str, str]:
    """{dotted path: "float32[2,3]"} of all arrays."""
    return {
        ".".join((item, *path)): f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
        for item, leaves in items.items()
        for path, leaf in leaves.items()
    }


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The leaf with a sharding: one device where none is asked for, never that of the job that saved it."""
    sharding = leaf.sharding or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _unused(path: Path) -> Path:
    """The path, or the first with a number behind it, that does not exist."""
    number = 0
    while (free := path.with_name(f"{path.name}{number or ''}")).exists():
        number += 1
    return free


def _bytes(state: dict) -> int:
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(state))


def _show(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _some(problems: list[str]) -> str:
    return "; ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")
