"""`llmlab check EXPERIMENT`."""

from __future__ import annotations

import dataclasses

import jax

from llmlab.cli.arguments import parse, set_up


@dataclasses.dataclass
class Flags:
    """Run the contract on an experiment's model: at most two repeats of each pattern, small batches, real widths."""

    only: tuple[str, ...] = ()
    """Names of checks, such as causality; all by default."""
    cpu_devices: int = 8
    """Host devices for the checks of sharding, where jax runs on CPU."""


def main(arguments: list[str]) -> int:
    flags, experiment = parse("check", Flags, arguments)
    set_up(flags.cpu_devices)
    from llmlab.testing.contract import CHECKS, LENGTH, NotApplicable, Subject, Violation

    unknown = [name for name in flags.only if name not in CHECKS]
    if unknown:
        raise ValueError(f"there is no check {unknown[0]!r}; there are: {', '.join(CHECKS)}")
    jax.config.update("jax_default_matmul_precision", "highest")
    subject, failed = Subject(experiment.model, experiment.task, experiment.data.short(LENGTH)), 0
    for name in flags.only or CHECKS:
        try:
            mark, seen = "holds", CHECKS[name](subject)
        except NotApplicable as reason:
            mark, seen = "  -  ", f"not applicable: {reason}"
        except Violation as violation:
            mark, seen, failed = "FAILS", str(violation), failed + 1
        print(f"{mark}  {name:<26} {seen}", flush=True)
    print(f"{failed} of {len(flags.only or CHECKS)} checks fail" if failed else "the contract holds")
    return 1 if failed else 0
