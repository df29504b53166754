"""A server on loopback that speaks what `huggingface_hub` asks of the hub, for one repository.

Commits, deletions, large files and downloads at a revision, with the hub's own paths and headers.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = "team/demo"
TOKEN = "hf_test"


@dataclass
class Hub:
    """The repository's commits, oldest first, and what was asked."""

    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*\n"}])
    operations: list[list[dict[str, Any]]] = field(default_factory=list)
    """Lines of each commit that was sent."""
    large: dict[str, bytes] = field(default_factory=dict)
    uploads: int = 0
    break_after: int | None = None
    """Bytes of a download after which the connection breaks."""
    port: int = 0

    def oid(self, number: int = -1) -> str:
        """A commit's id."""
        number = number % len(self.commits)
        return hashlib.sha1(f"commit {number}".encode()).hexdigest()

    def at(self, revision: str) -> int | None:
        """The number of the commit that a branch or id means."""
        if revision == "main":
            return len(self.commits) - 1
        return next((n for n in range(len(self.commits)) if self.oid(n) == revision), None)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}", "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(".gguf")


def oid_of(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if is_large(path) else git_oid(data)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def reply(self, status: int, value: object = None, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            cut = self.hub.break_after
            self.wfile.write(body if cut is None else body[:cut])
            if cut is not None and len(body) > cut:
                self.close_connection = True

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == f"/api/models/{REPO}":
            self.info("main")
        elif path.startswith(f"/api/models/{REPO}/revision/"):
            self.info(unquote(path.rpartition("/")[2]))
        elif path.startswith(f"/{REPO}/resolve/"):
            revision, _, name = path.removeprefix(f"/{REPO}/resolve/").partition("/")
            self.resolve(revision, unquote(name))
        else:
            self.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def info(self, revision: str) -> None:
        number = self.hub.at(revision)
        if number is None:
            self.reply(404, {"error": "none"}, X_Error_Code="RevisionNotFound")
            return
        siblings: list[dict[str, Any]] = []
        for path, data in self.hub.commits[number].items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_oid(data)}
            if is_large(path):
                entry["lfs"] = {"sha256": oid_of(path, data), "size": len(data), "pointerSize": 1}
            siblings.append(entry)
        self.reply(200, {"id": REPO, "sha": self.hub.oid(number), "siblings": siblings})

    def resolve(self, revision: str, name: str) -> None:
        number = self.hub.at(revision)
        data = self.hub.commits[number].get(name) if number is not None else None
        if number is None or data is None:
            self.reply(404, {"error": "none"}, X_Error_Code="EntryNotFound")
            return
        self.reply(
            200, data, ETag=f'"{oid_of(name, data)}"', X_Repo_Commit=self.hub.oid(number),
            Content_Type="application/octet-stream",
        )  # fmt: skip

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self.body()
        if path == "/api/validate-yaml":
            self.reply(200, {"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid credentials"})
        elif path == f"/api/models/{REPO}/preupload/main":
            self.preupload(json.loads(body))
        elif path == f"/{REPO}.git/info/lfs/objects/batch":
            self.batch(json.loads(body))
        elif path == f"/api/models/{REPO}/commit/main":
            self.commit([json.loads(line) for line in body.splitlines()])
        else:
            self.reply(404, {"error": "none"}, X_Error_Code="RepoNotFound")

    def preupload(self, asked: dict[str, Any]) -> None:
        there = self.hub.commits[-1]
        self.reply(200, {"files": [
            {
                "path": (path := entry["path"]), "shouldIgnore": False,
                "uploadMode": "lfs" if is_large(path) else "regular",
                "oid": oid_of(path, there[path]) if path in there else None,
            }
            for entry in asked["files"]
        ]})  # fmt: skip

    def batch(self, asked: dict[str, Any]) -> None:
        def action(entry: dict[str, Any]) -> dict[str, Any]:
            if entry["oid"] in self.hub.large:
                return entry
            href = f"http://127.0.0.1:{self.hub.port}/upload/{entry['oid']}"
            return entry | {"actions": {"upload": {"href": href}}}

        self.reply(200, {"transfer": "basic", "objects": [action(e) for e in asked["objects"]]})

    def do_PUT(self) -> None:
        data = self.body()
        assert hashlib.sha256(data).hexdigest() == self.path.rpartition("/")[2]
        self.hub.large[hashlib.sha256(data).hexdigest()] = data
        self.hub.uploads += 1
        self.reply(200, {})

    def commit(self, lines: list[dict[str, Any]]) -> None:
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != self.hub.oid():
            self.reply(412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        files = dict(self.hub.commits[-1])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        self.hub.commits.append(files)
        self.hub.operations.append(lines)
        self.reply(200, {
            "success": True, "commitOid": self.hub.oid(), "hookOutput": "",
            "commitUrl": f"http://127.0.0.1:{self.hub.port}/{REPO}/commit/{self.hub.oid()}",
        })  # fmt: skip


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """Start one; its repository has one commit, with a .gitattributes file."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.port = int(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
