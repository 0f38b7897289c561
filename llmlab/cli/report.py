"""`llmlab report STUDY`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from llmlab.cli.arguments import command_line


@dataclasses.dataclass
class Flags:
    """Write report.html, report.md, table.csv and table.tex into a study's directory, and print its verdicts."""

    study: tyro.conf.Positional[Path]
    """A directory that `llmlab study` wrote, or one that holds such directories (a ladder over scale)."""
    check: bool = False
    """Write nothing: compute every number of the report from the rows again, and fail if one differs."""
    serve: bool = False
    """Follow a running study with a page that renews itself, until Ctrl-C."""
    host: str = "127.0.0.1"
    """Where to serve; another one than loopback shows the study to the network."""
    port: int = 8000
    """Port to serve at; 0 takes a free one."""


def main(arguments: list[str]) -> int:
    flags = command_line(Flags, "llmlab report", arguments)
    from llmlab.study import report, rungs
    from llmlab.study.tables import verdict_table

    studies = rungs.studies(flags.study)
    if flags.serve:
        return serve(studies, flags)
    for directory in studies:
        if flags.check:
            print(f"{directory}: {report.check(directory)} files say what the rows say")
        else:
            files = report.write(directory)
            print(verdict_table(directory))
            print("wrote " + ", ".join(map(str, files)))
    if len(studies) > 1:
        print(f"{rungs.check(flags.study)} says what the rows say" if flags.check else rungs.write(flags.study))
    return 0


def serve(studies: list[Path], flags: Flags) -> int:
    if len(studies) > 1:
        raise ValueError(f"{flags.study} holds {len(studies)} studies; serve one, such as {studies[0]}")
    from llmlab.study.live import server

    directory = studies[0]
    with server(directory, flags.host, flags.port) as running:
        host, port = running.server_address[:2]
        print(f"{directory} at http://{host}:{port}/ (Ctrl-C ends it)")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0
