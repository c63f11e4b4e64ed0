"""Tests in Triton's interpreter, which a process has or has not: TRITON_INTERPRET=1 pytest tests/sim/interpreted."""

import os

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's own threads make small products ten times slower

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=INTERPRETED)
def device():
    """A device "cuda:0" whose kernels are interpreted, and may touch nothing but its live memory."""
    from tests.sim import interpreter
    from tests.sim.host import Interpreted, install

    gpu = Interpreted(80)
    interpreter.repair()
    interpreter.watch(gpu.ranges)
    install(gpu)
    yield gpu
    gpu.check()
    install(None)
