"""The Hugging Face hub on loopback: the HTTP calls that huggingface_hub makes to read, list, upload and commit.

Nothing of the client is replaced: it is pointed here by ``HF_ENDPOINT``, and told to upload by the LFS protocol, for
the chunk store that it prefers speaks a binary protocol of its own (its setting ``HF_HUB_DISABLE_XET``). As on the
Hub, a text file is part of a commit, any other file is uploaded before and named in it by its hash, and its download
redirects to another host, which the second server is. A plan decides which requests go wrong.
"""

import base64
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "s3cr3t" * 5
"""The only token that this server takes."""

PAGE_ENTRIES = 7
"""Entries of one answer of a listing, so that tests turn pages."""

Plan = Callable[[str, str, int], int | str | None]
"""(method, path, how often this was asked before) to a status, ``drop``, ``file`` (a redirect to a file), or None."""


@dataclass(frozen=True)
class Request:
    """A request that was made."""

    method: str
    path: str
    authorized: bool
    body_bytes: int


@dataclass
class Repository:
    """A repository: commits, and the branches that point to them."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Add a commit to a branch and return its name."""
        self.messages.append(message)
        sha = hashlib.sha1(repr((len(self.commits), message)).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def head(self, branch: str = "main") -> dict[str, bytes]:
        """Return the files of a branch."""
        return self.commits[self.branches[branch]]

    def sha(self, revision: str) -> str | None:
        """Return the commit that a branch or commit name stands for."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Hub:
    """What the server holds and was asked.

    Attributes:
        endpoint: Its address.
        repositories: By kind and name, such as ``datasets/owner/name``.
        buckets: Files by name of the bucket.
        uploaded: Contents of large files, by hash.
        requests: Requests so far; those of the second host begin with ``/cdn/``.
        plan: What goes wrong.
    """

    endpoint: str = ""
    cdn: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    buckets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    plan: Plan | None = None
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    @contextmanager
    def failing(self, plan: Plan) -> Iterator[None]:
        """Let requests go wrong by a plan while the block runs."""
        self.counts.clear()
        self.plan = plan
        try:
            yield
        finally:
            self.plan = None

    def made(self, method: str, part: str) -> list[Request]:
        """Return the requests of a method whose path holds a text."""
        return [request for request in self.requests if request.method == method and part in request.path]


def first(times: int, fault: int | str, part: str) -> Plan:
    """Let the first requests of each path that holds a text go wrong."""
    return lambda method, path, count: fault if part in path and count < times else None


def always(fault: int | str, part: str = "") -> Plan:
    """Let all requests go wrong whose path holds a text."""
    return lambda method, path, count: fault if part in path else None


def environment(hub: Hub) -> dict[str, str]:
    """Return the variables by which the client reaches this server, with a token."""
    return {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}


@contextmanager
def serve() -> Iterator[Hub]:
    """Run both servers."""
    hub = Hub()
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) for _ in range(2)]
    hub.endpoint, hub.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def git_hash(content: bytes) -> str:
    """Return the name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(content: bytes) -> bool:
    """Say whether the Hub stores a file outside git: any that is not text."""
    try:
        return "\0" in content.decode()
    except UnicodeDecodeError:
        return True


def entries(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, object]]:
    """Return what a listing of a folder holds."""
    prefix = f"{folder}/" if folder else ""
    listed: dict[str, dict[str, object]] = {}
    for name, content in sorted(files.items()):
        if not name.startswith(prefix):
            continue
        parts = name[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            path = prefix + "/".join(parts[:depth])
            listed[path] = {"type": "directory", "path": path, "oid": git_hash(path.encode()), "size": 0}
        if recursive or len(parts) == 1:
            listed[name] = _entry(name, content)
    return list(listed.values())


def _entry(name: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
    if is_large(content):
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        entry |= {"lfs": lfs, "oid": git_hash(name.encode())}
    return entry


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def answer_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            self.authorized = "authorization" in self.headers
            hub.requests.append(Request(self.command, path, self.authorized, len(body)))
            hub.counts[self.command, path] += 1
            fault = hub.plan and hub.plan(self.command, path, hub.counts[self.command, path] - 1)
            try:
                if fault == "drop":
                    self.close_connection = True
                    self.connection.close()
                    return
                if fault == "file":
                    self.send(302, b"", {"location": "file:///etc/hostname"})
                    return
                if fault:
                    raise RefusedError(int(fault), message=f"as planned, for {self.headers.get('authorization')}")
                if self.authorized and self.headers["authorization"] != f"Bearer {TOKEN}":
                    raise RefusedError(401, message="Invalid credentials in Authorization header")
                self.route(path, parse_qs(parts.query), body)
            except RefusedError as refused:
                headers = {"x-error-code": refused.code, "x-error-message": refused.message}
                content = json.dumps({"error": refused.message}).encode()
                self.send(refused.status, content, {k: v for k, v in headers.items() if v})

        def route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
            words = path.strip("/").split("/")
            if words[0] == "cdn":
                self.send_range(hub.uploaded[words[1]])
            elif words[0] == "lfs":
                self.upload(words[1], body)
            elif path.endswith(".git/info/lfs/objects/batch"):
                self.batch(json.loads(body))
            elif path == "/api/repos/create":
                self.create(json.loads(body))
            elif path == "/api/validate-yaml":
                self.reply({"errors": [], "warnings": []})
            elif words[:2] == ["api", "buckets"]:
                self.bucket("/".join(words[2:4]), words[4:], query)
            elif words[0] == "buckets":
                self.send_range(self.file(hub.buckets["/".join(words[1:3])], "/".join(words[4:])))
            elif words[0] == "api":
                self.repository("/".join(words[1:4]), words[4:], query, body)
            else:
                self.download("/".join(words[:3]), words[4], "/".join(words[5:]))

        def open(self, name: str) -> Repository:
            repository = hub.repositories.get(name)
            if repository is None or (repository.private and not self.authorized):
                raise RefusedError(404 if self.authorized else 401, "RepoNotFound", "Repository not found")
            return repository

        def at(self, repository: Repository, revision: str) -> str:
            sha = repository.sha(revision)
            if sha is None:
                raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return sha

        def file(self, files: dict[str, bytes], name: str) -> bytes:
            if name not in files:
                raise RefusedError(404, "EntryNotFound", "Entry not found")
            return files[name]

        def repository(self, name: str, words: list[str], query: dict[str, list[str]], body: bytes) -> None:
            repository = self.open(name)
            what, rest = (words[0], words[1:]) if words else ("revision", ["main"])
            if what == "branch":
                if rest[0] in repository.branches:
                    raise RefusedError(409, message="Reference already exists")
                repository.branches[rest[0]] = repository.branches["main"]
                self.reply({})
                return
            sha = self.at(repository, rest[0])
            if what == "revision":
                identity = {"id": "/".join(name.split("/")[1:]), "sha": sha, "siblings": []}
                self.reply(identity | {"private": repository.private, "gated": "auto" if repository.gated else False})
            elif what == "tree":
                self.listing(repository.commits[sha], "/".join(rest[1:]), query)
            elif what == "paths-info":
                files = repository.commits[sha]
                paths = parse_qs(body.decode())["paths"]
                self.reply([_entry(path, files[path]) for path in paths if path in files])
            elif what == "preupload":
                self.preupload(repository.commits[sha], json.loads(body))
            elif what == "commit":
                self.commit(name, repository, rest[0], body)
            else:
                raise RefusedError(404, message=f"{what} is not served here")

        def listing(self, files: dict[str, bytes], folder: str, query: dict[str, list[str]]) -> None:
            listed = entries(files, folder, query.get("recursive", ["false"])[0].lower() == "true")
            if folder and not listed:
                raise RefusedError(404, "EntryNotFound", f"{folder} does not exist")
            begin = int(query.get("cursor", ["0"])[0])
            headers = {}
            if begin + PAGE_ENTRIES < len(listed):
                address = f"{hub.endpoint}{self.path.split('&cursor')[0]}&cursor={begin + PAGE_ENTRIES}"
                headers["link"] = f'<{address}>; rel="next"'
            self.reply(listed[begin : begin + PAGE_ENTRIES], headers)

        def preupload(self, files: dict[str, bytes], asked: dict[str, list[dict[str, str]]]) -> None:
            self.must_be_authorized()
            modes = []
            for item in asked["files"]:
                mode = "lfs" if is_large(base64.b64decode(item["sample"])) else "regular"
                there = files.get(item["path"])
                oid = None if there is None else _oid(there)
                modes.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self.reply({"files": modes})

        def batch(self, asked: dict[str, list[dict[str, object]]]) -> None:
            self.must_be_authorized()
            objects = []
            for item in asked["objects"]:
                actions = {"actions": {"upload": {"href": f"{hub.cdn}/lfs/{item['oid']}"}}}
                objects.append(item | ({} if item["oid"] in hub.uploaded else actions))
            self.reply({"transfer": "basic", "objects": objects})

        def upload(self, oid: str, body: bytes) -> None:
            if hashlib.sha256(body).hexdigest() != oid:
                raise RefusedError(400, message="other bytes than announced")
            hub.uploaded[oid] = body
            self.send(200, b"")

        def commit(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
            self.must_be_authorized()
            header, *operations = [json.loads(line) for line in body.splitlines()]
            files = dict(repository.head(branch))
            for operation in operations:
                value = operation["value"]
                if operation["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif value["oid"] in hub.uploaded:
                    files[value["path"]] = hub.uploaded[value["oid"]]
                else:
                    raise RefusedError(400, message=f"{value['path']} was not uploaded")
            sha = repository.commit(branch, files, header["value"]["summary"])
            self.reply({"commitUrl": f"{hub.endpoint}/{name}/commit/{sha}", "commitOid": sha})

        def create(self, asked: dict[str, str]) -> None:
            self.must_be_authorized()
            name = f"{asked['type']}s/{asked['organization']}/{asked['name']}"
            if asked["organization"] == "others":
                raise RefusedError(403, message="You don't have the rights to create a repository there")
            if name in hub.repositories:
                raise RefusedError(409, message="You already created this repository")
            hub.repositories[name] = repository = Repository(private=asked.get("visibility") == "private")
            repository.commit("main", {".gitattributes": b"*.bin filter=lfs\n"}, "initial commit")
            self.reply({"url": f"{hub.endpoint}/{name}"})

        def download(self, name: str, revision: str, path: str) -> None:
            repository = self.open(name)
            if repository.gated and not self.authorized:
                raise RefusedError(401, "GatedRepo", "Access is restricted")
            content = self.file(repository.commits[self.at(repository, revision)], path)
            if not is_large(content):
                self.send_range(content)
                return
            oid = hashlib.sha256(content).hexdigest()
            hub.uploaded[oid] = content
            self.send(302, b"", {"location": f"{hub.cdn}/cdn/{oid}"})

        def bucket(self, name: str, words: list[str], query: dict[str, list[str]]) -> None:
            if name not in hub.buckets:
                raise RefusedError(404, "RepoNotFound", "Bucket not found")
            files = hub.buckets[name]
            if words:
                listed = entries(files, "/".join(words[1:]), query.get("recursive", ["false"])[0].lower() == "true")
                self.reply([entry | {"xetHash": "0" * 64} for entry in listed])
            else:
                size = sum(map(len, files.values()))
                times = {"createdAt": "2026-01-01T00:00:00.000Z"}
                self.reply({"id": name, "private": False, "size": size, "totalFiles": len(files)} | times)

        def must_be_authorized(self) -> None:
            if not self.authorized:
                raise RefusedError(401, message="Log in")

        def send_range(self, content: bytes) -> None:
            asked = self.headers.get("range")
            if asked is None:
                self.send(200, content)
                return
            start, last = map(int, asked.removeprefix("bytes=").split("-"))
            if start >= len(content):
                self.send(416, b"")
            else:
                self.send(206, content[start : last + 1])

        def reply(self, value: object, headers: dict[str, str] | None = None) -> None:
            self.send(200, json.dumps(value).encode(), {"content-type": "application/json"} | (headers or {}))

        def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_HEAD = answer_request

    return Handler


def _oid(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_large(content) else git_hash(content)
