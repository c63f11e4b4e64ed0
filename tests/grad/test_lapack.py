"""Gradients of linear algebra: finite differences, PyTorch's, degenerate matrices, rows against their references."""

from itertools import product

import numpy as np
import pytest
import torch

import tensorlib
from tensorlib.errors import GradError, LinAlgError
from tensorlib.ops import lapack
from tests.grad.cases import against_torch, check, randn
from tests.grad.rows import calls, check_values

L, INF = torch.linalg, float("inf")
NAMES = "cholesky qr svd svdvals eigh eigvalsh solve solve_triangular inv pinv det slogdet lstsq".split()
NAMES += "matrix_norm vector_norm matrix_power matrix_rank".split()


def symmetric(x):
    return (x + x.mT) * 0.5


@pytest.mark.parametrize("name", NAMES)
def test_row(name):
    for args, kwargs in calls(name, 8, "f64"):
        check_values(name, args, kwargs, tolerance=1e-9)


def spread_out(m, n, *batch, seed=0):
    """Matrices whose singular values (eigenvalues, if made symmetric) are well apart."""
    return randn(np.random.default_rng(seed), *batch, m, n) * 0.5 + 2 * np.eye(m, n) * np.arange(1, n + 1)


def positive(x):
    return x @ x.mT * 0.25 + (tensorlib if isinstance(x, tensorlib.Tensor) else torch).eye(x.shape[-1]).to(x.dtype)


def pair(name, *args, of=None, take=None, **kwargs):
    """(ours, theirs) of a function by name: of a transformed operand, some of the results added up."""

    def make(module):
        def function(x, *more):
            out = getattr(module, name)(of(x) if of else x, *more, *args, **kwargs)
            return out if take is None else take(*out)

        return function

    return make(lapack), make(L)


TALL, WIDE, SQUARE = spread_out(4, 2, 2), spread_out(2, 4, 2), spread_out(3, 3, 2)
RIGHT = randn(np.random.default_rng(5), 2, 3, 2)
CASES = {
    "cholesky": (pair("cholesky", of=positive), SQUARE),
    "cholesky upper": (pair("cholesky", of=positive, upper=True), SQUARE),
    "qr tall": (pair("qr", take=lambda q, r: (q**3).sum() + (r**2).sum((-2, -1))), TALL),
    "qr wide": (pair("qr", take=lambda q, r: (q**3).sum() + (r**2 * r).sum((-2, -1))), WIDE),
    "qr complete": (pair("qr", mode="complete", take=lambda q, r: (q**3).sum() + (r**3).sum((-2, -1))), WIDE),
    "svd tall": (pair("svd", False, take=lambda u, s, v: (u**2 * s[..., None, :]) @ (v**2)), TALL),
    "svd wide": (pair("svd", False, take=lambda u, s, v: (u**2 * s[..., None, :]) @ (v**2)), WIDE),
    "svd square": (pair("svd", take=lambda u, s, v: (u**2 * s[..., None, :]) @ (v**2)), SQUARE),
    "svdvals": (pair("svdvals"), TALL),
    "eigh": (pair("eigh", of=symmetric, take=lambda w, v: (v**2 * w[..., None, :]).cumsum(-1)), SQUARE),
    "eigvalsh": (pair("eigvalsh", of=symmetric), SQUARE),
    "solve": (pair("solve"), SQUARE, RIGHT),
    "solve vectors": (pair("solve"), SQUARE, RIGHT[..., 0]),
    "solve a vector": (pair("solve"), SQUARE[0], RIGHT[0, :, 0]),
    "solve right": (pair("solve", left=False), SQUARE, RIGHT.swapaxes(1, 2)),
    "solve batches": (pair("solve"), SQUARE[:, None], RIGHT[:1]),
    "inv": (pair("inv"), SQUARE),
    "pinv tall": (pair("pinv"), TALL),
    "pinv wide": (pair("pinv"), WIDE),
    "det": (pair("det"), SQUARE),
    "slogdet": (pair("slogdet", take=lambda sign, log: log * sign), SQUARE),
    "power": (pair("matrix_power", 3), SQUARE),
    "power -2": (pair("matrix_power", -2), SQUARE),
    "power 0": (pair("matrix_power", 0, of=lambda x: x * x), SQUARE, False),
}
CASES |= {f"matrix_norm {o}": (pair("matrix_norm", o), TALL) for o in ("fro", "nuc", 1, -1, 2, -2, INF, -INF)}
CASES |= {f"vector_norm {o}": (pair("vector_norm", o, -1), TALL) for o in (2, 1, 3, 0.5, -1, INF, -INF)}
BOOLS = (True, False)
for u, left, unit in product(BOOLS, BOOLS, BOOLS):
    both = pair("solve_triangular", upper=u, left=left, unitriangular=unit)
    CASES[f"triangular upper={u} left={left} unit={unit}"] = both, SQUARE, SQUARE / 3


@pytest.mark.parametrize("name", CASES)
def test_differences_and_torch(name):
    (ours, theirs), *arrays = CASES[name]
    if arrays[-1] is False:
        x = tensorlib.tensor(arrays[0], requires_grad=True)
        assert not ours(x).requires_grad or not tensorlib.autograd.grad(ours(x).sum(), x)[0].any().item()
        return
    check(ours, *arrays)
    against_torch(ours, theirs, arrays, tolerance=1e-3 if "power" in name else 3e-5)


@pytest.mark.parametrize(("m", "n"), [(4, 2), (3, 3), (2, 4)])
@pytest.mark.parametrize("vectors", [True, False])
def test_lstsq(m, n, vectors):
    a, b = spread_out(m, n, 2), randn(np.random.default_rng(3), *((2, m) if vectors else (2, m, 3)))

    def everything(a, b):
        found = lapack.lstsq(a, b)
        return found.solution.square().sum() + found.residuals.sum() + (found.singular_values**3).sum()

    check(everything, a, b)
    if not vectors:
        # torch's default driver for the CPU says nothing of the rank
        against_torch(lambda a, b: lapack.lstsq(a, b).solution, lambda a, b: L.lstsq(a, b).solution, (a, b))


def test_gradients_of_symmetric_matrices_are_symmetric_as_in_torch():
    a = SQUARE @ SQUARE.swapaxes(1, 2) + np.eye(3)
    against_torch(lapack.cholesky, L.cholesky, [a], tolerance=3e-5)
    against_torch(lapack.eigvalsh, L.eigvalsh, [a], tolerance=3e-5)
    ours, theirs = pair("eigh", take=lambda w, v: (v**2 * w[..., None, :]).cumsum(-1))
    against_torch(ours, theirs, [a], tolerance=3e-5)


def test_values_of_equal_size_have_a_gradient_and_vectors_have_none():
    for function in (lapack.svdvals, lambda x: lapack.svd(x).S, lambda x: lapack.eigh(x).eigenvalues, lapack.eigvalsh):
        x = tensorlib.eye(3, requires_grad=True)
        function(x).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), np.eye(3), atol=1e-6)
    x = tensorlib.eye(3, requires_grad=True)
    (lapack.svd(x).U * tensorlib.arange(9).reshape(3, 3)).sum().backward()
    assert not x.grad.isfinite().all().item()


def test_det_of_singular_matrices():
    a = np.stack([np.diag([1.0, 2, 0]), np.ones((3, 3)), SQUARE[0], np.zeros((3, 3))])
    ours = tensorlib.tensor(a, dtype="f64", requires_grad=True)
    lapack.det(ours).sum().backward()
    minors = np.zeros(a.shape)
    for i, j in np.ndindex(3, 3):
        rest = np.delete(np.delete(a, i, -2), j, -1)
        minors[:, i, j] = (-1) ** (i + j) * np.linalg.det(rest)
    np.testing.assert_allclose(ours.grad.numpy(), minors, atol=1e-12 * abs(minors).max())
    check(lapack.det, np.diag([1.0, 2, 0]) + 0.0, second=False)


def test_norms_at_zero():
    for norm in (
        lapack.vector_norm,
        lapack.norm,
        lambda x: lapack.vector_norm(x, 3),
        lambda x: lapack.vector_norm(x, 1),
    ):
        x = tensorlib.zeros(3, requires_grad=True)
        norm(x).backward()
        assert x.grad.tolist() == [0, 0, 0]
    x = tensorlib.tensor([3.0, -3.0, 1.0], requires_grad=True)  # ties share
    lapack.vector_norm(x, INF).backward()
    assert x.grad.tolist() == [0.5, -0.5, 0]


def test_refusals():
    x = tensorlib.tensor(TALL, dtype="f32", requires_grad=True)
    for mode in ("complete", "r"):
        with pytest.raises(GradError, match="mode 'reduced'"):
            lapack.qr(x, mode).R.sum().backward()
    y = tensorlib.zeros(2, 2, requires_grad=True)
    with pytest.raises(LinAlgError):
        lapack.slogdet(y).logabsdet.backward()
    assert not lapack.matrix_rank(x).requires_grad
