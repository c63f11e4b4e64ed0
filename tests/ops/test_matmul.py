"""matmul and linear against wider NumPy on generated shapes, strides and dtypes; guard pages, threads, CPU levels.

Bound: a sum of K products in any order is within K u / (1 - K u) sum |x||w| of the exact one (Higham, Accuracy and
Stability of Numerical Algorithms, 3.1), u = 2**-24 in f32; a bias and an old value of C are one more term each. The
result's dtype rounds once more, by v relative (2**-11 for f16, 2**-8 for bf16), or by 2**-25 among f16's denormals.
"""

import ctypes
import platform

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_numba import levels
from tensorlib import backend, dtype
from tensorlib.capture import Capture
from tensorlib.device import Array, Buffer
from tensorlib.errors import DTypeError, NoKernel, ShapeError
from tensorlib.layout import Layout
from tensorlib.ops import linalg

ROUNDING = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8, "f64": 2.0**-53}
PAIRS = (("f32", "f32"), ("bf16", "bf16"), ("f16", "f16"), ("f32", "bf16"), ("f64", "f64"), ("i32", "i32"))
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([64, 100, 130]))
DEPTHS = st.one_of(st.integers(0, 40), st.sampled_from([64, 100, 769, 1600]))
BATCHES = (((), ()), ((2, 3), (2, 3)), ((3,), ()), ((), (2, 1)), ((2, 1), (3,)), ((1, 2), (2, 2)))


def wrap(view):
    """A NumPy view of one array as an Array over the same memory."""
    base = view
    while base.base is not None:
        base = base.base
    strides = tuple(s // view.itemsize for s in view.strides)
    offset = (view.ctypes.data - base.ctypes.data) // view.itemsize
    buffer = Buffer.of(base.reshape(-1).view(np.uint8))
    return Array(buffer, Layout(view.shape, strides, offset), dtype.get(view.dtype.name))


def read(x):
    """An Array's values as a NumPy array of its own."""
    memory = (ctypes.c_char * x.buffer.nbytes).from_address(x.buffer.ptr) if x.buffer.nbytes else b""
    flat = np.frombuffer(memory, x.dtype.numpy_dtype())[x.offset :]
    return np.lib.stride_tricks.as_strided(flat, x.shape, [s * flat.itemsize for s in x.strides]).copy()


def values(shape, name, seed, kind="plain"):
    """Random numbers as a NumPy view with the strides of `kind`, in memory that is NaN (or huge) everywhere else."""
    kinds = {
        "plain": (shape, (...,)),
        "transposed": ((*shape[:-2], shape[-1], shape[-2]), (...,)),
        "padded": ((*shape[:-2], shape[-2] + 2, shape[-1] + 3), (..., slice(1, -1), slice(2, -1))),
        "stepped": ((*shape[:-1], 2 * shape[-1] + 1), (..., slice(1, None, 2))),
        "backwards": (shape, (..., slice(None, None, -1), slice(None, None, -1))),
        "shared": ((*shape[:-2], 1, shape[-1]), (...,)),
    }
    outer, index = kinds[kind]
    number = dtype.get(name).numpy_dtype()
    view = np.full(outer, np.nan if dtype.get(name).is_float else 1 << 20, number)[index]
    view = view.swapaxes(-1, -2) if kind == "transposed" else view
    rng = np.random.default_rng(seed)
    view[...] = rng.integers(-9, 9, view.shape) if number.kind in "iu" else rng.standard_normal(view.shape)
    return np.broadcast_to(view, shape) if kind == "shared" else view


def expect(got, x, y, extra=0):
    """Holds `got` to x @ y + extra, within the bound."""
    name = dtype.get(got.dtype.name).name
    if name == "i32":
        return np.testing.assert_array_equal(got, (x.astype(np.int64) @ y.astype(np.int64)).astype(np.int32))
    wide = np.longdouble if name == "f64" else np.float64
    x, y, extra = (np.asarray(a).astype(wide) for a in (x, y, extra))
    exact, size = x @ y + extra, abs(x) @ abs(y) + abs(extra)
    terms = (x.shape[-1] + 2) * (2.0**-53 if name == "f64" else 2.0**-24)
    error = terms / (1 - terms) * size
    bound = error + ROUNDING[name] * (abs(exact) + error) + 2.0**-25 * (name == "f16")
    assert got.shape == exact.shape
    assert (abs(got.astype(wide) - exact) <= bound).all()


KINDS = st.sampled_from(["plain", "transposed", "padded", "stepped", "backwards", "shared"])


@settings(max_examples=200)
@given(st.sampled_from(PAIRS), SIZES, SIZES, DEPTHS, st.sampled_from(BATCHES), KINDS, KINDS, st.integers(0, 9))
def test_matmul(pair, m, n, k, batches, x_kind, y_kind, seed):
    x = values((*batches[0], m, k), pair[0], seed, x_kind)
    y = values((*batches[1], k, n), pair[1], seed + 10, y_kind)
    expect(read(linalg.matmul(wrap(x), wrap(y))), x, y)


@pytest.mark.parametrize("shapes", [((5,), (5,)), ((4, 5), (5,)), ((5,), (5, 3)), ((2, 4, 5), (5,)), ((5,), (2, 5, 3))])
def test_matmul_of_vectors(shapes):
    x, y = (np.random.default_rng(0).standard_normal(s).astype(np.float32) for s in shapes)
    expect(read(linalg.matmul(wrap(x), wrap(y))), x, y)


def test_matmul_promotes():
    made = {}
    for name in ("u8", "i64", "f32", "f8e4m3"):
        made[name] = np.arange(12).reshape(3, 4).astype(dtype.get(name).numpy_dtype())
    product = linalg.matmul(wrap(made["u8"]), wrap(made["i64"].T))
    assert product.dtype is dtype.i64
    np.testing.assert_array_equal(read(product), made["i64"] @ made["i64"].T)
    for name in ("u8", "i64", "f8e4m3"):
        product = linalg.matmul(wrap(made["f32"]), wrap(made[name].T))
        assert product.dtype is dtype.f32
        np.testing.assert_array_equal(read(product), made["f32"] @ made["f32"].T)
    with pytest.raises(NoKernel, match=r"kernels_numba/matmul\.py"):
        linalg.matmul(wrap(made["f8e4m3"]), wrap(made["f8e4m3"].T))


@pytest.mark.parametrize("shape", [(1, 70, 33), (3, 35, 20), (40, 3, 50), (30, 70, 40), (30, 70, 900)])
@pytest.mark.parametrize("bias", [None, "f32", "bf16", "f64", "stepped"])
def test_linear_adds_bias_and_old_values_inside_its_output_only(shape, bias):
    m, n, k = shape
    x, w = values((m, k), "f32", 1), values((n, k), "f32", 2, "padded")
    old = values((m, n), "f32", 3, "padded")
    b = (
        0
        if bias is None
        else values((1, n), "f32" if bias == "stepped" else bias, 4, "stepped" if bias == "stepped" else "plain")[0]
    )
    bias_array = None if bias is None else wrap(b)
    expect(read(linalg.linear(wrap(x), wrap(w), bias_array)), x, w.T, b)
    out, before = wrap(old), old.copy()
    linalg._linear_into(out, wrap(x), wrap(w), bias_array, accumulate=True)
    expect(old, x, w.T, np.asarray(b, np.float64) + before)
    frame = old.base.copy()
    frame[1:-1, 2:-1] = np.nan
    assert np.isnan(frame).all()


def test_linear_of_batches_and_rows():
    x, w = values((2, 3, 5, 7), "f32", 1, "padded"), values((4, 7), "f32", 2)
    expect(read(linalg.linear(wrap(x), wrap(w))), x, w.T)
    expect(read(linalg.linear(wrap(x[0, 0, 0]), wrap(w))), x[0, 0, 0], w.T)
    assert linalg.linear(Array.empty((0, 7)), wrap(w)).shape == (0, 4)


def test_linear_leaves_quantised_weights_to_themselves():
    class Quantised:
        format = "q4_1"

        def linear(self, x):
            return ("quantised", x)

    assert linalg.linear(3, Quantised()) == ("quantised", 3)


def test_errors_say_what_to_do():
    x = Array.empty((2, 3))
    for a, b, error, text in (
        (x, x, ShapeError, "matmul: got shapes (2, 3) and (2, 3); expected the first's last size (3) to equal"),
        (x, Array.empty(()), ShapeError, "at least one dim"),
        (Array.empty((2, 4, 3)), Array.empty((3, 3, 2)), ShapeError, "shapes that broadcast"),
        (Array.empty((2, 3), "bool"), Array.empty((3, 2), "bool"), DTypeError, "bool"),
    ):
        with pytest.raises(error) as caught:
            linalg.matmul(a, b)
        assert text in str(caught.value)
    for arguments, error in (
        ((x, Array.empty((3, 2))), ShapeError),
        ((x, Array.empty((3,))), ShapeError),
        ((x, Array.empty((5, 3)), Array.empty((3,))), ShapeError),
        ((x, Array.empty((5, 3)), Array.empty((5,), "i64")), DTypeError),
    ):
        with pytest.raises(error, match="linear"):
            linalg.linear(*arguments)


CASES = ((1, 900, 300), (3, 700, 200), (90, 3, 4000), (130, 200, 900), (300, 20, 400), (1, 600, 200))


@pytest.mark.parametrize("name", ["f32", "bf16"])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_results_do_not_depend_on_threads_or_on_the_cut(batch, name, monkeypatch):
    found = {}
    for threads, packed in ((1, 16 << 20), (2, 16 << 20), (3, 16 << 20), (2, 1 << 16)):
        backend.set_num_threads(threads)
        monkeypatch.setattr(linalg, "PACKED_BYTES", packed)
        for i, (m, n, k) in enumerate(CASES):
            x = values((*batch, m, k), name, i)
            y = values((*batch, k, n), name, i + 10, "plain" if i == 5 else "transposed")
            found.setdefault((m, n, k), set()).add(read(linalg.matmul(wrap(x), wrap(y))).tobytes())
    backend.set_num_threads(None)
    assert {len(results) for results in found.values()} == {1}


SUBNORMAL = 2.0**-130
# (rows of x, K): few, many, with an end behind the last 32 elements and without, two blocks of K
BF16 = ((3, 64), (7, 77), (32, 1100), (33, 64), (40, 1601))


@pytest.mark.parametrize("m, k", BF16)
@pytest.mark.parametrize("order", ["transposed", "plain"])
def test_bf16_of_subnormals_infinities_and_nan(m, k, order):
    """x @ y of bf16 with subnormals that count, in each operand, at every place: f32's products, whatever the CPU."""
    n = 70
    for at, other in ((0, 1), (k - 1, 5), (k // 2, k - 1)):
        x, y = values((m, k), "bf16", 0), values((k, n), "bf16", 1, order)
        x[:, other], y[at] = 2.0**120, 2.0**120
        x[2], y[:, n - 1] = 0, 0
        x[2, at], y[other, n - 1] = SUBNORMAL, 1.5 * SUBNORMAL
        expect(read(linalg.matmul(wrap(x), wrap(y))), x, y)
        x[1, at], y[at, 3], y[at, 4] = np.inf, SUBNORMAL, np.nan
        got = read(linalg.matmul(wrap(x), wrap(y))).astype(np.float32)
        with np.errstate(invalid="ignore"):
            want = x.astype(np.float32) @ y.astype(np.float32)
        assert np.isinf(want[1]).any() and np.isnan(want[:, 4]).all()
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])


def test_few_rows_are_the_kernels():
    from kernels_numba import bf16_rows

    assert linalg.FEW_BF16 == bf16_rows.MOST


def test_replays():
    x, w = values((1, 640), "f32", 0), values((640, 640), "f32", 1)
    rows = values((40, 640), "f32", 2)
    with Capture() as step:
        one, many = linalg.linear(wrap(x), wrap(w)), linalg.matmul(wrap(rows), linalg.linear(wrap(w), wrap(w)))
    x[...], rows[...] = values((1, 640), "f32", 3), values((40, 640), "f32", 4)
    step.replay()
    assert (read(one) == read(linalg.linear(wrap(x), wrap(w)))).all()
    assert (read(many) == read(linalg.matmul(wrap(rows), linalg.linear(wrap(w), wrap(w))))).all()


GUARDED = """
import ctypes, itertools, mmap
import numpy as np
from tensorlib import dtype
from tensorlib.device import Array, Buffer
from tensorlib.layout import Layout, contiguous
from tensorlib.ops import linalg

libc, PAGE, kept = ctypes.CDLL(None), mmap.PAGESIZE, []

def guarded(x, name, at_end):
    # a copy of x whose first byte follows, or whose last byte precedes, a page that may not be touched
    x = np.ascontiguousarray(x).astype(dtype.get(name).numpy_dtype())
    inner = -(-max(1, x.nbytes) // PAGE) * PAGE
    memory = mmap.mmap(-1, inner + 2 * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (base, base + PAGE + inner):
        assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) == 0
    ptr = base + PAGE + (inner - x.nbytes if at_end else 0)
    ctypes.memmove(ptr, x.ctypes.data, x.nbytes)
    kept.append(memory)
    return Array(Buffer(ptr, x.nbytes, memory), contiguous(x.shape), dtype.get(name)), x

def read(a):
    return np.frombuffer(ctypes.string_at(a.ptr, a.numel() * a.dtype.itemsize), a.dtype.numpy_dtype()).reshape(a.shape)

rng, tested = np.random.default_rng(0), 0
sizes = [(1, 5, 17), (1, 21, 9), (1, 600, 40), (3, 6, 33), (19, 2, 35), (5, 7, 3), (17, 33, 19), (30, 70, 100)]
sizes += [(9, 9, 801), (40, 70, 101), (35, 3, 1601)]
for name, (m, n, k), at_end, x_t, w_t in itertools.product(("f32", "bf16"), sizes, (0, 1), (0, 1), (0, 1)):
    x, x_values = guarded(rng.standard_normal((k, m) if x_t else (m, k)), name, at_end)
    w, w_values = guarded(rng.standard_normal((k, n) if w_t else (n, k)), name, at_end)
    out, _ = guarded(np.zeros((m, n)), name, at_end)
    x = x.view(x.layout.transpose(0, 1)) if x_t else x
    w = w if w_t else w.view(w.layout.transpose(0, 1))
    linalg._product(out, x, w)
    x, w = (v.astype(np.float64) for v in (x_values.T if x_t else x_values, w_values if w_t else w_values.T))
    error, size = abs(read(out).astype(np.float64) - x @ w), abs(x) @ abs(w)
    assert (error <= 2 * k * 2.0**-24 * size + 2.0**-8 * (name == "bf16") * (abs(x @ w) + 1e-5)).all(), (name, m, n, k)
    tested += 1
print(tested)
"""
HERE = [
    n for n, v in levels.LEVELS.items() if v.flags <= levels.cpu_flags() and v.triple.startswith(platform.machine())
]


@pytest.mark.parametrize("level", HERE)
def test_reads_and_writes_nothing_outside_at_any_level(level, run_python):
    assert run_python(GUARDED, TENSORLIB_CPU_LEVEL=level).split() == ["176"]
