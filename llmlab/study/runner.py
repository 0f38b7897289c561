"""Runs a study: workers look for cells that are wanted, claim a group of them, train it, and look again.

Workers share nothing but the directory: processes of one machine (`Pool`), jobs of a cluster (`Slurm`), or the same
command started by hand on several machines that see it.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from llmlab.config import Config, config
from llmlab.study.cells import Cell, Cells, groups, plan, settled
from llmlab.study.claim import Claim, Lost
from llmlab.study.group import Group, Place, Preempted, final
from llmlab.study.record import OUTCOMES, read_rows
from llmlab.train.signals import Signals

LOOK = 1.0  # seconds between looks of a worker that has nothing to do, and of who watches
FAILED = ("crashed", "out_of_memory")


@dataclasses.dataclass
class Worker:
    """Trains the groups of a study until all that is wanted has come to something, or has failed."""

    place: Place
    cells: Cells
    say: Callable[[str], None] = print
    beat: float = 5.0
    patience: float = 60.0

    def work(self) -> bool:
        """Whether every cell has come to something. Raises Preempted when told to stop."""
        while True:
            rows = read_rows(self.place.directory)
            wanted = self.cells.wanted(rows)
            for name, cells in plan(self.place.directory, wanted, self.cells.study.together):
                Group(self.place, self.cells.study, name, cells).write("pending")
            if not self.one(wanted):
                rows = read_rows(self.place.directory)
                wanted = self.cells.wanted(rows)
                if settled(wanted, rows):
                    return True
                over = {row.key for row in rows if row.state in OUTCOMES + FAILED}
                if all(cell.key in over for cell in wanted):
                    return False
                time.sleep(LOOK)  # another worker has what is left

    def one(self, wanted: list[Cell]) -> bool:
        """Trains one group that nobody has; False where there is none."""
        known = {cell.key: cell for cell in wanted}
        states = {row.key: row.state for row in read_rows(self.place.directory)}
        order = {cell.key: number for number, cell in enumerate(wanted)}
        here = [group for group in groups(self.place.directory) if all(key in known for key in group["cells"])]
        for group in sorted(here, key=lambda group: order[group["cells"][0]]):
            keys = group["cells"]
            found = {states.get(key) for key in keys}
            if found & set(FAILED) or found <= set(OUTCOMES):
                continue
            claim = Claim(Path(self.place.directory) / "groups" / group["name"], self.beat, self.patience)
            if not claim.take():
                continue
            try:
                if not all(final(self.place.directory, key) for key in keys):  # else another was just faster
                    self.train(Group(self.place, self.cells.study, group["name"], [known[k] for k in keys]), claim)
            finally:
                claim.release()
            return True
        return False

    def train(self, group: Group, claim: Claim) -> None:
        """Trains a group; what goes wrong becomes the state of its cells."""
        began = time.monotonic()
        name = f"{group.cells[0].arm} ({group.cells[0].phase}, {len(group.cells)} together)"
        self.say(f"{name}: training")
        try:
            group.run(claim)
            self.say(f"{name}: done in {time.monotonic() - began:.0f} s")
        except Preempted as stopped:
            group.write("preempted", str(stopped))
            raise
        except Lost as lost:
            self.say(f"{name}: {lost}")
        except Exception as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text
            state = "out_of_memory" if memory else "crashed"
            group.write(state, text)
            self.say(f"{name}: {state}: {text}")


def retry(directory: Path) -> None:
    """Takes back what failed, so that it is trained anew."""
    for row in read_rows(directory):
        if row.state in FAILED:
            (Path(directory) / "cells" / row.key / "row.json").unlink()


class Backend(Config):
    """The slot of where workers run: run(work, command) returns when no worker is left.

    work: of a worker in this process. command: starts one in a process of its own.
    """

    def run(self, work: Callable[[], bool], command: list[str]) -> None:
        raise TypeError(f"{type(self).__name__} must define run(work, command)")


@config
class Here(Backend):
    """This process."""

    def run(self, work, command):
        work()


class Jobs(Backend):
    """The base of backends whose workers are processes of their own; they are stopped when this one is."""

    def run(self, work, command):
        with Signals() as signals:
            jobs = self.start(command)
            try:
                while self.alive(jobs):
                    if signals.asked(0):
                        raise Preempted("stopped, and the workers with it")
                    time.sleep(LOOK)
            except BaseException:
                self.stop(jobs)
                raise

    def start(self, command: list[str]) -> list:
        raise TypeError(f"{type(self).__name__} must define start(command)")

    def alive(self, jobs: list) -> bool:
        raise TypeError(f"{type(self).__name__} must define alive(jobs)")

    def stop(self, jobs: list) -> None:
        raise TypeError(f"{type(self).__name__} must define stop(jobs)")


@config
class Pool(Jobs):
    """Processes of this machine."""

    workers: int = 2

    def check(self):
        if self.workers < 1:
            raise ValueError(f"Pool.workers is {self.workers}; it is 1 or more")

    def start(self, command):
        return [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(self.workers)]

    def alive(self, jobs):
        return any(job.poll() is None for job in jobs)

    def stop(self, jobs):
        for job in jobs:
            job.terminate()
        for job in jobs:
            job.wait()


@config
class Slurm(Jobs):
    """Jobs of Slurm, through submitit (the extra `cluster`). folder: of their logs. cluster: submitit's name of it,
    "local" to try it without Slurm."""

    workers: int = 4
    partition: str | None = None
    minutes: int = 240
    cpus: int = 4
    gpus: int = 0
    folder: str = "slurm"
    cluster: str = "slurm"

    def start(self, command):
        import submitit

        executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
        options = {"timeout_min": self.minutes, "cpus_per_task": self.cpus, "gpus_per_node": self.gpus}
        executor.update_parameters(slurm_partition=self.partition, **options)
        return [executor.submit(subprocess.call, command) for _ in range(self.workers)]

    def alive(self, jobs):
        return any(not job.done() for job in jobs)

    def stop(self, jobs):
        for job in jobs:
            job.cancel()


def python(*arguments: str) -> list[str]:
    """The command line of llmlab in this environment."""
    return [sys.executable, "-m", "llmlab", *arguments]
