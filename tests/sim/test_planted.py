"""Faults planted in GPU kernels are noticed: wrong masks, strides, bounds, sums; see planted.py."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

LEAST = 0.95


@pytest.mark.parametrize("interpret", ["1", "0"], ids=["interpreted", "simulated"])
def test_faults_are_noticed(interpret, capsys):
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.sim.planted"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    seen, count = map(int, re.search(r"SHARE (\d+) of (\d+)", text).groups())
    with capsys.disabled():
        print(f"\n{seen} of {count} planted faults are noticed, {'simulated' if interpret == '0' else 'interpreted'}")
    assert seen >= LEAST * count and count >= 4, text
