"""Experiment files: Python files outside the package that define `config() -> Experiment`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from llmlab.train.experiment import Experiment


def import_file(file: Path, name: str | None = None) -> ModuleType:
    """The module of an experiment file, under the file's own name, so that saved configs find its classes again.

    Its folder joins the import path: an experiment may import its neighbours.
    """
    file = Path(file)
    if not file.is_file():
        near = sorted(p.name for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise FileNotFoundError(
            f"there is no experiment file {file}" + (f"; there are {', '.join(near)}" if near else "")
        )
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
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load_experiment(file: Path) -> Experiment:
    """What the file's `config()` returns. Raises with the file's name when it defines none."""
    module = import_file(file)
    if not hasattr(module, "config"):
        raise AttributeError(f"{file} defines no `config()`; an experiment file has `def config() -> Experiment`")
    experiment = module.config()
    if not isinstance(experiment, Experiment):
        raise TypeError(f"{file}: config() returned a {type(experiment).__name__}, not an Experiment")
    return experiment
