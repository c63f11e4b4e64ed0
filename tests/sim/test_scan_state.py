"""Recurrences and their gradients as they are compiled, in the simulator: cases of the interpreted tests."""

import pytest

from tests.sim.host import install
from tests.sim.interpreted import test_scan_state as cases
from tests.sim.simulated import Simulated


@pytest.fixture(scope="module")
def device():
    """A device "cuda:0"."""
    gpu = Simulated(80)
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


@pytest.mark.parametrize("kind", cases.KINDS)
def test_state_scan(kind, device):
    cases.test_state_scan(kind, device)


def test_lines(device):
    cases.test_lines(device)
