"""The standard's array object: operators, Python values, indexing, memory shared with others, its errors."""

import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib import array_api as xp
from tensorlib.errors import DeviceError, DTypeError, ShapeError
from tests.ops.cases import few

OPERATORS = "add sub mul truediv floordiv mod pow and or xor lshift rshift matmul".split()
COMPARISONS = "eq ne lt le gt ge".split()


def spelled(name):
    return getattr(operator, name + "_" if name in ("and", "or") else name)


def equal(found, want):
    assert type(found) is xp.NDArray
    np.testing.assert_array_equal(found.numpy(), want, strict=True)


# ---- operators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name):
    dtype = np.float32 if name == "truediv" else np.int16
    a, b = np.asarray([[7, 2], [5, 3]], dtype), np.asarray([[2, 1], [3, 2]], dtype)
    x, y, apply = xp.asarray(a), xp.asarray(b), spelled(name)
    equal(apply(x, y), apply(a, b))
    same = xp.asarray(a, copy=True)
    before = same
    same = spelled("i" + name)(same, y)
    assert same is before
    equal(same, apply(a, b))
    if name != "matmul":
        equal(apply(x, 2), apply(a, np.asarray(2, dtype)))
        equal(apply(2, y), apply(np.asarray(2, dtype), b))
        same = spelled("i" + name)(same, 2)
        equal(same, apply(apply(a, b), np.asarray(2, dtype)))
    assert getattr(x, f"__{name}__")("a") is getattr(x, f"__r{name}__")(None) is NotImplemented
    with pytest.raises(TypeError):
        apply(x, 1j)


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(name):
    a, b = np.asarray([1, 2, 3]), np.asarray([[2], [3]], np.int8)
    equal(spelled(name)(xp.asarray(a), xp.asarray(b)), spelled(name)(a, b))
    equal(spelled(name)(xp.asarray(a), 2), spelled(name)(a, 2))
    equal(spelled(name)(2, xp.asarray(a)), spelled(name)(2, a))
    assert getattr(xp.asarray(a), f"__{name}__")(None) is NotImplemented


def test_unary_operators():
    a = np.asarray([-3, 0, 5], np.int8)
    for apply in (operator.neg, operator.pos, operator.invert, abs):
        equal(apply(xp.asarray(a)), apply(a))


def test_in_place_operators_keep_dtype_and_shape():
    x = xp.asarray([1, 2], dtype=xp.int8)
    for other, error in (
        (xp.asarray([1, 2]), DTypeError),
        (0.5, DTypeError),
        (xp.ones((3, 2), dtype=xp.int8), ShapeError),
    ):
        with pytest.raises(error):
            x += other
    y = x
    y += xp.asarray([[1, 1]], dtype=xp.int8)[0]
    assert x.tolist() == [2, 3]


def test_tensors_are_operands():
    found = xp.asarray([1.0, 2.0]) + tensorlib.ones(2)
    equal(found, np.asarray([2, 3], np.float32))
    equal(xp.sin(tensorlib.zeros(2)), np.zeros(2, np.float32))


# ---- Python values and attributes ------------------------------------------------------------------------------------


def test_python_values():
    assert [bool(xp.asarray(v)) for v in (True, 0, 2, 0.0, float("nan"), -float("inf"))] == [
        True,
        False,
        True,
        False,
        True,
        True,
    ]
    assert (int(xp.asarray(2.75)), int(xp.asarray(True)), float(xp.asarray(3))) == (2, 1, 3.0)
    assert complex(xp.asarray(1.5)) == 1.5 + 0j and complex(xp.asarray(True)) == 1
    nan = complex(xp.asarray(float("nan")))
    assert nan.real != nan.real and nan.imag != nan.imag
    assert [10, 20, 30][xp.asarray(1, dtype=xp.uint8)] == 20
    for convert in (bool, int, float, complex):
        for shape in ((1,), (2,), (1, 1)):
            with pytest.raises(DTypeError):
                convert(xp.ones(shape))
    for x in (xp.asarray(1.0), xp.asarray(True), xp.asarray([1])):
        with pytest.raises(DTypeError):
            operator.index(x)
    with pytest.raises(ValueError):
        int(xp.asarray(float("nan")))


def test_attributes():
    x = xp.reshape(xp.arange(24), (2, 3, 4))
    assert (x.size, x.ndim, x.shape, x.dtype) == (24, 3, (2, 3, 4), xp.int64)
    equal(x.mT, np.arange(24).reshape(2, 3, 4).mT)
    equal(x[0].T, np.arange(12).reshape(3, 4).T)
    for name, wrong in (("T", x), ("T", x[0, 0]), ("mT", x[0, 0])):
        with pytest.raises(ShapeError):
            getattr(wrong, name)


def test_namespace_and_device():
    x = xp.ones(1)
    assert all(x.__array_namespace__(api_version=v) is xp for v in (None, "2021.12", "2023.12", "2024.12"))
    for version in ("2020.10", "2999.12"):
        with pytest.raises(ValueError):
            x.__array_namespace__(api_version=version)
    assert x.to_device(x.device) is x.to_device("cpu", stream=None) is x
    for arguments, keywords in ((("tpu",), {}), (("cpu",), {"stream": 1})):
        with pytest.raises(DeviceError):
            x.to_device(*arguments, **keywords)


# ---- indexing --------------------------------------------------------------------------------------------------------


@st.composite
def keys(draw, shape):
    """Integers, slices, None and ... that fit the shape."""
    key = []
    for n in shape[: draw(st.integers(0, len(shape)))]:
        bound = st.none() | st.integers(-n, n)
        cut = st.builds(slice, bound, bound, st.sampled_from([None, 1, 2, -1, -2]))
        key.append(draw(st.integers(-n, n - 1) | cut if n else cut))
    if draw(st.booleans()):
        key.insert(draw(st.integers(0, len(key))), ...)
    if draw(st.booleans()):
        key.insert(draw(st.integers(0, len(key))), None)
    return key[0] if len(key) == 1 and draw(st.booleans()) else tuple(key)


@given(st.data())
@few(150)
def test_basic_keys(data):
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4).map(tuple))
    a = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    key = data.draw(keys(shape))
    x = xp.asarray(a, copy=True)
    equal(x[key], a[key] if np.ndim(a[key]) else np.asarray(a[key]))
    for value in (-1, np.asarray(-2), -3 - np.arange(a[key].size).reshape(a[key].shape)):
        b = a.copy()
        b[key] = value
        x[key] = xp.asarray(value) if isinstance(value, np.ndarray) else value
        equal(x, b)


@given(st.data())
@few(100)
def test_masks(data):
    shape = data.draw(st.lists(st.integers(0, 3), max_size=3).map(tuple))
    n = data.draw(st.integers(0, len(shape)))
    sizes = tuple(data.draw(st.sampled_from([s, s, s, 0])) for s in shape[:n])  # size 0 fits every dim
    a = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random(sizes) < 0.5
    x = xp.asarray(a, copy=True)
    equal(x[xp.asarray(mask)], a[mask])
    if not n:
        equal(x[bool(mask)], a[mask])
    a[mask] = 9.5
    x[xp.asarray(mask)] = 9.5
    equal(x, a)


def test_integer_arrays():
    a = np.arange(24).reshape(2, 3, 4)
    i, j = np.asarray([1, 0, -1]), np.asarray([[2], [0]], np.int8)
    for key in ((i,), (i, j), (i, 1), (1, j), (0, 1, i), (i, j, 3), (np.asarray([], int),), (i, ..., j)):
        found = xp.asarray(a)[tuple(xp.asarray(k) if isinstance(k, np.ndarray) else k for k in key)]
        equal(found, a[key])
        b, x = a.copy(), xp.asarray(a, copy=True)
        b[key] = -1
        x[tuple(xp.asarray(k) if isinstance(k, np.ndarray) else k for k in key)] = -1
        equal(x, b)


@pytest.mark.parametrize(
    "key",
    [3, -4, (0, 0, 0), (..., ...), np.ones(2, bool), np.ones((3, 1), bool), np.ones((3, 2, 1), bool), np.asarray([3])],
)
def test_keys_outside_are_index_errors(key):
    x = xp.ones((3, 2))
    key = xp.asarray(key) if isinstance(key, np.ndarray) else key
    with pytest.raises(IndexError):
        x[key]
    with pytest.raises(IndexError):
        x[key] = 0
    for wrong in (1.5, "a", xp.asarray([0.5])):
        with pytest.raises(DTypeError):
            x[wrong]


def test_views_share_memory():
    x = xp.zeros((2, 3), dtype=xp.int8)
    x[1, ::-1][0] = 5
    xp.permute_dims(x, (1, 0))[0, 0] = 7
    assert x.tolist() == [[7, 0, 0], [0, 0, 5]]
    copies = xp.floor(x), +x, xp.clip(x), xp.tile(x, ()), xp.roll(x, (), axis=()), xp.reshape(x, (6,), copy=True)
    for copy in copies:
        copy[...] = 1
    assert x.tolist() == [[7, 0, 0], [0, 0, 5]]


# ---- DLPack ----------------------------------------------------------------------------------------------------------


def test_dlpack():
    x = xp.asarray([1, 2, 3], dtype=xp.uint16)
    shared, copied = np.from_dlpack(x), xp.from_dlpack(x, copy=True, device=x.device)
    shared[0] = 9
    assert x.tolist() == [9, 2, 3] and copied.tolist() == [1, 2, 3] and xp.from_dlpack(shared)[0] == 9
    assert x.__dlpack_device__() == (1, 0)
    for keywords in ({"stream": 1}, {"dl_device": (2, 0)}):
        with pytest.raises(BufferError):
            x.__dlpack__(**keywords)
    with pytest.raises(BufferError):
        xp.from_dlpack(x, device="cuda:0")


def flags(capsule):
    from tensorlib.ops import exchange

    return exchange._Versioned.from_address(exchange._capsule_pointer(id(capsule), b"dltensor_versioned")).flags


def test_dlpack_of_read_only_memory():
    x = xp.asarray(b"abc")
    with pytest.raises(BufferError):
        x.__dlpack__(copy=False)
    assert flags(x.__dlpack__(max_version=(1, 0))) == 1
    assert flags(x.__dlpack__(max_version=(1, 1), copy=True)) == 2  # a copy may be written to, and says what it is
    assert flags(xp.ones(1).__dlpack__(max_version=(1, 0), copy=False)) == 0
    assert np.from_dlpack(x, copy=True).flags.writeable and not np.from_dlpack(x).flags.writeable
