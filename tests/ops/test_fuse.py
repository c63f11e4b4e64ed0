"""Fused chains give what their ops one by one do, in one launch; what cannot be fused says what it is."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib import backend
from tensorlib.errors import DTypeError, FuseError, ShapeError
from tensorlib.ops import _launch
from tensorlib.testing import assert_close, few

CHAINS = {
    "affine": (2, lambda x, y: (x * y + 1).silu()),
    "gelu": (2, lambda x, y: tensorlib.gelu(x) * y - 0.5),
    "masked": (3, lambda x, y, z: tensorlib.where((x > y) & (z <= 0), x - z, -y)),
    "bounded": (2, lambda x, y: x.clamp(-1, 1) / (y.abs() + 1).sqrt()),
    "shared": (1, lambda x: (x.tanh() + 1) * x.tanh() + x.tanh() ** 2),
    "flags": (2, lambda x, y: (x > 0) * y + x.isnan().float()),
    "softplus": (1, lambda x: tensorlib.softplus(x, beta=2.0, threshold=3.0)),
    "filled": (2, lambda x, y: x.masked_fill(y > 0, -math.inf).exp()),
}


class Count:
    """How many kernels were launched."""

    def __init__(self):
        self.launches = 0

    def add(self, *_):
        self.launches += 1

    def __enter__(self):
        self.before = backend.set_recorder(self)
        return self

    def __exit__(self, *_):
        backend.set_recorder(self.before)


def arrays(rng, count, dtype="f32"):
    """Operands of shapes that broadcast to (3, 4, 5), some of them transposed or with steps."""
    shapes = [(3, 4, 5), (4, 5), (4, 1), (3, 1, 5), (), (1,)]
    found = []
    for shape in [shapes[0], *(shapes[i] for i in rng.integers(0, len(shapes), count - 1))]:
        wide = tensorlib.from_numpy(rng.standard_normal((*shape[:-1], 2 * shape[-1]) if shape else ()))
        found.append(wide.to(dtype)[..., ::2] if shape else wide.to(dtype))
    return found


@pytest.mark.parametrize("name", CHAINS)
@given(seed=st.integers(0, 2**32 - 1))
@few(5)
def test_a_chain_gives_what_its_ops_do(name, seed):
    count, chain = CHAINS[name]
    fused = FUSED[name]
    operands = arrays(np.random.default_rng(seed), count)
    want = chain(*operands)
    with Count() as counted:
        found = fused(*operands)
    assert counted.launches == 1
    assert found.dtype is want.dtype
    # the ops are the same functions in f32; LLVM may contract a product and a sum that meet now: one rounding of either
    terms = 1 + sum(float(abs(x.nan_to_num()).max()) for x in operands) ** 2
    assert_close(found, want.numpy().astype(np.float64), ulps=4, absolute=4 * 2.0**-24 * terms)


FUSED = {name: tensorlib.fuse(chain) for name, (_, chain) in CHAINS.items()}


def test_between_the_ops_nothing_is_rounded():
    fused = tensorlib.fuse(lambda x, y: x * y - x)
    x, y = tensorlib.tensor([1000.5], dtype="f16"), tensorlib.tensor([1.001], dtype="f16")
    exact = float(x) * float(y) - float(x)
    assert fused(x, y).dtype is tensorlib.f16
    assert float(fused(x, y)) == float(np.float16(exact)) != float(x * y - x)


def test_floats_are_operands_and_the_rest_is_traced_anew():
    traced = []

    def chain(x, scale, power=1):
        traced.append(power)
        return x**power * scale

    fused = tensorlib.fuse(chain)
    x = tensorlib.tensor([1.0, 2.0])
    assert fused(x, 2.0).tolist() == [2, 4]
    assert fused(x, 3.0).tolist() == [3, 6]
    assert fused(x, 3.0, power=3).tolist() == [3, 24]
    assert fused(x.to("f64"), 0.1).tolist() == [0.1, 0.2]
    assert traced == [1, 3, 1]


def test_dtypes_are_those_of_the_ops():
    x, n, b = tensorlib.tensor([1.5, -2.0]), tensorlib.tensor([3, 4]), tensorlib.tensor([True, False])
    assert tensorlib.fuse(lambda x, n: x * n)(x, n).tolist() == [4.5, -8]
    assert tensorlib.fuse(lambda n: n.sqrt())(n).dtype is tensorlib.f32
    found = tensorlib.fuse(lambda x, b: (x > 0) & ~b)(x, b)
    assert (found.dtype, found.tolist()) == (tensorlib.bool, [False, False])
    found = tensorlib.fuse(lambda x: (x * 2).to("i8"))(x * 100)
    assert (found.dtype, found.tolist()) == (tensorlib.i8, [127, -128])
    half = tensorlib.fuse(lambda x, s: x + s)(x.half(), tensorlib.tensor(1.0))
    assert half.dtype is tensorlib.f16
    assert tensorlib.fuse(lambda x: (x / 3).to("f16"))(x).dtype is tensorlib.f16


def test_custom_expressions_are_fused_too():
    bump = tensorlib.custom.elementwise("exp(-x * x) * y")
    fused = tensorlib.fuse(lambda x, y: bump(x - 1, y) + 1)
    x, y = tensorlib.tensor([1.0, 3.0]), tensorlib.tensor(2.0)
    np.testing.assert_allclose(fused(x, y).numpy(), 2 * np.exp(-np.array([0.0, 4.0])) + 1, rtol=1e-6)


def test_a_fused_function_may_call_another():
    inner = tensorlib.fuse(lambda x, y: x * y + 1)
    outer = tensorlib.fuse(lambda x, y: inner(x, y).abs())
    with Count() as counted:
        found = outer(tensorlib.tensor([2.0, 3.0]), tensorlib.tensor(-1.0))
    assert (found.tolist(), counted.launches) == ([1, 2], 1)


def test_gradients_come_from_the_ops_one_by_one():
    fused = tensorlib.fuse(lambda x, y: (x * y).sigmoid())
    x = tensorlib.tensor([0.5, -1.0], requires_grad=True)
    y = tensorlib.tensor([2.0, 3.0])
    fused(x, y).sum().backward()
    s = 1 / (1 + np.exp(-np.array([1.0, -3.0])))
    np.testing.assert_allclose(x.grad.numpy(), s * (1 - s) * y.numpy(), rtol=1e-5)
    with tensorlib.no_grad(), Count() as counted:
        fused(x, y)
    assert counted.launches == 1


OUTSIDE = [1.0, 2.0]
REFUSED = {
    "sum": lambda x: x / x.sum(),
    "softmax": lambda x: tensorlib.softmax(x, dim=0) + 1,
    "cumsum": lambda x: tensorlib.cumsum(x, 0),
    "an element": lambda x: x if x > 0 else -x,
    "add_": lambda x: x.add_(1),
    "add: got a tensor that is no argument": lambda x: x + tensorlib.tensor(OUTSIDE),
    "returns tuple": lambda x: (x, x),
    "returns float": lambda x: 1.0,
    "exp: got what was converted": lambda x: x.to("i32").exp(),
    "bitwise_and: got dtype f32": lambda x: x & 3,
}


def test_arguments_without_a_hash_are_refused():
    with pytest.raises(FuseError, match="without a hash"):
        tensorlib.fuse(lambda x, options: x)(tensorlib.tensor([1.0]), [])


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_fused_is_named(words):
    with pytest.raises(DTypeError, match=words):
        tensorlib.fuse(REFUSED[words])(tensorlib.tensor(OUTSIDE))
    assert _launch.tracers == 0


def test_integers_alone_are_not_fused():
    with pytest.raises(FuseError, match="add: got arithmetic in i64"):
        tensorlib.fuse(lambda n: (n + 1) * 0.5)(tensorlib.tensor([1, 2]))


def test_shapes_must_broadcast_and_empty_ones_give_empty_results():
    fused = tensorlib.fuse(lambda x, y: x + y)
    with pytest.raises(ShapeError, match="fuse"):
        fused(tensorlib.zeros(2), tensorlib.zeros(3))
    assert fused(tensorlib.zeros((0, 3)), tensorlib.zeros(3)).shape == (0, 3)
