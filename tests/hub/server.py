"""A server on this machine that behaves like a file host and like the Hugging Face hub, and can break off."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """Attributes: files: path -> bytes; repositories: name -> {file: bytes}; break_after: bytes of a body to send;
    log: (method, path, status, Range) of every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.break_after: int | None = None
        self.tags = True
        self.log: list[tuple[str, str, int, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add_repository(self, name: str, folder: Path, *more: tuple[str, bytes]) -> None:
        files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.repositories[name] = {**files, **dict(more)}

    def handle_error(self, request, client_address) -> None:
        pass  # clients that hang up are part of the tests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        content, headers = self._found(path)
        if content is None:
            self.server.log.append((self.command, path, 404, None))
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        tag = '"' + hashlib.sha256(content).hexdigest() + '"'
        asked, status, first = self.headers.get("Range"), 200, 0
        if asked and self.headers.get("If-Range", tag) == tag:
            first = int(asked.removeprefix("bytes=").split("-")[0])
            status = 206 if first < len(content) else 416
        self.server.log.append((self.command, path, status, asked))
        part = content[first:] if status != 416 else b""
        self.send_response(status)
        if self.server.tags:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(part)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        limit = self.server.break_after
        self.wfile.write(part if limit is None else part[:limit])
        if limit is not None and limit < len(part):
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()

    def _found(self, path: str) -> tuple[bytes | None, dict[str, str]]:
        if path in self.server.files:
            return self.server.files[path], {}
        for name, files in self.server.repositories.items():
            if path in (
                f"/api/models/{name}",
                f"/api/models/{name}/revision/main",
                f"/api/models/{name}/revision/v1",
            ):
                siblings = [{"rfilename": file} for file in files]
                told = {
                    "id": name,
                    "modelId": name,
                    "sha": COMMIT,
                    "siblings": siblings,
                    "tags": [],
                    "private": False,
                }
                return json.dumps(told).encode(), {"Content-Type": "application/json"}
            prefix = f"/{name}/resolve/{COMMIT}/"
            if path.startswith(prefix) and path.removeprefix(prefix) in files:
                return files[path.removeprefix(prefix)], {"X-Repo-Commit": COMMIT}
        return None, {}


@contextmanager
def serving():
    """A running server."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
