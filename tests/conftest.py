"""Fixtures and settings that every test shares."""

import os
import pathlib
import signal
import subprocess
import sys

import hypothesis
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A new kernel specialisation compiles in 0.2 to 1 s, so there is no deadline and there are few examples; examples are
# derived from the test itself, so that a run is repeatable. A developer hunting for bugs: --hypothesis-profile=deep.
hypothesis.settings.register_profile("default", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.register_profile("deep", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("default")

# A shell that runs pytest in the background hands on SIGINT as ignored, and the tests of Ctrl-C would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    config.addinivalue_line("markers", "quick: every op row once, under 90 s on two cores: pytest -m quick")
    config.addinivalue_line(
        "markers", "gpu: on a real GPU; skipped, with what is missing, where there is none: pytest -m gpu"
    )


@pytest.fixture(scope="session")
def default_model() -> pathlib.Path:
    """Path of the embedded default model, SmolLM2-135M-Instruct at Q4_1 (98 MB); fetched once, then from the cache."""
    from tensorlib.io import hub

    return pathlib.Path(hub.resolve(hub.DEFAULT_MODEL))


@pytest.fixture(scope="session")
def run_python():
    """Function: run Python source in a new interpreter that sees the checkout; standard output. Fails on a bad exit."""

    def run(source, *arguments, **environment):
        env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        command = [sys.executable, "-c", source, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run
