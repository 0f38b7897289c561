"""Claims: which worker has a group of cells, on one machine or on a shared file system, without a server.

A claim is a file made with O_EXCL, so one worker of many makes it; its modification time is the heartbeat. A claim
whose heart has stopped is taken over by making the next one: claim.0, claim.1, ...; the highest number holds. So two
workers cannot both take over, and one that comes back from the dead sees that it has lost.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

BEAT = 5.0  # seconds between heartbeats
PATIENCE = 60.0  # seconds without one after which a worker on another machine counts as dead


class Lost(RuntimeError):
    """Another worker has taken this one for dead and goes on with its cells."""


class Claim:
    """The claim of one worker on a directory, held from `take` to `release`."""

    def __init__(self, directory: Path, beat: float = BEAT, patience: float = PATIENCE):
        self.directory, self.beat, self.patience = Path(directory), beat, patience
        self.number: int | None = None
        self._end = threading.Event()

    def take(self) -> bool:
        """Whether the directory is this worker's now."""
        self.directory.mkdir(parents=True, exist_ok=True)
        latest = self.latest()
        if latest is not None and self.alive(latest):
            return False
        number = 0 if latest is None else latest + 1
        try:
            handle = os.open(self.path(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "born": born(os.getpid()), "time": time.time()}
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(owner))
        self.number = number
        self._end.clear()
        threading.Thread(target=self._keep, args=(self._end,), daemon=True).start()
        return True

    def check(self) -> None:
        """Raises Lost when another worker has the directory."""
        latest = self.latest()
        if latest != self.number:
            raise Lost(f"{self.directory} was taken over (claim {latest}, this is {self.number}); this worker stops")

    def release(self) -> None:
        """Gives the directory back; the next claim has a higher number all the same."""
        self._end.set()
        if self.number is not None:
            path, self.number = self.path(self.number), None
            owner = json.loads(path.read_text() or "{}")
            path.write_text(json.dumps({**owner, "released": time.time()}))

    def latest(self) -> int | None:
        """The number of the claim that holds, None where there was none."""
        numbers = [int(path.name.partition(".")[2]) for path in self.directory.glob("claim.*")]
        return max(numbers, default=None)

    def alive(self, number: int) -> bool:
        """Whether a claim's worker lives: told by its process on this machine, by its heartbeat elsewhere."""
        path = self.path(number)
        try:
            text, beaten = path.read_text(), path.stat().st_mtime
        except FileNotFoundError:
            return False
        try:
            owner = json.loads(text)
        except json.JSONDecodeError:  # made and not yet written, or its writer died just then
            return time.time() - beaten < self.patience
        if "released" in owner:
            return False
        if owner["host"] == socket.gethostname() and born(owner["pid"]) != owner["born"]:
            return False
        return time.time() - beaten < self.patience

    def path(self, number: int) -> Path:
        return self.directory / f"claim.{number}"

    def _keep(self, end: threading.Event) -> None:
        while not end.wait(self.beat):
            number = self.number
            if number is None or self.latest() != number:
                return
            os.utime(self.path(number))


def born(process: int) -> str:
    """When a process of this machine started, which tells it from a later one of its number; "" for none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
        try:  # a system without /proc
            os.kill(process, 0)
        except OSError:
            return ""
        return "alive"
    return "" if fields[0] == "Z" else fields[19]
