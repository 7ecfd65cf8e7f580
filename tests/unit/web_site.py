"""A web server on loopback that behaves as badly as a test wants, and a small proxy."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from provisioner.model.checksum import Checksum

PIECE = 64 << 10


class Asked(NamedTuple):
    path: str
    range: str
    if_range: str
    login: str


class Site:
    """What is served, and how; a test changes it as it likes."""

    def __init__(self, address: str, content: bytes) -> None:
        self.url = f"http://{address}/disk.img"
        self.content = content
        self.etag = '"1"'
        self.last_modified = ""
        self.takes_ranges = True
        #: Bytes of a body after which the connection is cut; where it is slow, after it has fallen silent.
        self.cut: int | None = None
        self.stalls = threading.Event()
        self.is_slow = False
        #: Added to the length of the whole file that is told.
        self.lie = 0
        #: Whether a length is told, and what else shows where the body ends.
        self.length = True
        self.is_chunked = False
        #: Answers in place of the file's, one a request.
        self.instead: list[Callable[[Handler], None]] = []
        self.asked: list[Asked] = []

    @property
    def sha256(self) -> Checksum:
        return Checksum("sha256", hashlib.sha256(self.content).hexdigest())

    @property
    def ranges(self) -> list[str]:
        return [one.range for one in self.asked]


class Handler(BaseHTTPRequestHandler):
    site: Site

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        site, headers = self.site, self.headers
        login = headers.get("Authorization", "")
        site.asked.append(Asked(self.path, headers.get("Range", ""), headers.get("If-Range", ""), login))
        self.close_connection = True
        if site.instead:
            site.instead.pop(0)(self)
        else:
            self.give_file()

    def give_file(self, cut: int | None = None) -> None:
        site, whole = self.site, self.site.content
        asked = self.headers.get("Range") if site.takes_ranges else None
        if self.headers.get("If-Range") not in (None, site.etag, site.last_modified):
            asked = None
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        told = len(whole) + site.lie
        if asked and first >= len(whole):
            self.say(416, {"Content-Range": f"bytes */{len(whole)}", "Content-Length": "4"})
            self.wfile.write(b"none")
            return
        headers = {"ETag": site.etag, "Last-Modified": site.last_modified}
        if site.is_chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif site.length:
            headers["Content-Length"] = str(told - first)
        if asked:
            headers["Content-Range"] = f"bytes {first}-{told - 1}/{told}"
        self.say(206 if asked else 200, headers)
        self.give_bytes(whole[first:], site.cut if cut is None else cut)

    def say(self, status: int, headers: dict[str, str]) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def give_bytes(self, body: bytes, cut: int | None) -> None:
        site = self.site
        given = body if cut is None else body[:cut]
        for first in range(0, len(given), PIECE):
            piece = given[first : first + PIECE]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if site.is_chunked else piece)
        if site.is_chunked and len(given) == len(body):
            self.wfile.write(b"0\r\n\r\n")
        if site.is_slow and len(given) < len(body):
            self.wfile.flush()
            site.stalls.wait(60)

    def finish(self) -> None:
        # What is cut off here has often been reset on the other side.
        with contextlib.suppress(OSError):
            super().finish()


@contextlib.contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Gives HOST:PORT."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that went is none."""

    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def serving(size: int = 1 << 20) -> Iterator[Site]:
    class Mine(Handler):
        pass

    with listening(Mine) as address:
        Mine.site = Site(address, random.Random(size).randbytes(size))
        try:
            yield Mine.site
        finally:
            Mine.site.stalls.set()


def answer(status: int, body: bytes = b"", **headers: str) -> Callable[[Handler], None]:
    """An answer with this status, in `Site.instead`; `_` in headers' names stands for `-`."""

    def give(handler: Handler) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.say(status, {"Content-Length": str(len(body)), **named})
        handler.wfile.write(body)

    return give


@contextlib.contextmanager
def proxying(wants_login: str = "") -> Iterator[tuple[str, list[str]]]:
    """HOST:PORT of a proxy for plain HTTP and for CONNECT, and what it was asked for."""
    seen: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def is_refused(self) -> bool:
            seen.append(self.path)
            if wants_login and self.headers.get("Proxy-Authorization") != wants_login:
                self.send_error(407)
                return True
            return False

        def do_GET(self) -> None:
            if self.is_refused():
                return
            kept = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
            direct = Request(f"http://{urlsplit(self.path).netloc}{urlsplit(self.path).path}", headers=kept)
            with build_opener(ProxyHandler({})).open(direct) as reply:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.read())

        def do_CONNECT(self) -> None:
            if self.is_refused():
                return
            host, _, port = self.path.rpartition(":")
            with socket.create_connection((host, int(port))) as there:
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=pump, args=(there, self.connection))
                back.start()
                pump(self.connection, there)
                back.join()

    with listening(Proxy) as address:
        yield address, seen


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
