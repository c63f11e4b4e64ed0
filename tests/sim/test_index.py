"""Rows added up by index as they are compiled: cases of the interpreted tests, in the simulator."""

import pytest

from tests.sim.host import install
from tests.sim.interpreted import test_index as indices
from tests.sim.interpreted import test_norm as norms
from tests.sim.simulated import Simulated


@pytest.fixture(scope="module")
def device():
    """A device "cuda:0"."""
    gpu = Simulated(80)
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


@pytest.mark.parametrize("shape, n, dtype", [((40, 3), 100, "f4"), ((3, 7, 2), 20, "i1"), ((2, 5, 1100), 9, "f2")])
def test_whole_rows_are_added(shape, n, dtype, device):
    indices.test_whole_rows_are_added(shape, n, dtype, device)


def test_rows_are_added_in_one_order_and_rounded_once(device, monkeypatch):
    indices.test_rows_are_added_in_one_order_and_rounded_once(2, device, monkeypatch)


def test_gradient_of_a_table(device):
    norms.test_gradient_of_a_table_of_narrow_rows()
