"""A stand-in for the API of the Hugging Face hub on 127.0.0.1, as far as huggingface_hub calls it.

Of every repository: its information, its files, uploads small and large (LFS, not Xet), commits.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_writer"
LARGE = (".safetensors", ".bin", ".pth")  # go through LFS


@dataclass
class Repository:
    """commits: {commit: {path: content}}. refs: {branch or tag: commit}."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    licence: str = ""

    def commit(self, files, *, branch="main", commit=""):
        """Add files to a branch; return the commit."""
        content = self.commits.get(self.refs.get(branch, ""), {}) | files
        names = "".join(f"{name}{hashlib.sha1(content[name]).hexdigest()}" for name in content)
        commit = commit or hashlib.sha1(f"{len(self.commits)}{names}".encode()).hexdigest()
        self.commits[commit] = content
        self.refs[branch] = commit
        return commit


class Hub:
    """The server: `repositories` by name, `requests` as "METHOD PATH", `broken` answers 503."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.broken = False
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, name, files, **settings):
        """Make a repository with one commit; returns the commit."""
        commit = settings.pop("commit", "")
        self.repositories[name] = Repository(**settings)
        return self.repositories[name].commit(files, commit=commit)

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, status, content=b"", *, kind="application/json", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _fail(self, status, code):
        self._answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def _route(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.broken:
            return self._answer(503, {"error": "down"})
        writes = self.command in ("POST", "PUT") and path != "/api/validate-yaml"
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if writes and not allowed and not path.startswith("/objects/"):
            return self._answer(401, {"error": "Invalid username or password."})
        for pattern, action in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return getattr(self, action)(*match.groups())
        return self._fail(404, "NoRoute")

    do_GET = do_HEAD = do_POST = do_PUT = _route

    def _find(self, name, revision):
        """Return (repository, commit), or None after an answer that says what is missing."""
        repository = self.hub.repositories.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not allowed):
            return self._fail(401, "RepoNotFound")
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits and repository.commits:
            return self._fail(404, "RevisionNotFound")
        return repository, commit

    def info(self, name, revision):
        if found := self._find(name, revision or "main"):
            repository, commit = found
            card = {"license": repository.licence} if repository.licence else {}
            names = repository.commits.get(commit, {})
            self._answer(
                200,
                dict(
                    id=name,
                    modelId=name,
                    sha=commit,
                    private=repository.private,
                    gated="auto" if repository.gated else False,
                    tags=[],
                    cardData=card,
                    siblings=[{"rfilename": file} for file in names],
                ),
            )

    def tree(self, name, revision):
        if found := self._find(name, revision):
            repository, commit = found
            files = repository.commits.get(commit, {})
            self._answer(
                200,
                [
                    dict(type="file", path=path, size=len(data), oid=hashlib.sha1(data).hexdigest())
                    for path, data in files.items()
                ],
            )

    def refs(self, name):
        if found := self._find(name, "main"):
            branches = [
                dict(name=branch, ref=f"refs/heads/{branch}", targetCommit=commit)
                for branch, commit in found[0].refs.items()
            ]
            self._answer(200, dict(branches=branches, tags=[], converts=[]))

    def resolve(self, name, revision, path):
        if found := self._find(name, revision):
            repository, commit = found
            files = repository.commits.get(commit, {})
            if path not in files:
                return self._fail(404, "EntryNotFound")
            if repository.gated:
                return self._fail(403, "GatedRepo")
            self._answer(
                200,
                files[path],
                kind="application/octet-stream",
                ETag=f'"{hashlib.sha256(files[path]).hexdigest()}"',
                X_Repo_Commit=commit,
                Content_Length=str(len(files[path])),
            )

    def create(self):
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] == "others":
            return self._answer(403, {"error": "no right to write there"})
        if name in self.hub.repositories:
            return self._answer(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private=bool(private))
        self._answer(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def validate(self):
        self._answer(200, {"errors": [], "warnings": []})

    def preupload(self, name, revision):
        files = [
            dict(
                path=file["path"],
                uploadMode="lfs" if file["path"].endswith(LARGE) else "regular",
                shouldIgnore=False,
            )
            for file in json.loads(self.body)["files"]
        ]
        self._answer(200, {"files": files})

    def batch(self, name):
        objects = [
            dict(
                oid=entry["oid"],
                size=entry["size"],
                actions={"upload": {"href": f"{self.hub.url}/objects/{entry['oid']}"}},
            )
            for entry in json.loads(self.body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        self._answer(200)

    def commit(self, name, revision):
        files = {}
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = self.hub.repositories[name].commit(files, branch=revision)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self._answer(200, {"commitUrl": url, "commitOid": commit, "success": True})


NAME, REST = "([^/]+/[^/]+)", "([^/]+|refs/pr/[0-9]+)"
ROUTES = (
    (f"GET /api/models/{NAME}(?:/revision/{REST})?", "info"),
    (f"GET /api/models/{NAME}/tree/{REST}", "tree"),
    (f"GET /api/models/{NAME}/refs", "refs"),
    (f"(?:GET|HEAD) /{NAME}/resolve/{REST}/(.+)", "resolve"),
    ("POST /api/repos/create", "create"),
    ("POST /api/validate-yaml", "validate"),
    (f"POST /api/models/{NAME}/preupload/{REST}", "preupload"),
    (f"POST /{NAME}.git/info/lfs/objects/batch", "batch"),
    ("PUT /objects/([0-9a-f]+)", "store"),
    (f"POST /api/models/{NAME}/commit/{REST}", "commit"),
)
