"""What a file system may do to readers and writers: full disks, killed writers, files that change while open."""

import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest

import tensorlib
from tensorlib.errors import FormatError, WriteError
from tensorlib.io import atomic, gguf
from tests.conftest import ROOT
from tests.io.weights import KINDS, UNPRIVILEGED, tensors, written

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a Linux system call")

# Writers by name: each replaces files that are there, by what its big tensor makes of them.
WRITERS = """
import os, sys
import numpy as np
import tensorlib
from tensorlib.errors import WriteError
from tensorlib.io import gguf, safetensors

def writers(folder, source):
    x = np.zeros(1 << 20, "f4")
    at = lambda name: os.path.join(folder, name)
    shards = lambda: safetensors.save(at("s.safetensors"), {"w": x, "v": x}, shard_size=1 << 22)
    found = {name: lambda name=name: tensorlib.save(at(name), x if name == "x.npy" else {"w": x})
             for name in ("x.safetensors", "x.npz", "x.npy", "x.gguf", "x.pth")}
    found["s-00001-of-00002.safetensors"] = shards
    found["e.gguf"] = lambda: gguf.edit(source, {"a": 1}, out=at("e.gguf"))
    found["p-00002-of-00002.gguf"] = lambda: gguf.split(source, at("p"), max_tensors=1)
    found["m.gguf"] = lambda: gguf.merge(source.replace("big", "big-00001-of-00002"), at("m.gguf"))
    return found
"""
FULL = (
    WRITERS
    + """
folder, source, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
names = writers(folder, source)
for name in names:
    with open(os.path.join(folder, name), "wb") as old:
        old.write(b"old")
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for name, write in names.items():
    try:
        write()
    except WriteError as error:
        print(name, "|", error)
    assert sorted(os.listdir(folder)) == sorted(names), (name, os.listdir(folder))
    for each in names:
        assert open(os.path.join(folder, each), "rb").read() == b"old", each
"""
)


def big(folder):
    """A GGUF file of 8 MB, also in two parts; its path."""
    folder.mkdir()
    x = np.zeros(1 << 20, "f4")
    gguf.write(folder / "big.gguf", {}, {"v": x, "w": x})
    gguf.split(folder / "big.gguf", folder / "big", max_tensors=1)
    return folder / "big.gguf"


def said(output, text):
    """Every writer said that, in a WriteError that names its file."""
    lines = output.strip().splitlines()
    assert len(lines) == 9, output
    for line in lines:
        name, _, message = line.partition(" | ")
        assert os.path.basename(message.partition(":")[0])[:3] == name[:3] and text in message, line


@LINUX
def test_files_of_a_limited_size(tmp_path, run_python):
    """Every writer: one WriteError, the old file as it was, nothing else there."""
    source, folder = big(tmp_path / "source"), tmp_path / "out"
    folder.mkdir()
    said(run_python(FULL, str(folder), str(source), "100000"), "File too large")


@LINUX
def test_a_full_disk(tmp_path):
    """The same on a file system of one megabyte, where the system lets us make one."""
    source, folder = big(tmp_path / "source"), tmp_path / "out"
    folder.mkdir()
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"', str(folder)]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    command = [*mount, sys.executable, "-c", FULL, str(folder), str(source), "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    said(done.stdout, "No space left on device")


KILLED = (
    WRITERS
    + """
from tensorlib.io import atomic
def stop(self):
    print("written", flush=True)
    sys.stdin.read()
atomic.Pending.finish = stop
writers(sys.argv[1], sys.argv[2])[sys.argv[3]]()
"""
)


@LINUX
def test_writers_that_are_killed_before_the_rename(tmp_path):
    """Old files stay; the next writer of that name neither collides with what was left nor leaves it there for long."""
    source, folder = big(tmp_path / "source"), tmp_path / "out"
    folder.mkdir()
    names, spaces = ("x.safetensors", "x.npz", "x.pth", "p-00002-of-00002.gguf"), {}
    exec(WRITERS, spaces)
    env, running = {**os.environ, "PYTHONPATH": str(ROOT)}, []
    for name in names:
        (folder / name).write_bytes(b"old")
        command = [sys.executable, "-c", KILLED, str(folder), str(source), name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        running.append(subprocess.Popen(command, env=env, **pipes))
    for process in running:
        with process:
            assert process.stdout.readline() == b"written\n"
            process.send_signal(signal.SIGKILL)
    left = sorted(set(os.listdir(folder)) - set(names))
    assert len(left) == 5 and all(name[0] == "." and name.endswith(".tmp") for name in left)  # the split has two files
    assert all((folder / name).read_bytes() == b"old" for name in names)
    for name in left:
        os.utime(folder / name, (1e9, 1e9))
    for name in names:
        spaces["writers"](str(folder), str(source))[name]()
    assert sorted(os.listdir(folder)) == sorted([*names, "p-00001-of-00002.gguf"])


def test_what_other_writers_write_is_left_alone(tmp_path):
    """Two at once have names of their own; neither a young file is taken for abandoned, nor one whose lock is held."""
    path = tmp_path / "x.npy"
    with atomic.writing(path) as first:
        first.write(b"first")
        first.flush()
        os.utime(first.fileno(), (1e9, 1e9))
        (tmp_path / ".x.npy.1-1.tmp").write_bytes(b"young")
        with atomic.writing(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second" and len(os.listdir(tmp_path)) == 3
    assert path.read_bytes() == b"first" and sorted(os.listdir(tmp_path)) == [".x.npy.1-1.tmp", "x.npy"]


# ---- what is there already -------------------------------------------------------------------------------------------


def test_targets_that_are_no_files(tmp_path):
    """A folder, a link to one, a pipe, a device, a folder that is missing or a file: WriteError, and they stay."""
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "link.npy").symlink_to("folder.npy")
    (tmp_path / "null.npy").symlink_to(os.devnull)
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "file").write_bytes(b"")
    before = sorted(os.listdir(tmp_path))
    for name, got in {
        "folder.npy": "a folder", "link.npy": "a folder", "pipe.npy": "device or pipe", "null.npy": "device or pipe",
        "missing/x.npy": "No such file", "file/x.npy": "Not a directory", "a\0b.npy": "NUL", "n" * 300 + ".npy": "long",
    }.items():  # fmt: skip
        with pytest.raises(WriteError, match=got):
            tensorlib.save(str(tmp_path / name), np.zeros(3))
    assert sorted(os.listdir(tmp_path)) == before and stat.S_ISFIFO(os.stat(tmp_path / "pipe.npy").st_mode)


def test_links_are_replaced_and_not_followed(tmp_path):
    """What they point to may be a blob of the Hub's cache, which others use."""
    (tmp_path / "blob").write_bytes(b"old")
    for name, target in (("x.npy", "blob"), ("dangling.npy", "nowhere")):
        (tmp_path / name).symlink_to(target)
        tensorlib.save(tmp_path / name, np.arange(3))
        assert not (tmp_path / name).is_symlink() and tensorlib.load(tmp_path / name).tensor().tolist() == [0, 1, 2]
    assert (tmp_path / "blob").read_bytes() == b"old" and not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_permissions_are_passed_on(tmp_path):
    """A file that is replaced stays as private as it was; a new one is what the umask says."""
    path = tmp_path / "x.npy"
    before = os.umask(0o027)
    try:
        tensorlib.save(path, np.arange(3))
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o600)
        tensorlib.save(path, np.arange(4))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_names_as_long_as_the_file_system_takes(tmp_path):
    name = "模" * 83 + ".npy"  # 253 bytes of 255
    for value in (1, 2):
        tensorlib.save(tmp_path / name, np.full(3, value))
    assert os.listdir(tmp_path) == [name] and tensorlib.load(tmp_path / name).tensor().tolist() == [2] * 3


READ_ONLY = (
    UNPRIVILEGED
    + """
import numpy as np, tensorlib
try:
    tensorlib.save(sys.argv[1], {"w": np.zeros(3)})
except tensorlib.errors.WriteError as error:
    print(error)
"""
)


@LINUX
def test_a_folder_that_is_read_only(tmp_path, run_python):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x.npz").write_bytes(b"old")
    folder.chmod(0o555)
    try:
        assert "x.npz: got Permission denied; expected a file that can be written" in run_python(
            "import tensorlib.errors\n" + READ_ONLY, str(folder / "x.npz")
        )
    finally:
        folder.chmod(0o755)
    assert os.listdir(folder) == ["x.npz"] and (folder / "x.npz").read_bytes() == b"old"


# ---- files that change while they are open ---------------------------------------------------------------------------


def uses(file):
    """Ways to read from an open file, each of which must see that it changed."""
    name, size = "layers.0.weight", 4
    yield lambda: file.tensor(name)
    yield lambda: file.rows(name, 0, size)
    yield lambda: file.slice(name, ..., slice(0, size))
    yield lambda: file.raw(name)
    yield lambda: file.stored(name).data()
    if hasattr(file, "bytes"):
        yield lambda: file.bytes(name)


def opened(folder, kind):
    """A file of that kind, open, and the path of the file that its first tensor lies in."""
    path = written(folder, kind)
    inside = folder / "a.safetensors" if kind == "index" else pathlib.Path(path)
    os.utime(inside, (1e9, 1e9))  # the clock of a file system may stand still for some milliseconds
    return tensorlib.load(path), inside


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_short(tmp_path, kind):
    """Every way to read gives a FormatError: pages beyond the end would end the process."""
    file, inside = opened(tmp_path, kind)
    os.truncate(inside, inside.stat().st_size - 1)
    for use in uses(file):
        with pytest.raises(FormatError, match="when it was opened"):
            use()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_written_to(tmp_path, kind):
    """In place, its size the same: what `cp` does to a file that is there."""
    file, inside = opened(tmp_path, kind)
    data = inside.read_bytes()
    before = file.tensor("layers.0.weight")
    inside.write_bytes(data)
    for use in uses(file):
        with pytest.raises(FormatError, match="changed since it was opened"):
            use()
    assert before.shape == (8, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_replaced_or_removed(tmp_path, kind):
    """What is open stays whole."""
    file, inside = opened(tmp_path, kind)
    shutil.copy(inside, tmp_path / "copy")
    os.replace(tmp_path / "copy", inside)
    for _ in range(2):
        assert (file.tensor("layers.0.weight").numpy() == tensors()["layers.0.weight"]).all()
        assert all(use() is not None for use in uses(file))
        if inside.exists():
            inside.unlink()


def test_metadata_of_a_file_that_is_cut_short(tmp_path):
    """Long arrays are decoded when they are asked for."""
    gguf.write(tmp_path / "x.gguf", {"tokens": [str(i) for i in range(5000)]}, {})
    file = tensorlib.load(tmp_path / "x.gguf")
    os.truncate(tmp_path / "x.gguf", 100)
    for use in (
        lambda: file.metadata["tokens"],
        lambda: file.metadata.strings("tokens"),
        lambda: file.metadata.encoded("tokens"),
    ):
        with pytest.raises(FormatError, match="when it was opened"):
            use()


def test_a_relative_path_after_a_change_of_folder(tmp_path, monkeypatch):
    """Another file of that name there is not taken for the one that is open."""
    for name in "ab":
        (tmp_path / name).mkdir()
        tensorlib.save(tmp_path / name / "x.npy", np.arange(len(name) + 2))
    monkeypatch.chdir(tmp_path / "a")
    file = tensorlib.load("x.npy")
    monkeypatch.chdir(tmp_path / "b")
    pathlib.Path("x.npy").write_bytes(b"another")
    assert file.tensor().tolist() == [0, 1, 2]
