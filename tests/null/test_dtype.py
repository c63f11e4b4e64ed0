"""The dtype table and promotion, against NumPy and ml_dtypes (and PyTorch where it is installed)."""

import pickle
import subprocess
import sys

import pytest

from tensorlib import dtype as D
from tensorlib.errors import DTypeError


@pytest.mark.parametrize("d", D.ALL, ids=str)
def test_rows_match_numpy(d):
    found = d.numpy_dtype()
    assert found.itemsize == d.itemsize
    assert D.get(found) is d and D.get(found.type) is d and D.get(str(found)) is d and D.get(d.name) is d
    assert pickle.loads(pickle.dumps(d)) is d


@pytest.mark.parametrize("d", D.ALL, ids=str)
def test_info_matches_ml_dtypes(d):
    import ml_dtypes

    low, high = D.info(d)
    if d.kind == "f":
        found = ml_dtypes.finfo(d.numpy_dtype())
    else:
        found = ml_dtypes.iinfo(d.numpy_dtype()) if d.kind != "b" else None
    if found is not None:
        assert (float(found.min), float(found.max)) == (float(low), float(high))


def test_promotion_is_a_commutative_lattice():
    for a in D.ALL:
        for b in D.ALL:
            if D.u64 in (a, b) and "i" in a.kind + b.kind:
                with pytest.raises(DTypeError, match="promote: got"):
                    D.promote(a, b)
                continue
            joined = D.promote(a, b)
            assert joined is D.promote(b, a)
            assert D.promote(a, joined) is joined
            if a is b:
                assert joined is a


# PyTorch's table, written out from its documentation of torch.result_type.
TORCH = {
    ("u8", "i8"): "i16", ("u8", "i16"): "i16", ("u8", "i64"): "i64", ("bool", "u8"): "u8", ("i8", "i32"): "i32",
    ("i64", "f16"): "f16", ("i64", "bf16"): "bf16", ("f16", "bf16"): "f32", ("f16", "f32"): "f32",
    ("bf16", "f64"): "f64", ("bool", "f16"): "f16", ("u64", "f32"): "f32", ("bool", "u64"): "u64",
}  # fmt: skip


@pytest.mark.parametrize("pair", TORCH, ids="-".join)
def test_promotion_known(pair):
    assert D.promote(D.get(pair[0]), D.get(pair[1])) is D.get(TORCH[pair])


def test_promotion_matches_torch():
    torch = pytest.importorskip("torch")
    for a in D.ALL:
        for b in D.ALL:
            try:
                want = torch.promote_types(getattr(torch, a.torch), getattr(torch, b.torch))
            except (RuntimeError, AttributeError):
                continue  # PyTorch refuses: our extension
            assert D.promote(a, b) is D.get(want), (a, b)


def test_weak_scalars():
    assert D.promote(D.u8, 300) is D.u8
    assert D.promote(D.u8, 1.5) is D.f32
    assert D.promote(D.bool_, True) is D.bool_
    assert D.promote(D.bool_, 2) is D.i64
    assert D.promote(D.bf16, 2.5) is D.bf16
    assert D.promote(1, 2.5) is D.f32
    assert D.result_type([D.f16], [D.f64], [1]) is D.f16
    assert D.result_type([D.i8], [D.i64]) is D.i8
    assert D.result_type([D.i8], [D.f64]) is D.f64
    assert D.result_type([], [D.i8, D.f16], [3.0]) is D.f16


def test_errors():
    with pytest.raises(DTypeError, match="one of bool, u8"):
        D.get("float128")
    with pytest.raises(DTypeError):
        D.of_scalar("3")
    with pytest.raises(AttributeError):
        D.f32.name = "other"


def test_import_is_light():
    code = (
        "import sys, tensorlib, tensorlib.dtype, tensorlib.layout\n"
        "heavy = {'numpy', 'numba', 'llvmlite', 'torch', 'triton', 'ml_dtypes'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
