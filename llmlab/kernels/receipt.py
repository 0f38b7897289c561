"""Which kernel ran: noted while the program is traced, shown in the log of a run."""

from __future__ import annotations

import contextlib
import contextvars

_receipt: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar("receipt", default=None)


@contextlib.contextmanager
def receipt():
    """Collects {function: kernel, and why} of everything traced inside."""
    found: dict[str, str] = {}
    token = _receipt.set(found)
    try:
        yield found
    finally:
        _receipt.reset(token)


def note(function: str, kernel: str) -> None:
    """Records that `kernel` serves `function` in the program that is being traced."""
    found = _receipt.get()
    if found is not None:
        known = found.get(function, "")
        if kernel not in known:
            found[function] = f"{known}, {kernel}" if known else kernel
