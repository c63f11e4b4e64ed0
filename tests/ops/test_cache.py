"""The kernel cache: what is damaged is made anew, what cannot be written is said once, many processes may fill it."""

import os
import pathlib
import subprocess
import sys

import pytest

from kernels_numba import cache
from tensorlib import backend
from tensorlib.errors import NoKernel

USE = """
import ctypes, sys
from tensorlib import backend
from tensorlib.device import Array
cell = Array.empty((1,), "i64")
backend.launch(backend.kernel("counter", "store"), (cell.ptr, 41), writes=(cell,))
backend.launch(backend.kernel("counter", "add"), (cell.ptr, 1), writes=(cell,))
assert ctypes.c_int64.from_address(cell.ptr).value == 42
print("numba" in sys.modules, "llvmlite" in sys.modules, "numpy" in sys.modules)
"""


def kernels(folder):
    return sorted(pathlib.Path(folder).rglob("*.krn"))


def test_a_second_start_imports_no_compiler(tmp_path, run_python):
    assert run_python(USE, TENSORLIB_CACHE=str(tmp_path)).split() == ["True"] * 3
    assert len(kernels(tmp_path)) >= 2
    assert run_python(USE, TENSORLIB_CACHE=str(tmp_path)).split() == ["False"] * 3


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign"])
def test_a_damaged_file_is_replaced(damage, tmp_path, run_python):
    run_python(USE, TENSORLIB_CACHE=str(tmp_path))
    whole = {f: f.read_bytes() for f in kernels(tmp_path)}
    for file, data in whole.items():
        middle = len(data) - 8
        new = {"truncate": data[:-1], "empty": b"", "foreign": b"\x7fELF" * 2000}.get(damage)
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if new is None else new)
    run_python(USE, TENSORLIB_CACHE=str(tmp_path))
    assert {f: f.read_bytes() for f in kernels(tmp_path)} == whole


def test_a_cache_that_cannot_be_written(tmp_path, run_python):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    environment = {**os.environ, "TENSORLIB_CACHE": str(blocker), "PYTHONPATH": str(pathlib.Path(cache._HERE).parent)}
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be written") == 1


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        cache.store(str(tmp_path / "k" / "a.krn"), b"\xc3", 0)
    assert list((tmp_path / "k").iterdir()) == []


def test_many_processes_at_once(tmp_path):
    environment = {**os.environ, "TENSORLIB_CACHE": str(tmp_path), "PYTHONPATH": str(pathlib.Path(cache._HERE).parent)}
    several = [
        subprocess.Popen([sys.executable, "-c", USE], env=environment, stdout=subprocess.DEVNULL) for _ in range(4)
    ]
    assert [p.wait(300) for p in several] == [0] * 4
    assert not [f for f in pathlib.Path(tmp_path).rglob("*") if f.name.endswith(".tmp")]


def test_the_name_follows_the_sources():
    a = cache.file_name("counter", "store", ())
    assert a == cache.file_name("counter", "store", ())
    others = [cache.file_name("counter", "add", ()), cache.file_name("counter", "store", ("x",))]
    others.append(cache.file_name("counter", "store", (), "another decode function"))
    assert len({a, *others}) == 4


def test_no_kernel_names_the_file_to_change():
    with pytest.raises(NoKernel, match=r"kernels_numba/counter\.py"):
        backend.kernel("counter", "multiply")
