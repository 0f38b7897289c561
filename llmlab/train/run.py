"""A run's directory: what was run, by which code, and whether it may go on.

docs/checkpoints.md lists its files. A directory without run.json is a new run. One with it and a checkpoint that
verifies is resumed, if the experiment is the same; one with it and no such checkpoint is an error unless a fresh start
is asked for.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import time
from pathlib import Path

import jax

from llmlab.config import diff, from_dict, to_dict
from llmlab.train.agree import agree
from llmlab.train.experiment import Experiment

# Leaves that change neither the parameters so far nor the order of the data: a resumed run may set them anew.
FREE = (
    "mesh", "rules", "data.workers", "train.guard", "train.log_every", "train.eval_every", "train.eval_batches",
    "train.save_every", "train.keep", "train.kernels", "train.prompt",
)  # fmt: skip


class RunError(RuntimeError):
    """A run that cannot start as asked; the message says what to do."""

    exit_code = 65


class Run:
    """One run's directory, held by one process group at a time."""

    def __init__(self, directory: Path, experiment: Experiment, file: Path | None = None):
        self.directory, self.experiment, self.file = Path(directory), experiment, file
        self.lock = None

    @property
    def record(self) -> Path:
        return self.directory / "run.json"

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.directory / "metrics.jsonl"

    def open(self, fresh: bool = False) -> bool:
        """Takes the directory; True when it holds a run to go on with.

        Raises RunError when another process holds it, or when it holds another experiment and `fresh` is not asked.
        """
        return bool(agree(lambda: int(self._open(fresh))))

    def _open(self, fresh: bool) -> bool:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._take()
        except OSError as error:
            raise RunError(f"no run can be kept in {self.directory} ({error.strerror}); give another --run") from None
        if fresh and self.record.exists():  # else nothing here is a run's to delete
            self._clear()
        known = self.record.exists()
        if known:
            self._compare(read_record(self.directory))
        else:
            self._write()
        return known

    def close(self) -> None:
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def truncate(self, step: int) -> None:
        """Drops the metrics of steps after `step`, and a torn last line: they are about to be computed again."""
        if jax.process_index() or not self.metrics.exists():
            return
        kept = 0
        for line in self.metrics.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n") or _step(line) > step:
                break
            kept += len(line)
        os.truncate(self.metrics, kept)  # in place: the log has it open

    def _take(self) -> None:
        self.lock = (self.directory / "lock").open("a+")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.seek(0)
            owner = self.lock.read().strip()
            raise RunError(
                f"{self.directory} is in use by process {owner}; wait for it, or choose another --run"
            ) from None
        self.lock.truncate(0)
        self.lock.write(str(os.getpid()))
        self.lock.flush()

    def _clear(self) -> None:
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        for file in self.directory.iterdir():
            if self.file is not None and file.samefile(self.file):
                continue
            if file.name in ("run.json", "metrics.jsonl", "run.html", "loss.svg", "sample.txt", "experiment.py"):
                file.unlink()
        shutil.rmtree(self.directory / "tensorboard", ignore_errors=True)

    def _write(self) -> None:
        copy = self.directory / "experiment.py"
        if self.file is not None and not (copy.exists() and copy.samefile(self.file)):
            shutil.copyfile(self.file, copy)
        record = {
            "experiment": to_dict(self.experiment),
            "file": str(self.file.resolve()) if self.file else None,
            "command": sys.argv,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "code": code_digest(self.file),
            "versions": {name: importlib.metadata.version(name) for name in ("llmlab", "jax", "flax", "optax")},
        }
        partial = self.record.with_suffix(".tmp")
        partial.write_text(json.dumps(record, indent=1))
        os.replace(partial, self.record)

    def _compare(self, record: dict) -> None:
        old = from_dict(record["experiment"], "run.json: experiment")
        changed = {
            path: sides
            for path, sides in diff(old, self.experiment).items()
            if not any(path == free or path.startswith(f"{free}.") for free in FREE)
        }
        if changed:
            lines = "\n".join(f"  {path}: {old!r} -> {new!r}" for path, (old, new) in changed.items())
            raise RunError(
                f"{self.directory} holds another experiment; it differs in\n{lines}\n"
                "give another directory with --run, or start over with --fresh"
            )
        if record["code"] != code_digest(self.file):
            print(f"note: the code has changed since {self.directory} was started")


def load(directory: Path) -> Experiment:
    """The experiment of a run, by the code of its own copy of the file. Raises RunError when there is none."""
    record = Path(directory) / "run.json"
    if not record.exists():
        raise RunError(
            f"{directory} is no run: it has no run.json; `llmlab train EXPERIMENT --run {directory}` makes one"
        )
    data = read_record(directory)
    if data["file"]:
        from llmlab.train.files import import_file

        source, copy = Path(data["file"]), Path(directory) / "experiment.py"
        same = source.exists() and not (copy.exists() and source.read_bytes() != copy.read_bytes())
        if not same and source.parent.is_dir() and str(source.parent) not in sys.path:
            sys.path.append(str(source.parent))  # its neighbours, which are not copied
        import_file(source if same else copy, name=source.stem)
    return from_dict(data["experiment"], f"{record}: experiment")


def read_record(directory: Path) -> dict:
    """What run.json holds. Raises RunError when it is not what a run writes."""
    file = Path(directory) / "run.json"
    try:
        data = json.loads(file.read_text())
        return {name: data[name] for name in ("experiment", "file", "code")}
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise RunError(f"{file} is not as a run wrote it ({error!r}); restore it, or use --fresh") from error


def code_digest(file: Path | None) -> str:
    """16 digits that name the package's sources, the experiment's file, and its neighbours that are loaded."""
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    if file is not None:
        loaded = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        folder = Path(file).resolve().parent
        sources += sorted({Path(name) for name in loaded if name and Path(name).parent == folder} | {Path(file)})
    found = hashlib.sha256()
    for source in sources:
        found.update(source.read_bytes())
    return found.hexdigest()[:16]


def _step(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")
