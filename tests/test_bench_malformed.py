"""The table of malformed files by loader: what counts as a crash, and that tensorlib has none where it is quick."""

import ctypes
import os
import pathlib
import time

import pytest

from bench import malformed
from tests.io import build_pth


def spin(path):
    while True:
        pass


def leave(path):
    os._exit(3)


def raise_(error):
    def load(path):
        raise error

    return load


def mark(path):
    pathlib.Path(build_pth.MARKER).touch()


@pytest.mark.parametrize(
    "load, expected",
    [
        (len, "accepted"),
        (raise_(ValueError("no\nfile")), "rejected"),
        (raise_(MemoryError()), "crashed: MemoryError"),
        (raise_(RecursionError("deep")), "crashed: RecursionError"),
        (lambda path: bytes(400_000_000), "crashed: MemoryError"),
        (spin, "crashed: timeout"),
        (lambda path: ctypes.string_at(0), "crashed: signal 11"),
        (leave, "crashed: exit"),
        (mark, "crashed: code ran"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_outcomes(load, expected):
    found = malformed.outcome("peer", *malformed.attempt(load, "x"))
    assert found == expected


def test_one_that_waits(monkeypatch):
    monkeypatch.setattr(malformed, "WALL", 0.3)
    assert malformed.outcome("peer", *malformed.attempt(lambda path: time.sleep(60), "x")) == "crashed: timeout"


def test_ours_must_be_our_error():
    error = malformed.attempt(raise_(ValueError("x")), "x")
    assert malformed.outcome("tensorlib", *error) == "crashed: ValueError"
    assert malformed.outcome("tensorlib", "", 0.1, 300_000_000) == "crashed: over the limits"


def test_table(capsys, monkeypatch, tmp_path):
    path = tmp_path / "rows.csv"
    monkeypatch.setattr("sys.argv", ["malformed", "--kinds", "npy,index", "--cases", "--csv", str(path)])
    with pytest.raises(SystemExit) as ended:
        malformed.main()
    assert not ended.value.code
    text = capsys.readouterr().out
    assert "| index" in text and "n05 header of 4 GiB" in text  # which NumPy allocates
    assert len(path.read_text().splitlines()) > 100
