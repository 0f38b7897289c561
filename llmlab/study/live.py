"""A page that follows a running study: the report, made anew whenever a row has changed."""

from __future__ import annotations

import functools
import http.server
from html import escape
from pathlib import Path

import xxhash

from llmlab.study.caveats import caveats
from llmlab.study.findings import read_findings
from llmlab.study.page import document, page
from llmlab.study.report import look, looks


def version(directory: Path) -> str:
    """A name for the state of the rows."""
    files = sorted([*directory.glob("cells/*/row.json"), directory / "study.json"])
    state = [(file.name, file.parent.name, s.st_mtime_ns, s.st_size) for file in files for s in [file.stat()]]
    return xxhash.xxh3_64(repr(state).encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers `/` with the page and `/version` with its version; there is nothing else."""

    def __init__(self, directory: Path, *arguments):
        self.directory = directory
        super().__init__(*arguments)

    def do_GET(self):
        if self.path == "/version":
            self.answer(version(self.directory), "text/plain")
        elif self.path == "/":
            self.answer(self.page(), "text/html")
        else:
            self.send_error(404)

    def page(self) -> str:
        now = version(self.directory)
        try:
            found = read_findings(self.directory)
        except ValueError as error:  # unlike rows, or two rows of one replicate: said on the page
            return document("refused", f"<h1>Nothing is ranked</h1><p class='said'>{escape(str(error))}</p>", now)
        look(self.directory, found)
        return page(found, caveats(found, looks(self.directory)), now)

    def answer(self, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        """Nothing: the terminal is the study's."""


def server(directory: str | Path, host: str = "127.0.0.1", port: int = 8000) -> http.server.ThreadingHTTPServer:
    """A server of the page; port 0 takes a free one. `serve_forever()` runs it."""
    return http.server.ThreadingHTTPServer((host, port), functools.partial(Handler, Path(directory)))
