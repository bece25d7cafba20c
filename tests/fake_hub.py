"""A hub in the test's own process: as much of its interface as creating and uploading asks for."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeHub:
    """What it was sent, and how it behaves.

    Attributes:
        address: Its address.
        private: Repository → whether it is private.
        branches: Branches that were made.
        files: Branch → path → content of what was committed.
        messages: Messages of the commits.
        requests: Method and path of every request.
        tokens: What requests were authorised with.
        status: What to answer to everything, 0 to behave.
        large: Names that are to be uploaded beside the commit.
    """

    address: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    branches: list[str] = field(default_factory=list)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    status: int = 0
    large: tuple[str, ...] = ()
    objects: dict[str, bytes] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return the status and the JSON object for a request."""
        if self.status:
            return self.status, {"error": "not today"}
        for pattern, act in (
            (r"POST /api/repos/create", self._create),
            (r"POST /api/validate-yaml", self._validate),
            (r"GET /api/models/([^/]+/[^/]+)", self._info),
            (r"POST /api/models/[^/]+/[^/]+/branch/(.+)", self._branch),
            (r"POST /api/models/[^/]+/[^/]+/preupload/.+", self._preupload),
            (r"POST /[^/]+/[^/]+\.git/info/lfs/objects/batch", self._batch),
            (r"PUT /objects/(.+)", self._put),
            (r"POST /api/models/[^/]+/[^/]+/commit/(.+)", self._commit),
        ):
            found = re.fullmatch(pattern, f"{method} {path}")
            if found:
                return act(body, *found.groups())
        return 404, {"error": f"this hub has no {method} {path}"}

    def _create(self, body: bytes) -> tuple[int, Any]:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if repo in self.private:
            return 409, {"error": "exists", "url": f"{self.address}/{repo}"}
        self.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
        return 200, {"url": f"{self.address}/{repo}"}

    def _validate(self, body: bytes) -> tuple[int, Any]:
        ok = json.loads(body)["content"].startswith("---\n")
        return (200 if ok else 400), {"errors": [], "warnings": []}

    def _info(self, _: bytes, repo: str) -> tuple[int, Any]:
        if repo not in self.private:
            return 404, {"error": "no such repository"}
        return 200, {"id": repo, "private": self.private[repo], "siblings": [], "sha": "0" * 40}

    def _branch(self, _: bytes, branch: str) -> tuple[int, Any]:
        self.branches.append(branch)
        return 200, {}

    def _preupload(self, body: bytes) -> tuple[int, Any]:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"] in self.large else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return 200, {"files": modes}

    def _batch(self, body: bytes) -> tuple[int, Any]:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.address}/objects/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def _put(self, body: bytes, oid: str) -> tuple[int, Any]:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "not what was announced"}
        self.objects[oid] = body
        return 200, {}

    def _commit(self, body: bytes, branch: str) -> tuple[int, Any]:
        committed = self.files.setdefault(branch, {})
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.messages.append(value["summary"])
            elif entry["key"] == "file":
                committed[value["path"]] = base64.b64decode(value["content"])
            else:
                committed[value["path"]] = self.objects[value["oid"]]
        oid = "c" * 40
        return 200, {"commitUrl": f"{self.address}/me/x/commit/{oid}", "commitOid": oid}


@contextmanager
def running_hub(**behavior: Any) -> Iterator[FakeHub]:
    """Run a hub on this machine for as long as the context lasts."""
    hub = FakeHub(**behavior)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            if not path.startswith("/objects/"):
                hub.tokens.add(self.headers.get("Authorization"))
            status, content = hub.answer(self.command, path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status >= 400:
                self.send_header("X-Error-Message", content["error"])
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _handle  # noqa: N815 (the server's names)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
