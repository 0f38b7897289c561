"""Decisions that all processes of a job must share are made by process 0."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

FAILED = -(2**31)


def agree(find: Callable[[], int]) -> int:
    """What `find` gives on process 0, on all processes; within 31 bits. An error there ends the other processes too."""
    if jax.process_count() == 1:
        return find()
    found, error = FAILED, None
    if jax.process_index() == 0:
        try:
            found = find()
        except Exception as raised:
            error = raised
    found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
    if error is not None:
        raise error
    if found == FAILED:
        raise RuntimeError("process 0 could not go on; its message says why")
    return found
