"""A small Hugging Face hub on 127.0.0.1: what its client asks for, and the ways a download goes wrong."""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0de"
LARGE = (".safetensors", ".parquet", ".bin")  # kept in LFS, with a SHA-256


def description(path: str, content: bytes, listing: bool) -> dict:
    """One file, as the tree endpoint lists it or as a repository's `siblings` do."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    large = {"size": len(content), "pointerSize": 130}
    large["oid" if listing else "sha256"] = hashlib.sha256(content).hexdigest()
    if listing:
        entry = {"type": "file", "path": path, "size": len(content), "oid": oid}
    else:
        entry = {"rfilename": path, "size": len(content), "blobId": oid}
    return entry | ({"lfs": large} if path.endswith(LARGE) else {})


@dataclass
class Hub:
    """The server's state. `files` maps ("model" or "dataset", repository) to {path: content}.

    `corrupt` paths arrive with one byte changed; `cut` paths break off half-way, and until `cut` is emptied the server
    then answers 503 for them. `endless` paths never end; `stalled` ones do half-way, with the connection left open.
    `says` is what is answered instead of a repository's description: a body, "endless", "stalled" or an address to go to.
    `ranges` collects the Range headers that were asked for, `tokens` who asked.
    """

    files: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    broken_off: set[str] = field(default_factory=set)
    endless: set[str] = field(default_factory=set)
    stalled: set[str] = field(default_factory=set)
    says: bytes | str | None = None
    status: int = 200
    closing: threading.Event = field(default_factory=threading.Event)
    ranges: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def stand_in(self, monkeypatch) -> None:
        """Have both this process and its children take it for the real hub."""
        from huggingface_hub import constants

        monkeypatch.setenv("HF_ENDPOINT", self.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        api = re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        resolve = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if api or resolve:  # the client asks for something else by itself, as nobody
            self.hub.tokens.add(self.headers["Authorization"])
        if api:
            self.answer_api(*api.groups())
        elif resolve:
            self.answer_file("dataset" if resolve[1] else "model", *resolve.groups()[1:])
        else:
            self.fail(404, "EntryNotFound")

    def fail(self, status: int, code: str):
        self.send(status, json.dumps({"error": code}).encode(), {"X-Error-Code": code})

    def send(self, status: int, body: bytes, headers: dict):
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_api(self, kind: str, repository: str, endpoint: str | None, revision: str | None):
        if isinstance(self.hub.says, bytes):
            return self.send(self.hub.status, self.hub.says, {"Content-Type": "application/json"})
        if self.hub.says == "endless":
            return self.send_endless({})
        if self.hub.says == "stalled":
            return self.stall(b"{", {"Content-Length": 100})
        if self.hub.says is not None:
            return self.send(307, b"", {"Location": self.hub.says})
        files = self.hub.files.get((kind, repository))
        if files is None:
            return self.fail(404, "RepoNotFound")
        if revision not in (None, "main", COMMIT):
            return self.fail(404, "RevisionNotFound")
        listed = [description(path, content, endpoint == "tree") for path, content in files.items()]
        reply = listed if endpoint == "tree" else {"id": repository, "sha": COMMIT, "siblings": listed}
        return self.send(200, json.dumps(reply).encode(), {"Content-Type": "application/json"})

    def answer_file(self, kind: str, repository: str, revision: str, path: str):
        content = self.hub.files.get((kind, repository), {}).get(path)
        if content is None:
            return self.fail(404, "EntryNotFound")
        entry = description(path, content, listing=True)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if path in self.hub.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        if path in self.hub.endless:
            return self.send_endless(headers)
        if path in self.hub.stalled:
            return self.stall(content[: len(content) // 2], headers | {"Content-Length": len(content)})
        if self.command == "GET" and path in self.hub.cut:
            return self.break_off(path, content, headers)
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not start:
            return self.send(200, content, headers)
        self.hub.ranges.append(self.headers["Range"])
        headers["Content-Range"] = f"bytes {start[1]}-{len(content) - 1}/{len(content)}"
        return self.send(206, content[int(start[1]) :], headers)

    def break_off(self, path: str, content: bytes, headers: dict):
        """Half of the file, then silence; the client's own second try is refused."""
        if path in self.hub.broken_off:
            return self.fail(503, "Unavailable")
        self.hub.broken_off.add(path)
        self.send(200, content[: len(content) // 2], headers | {"Content-Length": len(content)})
        self.close_connection = True
        return None

    def begin(self, headers: dict):
        self.send_response(self.hub.status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.close_connection = True

    def send_endless(self, headers: dict):
        """Zeros without an end, until the client hangs up or the test is over."""
        self.begin(headers)
        try:
            while not self.hub.closing.is_set():
                self.wfile.write(bytes(1 << 20))
        except OSError:
            pass  # it has hung up, as it should

    def stall(self, body: bytes, headers: dict):
        self.begin(headers)
        self.wfile.write(body)
        self.wfile.flush()
        self.hub.closing.wait(60)
