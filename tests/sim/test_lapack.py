"""Linear algebra as it is compiled: cases of the interpreted tests, in the simulator, which also watches the warps of a
program in global memory: these kernels read what other threads have written.
"""

import numpy as np
import pytest

from tensorlib.ops import lapack
from tests.sim.errors import GridRace
from tests.sim.host import install
from tests.sim.interpreted import test_lapack as cases
from tests.sim.simulated import Simulated

ROOMS = ("lapack", "householder", "jacobi")
GPUS: dict = {}  # compiled programs are kept


@pytest.fixture(params=[80, 90, 120])
def device(request):
    """A device "cuda:0" of the architecture."""
    gpu = GPUS.setdefault(request.param, Simulated(request.param, between_warps=ROOMS))
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


@pytest.mark.parametrize("n", [1, 9, 33])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_factors(n, dtype, device):
    cases.test_cholesky(n, dtype)
    cases.test_equations(n, dtype)
    cases.test_triangular_systems(n, dtype)


@pytest.mark.parametrize("m, n", [(1, 1), (9, 4), (4, 9), (40, 33), (150, 3)])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_qr(m, n, dtype, device):
    cases.test_qr(m, n, dtype)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_spectra(dtype, device, monkeypatch):
    for m, n in ((1, 1), (5, 3), (3, 5), (9, 9)):
        cases.check_svd(cases.matrix(2, m, n, dtype=dtype), full=m != n)
    for n in (1, 2, 9):
        cases.test_eigh(n, dtype)
    cases.test_larger_matrices_take_a_launch_for_each_round(dtype, monkeypatch, device)


@pytest.mark.parametrize("kind", cases.HARD)
def test_what_is_hard(kind, device):
    cases.test_svd_of_what_is_hard(kind)
    cases.test_eigh_of_what_is_hard(kind)


def test_what_has_no_result(device):
    cases.test_what_has_no_result()
    cases.test_nan_and_infinities_end(np.nan)


def test_every_pair_of_columns_is_written(device):
    """What is left unwritten would be poison, no orthogonal vectors; a matrix of 33 takes all sorts of panels."""
    cases.check_svd(cases.matrix(33, 33))
    x = cases.matrix(33, 33)
    cases.check_eigh(x + x.T)


def test_warps_that_do_not_wait_are_seen(device, monkeypatch):
    """Without the barriers of elimination."""
    from triton.language import core

    from kernels_triton import lapack as room
    from tensorlib import backend

    source = room.lu.src.replace("tl.debug_barrier()", "pass")
    assert source != room.lu.src and core
    silent = type(room.lu)(room.lu.fn)
    silent._unsafe_update_src(source)
    kernel = room._lu_kernel("f32")
    monkeypatch.setattr(kernel, "fn", silent)
    monkeypatch.setattr(device, "ready", {})
    monkeypatch.setattr(backend.backend("cuda"), "_programs", {})
    with pytest.raises(GridRace, match="another warp"):
        lapack.inv(cases.on(cases.matrix(9, 9)))
