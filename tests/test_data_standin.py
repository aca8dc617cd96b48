"""A stand-in for the Hugging Face hub on 127.0.0.1, which answers what huggingface_hub asks in these tests.

Files are served as the hub serves large ones: `resolve` redirects to another path and names size and SHA-256.
"""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub
import pytest
from huggingface_hub import constants

from research.datasets.hub import PINNED

COMMIT = "c0ffee" * 6 + "c0ff"


class HubStandIn:
    """Holds `files`, {"repo/owner name/file": bytes}; `faults` says what to do to the next downloads.

    A fault is ("cut", n): send n bytes and hang up; ("stall", n): send n bytes and wait; ("status", code); or
    ("ignore range", 0): send the whole file again. `ranges` lists the Range header of every download.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: deque[tuple[str, int]] = deque()
        self.ranges: list[str | None] = []
        self.claimed_size: int | None = None
        self.released = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # Another host name: the library asks the hub itself about size and version, and nobody else.
        self.storage = f"http://localhost:{self.server.server_port}/storage"

    def add(self, repo: str, name: str, content: bytes) -> None:
        for revision in ("main", COMMIT, *filter(None, [PINNED.get(repo)])):
            self.files[f"datasets/{repo}/resolve/{revision}/{name}"] = content

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:  # noqa: N802
                self.do_GET()

            def do_GET(self) -> None:  # noqa: N802
                path = unquote(self.path.lstrip("/"))
                if path.startswith("storage/"):
                    hub.send(self, hub.files[path.removeprefix("storage/")])
                elif path in hub.files:
                    hub.redirect(self, hub.files[path])
                else:
                    code = (
                        "EntryNotFound"
                        if any(path.startswith(each.rsplit("/", 1)[0]) for each in hub.files)
                        else ""
                    )
                    reply(self, 404, {"X-Error-Code": code or "RepoNotFound", "Content-Length": "0"})

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def redirect(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        headers = {
            "Location": f"{self.storage}{request.path}",
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(self.claimed_size or len(content)),
            "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Content-Length": "0",
        }
        reply(request, 302, headers)

    def send(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        fault, number = self.faults.popleft() if self.faults else ("", 0)
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        if fault == "status":
            return reply(request, number, {"Content-Length": "0"})
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and fault != "ignore range" else 0
        body = content[start:]
        headers = {"Content-Length": str(len(body)), "ETag": '"blob"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        reply(request, 206 if start else 200, headers)
        request.wfile.write(body[:number] if fault in ("cut", "stall") else body)
        if fault == "stall":
            self.released.wait(300)
        request.close_connection = True
        return None


def reply(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()


@contextmanager
def hub_stand_in(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[HubStandIn]:
    """The stand-in, running; huggingface_hub talks to it and to `cache`, here and in subprocesses."""
    hub = HubStandIn()
    threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(cache))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "")
    # Written block by block: smaller blocks make small files do for downloads that break off.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    # The library waits a second before it takes up a broken connection.
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.05)))
    try:
        yield hub
    finally:
        hub.released.set()
        hub.server.shutdown()
        hub.server.server_close()


def test_the_stand_in_satisfies_the_librarys_own_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with hub_stand_in(monkeypatch, tmp_path / "home") as hub:
        hub.add("someone/things", "a/b.txt", b"content" * 1000)
        path = huggingface_hub.hf_hub_download("someone/things", "a/b.txt", repo_type="dataset")
        assert Path(path).read_bytes() == b"content" * 1000
