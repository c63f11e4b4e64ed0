"""Tests on a real GPU: `pytest -m gpu`. Where there is none, each file is skipped and says what is missing.

So that they are tested themselves, TENSORLIB_GPU_TESTS names something to run them on instead: `interpreted` (with
TRITON_INTERPRET=1), or the simulated GPU of an architecture (`80`).
"""

import importlib.util
import os
import pathlib

import pytest

HERE = pathlib.Path(__file__).parent
STAND_IN = os.environ.get("TENSORLIB_GPU_TESTS", "")


def lacking():
    """What keeps these tests from running, or None."""
    if STAND_IN:
        return None
    import kernels_triton

    return kernels_triton.missing()


class Lacking(pytest.Module):
    """A file of tests of which none can run."""

    def collect(self):
        """Nothing, with the reason."""
        pytest.skip(f"{self.path.name}: {lacking()}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return Lacking.from_parent(parent, path=module_path) if lacking() else None


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("gpu")


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    """A fault of a kernel ends a process's use of the GPU: xdist is to replace the worker, which runs no more tests."""
    if STAND_IN or report.when != "call" or not report.failed or "PYTEST_XDIST_WORKER" not in os.environ:
        return
    from tensorlib.device import Device

    try:
        Device("cuda:0").gpu.synchronize()
    except Exception:
        os._exit(3)


def installed():
    """Makes the stand-in the device "cuda:0"; returns it."""
    from tests.sim import host, interpreter

    if STAND_IN == "interpreted":
        interpreter.repair()
        gpu = host.Interpreted(80)
        interpreter.watch(gpu.ranges)
    else:
        from tests.sim.simulated import Simulated

        gpu = Simulated(int(STAND_IN))
    host.install(gpu)
    return gpu


class Launches:
    """What `gpu.trace` is told of: how many launches; a test's own list is told, too."""

    def __init__(self):
        self.count, self.told = 0, None

    def append(self, launch):
        """One more."""
        self.count += 1
        if self.told is not None:
            self.told.append(launch)


class Watched:
    """A real GPU as tests of the stand-ins know it: with `launches`, `trace` and `check`."""

    def __init__(self, gpu):
        self.gpu, self.seen = gpu, Launches()
        gpu.trace = self.seen

    @property
    def launches(self):
        return self.seen.count

    @property
    def trace(self):
        return self.seen.told

    @trace.setter
    def trace(self, told):
        self.seen.told = told

    def check(self):
        """Faults of a kernel are reported by the driver, at the next wait."""
        self.gpu.synchronize()

    def __getattr__(self, name):
        return getattr(self.gpu, name)


@pytest.fixture(scope="session", autouse=True)
def device():
    """The device "cuda:0"."""
    if STAND_IN:
        gpu = installed()
        yield gpu
        gpu.check()
        from tests.sim.host import install

        install(None)
        return
    from tensorlib.device import Device

    gpu = Watched(Device("cuda:0").gpu)
    yield gpu
    gpu.check()
    gpu.gpu.trace = None


@pytest.fixture(scope="session")
def real(device):
    """As `device`, where PyTorch sees it, too."""
    if STAND_IN or importlib.util.find_spec("torch") is None:
        pytest.skip("a stand-in has no torch")
    return device
