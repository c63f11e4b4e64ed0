"""Contractions against PyTorch in float64, over drawn sizes and strides."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import contract
from tensorlib.registry import OPS
from tests.ops.cases import few
from tests.ops.parity import agree, agree_gradients, draw

EQUATIONS = [
    "ij,jk->ik", "ij,kj", "bij,bjk->bik", "ij->", "ii", "ii->i", "iij->ji", "i,j->ij", "ij,ij->ij", "ij,ij->i",
    "...ij,...jk->...ik", "b...,b...->...", "i...->...", "...i,oij,...j->...o", "ij,jk,kl->il", "ab,bc,cd,ad->ac",
    "bhqd,bhkd->bhqk", "a,,b->ba", "ij,j", "abc,cd->adb", "ijij->ij", "aB,Bc -> ca", "...,...->...",
]  # fmt: skip


def operands_of(equation, sizes, data, dtype="f32"):
    """Arrays for an equation; "..." stands for dims of 2 and 3, of which operands have the last one or both."""
    arrays = []
    for part in equation.replace(" ", "").split("->")[0].split(","):
        shape = []
        for c in part.replace("...", "."):
            shape += ([3] if data.draw(st.booleans()) else [2, 3]) if c == "." else [sizes[c.lower()]]
        arrays.append(draw(data, tuple(shape), dtype, (-2, 2)))
    return arrays


@pytest.mark.parametrize("equation", EQUATIONS)
@given(st.data())
@few(4)
def test_einsum(equation, data):
    sizes = {c: data.draw(st.sampled_from([1, 2, 3, 5])) for c in "abcdhijkloq"}
    arrays = operands_of(equation, sizes, data)
    terms = np.prod([sizes[c] for c in {c.lower() for c in equation if c.isalpha()}], dtype=float) * 6
    scale = terms * 2.0 ** len(arrays)  # sums of so many products of at most 2 ** operands
    agree(contract.einsum, torch.einsum, equation, *arrays, roundings=len(arrays) + 2, scale=scale)
    agree(lambda e, xs: contract.einsum(e, xs), lambda e, xs: torch.einsum(e, *xs), equation, arrays, scale=scale)
    if "," in equation and "..." not in equation:
        agree_gradients(contract.einsum, torch.einsum, equation, *arrays)


def test_einsum_sizes_of_one_broadcast_and_integers_are_exact():
    x, y = np.arange(3, dtype=np.float32).reshape(3, 1), np.arange(12, dtype=np.float32).reshape(4, 3) / 4
    for equation in ("ij,jk->ik", "ij,jk->ijk", "ij,jk->k"):
        agree(contract.einsum, torch.einsum, equation, x.T[:, :1], y[:3, :2].T[:1].copy(), scale=99)
        agree(contract.einsum, torch.einsum, equation, x, y, scale=99)
    i = np.arange(6).reshape(2, 3)
    agree(contract.einsum, torch.einsum, "ij,kj->ik", i, i)
    assert contract.einsum("ij->", tensorlib.zeros(0, 3)).item() == 0
    assert contract.einsum("ij,jk->ik", tensorlib.zeros(2, 0), tensorlib.zeros(0, 3)).tolist() == [[0] * 3] * 2


def test_einsum_contracts_small_results_first():
    shapes = []
    x, v = tensorlib.ones(50, 60), tensorlib.ones(60)
    original = contract.matmul
    contract.matmul = lambda a, b: shapes.append((a.shape, b.shape)) or original(a, b)
    try:
        out = contract.einsum("ij,jk,k->i", x, tensorlib.ones(60, 60), v)
    finally:
        contract.matmul = original
    assert out.tolist() == [3600.0] * 50
    assert shapes[0] == ((60, 60), (60, 1))  # a matrix-vector product, not a matrix product


@pytest.mark.parametrize(
    "equation, shapes, message",
    [
        ("ij,jk", [(2, 3)], "1 operands for"),
        ("ijk", [(2, 3)], "for an operand of 2 dims"),
        ("i", [(2, 3)], "for an operand of 2 dims"),
        ("ij->ik", [(2, 3)], "the equation"),
        ("ij->ii", [(2, 3)], "the equation"),
        ("i1", [(2, 3)], "the equation"),
        ("ii", [(2, 3)], "sizes 2 and 3 of 'i' in one operand"),
        ("ij,jk", [(2, 3), (2, 3)], "sizes 3 and 2 of 'j'"),
    ],
)
def test_einsum_errors(equation, shapes, message):
    with pytest.raises(ShapeError, match=f"einsum: got .*{message}"):
        contract.einsum(equation, *(tensorlib.zeros(*s) for s in shapes))


PRODUCTS = {
    "outer": [(4,), (3,)], "inner": [(2, 4), (3, 4)], "kron": [(2, 3), (2, 2, 1)], "dot": [(5,), (5,)],
    "mv": [(3, 4), (4,)], "mm": [(3, 4), (4, 2)], "bmm": [(2, 3, 4), (2, 4, 2)],
    "addmm": [(2,), (3, 4), (4, 2)], "addmv": [(3,), (3, 4), (4,)], "addr": [(3, 4), (3,), (4,)],
    "baddbmm": [(3, 2), (2, 3, 4), (2, 4, 2)], "addbmm": [(3, 2), (2, 3, 4), (2, 4, 2)],
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
@given(st.data())
@few(4)
def test_products(name, data):
    arrays = [draw(data, shape) for shape in PRODUCTS[name]]
    agree(getattr(contract, name), getattr(torch, name), *arrays, scale=9 * 8)
    agree_gradients(getattr(contract, name), getattr(torch, name), *arrays)
    op = OPS.get(name)
    if op and op.ref:
        assert np.allclose(op.ref(np, *arrays), getattr(contract, name)(*map(tensorlib.from_numpy, arrays)), atol=1e-4)


def test_factors_and_what_beta_0_ignores():
    nan = np.full((3, 2), np.nan, np.float32)
    a, b = np.ones((3, 4), np.float32), np.ones((4, 2), np.float32)
    agree(contract.addmm, torch.addmm, nan, a, b, beta=0, alpha=0.5)
    agree(contract.addmm, torch.addmm, a[:, :2], a, b, beta=0.5, alpha=2)
    i = np.arange(4).reshape(2, 2)
    agree(contract.addmm, torch.addmm, i, i, i, beta=2, alpha=3)
    with pytest.raises(DTypeError, match=r"addmm: got factors 1 and 0\.5 for i64"):
        contract.addmm(*map(tensorlib.from_numpy, (i, i, i)), alpha=0.5)


@given(st.data())
@few(10)
def test_tensordot(data):
    x, y = draw(data, (2, 3, 4)), draw(data, (4, 3, 5))
    dims = data.draw(st.sampled_from([1, ([1, 2], [1, 0]), ([-1], [0]), ([1], [1]), 0]))
    agree(contract.tensordot, torch.tensordot, x, y, dims, scale=9 * 12)
    agree_gradients(contract.tensordot, torch.tensordot, x, y, dims)


@given(st.data())
@few(6)
def test_cross_and_vecdot(data):
    x, y = draw(data, (2, 3, 4)), draw(data, (2, 3, 4))
    agree(contract.cross, torch.linalg.cross, x, y, dim=1, scale=18)
    agree(contract.cross, torch.linalg.cross, x[..., :3], y[:1, :, :3], dim=-1, scale=18)
    agree(contract.vecdot, torch.linalg.vecdot, x, y[:1], dim=1, scale=27)
    agree_gradients(lambda a, b: contract.cross(a, b, 1), lambda a, b: torch.linalg.cross(a, b, dim=1), x, y)
    assert np.allclose(OPS["cross"].ref(np, x, y, dim=1), contract.cross(*map(tensorlib.from_numpy, (x, y))), atol=1e-4)


@given(st.data())
@few(8)
def test_diagonals(data):
    k = data.draw(st.integers(-2, 2))
    x, v = draw(data, (3, 4)), draw(data, (3,))
    agree(contract.diag, torch.diag, x, k)
    agree(contract.diag, torch.diag, v, k)
    agree(contract.trace, torch.trace, x, scale=9)
    dims = data.draw(st.sampled_from([(-2, -1), (0, 2), (2, 0), (1, 0)]))
    agree(contract.diag_embed, torch.diag_embed, x, k, *dims)
    agree_gradients(lambda a: contract.diag_embed(a, k, *dims), lambda a: torch.diag_embed(a, k, *dims), x)
    agree_gradients(contract.trace, torch.trace, x)
    y = tensorlib.from_numpy(np.array(x))
    contract.diag(y).fill_(9)
    assert np.array_equal(y.numpy(), x)  # a copy, as in PyTorch


@given(st.data())
@few(4)
def test_bilinear(data):
    arrays = [draw(data, s) for s in ((5, 2), (5, 3), (4, 2, 3), (4,))]
    agree(contract.bilinear, F.bilinear, *arrays, scale=27 * 6)
    agree_gradients(contract.bilinear, F.bilinear, *arrays)


def test_errors():
    x, v = tensorlib.zeros(2, 3), tensorlib.zeros(3)
    for name, arguments in {
        "outer": (x, v), "dot": (x, v), "mv": (v, v), "mm": (x, v), "bmm": (x, x), "trace": (v,),
        "cross": (x, v[:2].expand(2, 2)), "diag": (tensorlib.zeros(1, 1, 1),), "addmm": (tensorlib.zeros(5), x, x.T),
        "tensordot": (x, x.T), "diag_embed": (tensorlib.tensor(1.0),),
    }.items():  # fmt: skip
        with pytest.raises(ShapeError):
            getattr(contract, name)(*arguments)
    with pytest.raises(ShapeError, match="bmm: got shapes"):
        contract.bmm(tensorlib.zeros(2, 3, 3), tensorlib.zeros(1, 3, 3))


def test_methods_and_names():
    x = tensorlib.arange(4, dtype="f32").reshape(2, 2)
    assert x.mm(x).tolist() == tensorlib.einsum("ij,jk", x, x).tolist() == (x @ x).tolist()
    assert x.trace().item() == 3 and x[0].outer(x[1]).shape == (2, 2) and x.diag().tolist() == [0, 3]
