"""The standard's namespace: names and signatures, dtypes and promotion, what it says of itself, creation."""

import inspect
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib import array_api as xp
from tensorlib.errors import DTypeError, ShapeError
from tests.ops.cases import few

INTEGERS = "int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()
NAMES = ["bool", *INTEGERS, "float32", "float64"]

# ---- names and signatures of the standard, version 2024.12 -----------------------------------------------------------

UNARY = (
    "abs acos acosh asin asinh atan atanh bitwise_invert ceil conj cos cosh exp expm1 floor imag isfinite isinf isnan"
    " log log10 log1p log2 logical_not negative positive real reciprocal round sign signbit sin sinh sqrt square tan"
    " tanh trunc matrix_transpose nonzero unique_all unique_counts unique_inverse unique_values"
)
BINARY = (
    "add atan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor copysign divide equal"
    " floor_divide greater greater_equal hypot less less_equal logaddexp logical_and logical_or logical_xor maximum"
    " minimum multiply nextafter not_equal pow remainder subtract matmul"
)
SIGNATURES = """
__array_namespace_info__()
all(x, /, *, axis=None, keepdims=False)
any(x, /, *, axis=None, keepdims=False)
arange(start, /, stop=None, step=1, *, dtype=None, device=None)
argmax(x, /, *, axis=None, keepdims=False)
argmin(x, /, *, axis=None, keepdims=False)
argsort(x, /, *, axis=-1, descending=False, stable=True)
asarray(obj, /, *, dtype=None, device=None, copy=None)
astype(x, dtype, /, *, copy=True, device=None)
broadcast_arrays(*arrays)
broadcast_to(x, /, shape)
can_cast(from_, to, /)
clip(x, /, min=None, max=None)
concat(arrays, /, *, axis=0)
count_nonzero(x, /, *, axis=None, keepdims=False)
cumulative_prod(x, /, *, axis=None, dtype=None, include_initial=False)
cumulative_sum(x, /, *, axis=None, dtype=None, include_initial=False)
diff(x, /, *, axis=-1, n=1, prepend=None, append=None)
empty(shape, *, dtype=None, device=None)
empty_like(x, /, *, dtype=None, device=None)
expand_dims(x, /, axis)
eye(n_rows, n_cols=None, /, *, k=0, dtype=None, device=None)
finfo(type, /)
flip(x, /, *, axis=None)
from_dlpack(x, /, *, device=None, copy=None)
full(shape, fill_value, *, dtype=None, device=None)
full_like(x, /, fill_value, *, dtype=None, device=None)
iinfo(type, /)
isdtype(dtype, kind)
linspace(start, stop, /, num, *, dtype=None, device=None, endpoint=True)
max(x, /, *, axis=None, keepdims=False)
mean(x, /, *, axis=None, keepdims=False)
meshgrid(*arrays, indexing='xy')
min(x, /, *, axis=None, keepdims=False)
moveaxis(x, source, destination, /)
ones(shape, *, dtype=None, device=None)
ones_like(x, /, *, dtype=None, device=None)
permute_dims(x, /, axes)
prod(x, /, *, axis=None, dtype=None, keepdims=False)
repeat(x, repeats, /, *, axis=None)
reshape(x, /, shape, *, copy=None)
result_type(*arrays_and_dtypes)
roll(x, /, shift, *, axis=None)
searchsorted(x1, x2, /, *, side='left', sorter=None)
sort(x, /, *, axis=-1, descending=False, stable=True)
squeeze(x, /, axis)
stack(arrays, /, *, axis=0)
std(x, /, *, axis=None, correction=0.0, keepdims=False)
sum(x, /, *, axis=None, dtype=None, keepdims=False)
take(x, indices, /, *, axis=None)
take_along_axis(x, indices, /, *, axis=-1)
tensordot(x1, x2, /, *, axes=2)
tile(x, repetitions, /)
tril(x, /, *, k=0)
triu(x, /, *, k=0)
unstack(x, /, *, axis=0)
var(x, /, *, axis=None, correction=0.0, keepdims=False)
vecdot(x1, x2, /, *, axis=-1)
where(condition, x1, x2, /)
zeros(shape, *, dtype=None, device=None)
zeros_like(x, /, *, dtype=None, device=None)
linalg.cholesky(x, /, *, upper=False)
linalg.cross(x1, x2, /, *, axis=-1)
linalg.det(x, /)
linalg.diagonal(x, /, *, offset=0)
linalg.eigh(x, /)
linalg.eigvalsh(x, /)
linalg.inv(x, /)
linalg.matmul(x1, x2, /)
linalg.matrix_norm(x, /, *, keepdims=False, ord='fro')
linalg.matrix_power(x, n, /)
linalg.matrix_rank(x, /, *, rtol=None)
linalg.matrix_transpose(x, /)
linalg.outer(x1, x2, /)
linalg.pinv(x, /, *, rtol=None)
linalg.qr(x, /, *, mode='reduced')
linalg.slogdet(x, /)
linalg.solve(x1, x2, /)
linalg.svd(x, /, *, full_matrices=True)
linalg.svdvals(x, /)
linalg.tensordot(x1, x2, /, *, axes=2)
linalg.trace(x, /, *, offset=0, dtype=None)
linalg.vecdot(x1, x2, /, *, axis=-1)
linalg.vector_norm(x, /, *, axis=None, keepdims=False, ord=2)
""".split("\n")[1:-1]
SIGNATURES += [f"{name}(x, /)" for name in UNARY.split()] + [f"{name}(x1, x2, /)" for name in BINARY.split()]

OPERATORS = "add and floordiv lshift matmul mod mul or pow rshift sub truediv xor".split()
METHODS = [f"__{way}{name}__(other, /)" for name in OPERATORS for way in ("", "r", "i")]
METHODS += [f"__{name}__(other, /)" for name in ("eq", "ge", "gt", "le", "lt", "ne")]
METHODS += [f"__{name}__()" for name in "abs bool complex dlpack_device float index int invert neg pos".split()]
METHODS += [
    "__array_namespace__(*, api_version=None)",
    "__dlpack__(*, stream=None, max_version=None, dl_device=None, copy=None)",
    "__getitem__(key, /)",
    "__setitem__(key, value, /)",
    "to_device(device, /, *, stream=None)",
]


def test_every_function_has_the_standards_signature():
    wrong = []
    for line in SIGNATURES:
        path = line.partition("(")[0]
        found = xp
        for name in path.split("."):
            assert hasattr(found, name), f"{path} is missing"
            found = getattr(found, name)
        wrong += [] if f"{path}{inspect.signature(found)}" == line else [f"{path}{inspect.signature(found)}"]
        assert found.__doc__ and found.__name__ == path.split(".")[-1]
    assert not wrong
    assert set(xp.__all__) - {"NDArray", "complex64", "complex128", *NAMES} == {
        *(line.partition("(")[0] for line in SIGNATURES if not line.startswith("linalg.")),
        *"__array_api_version__ e inf linalg nan newaxis pi".split(),
    }


def test_every_method_has_the_standards_signature():
    x = xp.ones(())
    found = [f"{name}{inspect.signature(getattr(x, name))}" for name in (m.partition("(")[0] for m in METHODS)]
    assert found == METHODS
    for name in "T mT device dtype ndim shape size".split():
        assert not callable(getattr(xp.ones((2, 2)), name))


def test_constants():
    assert (xp.e, xp.pi, xp.inf, xp.newaxis) == (math.e, math.pi, math.inf, None) and math.isnan(xp.nan)
    assert xp.__array_api_version__ == "2024.12"


def test_info():
    info = xp.__array_namespace_info__()
    assert info.capabilities() == {
        "boolean indexing": True,
        "data-dependent shapes": True,
        "max dimensions": None,
    }
    assert info.devices() == [info.default_device()] == [xp.ones(1).device]
    defaults = info.default_dtypes(device=info.default_device())
    assert set(defaults) == {"real floating", "complex floating", "integral", "indexing"}
    assert defaults["real floating"] is xp.asarray(1.5).dtype and defaults["integral"] is xp.asarray(1).dtype
    assert defaults["indexing"] is xp.argmax(xp.ones(1)).dtype
    assert set(info.dtypes()) == set(NAMES) and info.dtypes(kind="complex floating") == {}
    assert set(info.dtypes(kind=("bool", "signed integer"))) == {"bool", "int8", "int16", "int32", "int64"}
    assert info.dtypes(kind="real floating") == {"float32": xp.float32, "float64": xp.float64}
    with pytest.raises(DTypeError, match="kind 'odd'"):
        info.dtypes(kind="odd")


# ---- dtypes ----------------------------------------------------------------------------------------------------------


def test_promotion_is_numpys():
    for a in NAMES:
        for b in NAMES:
            want = np.promote_types(a, b)
            same_kind = (a in INTEGERS) == (b in INTEGERS) and (a == "bool") == (b == "bool")
            if not same_kind:
                continue  # the standard leaves it open
            if want == np.float64 and a in INTEGERS:
                with pytest.raises(DTypeError):
                    xp.result_type(getattr(xp, a), getattr(xp, b))
                continue
            assert xp.result_type(getattr(xp, a), xp.ones(1, dtype=getattr(xp, b))) is getattr(xp, want.name)
            assert (xp.ones((), dtype=getattr(xp, a)) + xp.ones(3, dtype=getattr(xp, b))).dtype is getattr(
                xp, want.name
            )
            assert xp.can_cast(getattr(xp, a), getattr(xp, b)) == (want.name == b)


def test_operands_are_promoted():
    for a, b, want in (("int8", "uint8", "int16"), ("int8", "uint16", "int32"), ("int32", "uint32", "int64")):
        x, y = xp.asarray([-5], dtype=getattr(xp, a)), xp.asarray(7, dtype=getattr(xp, b))
        for found in (x + y, y + x, xp.where(x == 0, x, y), xp.concat([x, xp.reshape(y, (1,))])):
            assert found.dtype is getattr(xp, want)
        assert (x + y).tolist() == [2] and (x < y).tolist() == [True]
    assert (xp.ones((), dtype=xp.float64) + xp.ones(2)).dtype is xp.float64  # 0-d arrays count as any


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_weak(name):
    x = xp.ones(2, dtype=getattr(xp, name))
    number = True if name == "bool" else 1 if name in INTEGERS else 1.0
    assert (xp.equal(x, number).tolist(), xp.result_type(x, number)) == ([True, True], x.dtype)
    assert xp.where(x == number, x, number).dtype is xp.maximum(number, x).dtype is x.dtype
    if name != "bool":
        assert (x + 1).dtype is (1 - x).dtype is xp.result_type(1, x) is x.dtype
    with pytest.raises(TypeError):
        x + 1j
    with pytest.raises(DTypeError):
        xp.add(1, number)


def test_result_type_needs_a_dtype():
    for arguments in ((), (1, 2.0), (xp.int8, "a")):
        with pytest.raises(DTypeError):
            xp.result_type(*arguments)


def test_isdtype():
    kinds = {
        "bool": ["bool"],
        "signed integer": INTEGERS[:4],
        "unsigned integer": INTEGERS[4:],
        "integral": INTEGERS,
        "real floating": ["float32", "float64"],
        "complex floating": ["complex64", "complex128"],
        "numeric": [*INTEGERS, "float32", "float64", "complex64", "complex128"],
    }
    for name in [*NAMES, "complex64", "complex128"]:
        dtype = getattr(xp, name)
        for kind, members in kinds.items():
            assert xp.isdtype(dtype, kind) is (name in members)
        assert xp.isdtype(dtype, dtype) and xp.isdtype(dtype, (xp.int8, dtype)) and not xp.isdtype(dtype, ())
    with pytest.raises(DTypeError):
        xp.isdtype(xp.int8, "floats")
    with pytest.raises(DTypeError):
        xp.isdtype(tensorlib.f16, "real floating")


def test_finfo_and_iinfo_are_numpys():
    for name in ("float32", "float64"):
        found, want = xp.finfo(getattr(xp, name)), np.finfo(name)
        for field in ("bits", "eps", "max", "min", "smallest_normal"):
            assert getattr(found, field) == float(getattr(want, field))
        assert found.dtype is getattr(xp, name) and xp.finfo(xp.ones(1, dtype=found.dtype)) == found
    for name in INTEGERS:
        found, want = xp.iinfo(getattr(xp, name)), np.iinfo(name)
        assert (found.bits, found.max, found.min) == (want.bits, want.max, want.min)
    for function, dtype in ((xp.finfo, xp.int8), (xp.iinfo, xp.float32), (xp.finfo, xp.complex64)):
        with pytest.raises(DTypeError):
            function(dtype)


def test_astype():
    x = xp.asarray([0.0, 1.5, -2.5, math.nan])
    assert xp.astype(x, xp.bool).tolist() == [False, True, True, True]
    assert xp.astype(x[:3], xp.int16).tolist() == [0, 1, -2]
    assert xp.astype(x, xp.float32) is not x and xp.astype(x, xp.float32, copy=False, device=x.device) is x
    with pytest.raises(DTypeError, match="not implemented"):
        xp.astype(x, xp.complex64)


def test_complex_numbers_raise():
    calls = (
        lambda: xp.zeros(1, dtype=xp.complex64),
        lambda: xp.asarray([1j]),
        lambda: xp.result_type(xp.complex128, xp.float32),
        lambda: xp.sum(xp.ones(1), dtype=xp.complex64),
    )
    for call in calls:
        with pytest.raises(DTypeError, match="not implemented"):
            call()
    assert xp.asarray(2 + 0j).dtype is xp.float32  # a number that is not complex is none
    assert xp.complex64 != xp.complex128 and xp.complex64 == xp.complex64


# ---- creation --------------------------------------------------------------------------------------------------------


def equal(found, want):
    assert type(found) is xp.NDArray
    np.testing.assert_array_equal(found.numpy(), want, strict=True)


@pytest.mark.parametrize("obj", [1, True, 2.5, [1, 2], [[True], [False]], [], [[], []], (1, 2.5), [1, True]])
def test_asarray_of_numbers(obj):
    want = np.asarray(obj)
    equal(xp.asarray(obj), want.astype(np.float32) if want.dtype.kind == "f" else want)
    for name in ("int8", "uint64", "float64"):
        equal(xp.asarray(obj, dtype=getattr(xp, name)), want.astype(name))


def test_asarray_of_arrays():
    x = xp.asarray([[1, 2], [3, 4]])
    assert xp.asarray(x) is x is xp.asarray(x, copy=False) and xp.asarray(x, copy=True) is not x
    shared = xp.asarray(tensorlib.ones(2))
    assert type(shared) is xp.NDArray and shared.size == 2
    a = np.arange(3.0)
    xp.asarray(a)[0] = 7
    xp.asarray(a, copy=True)[1] = 7
    assert a.tolist() == [7, 1, 2]
    equal(xp.asarray([x[0, 0], x[1, 1]]), np.asarray([1, 4]))
    equal(xp.asarray([[x[0, 0], 2.5], [True, 0]], dtype=xp.float64), np.asarray([[1, 2.5], [1, 0]]))
    equal(xp.asarray(b"ab"), np.asarray([97, 98], np.uint8))
    equal(xp.asarray(memoryview(np.arange(4).reshape(2, 2))), np.arange(4).reshape(2, 2))
    equal(xp.asarray(np.float32(2.5)), np.asarray(2.5, np.float32))
    for obj, keywords in (([1], {"copy": False}), (a, {"copy": False, "dtype": xp.float32}), ([1, [2]], {})):
        with pytest.raises(ValueError):
            xp.asarray(obj, **keywords)
    for obj in (None, "a", np.float16(1)):
        with pytest.raises(TypeError):
            xp.asarray(obj)
    for obj, dtype in ((2**63, None), ([300], xp.uint8), ([-1], xp.uint64)):
        with pytest.raises(OverflowError):
            xp.asarray(obj, dtype=dtype)


@pytest.mark.parametrize("shape", [(), 3, (2, 3), (0,), (2, 0)])
def test_filled(shape):
    like = xp.asarray(np.zeros(shape, np.int16))
    equal(xp.zeros(shape), np.zeros(shape, np.float32))
    equal(xp.ones_like(like), np.ones(shape, np.int16))
    equal(xp.zeros_like(like, dtype=xp.bool), np.zeros(shape, bool))
    equal(xp.full_like(like, -7), np.full(shape, -7, np.int16))
    assert (xp.empty(shape).shape, xp.empty_like(like).dtype) == (np.zeros(shape).shape, xp.int16)
    for value in (True, 3, 2.5, -math.inf, 2**63 - 1):
        want = np.full(shape, value)
        equal(xp.full(shape, value), want.astype(np.float32) if want.dtype.kind == "f" else want)
    equal(xp.full(shape, 2**64 - 1, dtype=xp.uint64, device=like.device), np.full(shape, 2**64 - 1, np.uint64))


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-9, 9).filter(bool), st.sampled_from([1, 0.25]))
@few(60)
def test_arange(start, stop, step, scale):
    want = np.arange(start * scale, stop * scale, step * scale)
    equal(xp.arange(start * scale, stop * scale, step * scale), want.astype(np.float32) if scale != 1 else want)
    equal(xp.arange(stop * scale, dtype=xp.float64), np.arange(stop * scale, dtype=np.float64))


def test_arange_of_large_integers():
    top = 2**64 - 1
    equal(xp.arange(top - 3, top, dtype=xp.uint64), np.asarray([top - 3, top - 2, top - 1], np.uint64))
    with pytest.raises(OverflowError):
        xp.arange(0, 300, 100, dtype=xp.int8)
    with pytest.raises(ShapeError):
        xp.arange(0, 3, 0)


@pytest.mark.parametrize("endpoint", [True, False])
@pytest.mark.parametrize("num", [0, 1, 2, 7])
def test_linspace(num, endpoint):
    for start, stop in ((0, 1), (-2.5, 7.0), (3, -3), (5.0, 5.0)):
        found = xp.linspace(start, stop, num, endpoint=endpoint, dtype=xp.float64)
        np.testing.assert_allclose(found.numpy(), np.linspace(start, stop, num, endpoint), rtol=2e-16 * 8, atol=1e-15)
        if num:
            assert found[0] == start and (not endpoint or num == 1 or found[-1] == stop)
        closed = xp.linspace(start, stop, num + 1, dtype=xp.float64)
        assert endpoint or found.tolist() == closed[:-1].tolist()


def test_linspace_over_more_than_the_largest_float():
    found = xp.linspace(-1.7e308, 1.7e308, 5, dtype=xp.float64).tolist()
    assert found == pytest.approx([-1.7e308, -0.85e308, 0, 0.85e308, 1.7e308], rel=4 * 2.0**-53)


def test_eye_meshgrid_and_triangles():
    for rows, columns in ((3, None), (2, 4), (4, 2), (0, 3)):
        for k in (-5, -1, 0, 2, 9):
            equal(xp.eye(rows, columns, k=k, dtype=xp.int8), np.eye(rows, columns, k, np.int8))
    x = np.arange(24).reshape(2, 3, 4)
    for k in (-4, -1, 0, 2, 5):
        equal(xp.tril(xp.asarray(x), k=k), np.tril(x, k))
        equal(xp.triu(xp.asarray(x), k=k), np.triu(x, k))
    rows = [np.arange(n) for n in (2, 3, 4)]
    for indexing in ("xy", "ij"):
        for n in (1, 2, 3):
            found = xp.meshgrid(*map(xp.asarray, rows[:n]), indexing=indexing)
            for one, want in zip(found, np.meshgrid(*rows[:n], indexing=indexing), strict=True):
                equal(one, want)
    for arrays, indexing in (([xp.ones((2, 2))], "xy"), ([xp.ones(2)], "yx")):
        with pytest.raises(ShapeError):
            xp.meshgrid(*arrays, indexing=indexing)


def test_prebuild_calls_what_one_dtype_allows():
    from tensorlib.array_api.__main__ import _whole, prebuild

    made, refused = prebuild(["float32"])
    assert refused == sum(name.startswith(("bitwise", "logical")) for name in xp.FUNCTIONS)
    assert made == len(xp.FUNCTIONS) - refused + len(list(_whole(xp.ones((3, 4))))) + 1
