""".npy and .npz: sound files that must be read, and every kind of damage."""

import warnings

import numpy as np
import pytest

from tensorlib.io import npz
from tests.io.build_npz import DATA, SOUND, SOUND_ZIPS, TWO, bomb
from tests.io.hardened import bounded, made, read_all, rejected


@pytest.fixture
def write(tmp_path):
    def write(data, name="file.npz"):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", SOUND)
def test_sound(write, name):
    path = write(SOUND[name], "file.npy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what Python 2 wrote
        expected = np.load(path)
    with npz.open(path) as file:
        found = file.tensor().numpy()
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype.newbyteorder("=") and file.tensors[""].shape == expected.shape


@pytest.mark.parametrize("name", SOUND_ZIPS)
def test_sound_zip(write, name):
    path = write(made(SOUND_ZIPS[name]))
    with bounded(), npz.open(path) as file:
        tensors = {each: file.tensor(each).numpy().copy() for each in file.tensors}
    with np.load(path) as expected:
        assert set(expected.files) == set(tensors)
        for each, array in tensors.items():
            np.testing.assert_array_equal(array, expected[each])


def test_limit_can_be_raised(write):
    path = write(bomb(90_000_000))
    rejected(npz.open, path)
    with npz.open(path, limit=100_000_000) as file:
        assert file.tensor("a").shape == (90_000_000,)
    rejected(lambda name: npz.open(name, limit=1000), write(bomb(5000)))


def test_read_all_reads(write):
    found, _ = read_all(npz.open(write(TWO)))
    assert found == {"a": DATA, "b": DATA}
