"""Studies of experiment files."""

from __future__ import annotations

from pathlib import Path

from llmlab.study.study import Study
from llmlab.train.files import import_file, told


def load_studies(file: Path, name: str = "study") -> tuple[Study, ...]:
    """What a function of the file returns, `study()` by default: a Study, or several (a ladder)."""
    module = import_file(file)
    if not callable(getattr(module, name, None)):
        others = [key for key, value in vars(module).items() if returns_study(value)]
        has = f"; it has {', '.join(others)}" if others else ""
        raise AttributeError(f"{file} defines no `{name}()`{has}; a study is a function `-> Study`")
    with told(Path(file)):
        found = getattr(module, name)()
    studies = found if isinstance(found, tuple) else (found,)
    for study in studies:
        if not isinstance(study, Study):
            raise TypeError(f"{file}: {name}() returned a {type(study).__name__}, not a Study")
    if len({study.name for study in studies}) < len(studies):
        raise ValueError(f"{file}: {name}() returned studies of one name; give each its own")
    return studies


def returns_study(value) -> bool:
    return "Study" in str(getattr(value, "__annotations__", {}).get("return", ""))
