"""Experiment files: Python files outside the package that define `config() -> Experiment`."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from llmlab.train.experiment import Experiment


@contextlib.contextmanager
def told(file: Path):
    """What goes wrong in a user's file is told with its place, as an ImportError; errors with an exit code pass."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "exit_code"):
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        place = f"{file}, line {lines[-1]}" if lines else str(file)
        raise ImportError(f"{place}: {type(error).__name__}: {error}") from error


def import_file(file: Path, name: str | None = None) -> ModuleType:
    """The module of an experiment file, under the file's own name, so that saved configs find its classes again.

    Its folder joins the import path: an experiment may import its neighbours.
    """
    file = Path(file)
    if not file.is_file() or file.suffix != ".py":
        near = sorted(p.name for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        known = f"; there are {', '.join(near)}" if near else ""
        raise FileNotFoundError(f"there is no experiment file {file}{known}")
    name = name or file.stem
    known = sys.modules.get(name)
    if known is not None:
        if Path(getattr(known, "__file__", None) or "").resolve() == file.resolve():
            return known
        raise ImportError(f"{file}: a module named {name!r} is loaded already ({known}); rename the file")
    if str(file.resolve().parent) not in sys.path:
        sys.path.append(str(file.resolve().parent))
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with told(file):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load_experiment(file: Path, name: str = "config") -> Experiment:
    """What a function of the file returns, `config()` by default. Raises with the file's name when it has none."""
    module = import_file(file)
    if not callable(getattr(module, name, None)):
        others = [key for key, value in vars(module).items() if returns_experiment(value)]
        has = f"; it has {', '.join(others)}" if others else ""
        raise AttributeError(f"{file} defines no `{name}()`{has}; an experiment is a function `-> Experiment`")
    with told(file):
        experiment = getattr(module, name)()
    if not isinstance(experiment, Experiment):
        raise TypeError(f"{file}: {name}() returned a {type(experiment).__name__}, not an Experiment")
    return experiment


def returns_experiment(value) -> bool:
    return getattr(value, "__annotations__", {}).get("return") in (Experiment, "Experiment")


def split_target(text: str) -> tuple[Path, str]:
    """The file and the function that a command is given, as in families.py:mamba; `config` where no function is named.

    >>> split_target("experiments/families.py:mamba")
    (PosixPath('experiments/families.py'), 'mamba')
    """
    file, colon, name = text.rpartition(":")
    return (Path(file), name) if colon and name.isidentifier() else (Path(text), "config")
