"""Rows of special.py against NumPy, PyTorch and 30 digits of mpmath; composites against PyTorch."""

import math

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib import dtype as D
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import special
from tensorlib.registry import OPS
from tests.ops.cases import assert_close, few, operands, tensors, values, wide
from tests.ops.parity import agree, agree_gradients, draw

# units in the last place, measured at 40 digits when the functions were written (kernels_numba/special.py)
ROWS = {"sinc": 3, "selu": 3, "celu": 3, "hypot": 2, "logaddexp": 2, "logaddexp2": 2, "xlogy": 3, "fmax": 0, "fmin": 0}


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", ROWS)
@given(st.data())
@few(8)
def test_rows(name, dtype, data):
    op = OPS[name]
    arrays = data.draw(operands([dtype] * op.arity, op.domain, special=name not in ("celu", "selu")))
    with np.errstate(all="ignore"):
        want = op.ref(np, *map(wide, arrays))
    if name == "xlogy" and dtype == "f32":  # log of a denormal keeps its bits in neither
        want = np.where(np.abs(arrays[1]) < 1e-37, np.nan, want)
    found = getattr(special, "_celu" if name == "celu" else name)(*tensors(arrays))
    if name == "xlogy":
        tiny = np.broadcast_to(np.abs(wide(arrays[1])) < 1e-37, want.shape)
        found, want = tensorlib.from_numpy(np.where(tiny, 0, found.numpy())), np.where(tiny, 0, want)
    larger = max((np.abs(wide(a)).max(initial=0, where=np.isfinite(a)) for a in arrays), default=0)
    extra = 2.0 ** (-53 if dtype == "f64" else -24) * larger if "logadd" in name else 0.0
    assert_close(found, want, dtype, ROWS[name] + (3 if dtype == "f64" else 0), extra)


EXACT = {"lgamma": lambda x: mpmath.re(mpmath.loggamma(x)), "digamma": mpmath.digamma, "erfinv": mpmath.erfinv}
RANGES = {"lgamma": (-30, 60), "digamma": (-30, 60), "erfinv": (-1, 1)}


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", EXACT)
def test_gamma_and_inverse_error_functions(name, dtype):
    rng = np.random.default_rng(3)
    low, high = RANGES[name]
    x = np.concatenate([rng.uniform(low, high, 300), np.exp(rng.uniform(-30, 0, 50)), 1 + rng.normal(size=20) * 1e-3])
    x = np.clip(x, low + 1e-3, high - 2.0**-20).astype(D.get(dtype).numpy_dtype())
    x = x[np.abs(x - np.round(x)) > 1e-6] if low < -1 else x
    with mpmath.workdps(30):
        want = np.array([float(EXACT[name](mpmath.mpf(float(v)))) for v in x])
    # where the function is small by cancellation its error is that of terms of size 1 to 30
    assert_close(getattr(special, name)(tensorlib.from_numpy(x)), want, dtype, 6, 2.0**-48 if name != "erfinv" else 0)


def test_special_points():
    inf, nan = float("inf"), float("nan")
    x = tensorlib.tensor([0.0, -0.0, -1.0, -2.0, 1.0, 2.0, inf, -inf, nan], dtype="f64")
    assert special.lgamma(x).tolist()[:8] == [inf, inf, inf, inf, 0, 0, inf, inf] and special.lgamma(x)[8].isnan()
    assert special.digamma(x).tolist()[:2] == [-inf, inf] and special.digamma(x)[6].item() == inf
    assert special.digamma(x)[tensorlib.tensor([2, 3, 7, 8])].isnan().all()
    e = special.erfinv(tensorlib.tensor([1.0, -1.0, 0.0, 1.5, nan]))
    assert e.tolist()[:3] == [inf, -inf, 0] and e[3:].isnan().all()
    assert special.sinc(tensorlib.tensor([0.0, 1.0, -2.0, inf])).tolist() == [1, 0, 0, 0]
    assert special.hypot(tensorlib.tensor([inf, 3e38, nan, 1e-40]), tensorlib.tensor([nan, 0.0, 1.0, 0.0])).tolist()[
        :2
    ] == [inf, float(np.float32(3e38))]
    assert special.logaddexp(tensorlib.tensor([inf, -inf, 1e4]), tensorlib.tensor([inf, -inf, 1e4])).tolist() == [
        inf,
        -inf,
        float(np.float32(1e4 + math.log(2))),
    ]
    pairs = tensorlib.tensor([nan, 1.0, nan]), tensorlib.tensor([2.0, nan, nan])
    assert special.fmax(*pairs).tolist()[:2] == [2, 1] and special.fmin(*pairs)[2].isnan()
    h = special.heaviside(tensorlib.tensor([-3.0, 0.0, 5.0, nan]), tensorlib.tensor(0.5))
    assert h.tolist() == [0, 0.5, 1, 0]
    assert special.signbit(tensorlib.tensor([-0.0, 0.0, -1.0])).tolist() == [True, False, True]
    assert special.signbit(tensorlib.tensor([True])).tolist() == [False]


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_nextafter(dtype):
    values = [0.0, -0.0, 1.0, -1.0, 1e-40, -5e-324, float("inf"), -float("inf"), 3.4e38, float("nan")]
    with np.errstate(over="ignore"):
        x, y = (a.ravel().astype(D.get(dtype).numpy_dtype()) for a in np.meshgrid(values, values))
        want = np.nextafter(x, y)
    found = special.nextafter(*tensors([x, y])).numpy()
    assert np.array_equal(found, want, equal_nan=True)
    assert np.array_equal(np.signbit(found[found == 0]), np.signbit(want[found == 0]))


@pytest.mark.parametrize("dtype", ["i64", "u8"])
@pytest.mark.parametrize("name", ["gcd", "lcm", "fmax", "heaviside"])
@given(st.data())
@few(5)
def test_integers(name, dtype, data):
    low = 0 if dtype[0] == "u" else -15
    x, y = (values(data.draw, dtype, 40, (low, 15)) for _ in range(2))
    assert np.array_equal(getattr(special, name)(*tensors([x, y])).numpy(), OPS[name].ref(np, x, y))


COMPOSITES = {
    "relu6": F.relu6, "hardtanh": F.hardtanh, "softsign": F.softsign, "tanhshrink": F.tanhshrink,
    "hardshrink": F.hardshrink, "softshrink": F.softshrink, "deg2rad": torch.deg2rad, "rad2deg": torch.rad2deg,
    "frac": torch.frac, "logit": torch.logit, "relu2": lambda x: F.relu(x) ** 2,
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSITES)
@given(st.data())
@few(5)
def test_composites(name, data):
    x = draw(data, data.draw(st.sampled_from([(), (3, 5), (2, 0), (33,)])), domain=OPS[name].domain or (-9, 9))
    # the quotient's rounding counts up to u (1 + 1) absolutely in a logarithm, and x in the difference of tanhshrink
    agree(getattr(special, name), COMPOSITES[name], x, roundings=6, scale=9.0 if name in ("logit", "tanhshrink") else 0)
    if OPS[name].ref:
        with np.errstate(divide="ignore"):
            want = OPS[name].ref(np, wide(x))
        assert_close(getattr(special, name)(*tensors([x])), want, "f32", 3, 9 * 6 * 2.0**-24 if x.size else 0)


def test_composites_with_parameters():
    x = np.array([[-2.0, -0.5, 0.0], [0.4, 1.5, 3.0]], np.float32)
    agree(special.hardtanh, F.hardtanh, x, min_val=-0.5, max_val=2.0)
    agree(special.hardshrink, F.hardshrink, x, lambd=1.0)
    agree(special.softshrink, F.softshrink, x, lambd=0.25)
    agree(special.threshold, F.threshold, x, 0.5, 7.0)
    agree(special.celu, F.celu, x, alpha=0.7)
    agree(special.logit, torch.logit, np.abs(x) / 4, eps=0.25)
    agree(special.prelu, F.prelu, x, np.array([0.1, 0.2, 0.3], np.float32))
    agree(special.prelu, F.prelu, x[None, :, :, None], np.array([0.3], np.float32))
    agree(special.prelu, F.prelu, x[0], np.array([0.3], np.float32))
    odd = np.array([np.nan, np.inf, -np.inf, 2.0], np.float32)
    assert special.nan_to_num(tensorlib.from_numpy(odd)).tolist() == [0, *(s * D.info(D.f32)[1] for s in (1, -1)), 2]
    agree(special.nan_to_num, torch.nan_to_num, odd, 1.0, 2.0, 3.0)
    assert special.nan_to_num(tensorlib.tensor([3])).tolist() == [3]
    assert special.threshold(tensorlib.tensor([1, 5]), 2, 9).tolist() == [9, 5]
    assert special.hardshrink(tensorlib.tensor([float("nan")])).isnan().all()


def test_comparisons():
    inf, nan = float("inf"), float("nan")
    x = np.array([1.0, 1.0, inf, inf, nan, 0.0], np.float32)
    y = np.array([1.000001, 1.1, inf, -inf, nan, 1e-9], np.float32)
    for equal_nan in (False, True):
        found = special.isclose(*tensors([x, y]), equal_nan=equal_nan)
        assert found.tolist() == np.isclose(x, y, equal_nan=equal_nan).tolist()
    i = tensorlib.tensor([100, 2**62]), tensorlib.tensor([101, 2**62])
    assert special.isclose(*i, rtol=0.1).all() and special.isclose(*i).tolist() == [False, True]
    assert special.allclose(tensorlib.ones(3), tensorlib.ones(3) + 1e-7) is True
    assert special.equal(tensorlib.ones(3), tensorlib.ones(3, dtype="i64")) is True
    assert special.equal(tensorlib.ones(3), tensorlib.ones(1, 3)) is False
    assert special.equal(tensorlib.tensor([nan]), tensorlib.tensor([nan])) is False


GRADIENTS = {
    "sinc": torch.sinc, "selu": F.selu, "lgamma": torch.lgamma, "erfinv": torch.erfinv,
    "hypot": torch.hypot, "logaddexp": torch.logaddexp, "logaddexp2": torch.logaddexp2, "xlogy": torch.xlogy,
    "fmax": torch.fmax, "fmin": torch.fmin, "prelu": F.prelu, "celu": F.celu,
} | COMPOSITES  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name):
    rng = np.random.default_rng(5)
    low, high = (0.1, 0.9) if name in ("erfinv", "logit") else (0.2, 4.0) if name == "xlogy" else (-2.9, 2.9)
    x = rng.uniform(low, high, (3, 4))
    arrays = [x, rng.uniform(low, high, 4)] if OPS[name].arity == 2 and name != "celu" else [x]
    agree_gradients(getattr(special, name), GRADIENTS[name], *arrays)


def test_gradient_of_digamma():
    x = np.array([-2.75, -0.3, 0.01, 0.7, 1.5, 9.0, 60.0])
    leaf = tensorlib.from_numpy(x).requires_grad_()
    special.digamma(leaf).sum().backward()
    want = np.array([float(mpmath.psi(1, v)) for v in x])  # PyTorch's has 9 digits
    assert_close(leaf.grad, want, "f64", 16)


def test_gradients_at_corners():
    zero = np.zeros(2)
    agree_gradients(special.xlogy, torch.xlogy, zero, np.array([0.5, 2.0]))
    agree_gradients(special.sinc, torch.sinc, zero)
    agree_gradients(special.logaddexp, torch.logaddexp, zero, zero)


def test_errors():
    x = tensorlib.tensor([1.0, 2.0])
    with pytest.raises(DTypeError, match="nextafter: got dtype f16"):
        special.nextafter(x.to("f16"), x.to("f16"))
    with pytest.raises(DTypeError, match="gcd: got dtype f32"):
        special.gcd(x, x)
    with pytest.raises(DTypeError, match="frac: got dtype i64"):
        special.frac(tensorlib.tensor([1]))
    with pytest.raises(DTypeError, match="isclose: got f32 and f64"):
        special.isclose(x, x.to("f64"))
    with pytest.raises(ShapeError, match="softshrink: got lambd -1"):
        special.softshrink(x, -1)
    with pytest.raises(ShapeError, match="prelu: got weight of shape"):
        special.prelu(tensorlib.zeros(2, 3), tensorlib.zeros(2))


def test_methods_and_names():
    x = tensorlib.tensor([0.25, 0.75])
    assert tensorlib.erfinv(x).tolist() == x.erfinv().tolist() and x.isclose(x).all() and x.equal(x)
    assert tensorlib.hypot(x, 1.0).tolist() == x.hypot(1.0).tolist()
