"""A server on this machine that answers as Dryad does, behaves, breaks off, refuses or lies."""

import hashlib
import json
import socket
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 400  # 102,400 bytes
TOKEN = "one-token"
Reply = Callable[["Handler", bytes], bool]  # whether it has answered instead of the usual way


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path)
        self.server.requests.append((path, dict(self.headers)))
        if path.startswith("/api/v2/datasets/"):
            self.send_json(
                {"_embedded": {"stash:versions": [{"_links": {}}, self.server.links("stash:files", "/files")]}}
            )
        elif path.startswith("/files"):
            self.send_json(self.server.listing(second_page="page=2" in path))
        else:
            content = self.server.files[path.removeprefix("/download/")]
            replies = self.server.replies
            if not (replies and replies.pop(0)(self, content)):
                self.send_content(content)

    def send_json(self, value: object) -> None:
        self.send_bytes(200, json.dumps(value).encode())

    def send_bytes(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def send_content(self, content: bytes) -> None:
        asked = self.headers.get("Range")
        if asked is None:
            self.send_bytes(200, content)
        else:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_bytes(206, content[start:], Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}")


class Server(ThreadingHTTPServer):
    """`files` by name; `replies`: what the next downloads meet, one each; `requests`: (path, headers) of all."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"one.bin": CONTENT}
        self.digest_type = "md5"
        self.digests: dict[str, str] = {}
        self.replies: list[Reply] = []
        self.requests: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def links(self, name: str, href: str) -> dict[str, object]:
        return {"_links": {name: {"href": href}}}

    def listing(self, second_page: bool) -> dict[str, object]:
        entries = [
            {
                "path": name,
                "size": len(content),
                "digestType": self.digest_type,
                "digest": self.digests.get(name) or hashlib.new(self.digest_type.replace("-", ""), content).hexdigest(),
                **self.links("stash:download", f"/download/{name}"),
            }
            for name, content in self.files.items()
        ]
        pages = self.links("next", "/files?page=2") if len(entries) > 1 and not second_page else {"_links": {}}
        return {"_embedded": {"stash:files": entries[1:] if second_page else entries[:1]}, **pages}

    def downloads(self) -> list[dict[str, str]]:
        return [headers for path, headers in self.requests if path.startswith("/download/")]


def answer(status: int, **headers: str) -> Reply:
    def reply(handler: Handler, content: bytes) -> bool:
        handler.send_bytes(status, b"no", **headers)
        return True

    return reply


def break_off_after(number: int) -> Reply:
    """Promises all that was asked for, sends `number` bytes, and hangs up."""

    def reply(handler: Handler, content: bytes) -> bool:
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        handler.wfile.write(content[start : start + number])
        return True

    return reply


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
