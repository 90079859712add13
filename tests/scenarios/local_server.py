"""An HTTP server on the loopback interface with the faults that real servers have."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """What the server has and how it behaves; counts and keeps what it was asked."""

    files: dict[str, bytes]
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    total_in_ranges: int | None = None
    start_in_ranges: int = 0
    cut_after: list[int] = field(default_factory=list)  # bytes of each answer after which the connection breaks
    stall_after: int | None = None
    drip: float | None = None  # seconds between single bytes
    chunked: bool = False
    claimed_length: int | None = None
    pause: float = 0.0
    status: int = 200
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(files: dict[str, bytes], **values):
    behaviour = Behaviour(files, **values)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.close_connection = True
            behaviour.requests.append((self.path, dict(self.headers)))
            with suppress(ConnectionError):
                answer(self, behaviour)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    behaviour.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield behaviour
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(handler: BaseHTTPRequestHandler, behaviour: Behaviour) -> None:
    time.sleep(behaviour.pause)
    data = behaviour.files.get(handler.path.lstrip("/"))
    if data is None or behaviour.status != 200:
        handler.send_response(404 if data is None else behaviour.status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    asked = handler.headers.get("Range")
    condition = handler.headers.get("If-Range")
    body = data
    if asked is not None and behaviour.ranges and condition in (behaviour.etag, behaviour.modified):
        start = int(asked.removeprefix("bytes=").removesuffix("-")) + behaviour.start_in_ranges
        body = data[start:]
        handler.send_response(206)
        total = len(data) if behaviour.total_in_ranges is None else behaviour.total_in_ranges
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{total}")
    else:
        handler.send_response(200)
    for name, value in (("ETag", behaviour.etag), ("Last-Modified", behaviour.modified)):
        if value is not None:
            handler.send_header(name, value)
    if behaviour.chunked:
        handler.send_header("Transfer-Encoding", "chunked")
    else:
        handler.send_header("Content-Length", str(behaviour.claimed_length or len(body)))
    handler.end_headers()
    send(handler, behaviour, body)


def send(handler: BaseHTTPRequestHandler, behaviour: Behaviour, body: bytes) -> None:
    if behaviour.chunked:
        handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        return
    if behaviour.drip is not None:
        for position in range(len(body)):
            handler.wfile.write(body[position : position + 1])
            time.sleep(behaviour.drip)
        return
    if behaviour.cut_after:
        handler.wfile.write(body[: behaviour.cut_after.pop(0)])
        return
    handler.wfile.write(body[: behaviour.stall_after])
    if behaviour.stall_after is not None:
        handler.wfile.flush()
        time.sleep(5)
