"""Few-shot prompts: examples from a file before the prompt."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

PLACE = "{prompt}"


@dataclasses.dataclass(frozen=True)
class Shots:
    """frame: a text with PLACE where the prompt stands. until: texts that end the answer."""

    frame: str = PLACE
    until: tuple[str, ...] = ()

    def around(self, prompt: str) -> str:
        """The prompt with the examples before it."""
        return self.frame.replace(PLACE, prompt)


def read_shots(file: Path) -> Shots:
    """The examples of a file: lines of JSON with `input` and `output`, or a text with {prompt} where the prompt goes.

    Raises ValueError for a file that is neither.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file} of examples")
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".jsonl":
        if PLACE not in text:
            raise ValueError(f"{file} has no {PLACE}, where the prompt would go; or name it .jsonl and give a line of "
                             '{"input": ..., "output": ...} for each example')  # fmt: skip
        return Shots(text.removesuffix("\n"))
    shots = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            one = json.loads(line)
            shots.append(f"Input: {one['input']}\nOutput: {one['output']}\n\n")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file}, line {number}: no JSON with `input` and `output` ({error!r})") from error
    return Shots("".join(shots) + f"Input: {PLACE}\nOutput:", ("\nInput:",))
