"""safetensors: sound files that must be read, and every kind of damage."""

import os

import pytest

from tensorlib.errors import FormatError
from tensorlib.io import safetensors
from tests.io.build_safetensors import MALFORMED, SOUND
from tests.io.hardened import bounded, made, read_all


@pytest.fixture
def write(tmp_path):
    def write(data, name="file.safetensors"):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", SOUND)
def test_sound(write, name):
    data = made(SOUND[name])
    path = write(data)
    with bounded():
        file = safetensors.open(path)
    if len(file.tensors) < 1000:
        raw, _ = read_all(file)
        assert b"".join(raw.values()) == data[len(data) - sum(map(len, raw.values())) :]
    from safetensors import safe_open

    with safe_open(path, "np") as theirs:
        assert set(theirs.keys()) == set(file.tensors)


def test_the_crate_rejects_the_same(write):
    """All but those in which we are stricter."""
    from safetensors import SafetensorError, safe_open

    accepted = set()
    for name, data in MALFORMED.items():
        try:
            with safe_open(write(made(data)), "np"):
                accepted.add(name)
        except (SafetensorError, OSError):
            pass
    stricter = {"s40 unknown field", "the same metadata twice"}
    assert stricter <= accepted
    assert accepted - stricter <= {"half a surrogate pair", "huge and zero", "2^61 and zero", "bits overflow"}


def test_odd_paths(tmp_path):
    for path in (tmp_path, tmp_path / "missing.safetensors", "a\0b.safetensors", "x" * 5000):
        with pytest.raises(FormatError):
            safetensors.open(path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(FormatError):
        safetensors.open(tmp_path / "pipe.safetensors")
