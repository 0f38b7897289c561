"""Parameter groups: learning rate and weight decay by the path of a parameter.

The groups of an optimizer must cover every parameter, and every group must have one: a regex that matches nothing is
a mistake that would otherwise train silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llmlab.config import Config, config

Path = tuple[str, ...]


@config
class Group(Config):
    """The parameters whose dotted path the regex `match` is found in (`re.search`; anchor with ^ and $).

    `peak` and `decay` multiply the optimizer's learning rate and weight decay; a peak of 0 freezes. A group that is
    `optional` may match nothing.
    """

    match: str
    peak: float = 1.0
    decay: float = 1.0
    optional: bool = False

    def check(self):
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(
                f"Group.match is {self.match!r}, which is no regular expression ({error}); "
                "it is searched in dotted paths such as 'layers.0.norm.scale'; escape special characters with \\"
            ) from error
        if self.peak < 0 or self.decay < 0:
            raise ValueError(f"group {self.match!r}: peak {self.peak} and decay {self.decay} are multiples, 0 or more")


# Gains and biases are not decayed. Optional, as a model need not have any.
STANDARD = (Group(match=r"(scale|bias|log_rate)$", decay=0.0, optional=True), Group(match=".*"))


def assign(groups: Iterable[Group], paths: Iterable[Path]) -> dict[Path, Group]:
    """{path: its group}; the first group that matches a path takes it.

    Raises ValueError for parameters without a group and for groups without a parameter.
    """
    groups, paths = tuple(groups), tuple(paths)
    found, matched = {}, set()
    for path in paths:
        hits = [i for i, group in enumerate(groups) if re.search(group.match, ".".join(path))]
        matched.update(hits)
        if hits:
            found[path] = groups[hits[0]]
    missing = [".".join(path) for path in paths if path not in found]
    if missing:
        raise ValueError(
            f"no group of the optimizer matches {_some(missing)}; the groups are "
            f"{', '.join(repr(group.match) for group in groups) or 'none'}; "
            "add a group for them, or end with Group(match='.*')"
        )
    for i, group in enumerate(groups):
        if group in found.values() or group.optional:
            continue
        if i in matched:
            raise ValueError(
                f"group {group.match!r} gets no parameter: all that it matches went to a group before it; "
                "put it earlier in `groups`"
            )
        raise ValueError(
            f"group {group.match!r} matches no parameter; the parameters are {_some(['.'.join(p) for p in paths])}; "
            "correct the regex, remove the group, or make it optional"
        )
    return found


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
