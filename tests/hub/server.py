"""A stand-in for the Hugging Face Hub: the endpoints that pulling and pushing a model uses, and faults on demand.

Files live in memory. `.safetensors` are "large" (LFS: named by their sha256), everything else is a git blob.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_the_right_one"


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # sha -> path -> content
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> sha

    def commit(self, files: dict[str, bytes], ref: str = "main", base: str | None = None) -> str:
        """A commit with these files on top of `ref` (or `base`)."""
        old = self.refs.get(base or ref)
        everything = {**(self.commits[old] if old else {}), **files}
        text = json.dumps(
            [len(self.commits), sorted((k, hashlib.sha256(v).hexdigest()) for k, v in everything.items())]
        )
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = everything
        self.refs[ref] = sha
        return sha

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """What to do to the next `times` requests whose method and path match."""

    match: str  # regular expression on "METHOD /path"
    status: int | None = None  # answer with this status
    cut: int | None = None  # send so many bytes of the body and close the connection
    corrupt: bool = False  # flip bits of the body
    length: int | None = None  # state this size instead of the true one
    delay: float = 0.0  # seconds before answering
    times: int = 1


class Hub:
    """`with Hub() as hub:` serves on `hub.url`; `hub.log` holds the requests as `"METHOD /path Range"`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.objects: dict[str, bytes] = {}
        self._stop = threading.Event()

    def __enter__(self) -> Hub:
        hub = self
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.httpd.shutdown()
        self.httpd.server_close()

    def wait(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.log)


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, BrokenPipeError):  # the client gave up
            self.close_connection = True

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunked()
        else:
            self.body = self.rfile.read(length)
        self.hub.log.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        self.fault = next(
            (f for f in self.hub.faults if f.times and re.search(f.match, f"{self.command} {path}")), None
        )
        if self.fault:
            self.fault.times -= 1
            if self.fault.delay:
                self.hub.wait(self.fault.delay)
            if self.fault.status:
                return self._send(self.fault.status, b'{"error": "out of order"}')
        for method, pattern, handler in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method in (self.command, "ANY"):
                return handler(self, *match.groups())
        return self._error(404, "EntryNotFound")

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # Answers ---------------------------------------------------------------------------------------------------------

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        fault = self.fault
        if fault and fault.corrupt:
            body = bytes(b ^ 0x55 for b in body)
        length = fault.length if fault and fault.length is not None else len(body)
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: fault.cut] if fault and fault.cut is not None else body)
        if fault and fault.cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(1)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode())

    def _error(self, status: int, code: str) -> None:
        self._send(status, json.dumps({"error": code}).encode(), {"X-Error-Code": code, "X-Error-Message": code})

    def _repo(self, name: str, *, content: bool = False) -> Repo | None:
        """The repository if the caller may see it; else the hub's answer is sent and None returned."""
        repo = self.hub.repos.get(name)
        authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.private and not authorised):
            return self._error(404 if authorised else 401, "RepoNotFound")
        if repo.gated and content and not authorised:
            return self._error(401, "GatedRepo")
        return repo

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._send(401, b'{"error": "Invalid username or password."}')
        return False

    # Endpoints -------------------------------------------------------------------------------------------------------

    def info(self, name: str, revision: str | None = None) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        sha = repo.find(revision or "main")
        if sha is None:
            return self._error(404, "RevisionNotFound")
        files = [{"rfilename": p} for p in repo.commits[sha]]
        self._json({"id": name, "modelId": name, "sha": sha, "private": repo.private, "tags": [], "siblings": files})

    def tree(self, name: str, revision: str) -> None:
        repo = self._repo(name)
        sha = repo and repo.find(revision)
        if repo is None or sha is None:
            return repo and self._error(404, "RevisionNotFound")
        entries = []
        for path, content in repo.commits[sha].items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
            if _is_large(path):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self._json(entries)

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name, content=True)
        if repo is None:
            return
        sha = repo.find(revision)
        if sha is None:
            return self._error(404, "RevisionNotFound")
        content = repo.commits[sha].get(path)
        if content is None:
            return self._error(404, "EntryNotFound")
        etag = hashlib.sha256(content).hexdigest() if _is_large(path) else _blob(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if _is_large(path):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted:
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self._send(206, content[start:], headers)
        self._send(200, content, headers)

    def create(self) -> None:
        if not self._may_write():
            return
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        exists = name in self.hub.repos
        if not exists:
            self.hub.repos[name] = Repo(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
            self.hub.repos[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name}, 409 if exists else 200)

    def branch(self, name: str, branch: str) -> None:
        if not self._may_write():
            return
        repo = self.hub.repos[name]
        if branch in repo.refs:
            return self._json({"error": "exists"}, 409)
        repo.refs[branch] = repo.refs["main"]
        self._json({})

    def validate_yaml(self) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        if self._may_write():
            asked = json.loads(self.body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if _is_large(f["path"]) else "regular"} for f in asked]
            self._json({"files": [{**m, "shouldIgnore": False, "oid": None} for m in modes]})

    def lfs_batch(self, name: str) -> None:
        if self._may_write():
            objects = []
            for wanted in json.loads(self.body)["objects"]:
                upload = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}", "header": {}}}
                objects.append({**wanted, "actions": upload})
            self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._error(400, "WrongHash")
        self.hub.objects[oid] = self.body
        self._send(200)

    def commit(self, name: str, revision: str) -> None:
        if not self._may_write():
            return
        files = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                files[item["value"]["path"]] = self.hub.objects[item["value"]["oid"]]
        sha = self.hub.repos[name].commit(files, ref=revision)
        url = f"{self.hub.url}/{name}/commit/{sha}"
        self._json({"success": True, "commitUrl": url, "commitOid": sha, "pullRequestUrl": None})


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", rf"/api/models/{_NAME}", _Handler.info),
    ("GET", rf"/api/models/{_NAME}/revision/(.+)", _Handler.info),
    ("GET", rf"/api/models/{_NAME}/tree/(.+)", _Handler.tree),
    ("ANY", rf"/{_NAME}/resolve/([^/]+(?:/[^/]+)?)/([^/]+)", _Handler.resolve),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"/api/models/{_NAME}/branch/(.+)", _Handler.branch),
    ("POST", rf"/api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(\w+)", _Handler.lfs_put),
    ("POST", rf"/api/models/{_NAME}/commit/(.+)", _Handler.commit),
]


def serve_for(seconds: float) -> None:  # pragma: no cover
    """For trying it by hand: `python tests/hub/server.py`."""
    with Hub() as hub:
        print(f"HF_ENDPOINT={hub.url}  HF_TOKEN={TOKEN}")
        time.sleep(seconds)


if __name__ == "__main__":
    serve_for(3600)
