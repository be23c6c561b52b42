"""A small Hugging Face Hub on loopback: the protocol that huggingface_hub speaks, and faults on demand.

Models and Spaces, in memory: repositories with commits, branches and tags, LFS uploads, downloads with ETag, HEAD and
Range through a second port that stands for the CDN, tokens with rights, and the Hub's own error headers. What the
protocol is, the client's source says (huggingface_hub 2.4: ``hf_api.py``, ``_commit_api.py``, ``lfs.py``,
``file_download.py``).
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".safetensors", ".pth", ".bin")


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, str]] = field(default_factory=dict)  # sha -> path -> name of a content
    parents: dict[str, str | None] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch, files, message="files"):
        parent = self.branches.get(branch)
        sha = hashlib.sha1(f"{parent}{message}{sorted(files.items())}".encode()).hexdigest()
        self.commits[sha], self.parents[sha], self.messages[sha] = files, parent, message
        self.branches[branch] = sha
        return sha

    def find(self, revision):
        return (
            self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)
        )

    def history(self, branch="main"):
        """Messages of a branch's commits, newest first."""
        sha, messages = self.branches[branch], []
        while sha:
            messages.append(self.messages[sha])
            sha = self.parents[sha]
        return messages


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD path" matches, how many times, and whether after the work was done.

    ``503`` and other numbers answer that status; ``cut`` closes the connection, ``cut N`` after N bytes of the body;
    ``flip`` changes one byte in the middle of the body; ``short`` leaves half of it out; ``late cut`` does the work and
    then closes without an answer.
    """

    where: str
    what: str
    times: int = 1


class HubServer:
    """The server; ``with HubServer() as hub`` runs it in threads of this process."""

    def __init__(self):
        self._main, self._cdn = (ThreadingHTTPServer(("127.0.0.1", 0), _handler(self)) for _ in range(2))
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in (self._main, self._cdn))
        self.reset()

    def reset(self):
        self.repos: dict[str, Repo] = {}
        self.contents: dict[str, bytes] = {}  # by sha256 for large files, by git's name for small ones
        self.tokens = {"hf_writer": {"org"}, "hf_reader": set()}
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str, dict[str, str]]] = []  # method, path, headers in lower case

    def __enter__(self):
        for server in (self._main, self._cdn):
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        for server in (self._main, self._cdn):
            server.shutdown()
            server.server_close()

    def add(self, repo, files, branch="main", **about):
        """Put files (path -> bytes) into a repository, as their publisher would have."""
        made = self.repos.setdefault(repo, Repo(**about))
        now = dict(made.commits.get(made.branches.get(branch), {}))
        return made.commit(branch, {**now, **{path: self.keep(path, data) for path, data in files.items()}})

    def keep(self, path, data):
        if path.endswith(LARGE):
            name = hashlib.sha256(data).hexdigest()
        else:
            name = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        self.contents[name] = data
        return name

    def read(self, repo, path, revision="main"):
        """What a repository holds."""
        return self.contents[self.repos[repo].commits[self.repos[repo].find(revision)][path]]

    def files(self, repo, revision="main"):
        return sorted(self.repos[repo].commits[self.repos[repo].find(revision)])

    def requests(self, pattern):
        """What was asked for, as "METHOD path", where it matches."""
        return [f"{m} {p}" for m, p, _ in self.seen if re.search(pattern, f"{m} {p}")]

    def fault(self, request):
        """The fault that is due for a request."""
        for fault in self.faults:
            if fault.times and re.search(fault.where, request):
                fault.times -= 1
                return fault.what
        return ""


class Refusal(Exception):  # noqa: N818  # an answer, no mistake of ours
    """An error answer as the Hub gives it."""

    def __init__(self, status, code="", message=""):
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def handle_any(self):
            self.what = ""
            length = int(self.headers.get("Content-Length", 0))
            self.body = self.rfile.read(length) if length else self.read_chunks()
            path = urlsplit(self.path).path.replace("/api/spaces/", "/api/models/spaces/")
            hub.seen.append((self.command, path, {name.lower(): value for name, value in self.headers.items()}))
            self.what = hub.fault(f"{self.command} {path}")
            if self.what == "cut":
                return self.hang_up()
            if self.what.isdigit():
                return self.answer(int(self.what), {"error": "a fault"}, {"Retry-After": "0"})
            for pattern, method in ROUTES:
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    try:
                        return getattr(self, method)(*(unquote(part) for part in match.groups()))
                    except Refusal as refusal:
                        return self.answer(
                            refusal.status, {"error": refusal.headers["X-Error-Message"]}, refusal.headers
                        )
            return self.answer(404, {"error": f"this Hub has no {self.command} {path}"})

        do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

        def read_chunks(self):
            """The body of a request that says no length."""
            if self.headers.get("Transfer-Encoding") != "chunked":
                return b""
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def hang_up(self):
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

        def answer(self, status, data=b"", headers=()):
            if self.what == "late cut":
                return self.hang_up()
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
            if self.what == "flip":
                data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
            if self.what == "short":
                data = data[: len(data) // 2]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return None
            if self.what.startswith("cut "):
                self.wfile.write(data[: int(self.what.split()[1])])
                return self.hang_up()
            return self.wfile.write(data)

        # --- rights --------------------------------------------------------------------------------------------------

        def token(self):
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token and token not in hub.tokens:
                raise Refusal(401, "", "Invalid credentials in Authorization header")
            return token

        def repo(self, name, write=False):
            token, repo = self.token(), hub.repos.get(name)
            writes = name.removeprefix("spaces/").split("/")[0] in hub.tokens.get(token, ())
            if repo is None or (repo.private and not writes):
                raise Refusal(404 if token else 401, "RepoNotFound", "Repository not found")
            if repo.gated and not writes:
                raise Refusal(403 if token else 401, "GatedRepo", "Access to this model is restricted.")
            if write and not writes:
                raise Refusal(403 if token else 401, "", "You don't have the rights to write to this repository")
            return repo

        def revision(self, repo, revision):
            sha = repo.find(revision)
            if not sha:
                raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return sha

        # --- the API -------------------------------------------------------------------------------------------------

        def create(self):
            asked = json.loads(self.body)
            name = f"{asked['organization']}/{asked['name']}"
            if not self.token():
                raise Refusal(401, "", "Invalid username or password.")
            if asked["organization"] not in hub.tokens[self.token()]:
                raise Refusal(403, "", "You don't have the rights to create a model under this namespace")
            if name in hub.repos:
                raise Refusal(409, "", "You already created this model repo")
            private = asked.get("visibility") == "private" or asked.get("private", False)
            hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
            self.answer(200, {"url": f"{hub.endpoint}/{name}", "name": name})

        def listing(self):
            author = parse_qs(urlsplit(self.path).query).get("author", [""])[0]
            writes = author in hub.tokens.get(self.token(), ())
            repos = {name: repo for name, repo in hub.repos.items() if name.split("/")[0] == author}
            shown = [name for name, repo in repos.items() if writes or not repo.private]
            self.answer(200, [{"id": name, "modelId": name, "private": hub.repos[name].private} for name in shown])

        def info(self, name, revision="main"):
            repo = self.repo(name)
            sha = self.revision(repo, revision)

            def sibling(path, content):
                size = len(hub.contents[content])
                lfs = {"sha256": content, "size": size, "pointerSize": 134} if len(content) == 64 else None
                return {"rfilename": path, "size": size, "blobId": content[:40], **({"lfs": lfs} if lfs else {})}

            siblings = [sibling(*item) for item in repo.commits[sha].items()]
            self.answer(200, {"id": name, "modelId": name, "sha": sha, "private": repo.private, "siblings": siblings})

        def validate(self):
            asked = json.loads(self.body)
            try:
                data = yaml.safe_load(asked["content"].split("---")[1])
                good = isinstance(data["sdk" if asked["repoType"] == "space" else "license"], str)
                good = good and all(isinstance(tag, str) for tag in data.get("tags", []))
            except (yaml.YAMLError, KeyError, IndexError, TypeError):
                good = False
            self.answer(200 if good else 400, {"errors": [] if good else [{"message": "bad metadata"}], "warnings": []})

        def preupload(self, name, revision):
            repo = self.repo(name, write=True)
            now = repo.commits[self.revision(repo, revision)]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": now.get(file["path"]),
                }
                for file in json.loads(self.body)["files"]
            ]
            self.answer(200, {"files": modes})

        def lfs_batch(self, name):
            self.repo(name, write=True)

            def action(asked):
                if asked["oid"] in hub.contents:
                    return asked
                upload = {"href": f"{hub.cdn}/lfs/{asked['oid']}"}
                verify = {"href": f"{hub.endpoint}/lfs/verify"}
                return {**asked, "actions": {"upload": upload, "verify": verify}}

            self.answer(200, {"transfer": "basic", "objects": [action(o) for o in json.loads(self.body)["objects"]]})

        def lfs_put(self, oid):
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise Refusal(400, "", "wrong content")
            hub.contents[oid] = self.body
            self.answer(200)

        def lfs_verify(self):
            self.answer(200 if json.loads(self.body)["oid"] in hub.contents else 404, {})

        def commit(self, name, branch):
            repo = self.repo(name, write=True)
            self.revision(repo, branch)
            lines = [json.loads(line) for line in self.body.splitlines()]
            header, files = lines[0]["value"], dict(repo.commits[repo.branches[branch]])
            if header.get("parentCommit") not in (None, repo.branches[branch]):
                raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = hub.keep(value["path"], base64.b64decode(value["content"]))
                elif value["oid"] in hub.contents:
                    files[value["path"]] = value["oid"]
                else:
                    raise Refusal(400, "", "LFS object was not uploaded")
            sha = repo.commit(branch, files, header["summary"])
            self.answer(200, {"commitUrl": f"{hub.endpoint}/{name}/commit/{sha}", "commitOid": sha})

        def branch(self, name, branch):
            repo = self.repo(name, write=True)
            repo.branches[branch] = self.revision(repo, json.loads(self.body or b"{}").get("startingPoint", "main"))
            self.answer(200, {})

        def tag(self, name, revision):
            repo, tag = self.repo(name, write=True), json.loads(self.body)["tag"]
            if tag in repo.tags:
                raise Refusal(409, "", "Tag exists")
            repo.tags[tag] = self.revision(repo, revision)
            self.answer(200, {})

        def refs(self, name):
            repo = self.repo(name)

            def listed(kind, refs):
                return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": sha} for n, sha in refs.items()]

            self.answer(
                200, {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []}
            )

        # --- files ---------------------------------------------------------------------------------------------------

        def resolve(self, name, revision, path):
            repo = self.repo(name)
            sha = self.revision(repo, revision)
            content = repo.commits[sha].get(path)
            if content is None:
                raise Refusal(404, "EntryNotFound", "Entry not found")
            headers = {"X-Repo-Commit": sha, "ETag": f'"{content}"', "Accept-Ranges": "bytes"}
            if len(content) == 40:
                return self.answer(200, hub.contents[content], headers)
            size = str(len(hub.contents[content]))
            linked = {"Location": f"{hub.cdn}/cdn/{content}", "X-Linked-Etag": f'"{content}"', "X-Linked-Size": size}
            return self.answer(302, b"", {**headers, **linked})

        def cdn(self, content):
            data = hub.contents[content]
            ranged = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if not ranged:
                return self.answer(200, data, {"ETag": '"of the storage"', "Accept-Ranges": "bytes"})
            start = int(ranged[1])
            return self.answer(206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})

    return Handler


_NAME = r"((?:spaces/)?[\w.-]+/[\w.-]+)"  # a Space is kept under spaces/org/name
ROUTES = [
    ("POST /api/repos/create", "create"),
    ("POST /api/validate-yaml", "validate"),
    ("GET /api/models", "listing"),
    (f"GET /api/models/{_NAME}", "info"),
    (f"GET /api/models/{_NAME}/revision/([^/]+)", "info"),
    (f"GET /api/models/{_NAME}/refs", "refs"),
    (f"POST /api/models/{_NAME}/preupload/([^/]+)", "preupload"),
    (f"POST /api/models/{_NAME}/commit/([^/]+)", "commit"),
    (f"POST /api/models/{_NAME}/branch/([^/]+)", "branch"),
    (f"POST /api/models/{_NAME}/tag/([^/]+)", "tag"),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT /lfs/(\w+)", "lfs_put"),
    ("POST /lfs/verify", "lfs_verify"),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
    (r"(?:GET|HEAD) /cdn/(\w+)", "cdn"),
]
