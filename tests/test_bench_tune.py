"""bench.tune without a GPU: what it tries, what it keeps, and that products then use it, on a simulated GPU."""

import json
import pathlib

import numpy as np
import pytest

import tensorlib

pytest.importorskip("triton")
from bench import tune
from kernels_triton.launch import tuned, tuned_path
from kernels_triton.matmul_configs import HALF, Tile
from tests.sim.host import install
from tests.sim.simulated import Simulated

SMALL, LARGE = Tile(32, 64, 32, 4, 2), Tile(64, 64, 32, 4, 2)
SHAPE = (80, 72, 64)


class Clock:
    """Makes times up: SMALL is quicker than the table's tile, LARGE slower."""

    def __init__(self, gpu):
        self.gpu = gpu

    def __call__(self, run, calls):
        run(1)
        return calls * {None: 1e-3, SMALL: 5e-4, LARGE: 2e-3}[self.gpu.tuned["matmul"].tile]


@pytest.fixture
def device():
    """A device "cuda:0" of sm_80."""
    gpu = Simulated(80)
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


def test_candidates_fit():
    found = tune.candidates(HALF[80], 166_912, 2)
    assert len(found) == len(set(found)) > 30 and set(HALF[80]) <= set(found)
    assert all(t.m * t.n <= 128 * 32 * t.warps and t.k >= 16 for t in found)
    assert not [t for t in tune.candidates(HALF[80], 16_384, 2) if t.m >= 256]


def test_a_better_tile_is_kept_and_used(device, monkeypatch, tmp_path):
    monkeypatch.setattr(tune, "candidates", lambda *_: [LARGE, SMALL])
    key, tile, base, taken = tune.tune(device, "f16", SHAPE, Clock(device), 1.03)
    assert (key, tile, base, taken) == ("half k-k-n 80x72x64", SMALL, pytest.approx(1e-3), pytest.approx(5e-4))
    path = tuned_path(str(tmp_path), "a/GPU")
    tune.store(path, "matmul", {key: tile, "half k-k-n 1x1x1": LARGE})
    tune.store(path, "matmul", {"half k-k-n 1x1x1": None})
    assert json.loads(pathlib.Path(path).read_text()) == {"matmul": {key: list(SMALL)}} and path.endswith("a_GPU.json")
    device.tuned = tuned(str(tmp_path), "a/GPU")
    device.ready.clear()
    (m, n, k), rng = SHAPE, np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float16) for s in ((m, k), (n, k)))
    there = [tensorlib.from_numpy(a).to("cuda:0") for a in (x, w)]
    found = (there[0] @ there[1].T).cpu().numpy()
    assert any(kernel.consts.get("BLOCK_M") == 32 and kernel.consts["BLOCK_N"] == 64 for kernel, _ in device.ready)
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    assert np.abs(found - exact).max() <= 2.0**-11 * np.abs(exact).max() + k * 2.0**-24 * 16 * k


def test_what_is_no_better_is_not_kept(device, monkeypatch):
    monkeypatch.setattr(tune, "candidates", lambda *_: [LARGE])
    assert tune.tune(device, "f16", SHAPE, Clock(device), 1.03)[1] is None


def test_a_tile_that_fails_is_no_result(device, capsys):
    def broken(run, calls):
        raise RuntimeError("out of resources")

    assert tune.seconds_of(device, "f16", SHAPE, SMALL, broken) == (float("inf"), None)
    assert "out of resources" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"matmul": 3}', '{"matmul": {"x": [1, 2, 3]}}', '{"matmul": {"x": [1, 2, 3, 4, -5]}}']
)
def test_a_damaged_file_is_told_once_and_ignored(text, tmp_path, capsys):
    path = tmp_path / "tuned" / "gpu.json"
    path.parent.mkdir()
    path.write_text(text)
    assert tuned(str(tmp_path), "gpu") == {}
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert tuned(str(tmp_path), "another") == {} and capsys.readouterr().err == ""


def test_the_driver_reads_it_once_from_the_users_cache(run_python, tmp_path):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "stand-in.json").write_text('{"matmul": {"half k-k-n 1x2x3": [16, 16, 16, 4, 2]}}')
    source = """
from tests.sim import stand_in_torch
stand_in_torch.install()
from tensorlib.device import Device
gpu = Device("cuda:0").gpu
assert gpu.tuned is gpu.tuned
print(gpu.tuned["matmul"])
"""
    assert "16, 16, 16, 4, 2" in run_python(source, TENSORLIB_CACHE=str(tmp_path))
