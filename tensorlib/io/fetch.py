"""Downloads into a cache: resumed, checked by hash, under a lock, with progress; every failure is a DownloadError.

Only imported when something has to be fetched.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from tensorlib.bar import seen, tqdm
from tensorlib.errors import DownloadError

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte
TRIES = 5  # attempts in a row that bring nothing
PAUSE = 0.5  # seconds before the second attempt, doubled each time
FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
GIT = 40  # digits of git's hash of a blob
VALIDATOR = ".etag"  # what the file beside a partial one ends in


class Refused(Exception):
    """A server that will not give the file to a plain client (credentials, certificates): another way may be open."""


def download(url: str, partial: str, wanted: str | None, label: str, size: int | None = None, token: str = "") -> None:
    """Fetch `url` into the file `partial`, continuing what it holds already.

    `wanted`: the SHA-256 of the content, or (40 digits) its hash as a git blob; `size`: its length; `token`: for the
    header Authorization, which no other server gets. Raises DownloadError; Refused for 401, 403, 407 and bad
    certificates. What came so far is kept for the next time, unless its hash is wrong.
    """
    for attempt in (1, 2):  # a wrong hash may come from what was there before: once more from the start
        resumed = os.path.exists(partial)
        digest = _download(url, partial, label, size, token)
        if wanted is not None and len(wanted) == GIT:
            digest = file_hash(partial, wanted)
        remove(partial + VALIDATOR)
        if wanted in (None, digest):
            return
        os.unlink(partial)
        if not resumed or attempt == 2:
            got, fix = f"{kind(wanted)} {digest}", "the server has another file; try later"
            raise DownloadError(f"download of {label}", got, wanted, fix)


def kind(digest: str) -> str:
    """What a hash of so many digits is."""
    return "git SHA-1" if len(digest) == GIT else "SHA-256"


def file_hash(path: str, like: str) -> str:
    """The hash of a file that `like` is one of: SHA-256 (64 digits), or that of git for a blob (40)."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        if len(like) == GIT:
            digest = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size, usedforsecurity=False)
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def remove(path: str) -> None:
    """Removes a file that may be missing."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


class _Unwritable(Exception):
    """What the file system here said: no fault of the network, which an OSError may be as well."""


class _Partial:
    """A file that grows, the hash of what it holds, and the bar that shows it.

    `validator`, kept beside it, is the server's ETag for what it holds: the rest must be of the same.
    """

    def __init__(self, file, label, expected):
        self.file, self.label, self.expected, self.progress = file, label, expected, None
        self.total, self.validator = expected, ""
        with contextlib.suppress(OSError, ValueError), open(file.name + VALIDATOR, encoding="latin-1") as beside:
            self.validator = beside.read(200)
        self.digest, self.size = hashlib.sha256(), 0
        file.seek(0)
        while piece := file.read(CHUNK):
            self.digest.update(piece)
            self.size += len(piece)

    def add(self, piece):
        try:
            self.file.write(piece)
        except OSError as error:
            raise _Unwritable from error
        self.digest.update(piece)
        self.size += len(piece)
        self.progress.add(len(piece))

    def restart(self):
        self.file.truncate(0)
        self.digest, self.size = hashlib.sha256(), 0
        if self.progress is not None:
            self.progress.close()
            self.progress = None

    def valid_for(self, etag):
        """Notes the ETag of what is added from now on."""
        strong = etag if etag and etag[:1] == etag[-1:] == '"' and etag.isprintable() and len(etag) <= 200 else ""
        if strong != self.validator:
            self.validator = strong
            with open(self.file.name + VALIDATOR, "w", encoding="latin-1", errors="replace") as beside:
                beside.write(strong)

    def close(self):
        if self.progress is not None:
            self.progress.close()
        self.file.close()


def _download(url, path, label, size, token) -> str:
    """Append to the file until it is whole; its SHA-256."""
    with contextlib.closing(_Partial(open(path, "ab+"), label, size)) as partial:
        if size is not None and partial.size > size:
            partial.restart()
        failures = 0
        while True:
            before = partial.size
            try:
                problem = None if size == before else _append(url, partial, token)
            except _Unwritable as error:
                raise error.__cause__ from None
            except (OSError, http.client.HTTPException) as error:
                if getattr(error, "errno", None) in FULL + FORBIDDEN:
                    raise
                problem = _problem(error, partial)
            if problem is None:
                partial.file.flush()
                os.fsync(partial.file.fileno())
                return partial.digest.hexdigest()
            failures = 1 if partial.size > before else failures + 1
            if failures >= TRIES:
                fix = "check the network and run it again: it goes on where it stopped"
                raise DownloadError(f"download of {label}", problem, "the whole file", fix)
            time.sleep(PAUSE * 2 ** (failures - 1))


def _append(url, partial, token) -> str | None:
    """One request for what is missing. None if the file is whole afterwards, else what is wrong with it."""
    with _request(url, partial, token) as response:
        at, total = _position(response, partial)
        if total is not None and partial.expected not in (None, total):
            got, fix = f"{total} bytes", "the file changed, or this is another one: try again later"
            raise DownloadError(f"download of {partial.label}", got, f"{partial.expected} bytes, as announced", fix)
        if at != partial.size:
            partial.restart()
        elif at and total not in (None, partial.total) and partial.total is not None:
            partial.restart()
            return f"{total} bytes, and {partial.total} before"
        partial.total = total = partial.total if total is None else total
        partial.valid_for(response.headers.get("ETag"))
        if partial.progress is None:
            if total is not None:
                need_space(os.path.dirname(partial.file.name), total - at, partial.label)
            partial.progress = Progress(partial.label, total, at)
        while (total is None or partial.size <= total) and (piece := response.read(CHUNK)):
            partial.add(piece)
    if total is None or partial.size == total:
        return None
    problem = f"{partial.size} of {total} bytes"
    if partial.size > total:
        partial.restart()
    return problem


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; the token goes along to the same scheme, host and port alone."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        old, new = origin(req.full_url), origin(newurl)
        if new[0] not in ("http", "https") or (old[0] == "https" and new[0] == "http"):
            if fp is not None:
                fp.close()
            raise DownloadError("download", f"a redirect from {old[0]} to {new[0]}", "one to https", "try again later")
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        if found is not None and old == new and "Authorization" in req.unredirected_hdrs:
            found.add_unredirected_header("Authorization", req.unredirected_hdrs["Authorization"])
        return found


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of a URL."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _request(url, partial, token):
    if origin(url)[0] not in ("http", "https"):
        raise DownloadError(f"download of {partial.label}", f"a URL of {origin(url)[0]!r:.20}", "one of https")
    headers = {"Accept-Encoding": "identity", "User-Agent": "tensorlib"}
    if partial.size:
        headers["Range"] = f"bytes={partial.size}-"
        if partial.validator:
            headers["If-Range"] = partial.validator
    request = urllib.request.Request(url, headers=headers)
    if token:
        request.add_unredirected_header("Authorization", token)
    return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)


def _position(response, partial) -> tuple[int, int | None]:
    """Where this response starts, and how long the whole file is."""
    length = response.headers.get("Content-Length", "")
    if response.status != 206:  # the server starts over
        return 0, int(length) if length.isdigit() else None
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    if span.partition("-")[0] != str(partial.size):
        expected, fix = f"bytes from {partial.size} on", f"delete {partial.file.name} and try again"
        raise DownloadError(f"download of {partial.label}", f"the range {span!r}", expected, fix)
    return partial.size, int(total) if total.isdigit() else None


def _problem(error, partial) -> str | None:
    """What to say of a failed attempt that may be repeated; raises for those that may not. None: nothing is missing."""
    if isinstance(error, DownloadError):
        raise error
    if isinstance(error, urllib.error.HTTPError):
        with error:
            if error.code in (401, 403, 407):
                raise Refused(f"HTTP {error.code}")
            if error.code == 416:  # nothing past the end
                if error.headers.get("Content-Range", "").rpartition("/")[2] == str(partial.size):
                    return None
                partial.restart()
            elif error.code < 500 and error.code != 429:
                raise DownloadError(
                    f"download of {partial.label}", f"HTTP {error.code}", "the file", "check the reference"
                )
            return f"HTTP {error.code}"
    reason = getattr(error, "reason", error)
    if "CERTIFICATE" in str(reason):
        raise Refused(str(reason))
    return str(reason) or type(error).__name__


def need_space(folder: str, nbytes: int, label: str) -> None:
    """Raise DownloadError now rather than after an hour if `nbytes` do not fit."""
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        got = f"{free >> 20} MB free in {folder}"
        raise DownloadError(
            f"download of {label}", got, f"{nbytes >> 20} MB", "free some space, or set HF_HOME to a larger disk"
        )


@contextlib.contextmanager
def writing(folder: str, label: str):
    """Make `folder`, and turn what a file system refuses inside the block into one DownloadError."""
    try:
        os.makedirs(folder, exist_ok=True)
        yield
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        advice = "set HF_HOME to a folder that you can write to"
        if error.errno in FULL:
            raise DownloadError(
                f"download of {label}", f"a full disk at {folder}", "room for the file", advice
            ) from None
        got = f"{error.strerror or error} ({error.filename or folder})"
        expected = "a cache folder that can be written to" if error.errno in FORBIDDEN else "a working cache folder"
        raise DownloadError(f"download of {label}", got, expected, advice) from None


@contextlib.contextmanager
def locked(path: str, label: str):
    """Hold the lock file `path`: of two processes that want the same file, one fetches it and the other waits."""
    try:
        import fcntl
    except ImportError:  # Windows: both fetch, and the last rename wins
        yield
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    told, held = False, False
    while not held:
        with open(path, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    say(f"waiting for another process that fetches {label}")
                told = True
                time.sleep(0.2)
                continue
            except OSError:  # a file system without locks
                held = True
            if held or _is_still(path, file):
                held = True
                yield


def _is_still(path, file):
    """Whether a path leads to an open file: other tools remove lock files that they leave."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def place(temporary: str, blob: str, path: str) -> bool:
    """Rename a finished file to `blob` and make `path` a link to it, in one step each.

    False where there are no links: then it is `path` that it gets renamed to.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    link = f"{path}.{os.getpid()}"
    remove(link)
    try:
        os.symlink(os.path.relpath(blob, os.path.dirname(path)), link)
    except (OSError, NotImplementedError):
        os.replace(temporary, path)
        return False
    if temporary != blob:
        os.replace(temporary, blob)
    os.replace(link, path)
    return True


def say(text: str) -> None:
    """A line for the person at the terminal."""
    with contextlib.suppress(OSError, ValueError):
        print(f"tensorlib: {text}", file=sys.stderr, flush=True)


class Progress:
    """A bar on a terminal and in a notebook; elsewhere a line at every tenth of the way."""

    def __init__(self, label: str, total: int | None, done: int = 0):
        self.label, self.total, self.done, self._bar = label, total, done, None
        if seen():
            with contextlib.suppress(ImportError):
                self._bar = tqdm()(
                    desc=label, total=total, initial=done, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr
                )
        self._said = self._tenth()
        if self._bar is None:
            size = f" ({total / 1e6:.0f} MB)" if total else ""
            say(f"fetching {label}{size}" + (f", going on at {done / 1e6:.0f} MB" if done else ""))

    def add(self, count: int) -> None:
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._tenth() != self._said:
            self._said = self._tenth()
            say(f"fetching {self.label}: {10 * self._said}%")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _tenth(self):
        return 10 * self.done // self.total if self.total else self.done // (100 << 20)
