"""Files that are there whole or not at all: written under another name in the same folder, synced, then renamed.

An exception (Ctrl-C, a full disk) removes what was written. A process that is killed leaves a hidden `.tmp` file, and
the file of the wanted name as it was.

>>> import pathlib
>>> with writing("/tmp/doctest-of-atomic.txt") as file:
...     _ = file.write(b"all of it")
>>> pathlib.Path("/tmp/doctest-of-atomic.txt").read_bytes()
b'all of it'
"""

import contextlib
import os
import secrets

from tensorlib.errors import TensorlibError, WriteError


class Pending:
    """A file that is being written: `file`, a binary stream; `finish()` then `rename()`, or `discard()`."""

    def __init__(self, path, replace=True):
        self.path = os.fspath(path)
        folder, name = os.path.split(os.path.abspath(self.path))
        self.folder = folder
        self.temporary = os.path.join(folder, f".{name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        if "\0" in self.path:
            raise WriteError(repr(self.path), "a NUL in it", "a path", "check the path")
        if os.path.isdir(self.path):
            raise WriteError(self.path, "a folder of that name", "a file that can be written", "name a file in it")
        if not replace and os.path.lexists(self.path):
            raise WriteError(self.path, "a file of that name", "a new name", "replace it with --force or replace=True")
        with self.explained():
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
            self.file = os.fdopen(os.open(self.temporary, flags, 0o666), "wb")

    @contextlib.contextmanager
    def explained(self):
        """The system's errors become WriteErrors."""
        try:
            yield
        except TensorlibError:
            raise
        except OSError as error:
            got = error.strerror or error
            fix = "nothing was left behind: make room or choose another place, and run it again"
            raise WriteError(self.path, got, "a file that can be written", fix) from error

    def finish(self):
        """All of it on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def rename(self):
        """Give it its name, in place of what has that name."""
        os.replace(self.temporary, self.path)
        if os.name == "posix":
            fd = os.open(self.folder, os.O_RDONLY)
            try:
                with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
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
def writing(path, replace=True):
    """A binary stream to the file that `path` will be once the block is left without an exception.

    WriteError if it cannot be written, or is there and `replace` is False.
    """
    with writing_all([path], replace) as (file,):
        yield file


@contextlib.contextmanager
def writing_all(paths, replace=True):
    """Binary streams to several files: none gets its name before all are written. WriteError."""
    pending = []
    try:
        for path in paths:
            pending.append(Pending(path, replace))
        with pending[-1].explained() if pending else contextlib.nullcontext():
            yield [each.file for each in pending]
        for each in pending:
            with each.explained():
                each.finish()
        for each in pending:
            with each.explained():
                each.rename()
    except BaseException:
        for each in pending:
            each.discard()
        raise
