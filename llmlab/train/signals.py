"""A run that is told to stop saves first: SIGTERM and SIGINT set a flag that the loop reads between steps.

A second signal ends the process at once. With several processes, SIGTERM is for jax's own
preemption service, which sees to it that all stop at the same step, and SIGINT ends them.
"""

from __future__ import annotations

import os
import signal

import jax


class Signals:
    """Inside the `with`, `asked(step)` tells whether to save and stop before this step."""

    def __enter__(self):
        self.received = None
        self.old = {}
        for number in (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ():
            self.old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_):
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _receive(self, number, _frame):
        if self.received is not None:
            os._exit(128 + number)
        self.received = number

    def asked(self, step: int) -> bool:
        if jax.process_count() == 1:
            return self.received is not None
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
