"""Serves the files of a folder over HTTP, with ranges: `shelf.py FOLDER`; prints its port.

Each request is a line of FOLDER/requests: its path, then its range. While FOLDER/NAME.hold is there, NAME stops half way.
"""

from __future__ import annotations

import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Shelf(BaseHTTPRequestHandler):
    folder = Path()

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        with (self.folder / "requests").open("a") as log:
            log.write(f"{self.path} {asked}\n")
        file = self.folder / self.path.lstrip("/")
        if not file.is_file():
            return self.send_error(404)
        data = file.read_bytes()
        first = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        half = max(first, len(data) // 2)
        self.wfile.write(data[first:half])
        self.wfile.flush()
        while file.with_name(f"{file.name}.hold").exists():
            time.sleep(0.02)
        self.wfile.write(data[half:])

    def log_message(self, *_: object) -> None:
        return


if __name__ == "__main__":
    Shelf.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shelf)
    server.daemon_threads = True
    port = Shelf.folder / "port.new"
    port.write_text(str(server.server_address[1]))
    os.rename(port, Shelf.folder / "port")
    server.serve_forever()
