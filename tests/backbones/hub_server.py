"""A hub on loopback that serves one file and counts what it is asked."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Answers(BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download needs."""

    protocol_version = "HTTP/1.1"
    content: ClassVar[bytes]
    path_served: ClassVar[str]
    requests: ClassVar[list[tuple[str, str | None]]]
    breaks_at: ClassVar[list[int]]

    def do_HEAD(self) -> None:
        self.requests.append(("HEAD", None))
        self._start(self.content)

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.requests.append(("GET", asked))
        begin = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        body = self.content[begin:]
        self._start(body, begin)
        if self.breaks_at:
            # The line goes dead in the middle.
            self.wfile.write(body[: self.breaks_at.pop()])
            self.close_connection = True
            return
        self.wfile.write(body)

    def _start(self, body: bytes, begin: int = 0) -> None:
        if self.path != self.path_served:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(self.content) - 1}/{len(self.content)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def hub_server(path: str, content: bytes, *, breaks_at: list[int] | None = None) -> Iterator[tuple[str, list]]:
    """Serve `content` at `path`; gives the endpoint and the list of requests (method, range) so far.

    Answers to the first GETs end after so many bytes as `breaks_at` says, last one first.
    """
    requests: list[tuple[str, str | None]] = []
    names = {"content": content, "path_served": path, "requests": requests, "breaks_at": breaks_at or []}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), names))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
