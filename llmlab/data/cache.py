"""Where what is made once from a corpus lies: trained tokenizers and token ids.

Everything is written under a temporary name and renamed when it is whole, so that a reader never sees half of it and
processes that race for the same target all end with one good copy.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path


def cache_folder(given: str | Path | None = None) -> Path:
    """`given`, else $LLMLAB_CACHE, else ~/.cache/llmlab."""
    return Path(given or os.environ.get("LLMLAB_CACHE") or Path.home() / ".cache" / "llmlab")


def publish(write: Callable[[Path], None], target: Path) -> None:
    """Lets `write` make a file or a folder at a temporary path, then renames it to `target`.

    Where another process was faster its copy stays, since both were made from the same key. Raises OSError that names
    the target and the mend when the disk is full or the folder cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        if temporary.is_file() or not target.exists():
            os.rename(temporary, target)
    except OSError as error:
        if not target.is_dir():  # a folder that appeared meanwhile is the other process' copy
            reason = error.strerror or str(error)
            mend = "LLMLAB_CACHE names another folder for the cache"
            raise OSError(error.errno, f"{reason} while writing the cache ({mend})", str(target)) from error
    finally:
        remove(temporary)


def discard(target: Path) -> None:
    """Takes a broken file or folder out of the way, at once for all processes, then deletes it."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        os.rename(target, temporary)
    except FileNotFoundError:
        return  # another process did
    remove(temporary)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink()
