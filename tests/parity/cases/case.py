"""What a case of parity is."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Case:
    """model, config: classes of transformers. values: of the config.

    written, unwritten: how config.json differs from what transformers writes today, as older files do. only: all that
    it says. strip, prefix: what the names in the file lack or have more. renamed: (part of a name, what it is in the
    file). buffers: names in the file that hold no weights. untied: names that are there as they differ from what they
    are tied to. frozen: names that have no gradient here. dtype: of the file. shards: files. pair: it reads a source
    and writes a target. types: it is given kinds of tokens. loss: of all "tokens", of "masked" ones, of the class of a
    "sequence" or of each "token", or none. greedy: whether it generates. generation: further options of transformers.
    tolerance: of logits and hidden states. states: whether hidden states are compared. soak: checked by `make soak`.
    """

    model: str
    config: str
    values: dict
    written: dict = dataclasses.field(default_factory=dict)
    unwritten: tuple[str, ...] = ()
    only: dict | None = None
    strip: str = ""
    prefix: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    buffers: tuple[str, ...] = ()
    untied: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    dtype: str = "F32"
    shards: int = 1
    pair: bool = False
    types: bool = False
    loss: str | None = "tokens"
    greedy: bool = True
    generation: dict = dataclasses.field(default_factory=dict)
    tolerance: float = 1e-4
    states: bool = True
    soak: bool = False
