"""How long a step takes at the least: products, memory traffic and messages at the rates of the data sheet.

A step's time is the longest of four that can run side by side (products, memory, messages in the slice, messages
between slices), and the messages that the compiler did not put beside computation come on top. Kernels reach less than
the data sheet, so it is a bound from below: it ranks layouts, and real steps are slower.
"""

from __future__ import annotations

import dataclasses

from llmlab.chips import Chip
from llmlab.plan.hlo import Collective


@dataclasses.dataclass(frozen=True)
class Load:
    """What one device does in a step."""

    flops: float
    traffic: float  # bytes to and from its memory
    collectives: tuple[Collective, ...]


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one step. exposed: of messages that do not run beside computation."""

    compute: float
    memory: float
    link: float
    network: float
    exposed: float

    @property
    def step(self) -> float:
        return max(self.compute, self.memory, self.hidden) + self.exposed

    @property
    def hidden(self) -> float:
        """Of messages beside computation; those in the slice and those between slices take turns."""
        return max(self.link + self.network - self.exposed, 0.0)

    @property
    def bound(self) -> str:
        """What takes longest."""
        named = {"products": self.compute, "memory": self.memory, "messages": self.link + self.network}
        return max(named, key=named.__getitem__)


def times(load: Load, chip: Chip) -> Times:
    """The seconds that a device of this chip needs. Raises ValueError where slices talk and no rate is known."""
    if chip.network is None and any(one.spans for one in load.collectives):
        raise ValueError(f"{chip.kind}: its maker gives no rate between slices ({chip.source}); plan one slice")
    share = chip.devices  # of a chip's rates each of its devices has its part
    seconds = lambda one: one.wire / (chip.network if one.spans else chip.link) * share
    return Times(
        compute=load.flops / chip.flops * share,
        memory=load.traffic / chip.bandwidth * share,
        link=sum(seconds(one) for one in load.collectives if not one.spans),
        network=sum(seconds(one) for one in load.collectives if one.spans),
        exposed=sum(seconds(one) for one in load.collectives if not one.hidden),
    )
