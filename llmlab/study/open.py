"""A study on its way from a value to a directory: matched, looked at, priced, and written down before it trains."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from llmlab.config import diff, from_dict, show_diff, to_dict
from llmlab.study import gates
from llmlab.study.cells import Cells
from llmlab.study.likeness import hardware
from llmlab.study.matching import Matched, match
from llmlab.study.record import read_study, replace
from llmlab.study.study import Study
from llmlab.train.run import RunError, code_digest

# Fields of a study that a directory may see changed: they add cells or move thresholds, and make no cell another.
MORE = ("question", "seeds", "together", "min_effect", "alpha", "power")


@dataclasses.dataclass
class Opened:
    """A study that may train. prices and contracts are empty where they were not asked for."""

    study: Study
    matched: Matched
    data: dict[str, str]
    code: str
    contracts: dict[str, dict[str, str]]
    prices: dict[str, gates.Price]

    @property
    def cells(self) -> Cells:
        return Cells(self.study, self.matched.experiments, self.data, self.code)

    @property
    def cost(self) -> dict:
        return gates.cost(self.study, self.matched.experiments, self.matched.sizes, self.prices)

    def record(self) -> dict:
        """study.json; `llmlab.study.record.read_study` tells what is in it."""
        study, matched = self.study, self.matched
        asked = study.variants()
        text = lambda value: "absent" if value is ... else to_dict(value)
        arms = {
            name: {
                "experiment": to_dict(experiment),
                "diff": {path: [text(a), text(b)] for path, (a, b) in diff(study.base, asked[name]).items()},
                "free": matched.set[name],
                "axes": matched.sizes[name],
                "declared": gates.declared(experiment),
                "contract": self.contracts.get(name, {}),
                "price": dataclasses.asdict(self.prices[name]) if name in self.prices else None,
            }
            for name, experiment in matched.experiments.items()
        }
        plain = {name: getattr(study, name) for name in ("name", "question", "metric", "better", "alpha", "min_effect")}
        return plain | {
            "seeds": study.seeds,
            "study": to_dict(study),
            "base": study.base_name,
            "noise": study.noise,
            "arms": arms,
            "matching": {"axis": study.match, "tolerance": study.tolerance, "error": matched.errors},
            "cost": self.cost,
            "command": sys.argv,
            "code": self.code,
            "data": self.data,
            "versions": {name: importlib.metadata.version(name) for name in ("llmlab", "jax", "flax", "optax")},
            "hardware": hardware(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }


def open_study(
    study: Study,
    file: Path | None,
    show: Callable[[Opened], None] = lambda opened: None,
    say: Callable[[str], None] = lambda text: None,
    contracts: bool = True,
    prices: bool = True,
) -> Opened:
    """Everything before training. show: is given what matching found. say: is told what is being looked at.

    Raises what the gates refuse.
    """
    say("matching the arms")
    matched = match(study)
    opened = Opened(study, matched, {}, code_digest(file), {}, {})
    show(opened)
    say("reading the data")
    gates.check_arms(study, matched.experiments)
    opened.data = {name: e.open_data(lambda _: None).fingerprint for name, e in matched.experiments.items()}
    if contracts:
        opened.contracts = gates.check_contracts(matched.experiments, say)
    if prices:
        known: dict = {}
        for name, experiment in matched.experiments.items():
            if experiment not in known:
                say(f"measuring memory and time of {name}")
                known[experiment] = gates.price(study, experiment)
            opened.prices[name] = known[experiment]
    return opened


def write(directory: Path, opened: Opened) -> None:
    """Writes study.json, or compares it with the one there is.

    Raises RunError when the directory holds another study; more seeds and other thresholds are the same one.
    """
    path = Path(directory) / "study.json"
    record = opened.record()
    if path.exists():
        before = read_study(directory)
        old = from_dict(before["study"], f"{path}: study")
        kept = dataclasses.replace(old, **{name: getattr(opened.study, name) for name in MORE})
        if kept != opened.study:
            raise RunError(
                f"{directory} holds another study; it differs in\n{show_diff(old, opened.study)}\n"
                "give another directory with --run, or start over with --fresh"
            )
        for what in ("code", "data"):
            if before[what] != record[what]:
                raise RunError(
                    f"the {what} has changed since {directory} was begun, and rows of two kinds are not mixed: give "
                    "another directory with --run, or start over with --fresh"
                )
        for name in ("cost", "started", "command"):
            record[name] = before[name] if name != "cost" or not opened.prices else record[name]
        for name, arm in record["arms"].items():
            for part in ("contract", "price"):
                arm[part] = arm[part] or before["arms"].get(name, {}).get(part)
    replace(path, json.dumps(record, indent=1))


def clear(directory: Path) -> None:
    """Deletes a study's record, cells and groups; reports are written anew."""
    for name in ("cells", "groups"):
        shutil.rmtree(Path(directory) / name, ignore_errors=True)
    (Path(directory) / "study.json").unlink(missing_ok=True)
