"""Cells: the training runs that a study asks for, each with a key, and the groups that train as one program.

Which cells a study wants now is a pure function of the rows there are: first the trials of tuning, then, when every
arm has its best, the replicates. So a study is resumed by looking. The key is a digest of the resolved config, the
code, the data, the arm's name, the phase and the seeds: what differs in any of them is another cell.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path

from llmlab.config import digest, flatten, get, put, to_dict
from llmlab.data import Data
from llmlab.data.carved import Carved
from llmlab.study.claim import Claim
from llmlab.study.record import OUTCOMES, Row, replace
from llmlab.study.replicas import differing
from llmlab.study.study import Study, Tune
from llmlab.train.experiment import Experiment

# Leaves that no number of a row depends on.
IDLE = ("data.workers", "train.log_every", "train.keep", "train.prompt", "train.save_every")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run of an arm, resolved."""

    arm: str
    phase: str
    replicate: int
    trial: dict[str, float]
    seeds: dict[str, int]
    experiment: Experiment
    key: str


class Cells:
    """The cells of a study whose arms are matched. data: {arm: fingerprint of its text}; code: a digest."""

    def __init__(self, study: Study, experiments: dict[str, Experiment], data: dict[str, str], code: str):
        self.study, self.experiments, self.data, self.code = study, experiments, data, code

    def wanted(self, rows: Iterable[Row]) -> list[Cell]:
        """The cells that are wanted, given the rows so far: those that are done too."""
        rows, study = list(rows), self.study
        if study.tune is None:
            return self.replicates({})
        trials = self.trials(rows)
        best = {arm: best_trial(study, arm, rows) for arm in self.tuned()}
        return trials + (self.replicates(best) if settled(trials, rows) and all(best.values()) else [])

    def tuned(self) -> list[str]:
        """The arms that are tuned: all but the twin, which takes the base's."""
        return [arm for arm in self.experiments if arm != self.study.noise]

    def trials(self, rows: list[Row]) -> list[Cell]:
        """The trials of every arm, as many for each; when one arm's best is at an edge, every arm gets one more."""
        tune = self.study.tune
        found = [cell for arm in self.tuned() for cell in self.trial_cells(arm, tune.grid)]
        grids = {arm: tune.grid for arm in self.tuned()}
        for _ in range(tune.extend):
            if not settled(found, rows):
                return found
            edges = {arm: edge(self.study, arm, grid, rows, self.experiments[arm]) for arm, grid in grids.items()}
            if not any(at for at, _ in edges.values()):
                return found
            grids = {arm: extended(grids[arm], side) for arm, (_, side) in edges.items()}
            found = [cell for arm, grid in grids.items() for cell in self.trial_cells(arm, grid)]
        return found

    def trial_cells(self, arm: str, grid: tuple[float, ...]) -> list[Cell]:
        tune, experiment = self.study.tune, self.experiments[arm]
        own = get(experiment, tune.leaf)
        experiment = carve(experiment, tune)
        return [
            self.cell(arm, "tune", seed, {tune.leaf: own * multiple}, experiment)
            for multiple in grid
            for seed in range(tune.seeds)
        ]

    def replicates(self, best: dict[str, dict]) -> list[Cell]:
        twin = {self.study.noise: best.get(self.study.base_name, {})}
        return [
            self.cell(arm, "replicate", number, (best | twin).get(arm, {}), experiment)
            for arm, experiment in self.experiments.items()
            for number in range(self.study.seeds)
        ]

    def cell(self, arm: str, phase: str, replicate: int, trial: dict[str, float], experiment: Experiment) -> Cell:
        seeds = self.study.seeds_of(arm, replicate, phase)
        for path, value in trial.items():
            experiment = put(experiment, path, value)
        experiment = put(put(experiment, "seed", seeds["init"]), "data.seed", seeds["data"])
        leaves = {path: to_dict(value) for path, value in flatten(experiment).items() if path not in IDLE}
        key = digest(leaves, self.code, self.data[arm], arm, phase, replicate, seeds)
        return Cell(arm, phase, replicate, trial, seeds, experiment, key)


def settled(cells: list[Cell], rows: list[Row]) -> bool:
    """Whether every cell has come to something."""
    done = {row.key for row in rows if row.state in OUTCOMES}
    return all(cell.key in done for cell in cells)


def scores(study: Study, arm: str, rows: Iterable[Row]) -> dict[float, float]:
    """{value of the tuned leaf: mean of the metric over its seeds, lower is better}; infinite where one diverged."""
    sign = 1 if study.better == "lower" else -1
    found: dict[float, list[float]] = {}
    for row in rows:
        if row.arm == arm and row.phase == "tune" and row.state in OUTCOMES:
            value = sign * row.metrics[study.metric] if row.state == "done" else math.inf
            found.setdefault(row.trial[study.tune.leaf], []).append(value)
    return {value: sum(seen) / len(seen) for value, seen in found.items()}


def best_trial(study: Study, arm: str, rows: Iterable[Row]) -> dict[str, float] | None:
    """The trial with the best mean, None where there is none."""
    found = scores(study, arm, rows)
    return {study.tune.leaf: min(found, key=lambda value: (found[value], value))} if found else None


def edge(study: Study, arm: str, grid, rows, experiment: Experiment) -> tuple[bool, int]:
    """(whether the best of an arm is at an edge of its grid, the side of the grid that is nearer: -1 or 1)."""
    best = best_trial(study, arm, rows)[study.tune.leaf] / get(experiment, study.tune.leaf)
    near = min(range(len(grid)), key=lambda i: abs(math.log(grid[i] / best)))
    return near in (0, len(grid) - 1), -1 if near < len(grid) / 2 else 1


def extended(grid: tuple[float, ...], side: int) -> tuple[float, ...]:
    """The grid with one more multiple at a side, by the ratio of its last two."""
    if side < 0:
        return (grid[0] * grid[0] / grid[1], *grid)
    return (*grid, grid[-1] * grid[-1] / grid[-2])


def carve(experiment: Experiment, tune: Tune) -> Experiment:
    """The experiment on the training split alone, a part of which is its validation: the final set stays unseen."""
    if not isinstance(experiment.data, Data):
        return experiment  # what is drawn has other examples for every seed
    return put(experiment, "data.source", Carved(source=experiment.data.source, share=tune.share))


# --- groups ------------------------------------------------------------------------------------------------------


def plan(directory: Path, cells: list[Cell], together: int) -> list[tuple[str, list[Cell]]]:
    """Puts cells that are in no group yet into groups of at most `together` of one arm that may train as one program.

    One worker at a time does so, and a cell stays in its group for good, so none is in two. Returns the new ones.
    """
    lock = Claim(Path(directory) / "groups" / "plan", beat=1.0, patience=30.0)
    if not lock.take():
        return []  # another worker plans the same
    try:
        known = {key for group in groups(directory) for key in group["cells"]}
        parts: list[list[Cell]] = []
        for cell in cells:
            if cell.key in known:
                continue
            if not (parts and len(parts[-1]) < together and joinable(parts[-1][0], cell)):
                parts.append([])
            parts[-1].append(cell)
        made = {digest(*(cell.key for cell in part)): part for part in parts}
        for name, part in made.items():
            group = {"cells": [cell.key for cell in part], "arm": part[0].arm, "phase": part[0].phase}
            replace(Path(directory) / "groups" / name / "group.json", json.dumps(group))
        return list(made.items())
    finally:
        lock.release()


def joinable(a: Cell, b: Cell) -> bool:
    """Whether two cells may train as one program."""
    if (a.arm, a.phase) != (b.arm, b.phase):
        return False
    try:
        differing([a.experiment, b.experiment])
    except ValueError:
        return False
    return True


def groups(directory: Path) -> list[dict]:
    """The groups of a study: name, cells (keys), arm, phase."""
    files = sorted(Path(directory).glob("groups/*/group.json"))
    return [{"name": file.parent.name, **json.loads(file.read_text())} for file in files]
