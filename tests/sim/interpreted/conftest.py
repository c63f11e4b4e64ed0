"""These tests run Triton's interpreter, which a process has or has not: TRITON_INTERPRET=1 pytest tests/sim/interpreted."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def device():
    """A device "cuda:0" whose kernels are interpreted."""
    from tests.sim.host import Interpreted, install

    gpu = Interpreted(80)
    install(gpu)
    yield gpu
    gpu.check()
    install(None)
