"""A short run of every fuzz target: what `python -m tests.fuzz` finds in minutes elsewhere must not come back."""

import importlib.util
import subprocess
import sys

import pytest

from tests.io.targets import TARGETS

SECONDS = 2


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="Atheris has no wheel for this Python or machine")
@pytest.mark.parametrize("name", TARGETS)
def test_fuzz(name, tmp_path):
    command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(SECONDS), "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Done " in done.stderr and not list(tmp_path.iterdir())
