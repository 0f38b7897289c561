"""Batches on their way from the data to the devices."""

from __future__ import annotations

import time

from llmlab.train.program import Program


class Feed:
    """Batches on the devices: of training from an index, or of validation once (index None)."""

    def __init__(self, program: Program, dataset, index: int | None, limit: int | None = None):
        data = program.experiment.data
        self.program, self.total = program, data.batch
        self.rows = program.rows(data.batch, data.length)
        rows = self.rows.tolist()
        self.batches = dataset.validation(limit, rows) if index is None else dataset.train(index, rows)
        self.seconds = 0.0

    @property
    def index(self) -> int:
        """The global example that comes next: all that a checkpoint needs of the data."""
        return self.batches.next_index

    def next(self):
        began = time.perf_counter()
        batch = self.program.put(next(self.batches), self.rows, self.total)
        self.seconds += time.perf_counter() - began
        return batch

    def __iter__(self):
        for batch in self.batches:
            yield self.program.put(batch, self.rows, self.total)

    def waited(self) -> float:
        """Seconds spent on data since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def close(self) -> None:
        """Ends the workers that prepare training batches."""
        if hasattr(self.batches, "close"):
            self.batches.close()
