"""Some of the faults of tests/mutations.py, which has the command for all of them: every one is noticed."""

import pathlib
import subprocess
import sys

from tests.mutations import FAULTS

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
EVERY = 4  # 65 faults take a minute; kernels with a fault are compiled at every run


def test_faults_are_noticed():
    """In a process of its own: the faults are planted in forks of one that has run nothing yet."""
    command = [sys.executable, "-m", "tests.mutations", str(EVERY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    count = len(FAULTS[::EVERY])
    assert done.returncode == 0 and f"{count} of {count} noticed" in done.stdout, done.stdout + done.stderr[-2000:]
