"""Which kernel ran: noted while the program is traced, shown in the log of a run."""

from __future__ import annotations

import contextlib
import contextvars

_receipt: contextvars.ContextVar[tuple[dict[str, str], bool] | None] = contextvars.ContextVar("receipt", default=None)


@contextlib.contextmanager
def receipt(demand: bool = False):
    """Collects {function: kernel, and why} of everything traced inside. demand: refuse what falls back."""
    found: dict[str, str] = {}
    token = _receipt.set((found, demand))
    try:
        yield found
    finally:
        _receipt.reset(token)


def note(function: str, kernel: str, instead_of: str | None = None) -> None:
    """Records that `kernel` serves `function` in the program that is being traced.

    instead_of: the platform's fast kernel that does not serve, and why. Raises ValueError where fast ones are demanded.
    """
    collected = _receipt.get()
    if collected is None:
        return
    found, demand = collected
    if instead_of and demand:
        raise ValueError(
            f"{function}: {kernel} would run instead of {instead_of}; change what keeps the fast kernel from it, or "
            "allow the slow one (--train.kernels any)"
        )
    text = f"{kernel} instead of {instead_of}" if instead_of else kernel
    known = found.get(function, "")
    if text not in known:
        found[function] = f"{known}, {text}" if known else text
