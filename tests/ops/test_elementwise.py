"""Every elementwise row against its NumPy reference in float64, on drawn shapes, strides, values and dtypes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib import dtype as D
from tensorlib.errors import DeviceError, DTypeError, ShapeError
from tensorlib.ops import elementwise
from tensorlib.registry import OPS
from tensorlib.testing.rows import check_call
from tests.ops.cases import assert_close, few, operands, tensors, values, wide

ROWS = {n: op for n, op in OPS.items() if n in elementwise.NAMES and n not in ("where", "masked_fill")}
FLOATS = [n for n, op in ROWS.items() if "f" in op.rule.accepts]
INTS = [n for n, op in ROWS.items() if "i" in op.rule.accepts and "FLOAT" not in op.rule.name]
MATH = [n for n in FLOATS if ROWS[n].rule.name == "FLOAT"]
BOOLS = [n for n in INTS if "b" in ROWS[n].rule.accepts and n not in ("square", "sign")]


def function(name):
    return getattr(elementwise, name)


def reference(op, arrays):
    with np.errstate(all="ignore"):
        return op.ref(np, *arrays)


# every row in f32 and f64 is in test_rows.py; here what every dtype does, by one op of each kind: loads, stores and
# rounding of the dtype are seen
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f8e4m3", "f8e5m2"])
@pytest.mark.parametrize("name", ["exp", "add", "mul", "lt", "clamp"])
@given(st.data())
@few(10)
def test_narrow_floats_compute_in_f32_and_round_once(name, dtype, data):
    op = ROWS[name]
    arrays = data.draw(operands([dtype] * op.arity, op.domain))
    if name == "clamp":
        arrays = [np.where(np.isnan(a.astype(np.float32)), np.zeros_like(a), a) for a in arrays]
    assert check_call(op, arrays, {}, dtype)


INT_DOMAIN = {"pow": ((-9, 9), (0, 11)), "bitwise_left_shift": (None, (0, 7)), "bitwise_right_shift": (None, (0, 7))}
UNSIGNED_DOMAIN = INT_DOMAIN | {"pow": ((0, 9), (0, 11))}


SOME = ("neg", "add", "floor_divide", "remainder", "pow", "maximum", "bitwise_right_shift")


@pytest.mark.parametrize("name, dtype", [(n, d) for d in ("i64", "u8", "i32") for n in (INTS if d == "i64" else SOME)])
@given(st.data())
@few(10)
def test_integers_wrap_and_never_trap(name, dtype, data):
    op = ROWS[name]
    domains = (INT_DOMAIN if dtype[0] == "i" else UNSIGNED_DOMAIN).get(name)
    arrays = []
    for i in range(op.arity):
        domain = domains[i] if domains else None
        arrays += data.draw(
            operands([dtype], domain, max_dims=1).map(lambda a: [np.resize(a[0], 13).astype(a[0].dtype)])
        )
    want = reference(op, arrays)
    found = function(name)(*tensors(arrays))
    assert found.dtype is op.rule.apply(name, D.get(dtype))[1]
    assert np.array_equal(found.numpy(), want), (arrays, found, want)


@pytest.mark.parametrize("dtype", ["i8", "u16", "i16", "u32", "u64"])
@pytest.mark.parametrize("name", ["floor_divide", "lt"])
@given(st.data())
@few(10)
def test_every_integer_width(name, dtype, data):
    arrays = [values(data.draw, dtype, 33) for _ in range(2)]
    assert np.array_equal(function(name)(*tensors(arrays)).numpy(), reference(ROWS[name], arrays))


@pytest.mark.parametrize("name", BOOLS)
def test_bool(name):
    op = ROWS[name]
    arrays = [np.array(a) for a in ([False, False, True, True], [False, True, False, True], [True, False, True, False])]
    found = function(name)(*tensors(arrays[: op.arity]))
    assert np.array_equal(found.numpy(), reference(op, arrays[: op.arity]).astype(found.numpy().dtype))


def test_division_of_integers_by_zero_and_of_the_smallest_by_minus_one():
    x = tensorlib.tensor([7, -7, -(2**63), 0])
    assert (x // 0).tolist() == [0, 0, 0, 0] and (x % 0).tolist() == [0, 0, 0, 0]
    assert (x // -1).tolist() == [-7, 7, -(2**63), 0] and (x % -1).tolist() == [0, 0, 0, 0]
    assert (x / 2).dtype is D.f32


# ---- casts -----------------------------------------------------------------------------------------------------------

# every dtype to and from f32, and the conversions of other kinds once each
PAIRS = [(a, b) for a in D.ALL for b in D.ALL if a is not b and D.f32 in (a, b)]
PAIRS += [(D.i64, d) for d in (D.f64, D.bf16, D.u8, D.bool_)] + [(D.f16, D.bf16), (D.f64, D.i64), (D.f64, D.f8e4m3)]


@pytest.mark.parametrize("source, target", PAIRS, ids=lambda d: d.name)
@given(st.data())
@few(6)
def test_cast(source, target, data):
    array = values(data.draw, source.name, 37)
    found = tensorlib.from_numpy(array).to(target).numpy()
    exact = wide(array)
    with np.errstate(all="ignore"):
        if target.kind == "b":
            want = exact != 0
        elif source.kind == "f" and target.kind != "f":  # truncates, saturates, NaN is 0
            low, high = D.info(target)
            want = [0 if v != v else int(min(max(v, low), high)) for v in exact.tolist()]
            want = np.array([min(max(v, low), high) for v in want], target.numpy_dtype())
        elif target.kind == "f" and source.kind != "f" and target.name not in ("f32", "f64"):
            # through Python's pack, which rounds exactly once: NumPy goes through f32 for bf16
            want = np.frombuffer(D.pack([float(v) for v in exact.tolist()], target), target.numpy_dtype())
        else:
            want = array.astype(target.numpy_dtype())
    assert found.dtype == target.numpy_dtype()
    assert np.array_equal(found.astype(np.float64), want.astype(np.float64), equal_nan=True)
    assert (
        np.array_equal(np.signbit(found.astype(np.float64)), np.signbit(want.astype(np.float64)))
        or np.isnan(exact).any()
    )


@pytest.mark.parametrize("target", ["f16", "bf16", "f8e4m3", "f8e5m2"])
def test_f64_rounds_once_to_small_floats(target):
    # 1 + half a unit + 2**-40: through f32 the last term would vanish, and the tie go to even
    d = D.get(target)
    unit = 2.0 ** {"f16": -10, "bf16": -7, "f8e4m3": -3, "f8e5m2": -2}[target]
    x = tensorlib.tensor([1 + unit / 2 + 2.0**-40, 1 + unit / 2, -(1 + unit / 2 + 2.0**-40), 1e300, 0.0], dtype="f64")
    assert repr(x.to(d).tolist()) == repr(D.unpack(D.pack(x.tolist(), d), d))


@given(st.sampled_from(["f16", "bf16", "f8e4m3", "f8e5m2"]))
@few(4)
def test_every_small_float_survives_a_round_trip(name):
    d = D.get(name)
    bits = np.arange(1 << d.bits).astype(np.uint8 if d.bits == 8 else np.uint16)
    there = tensorlib.from_numpy(bits.view(d.numpy_dtype()))
    back = there.to("f32").to(d).numpy()
    assert np.array_equal(back.astype(np.float32), bits.view(d.numpy_dtype()).astype(np.float32), equal_nan=True)


# ---- promotion, scalars, in place ------------------------------------------------------------------------------------


def test_scalars_are_weak():
    x = tensorlib.tensor([1, 2, 3], dtype="i8")
    assert (x + 1).dtype is D.i8 and (x + 1.5).dtype is D.f32 and (x > 1.5).tolist() == [False, True, True]
    h = tensorlib.tensor([1.0], dtype="bf16")
    assert (h * 0.1).dtype is D.bf16 and (h * 0.1).item() == D.unpack(D.pack([0.1], D.bf16), D.bf16)[0]
    assert (
        (2 - x).tolist() == [1, 0, -1] and (1 / tensorlib.tensor([4.0])).item() == 0.25 and (2**x).tolist() == [2, 4, 8]
    )
    assert (tensorlib.tensor([1.0, 2.0], dtype="f16") + tensorlib.tensor(1.0)).dtype is D.f16  # 0-d is weak too
    assert (tensorlib.tensor([250], dtype="u8") + 10).tolist() == [4] and (
        tensorlib.tensor([3], dtype="u8") - 5
    ).item() == 254
    assert (x < 1000).all() and not (x == 2**70).any() and (x > -1000).all()
    with pytest.raises(DTypeError, match="add: got the number 1000 with dtype i8"):
        x + 1000


@pytest.mark.parametrize("pair", [("f16", "f32"), ("i32", "f32"), ("bf16", "f16"), ("u8", "i64")])
def test_mixed_dtypes(pair):
    a, b = (tensorlib.tensor([3, 0, 7], dtype=d) for d in pair)
    assert (a + b).dtype is D.promote(a.dtype, b.dtype) and (a + b).tolist() == [6, 0, 14]


@given(operands(["f32", "f32"], special=False))
@few(25)
def test_in_place_is_the_same_as_out_of_place(arrays):
    x, y = np.array(arrays[0]), arrays[1]
    if np.broadcast_shapes(x.shape, y.shape) != x.shape:
        with pytest.raises(ShapeError, match="in place cannot grow"):
            tensorlib.from_numpy(x).add_(tensorlib.from_numpy(y))
        return
    want = x + y
    t = tensorlib.from_numpy(x)
    t += tensorlib.from_numpy(y)
    assert np.array_equal(x, want)


def test_in_place_with_overlap_copies_first():
    x = tensorlib.arange(10, dtype="f32")
    x[1:] += x[:-1]
    assert x.tolist() == [0, 1, 3, 5, 7, 9, 11, 13, 15, 17]
    x = tensorlib.arange(9, dtype="f32").reshape(3, 3)
    x += x.T
    assert x.tolist() == [[0, 4, 8], [4, 8, 12], [8, 12, 16]]
    x = tensorlib.arange(4)
    x[:] = x.flip(0)
    assert x.tolist() == [3, 2, 1, 0]


def test_where_and_masked_fill():
    x = tensorlib.tensor([[1.0, -2.0], [float("nan"), 4.0]])
    assert elementwise.where(x > 0, x, 0).tolist() == [[1, 0], [0, 4]]
    assert elementwise.where(x > 0, tensorlib.tensor([1, 2]), 0.5).dtype is D.f32
    assert x.masked_fill(x.isnan(), -1.0).tolist() == [[1, -2], [-1, 4]]
    with pytest.raises(DTypeError, match="where: got a condition of dtype f32"):
        elementwise.where(x, 1, 2)


def test_errors():
    x = tensorlib.zeros(2, 3)
    with pytest.raises(ShapeError, match=r"add: got shapes \(2, 3\) and \(4,\)"):
        x + tensorlib.zeros(4)
    with pytest.raises(DTypeError, match="bitwise_and: got dtype f32"):
        x & 1
    with pytest.raises(DTypeError, match="neg: got dtype bool"):
        -tensorlib.tensor([True])
    with pytest.raises(DTypeError, match="a str"):
        elementwise.add(x, "1")
    with pytest.raises(TypeError):
        x + "1"
    with pytest.raises(ShapeError, match="share memory"):
        tensorlib.zeros(1).expand(3).add_(1)
    with pytest.raises(DTypeError, match="a f32 result for a tensor of i64"):
        tensorlib.tensor([1]).add_(0.5)
    with pytest.raises(DTypeError, match="integers to the power -1"):
        tensorlib.tensor([2]) ** -1
    with pytest.raises(DeviceError):
        x.to("cuda")


@pytest.mark.parametrize("n", [1, 63, 64, 65, 70_000, 200_001])
def test_sizes_around_the_thread_and_vector_boundaries(n):
    x = np.linspace(-4, 4, n, dtype=np.float32)
    assert_close(tensorlib.from_numpy(x).exp(), np.exp(x.astype(np.float64)), "f32", 2)
    y = tensorlib.from_numpy(x)[::-1] + tensorlib.from_numpy(x)
    assert np.array_equal(y.numpy(), x[::-1] + x)


def test_many_dims():
    x = np.arange(2**8, dtype=np.float32).reshape((2,) * 8)
    a, b = x.transpose(7, 1, 5, 3, 4, 2, 6, 0), x[::-1, :, ::-1].transpose(0, 2, 1, 3, 7, 5, 4, 6)
    assert np.array_equal((tensorlib.from_numpy(a) + tensorlib.from_numpy(b)).numpy(), a + b)
