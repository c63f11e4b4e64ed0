"""Linear algebra as it is compiled: cases of the interpreted tests, in the simulator, which also watches the warps of a
program in global memory: these kernels read what other threads have written.
"""

import numpy as np
import pytest

from kernels_triton import lapack as room
from tensorlib.ops import lapack
from tests.sim.errors import GridRace
from tests.sim.host import install
from tests.sim.interpreted import test_lapack as cases
from tests.sim.simulated import Simulated

ROOMS = ("lapack", "householder", "jacobi")
GPUS: dict = {}  # compiled programs are kept


@pytest.fixture(params=[80])
def device(request):
    """A device "cuda:0" of the architecture."""
    gpu = GPUS.setdefault(request.param, Simulated(request.param, between_warps=ROOMS))
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


@pytest.mark.parametrize("n, dtype", [(1, "f4"), (9, "f8"), (33, "f4")])
def test_factors(n, dtype, device):
    cases.test_cholesky(n, dtype)
    cases.test_equations(n, dtype)
    cases.test_triangular_systems(n, dtype)


@pytest.mark.parametrize("m, n, dtype", [(1, 1, "f8"), (9, 4, "f4"), (4, 9, "f8"), (40, 33, "f4"), (300, 3, "f8")])
def test_qr(m, n, dtype, device):
    cases.test_qr(m, n, dtype)


def test_panels_of_many_warps(device, monkeypatch):
    cases.test_panels_of_many_warps("f4", monkeypatch)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("device", [80, 90, 120], indirect=True)
def test_small_matrices(dtype, device, monkeypatch):
    for m, n in ((1, 1), (5, 3), (3, 5), (9, 9)):
        cases.check_svd(cases.matrix(2, m, n, dtype=dtype), full=m != n)
    for n in (1, 2, 9):
        cases.test_eigh(n, dtype)
    cases.test_larger_matrices_take_a_launch_for_each_round(dtype, monkeypatch, device)
    cases.test_cholesky(9, dtype)
    cases.test_equations(19, dtype)


@pytest.mark.parametrize("kind", cases.HARD)
def test_what_is_hard(kind, device):
    cases.test_svd_of_what_is_hard(kind)
    cases.test_eigh_of_what_is_hard(kind)


def test_what_has_no_result(device):
    cases.test_what_has_no_result()
    cases.test_nan_and_infinities_end(np.nan)


def test_many_pairs_of_columns(device):
    """What is left unwritten would be poison, no orthogonal vectors."""
    cases.check_svd(cases.matrix(33, 33))
    x = cases.matrix(33, 33)
    cases.check_eigh(x + x.T)


def test_warps_that_do_not_wait_are_seen(device, monkeypatch):
    """Without the barriers of elimination."""
    source = room.lu.src.replace("tl.debug_barrier()", "pass")
    assert source != room.lu.src
    hasty = type(room.lu)(room.lu.fn)
    hasty._unsafe_update_src(source)
    monkeypatch.setattr(room._lu_kernel("f32", False), "fn", hasty)
    monkeypatch.setattr(device, "ready", {})
    with pytest.raises(GridRace, match="another warp"):
        lapack.inv(cases.on(cases.matrix(9, 9)))
