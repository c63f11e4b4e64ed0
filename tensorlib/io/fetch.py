"""Downloads into a cache: resumed, checked by SHA-256, under a lock, with progress; every failure is a DownloadError.

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
import urllib.request

from tensorlib.errors import DownloadError

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte
TRIES = 5  # attempts in a row that bring nothing
PAUSE = 0.5  # seconds before the second attempt, doubled each time
FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


class Refused(Exception):
    """A server that will not give the file to a plain client (credentials, certificates): another way may be open."""


def download(url: str, partial: str, sha256: str | None, label: str) -> None:
    """Fetch `url` into the file `partial`, continuing what it holds already.

    Raises DownloadError; Refused for 401, 403, 407 and bad certificates. What came so far is kept for the next time,
    unless its hash is wrong.
    """
    for attempt in (1, 2):  # a wrong hash may come from what was there before: once more from the start
        resumed = os.path.exists(partial)
        digest = _download(url, partial, label)
        if sha256 in (None, digest):
            return
        os.unlink(partial)
        if not resumed or attempt == 2:
            raise DownloadError(
                f"download of {label}", f"SHA-256 {digest}", sha256, "the server has another file; try later"
            )


class _Partial:
    """A file that grows, the hash of what it holds, and the bar that shows it."""

    def __init__(self, file, label):
        self.file, self.label, self.progress = file, label, None
        self.digest, self.size = hashlib.sha256(), 0
        file.seek(0)
        while piece := file.read(CHUNK):
            self.digest.update(piece)
            self.size += len(piece)

    def add(self, piece):
        self.file.write(piece)
        self.digest.update(piece)
        self.size += len(piece)
        self.progress.add(len(piece))

    def restart(self):
        self.file.truncate(0)
        self.digest, self.size = hashlib.sha256(), 0

    def close(self):
        if self.progress is not None:
            self.progress.close()
        self.file.close()


def _download(url, path, label) -> str:
    """Append to the file until it is whole; its SHA-256."""
    with contextlib.closing(_Partial(open(path, "ab+"), label)) as partial:
        failures = 0
        while True:
            before = partial.size
            try:
                problem = _append(url, partial)
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


def _append(url, partial) -> str | None:
    """One request for what is missing. None if the file is whole afterwards, else what is wrong with it."""
    with _request(url, partial.size) as response:
        at, total = _position(response, partial)
        if at != partial.size:
            partial.restart()
        if partial.progress is None:
            if total is not None:
                need_space(os.path.dirname(partial.file.name), total - at, partial.label)
            partial.progress = Progress(partial.label, total, at)
        while piece := response.read(CHUNK):
            partial.add(piece)
    if total is None or partial.size == total:
        return None
    problem = f"{partial.size} of {total} bytes"
    if partial.size > total:
        partial.restart()
    return problem


def _request(url, at):
    headers = {"Range": f"bytes={at}-"} if at else {}
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "tensorlib", **headers})
    return urllib.request.urlopen(request, timeout=TIMEOUT)


def _position(response, partial) -> tuple[int, int | None]:
    """Where this response starts, and how long the whole file is."""
    length = response.headers.get("Content-Length")
    if response.status != 206:  # the server starts over
        return 0, int(length) if length is not None else None
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
    with open(path, "w") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say(f"waiting for another process that fetches {label}")
                told = True
                time.sleep(0.2)
            except OSError:  # a file system without locks
                break
        yield


def place(temporary: str, sha256: str, folder: str, path: str) -> None:
    """Move a finished file to `folder`/blobs/`sha256`, and make `path` a link to it, both in one step each."""
    blob = os.path.join(folder, "blobs", sha256)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    link = f"{path}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(link)
    try:
        os.symlink(os.path.relpath(blob, os.path.dirname(path)), link)
    except (OSError, NotImplementedError):
        os.replace(temporary, path)
        with open(path + ".sha256", "w", encoding="ascii") as beside:
            beside.write(sha256)
        return
    os.replace(temporary, blob)
    os.replace(link, path)


def say(text: str) -> None:
    """A line for the person at the terminal."""
    with contextlib.suppress(OSError, ValueError):
        print(f"tensorlib: {text}", file=sys.stderr, flush=True)


class Progress:
    """A bar on a terminal; elsewhere a line at every tenth of the way."""

    def __init__(self, label: str, total: int | None, done: int = 0):
        self.label, self.total, self.done, self._bar = label, total, done, None
        if sys.stderr is not None and sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self._bar = tqdm(
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
