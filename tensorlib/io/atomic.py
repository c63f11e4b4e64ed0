"""Files that are there whole or not at all: written under another name in the same folder, synced, then renamed.

An exception (Ctrl-C, a full disk) removes what was written. A process that is killed leaves a hidden `.tmp` file, and
the file of the wanted name as it was; the next writer of that name removes it. What is replaced passes its permissions
on. A link is replaced by the file: what it points to stays as it is (in the cache of the Hub, another model's blob).

>>> import pathlib
>>> with writing("/tmp/doctest-of-atomic.txt") as file:
...     _ = file.write(b"all of it")
>>> pathlib.Path("/tmp/doctest-of-atomic.txt").read_bytes()
b'all of it'
"""

import contextlib
import os
import secrets
import stat
import time

from tensorlib.errors import TensorlibError, WriteError

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows: what killed writers leave stays
    flock = None

STEM = 40  # characters of a file's name that its temporary name has: with 4 bytes each they fit any file system
ABANDONED = 60  # seconds without a write after which an unlocked temporary file is nobody's


class Pending:
    """A file that is being written: `file`, a binary stream; `finish()` then `rename()`, or `discard()`."""

    def __init__(self, path, replace=True):
        self.path = os.fspath(path)
        if "\0" in self.path:
            raise WriteError(repr(self.path), "a NUL in it", "a path", "check the path")
        mode = self._old_mode(replace)
        self.folder, name = os.path.split(os.path.abspath(self.path))
        prefix = f".{name[:STEM]}."
        self.temporary = os.path.join(self.folder, f"{prefix}{os.getpid()}-{secrets.token_hex(4)}.tmp")
        with _explained(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
            self.file = os.fdopen(os.open(self.temporary, flags, 0o666), "wb")
        with contextlib.suppress(OSError):  # not all file systems have permissions, or locks
            if mode is not None:
                os.chmod(self.temporary, mode)
            _lock(self.file.fileno())
        _remove_abandoned(self.folder, prefix)

    def _old_mode(self, replace):
        """Permissions of the file that is replaced, None if there is none. WriteError for what must not be replaced."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return None  # what else is wrong shows when the new file is made
        if os.path.isdir(self.path):
            raise WriteError(self.path, "a folder of that name", "a file that can be written", "name a file in it")
        if not replace:
            raise WriteError(self.path, "a file of that name", "a new name", "replace it with --force or replace=True")
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise WriteError(self.path, "a device or pipe of that name", "a plain file", "name another one")
        return stat.S_IMODE(found.st_mode) & 0o777 if stat.S_ISREG(found.st_mode) else None

    def finish(self):
        """All of it on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if os.name == "nt":  # where open files cannot be renamed; elsewhere the lock is held until then
            self.file.close()

    def rename(self):
        """Give it its name, in place of what has that name."""
        os.replace(self.temporary, self.path)
        self.file.close()
        if os.name == "posix":
            with contextlib.suppress(OSError):  # some folders and some network file systems cannot be synced
                fd = os.open(self.folder, os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    def discard(self):
        """Remove it."""
        with contextlib.suppress(OSError):
            self.file.close()
        with contextlib.suppress(OSError):
            os.unlink(self.temporary)


@contextlib.contextmanager
def _explained(path):
    """The system's errors become WriteErrors."""
    try:
        yield
    except TensorlibError:
        raise
    except OSError as error:
        got = error.strerror or error
        fix = "nothing was left behind: make room or choose another place, and run it again"
        raise WriteError(path, got, "a file that can be written", fix) from error


def _lock(fd):
    """Whether this process now holds the lock of an open file. OSError where there are no locks."""
    try:
        if flock is not None:
            flock(fd, LOCK_EX | LOCK_NB)
            return True
    except BlockingIOError:
        pass
    return False


def _remove_abandoned(folder, prefix):
    """Removes what killed writers of a file left: old enough, and nobody holds its lock."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if not (name.startswith(prefix) and name.endswith(".tmp")):
                continue
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError), open(path, "rb", opener=_plainly) as file:
                old = time.time() - os.fstat(file.fileno()).st_mtime > ABANDONED
                if old and _lock(file.fileno()):
                    os.unlink(path)


def _plainly(path, flags):
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


@contextlib.contextmanager
def writing(path, replace=True):
    """A binary stream to the file that `path` will be once the block is left without an exception.

    WriteError if it cannot be written, or is there and `replace` is False.
    """
    with writing_all([path], replace) as (file,):
        yield file


@contextlib.contextmanager
def writing_all(paths, replace=True):
    """Binary streams to several files: none gets its name before all are written. WriteError."""
    pending, paths = [], list(paths)
    some = os.fspath(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "") if paths else ""
    try:
        for path in paths:
            pending.append(Pending(path, replace))
        with _explained(some):
            yield [each.file for each in pending]
        for each in pending:
            with _explained(each.path):
                each.finish()
        for each in pending:
            with _explained(each.path):
                each.rename()
    except BaseException:
        for each in pending:
            each.discard()
        raise
