"""PyTorch's files: sound ones that must be read, and every kind of damage and of code."""

import os

import numpy as np
import pytest

from tensorlib.io import pth
from tests.io.build_pth import (
    DATA,
    MARKER,
    SOUND,
    VALUES,
    archive,
    state,
)
from tests.io.hardened import bounded, made, read_all, rejected


@pytest.fixture
def write(tmp_path):
    def write(data, name="file.pth"):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


@pytest.fixture(autouse=True)
def _nothing_ran():
    yield
    assert not os.path.exists(MARKER)


@pytest.mark.parametrize("name", SOUND)
def test_sound(write, name):
    path = write(made(SOUND[name]))
    with bounded(), pth.open(path) as file:
        np.testing.assert_array_equal(file.tensor("w").numpy(), VALUES)


def test_a_pickle_too_large(write, monkeypatch):
    monkeypatch.setattr(pth, "MAX_PICKLE", len(state()) - 1)
    assert "at most" in rejected(pth.open, write(archive()))


def test_read_all_reads(write):
    found, metadata = read_all(pth.open(write(archive())))
    assert found == {"w": DATA} and metadata == {}
