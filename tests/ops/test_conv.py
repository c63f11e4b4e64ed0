"""Convolutions, transposed ones against float64 sums over taps: shapes, strides, dtypes, threads, levels; guard pages.

Bound: a sum of n products in any order is within n u / (1 - n u) sum |x||w| of the exact one (Higham, Accuracy and
Stability of Numerical Algorithms, 3.1), u = 2**-24 in f32, 2**-53 in f64; the bias is one more term, and one more is
for the reference's own rounding in f64. The result's dtype rounds once more, by 2**-11 (f16) or 2**-8 (bf16) relative,
or by 2**-25 among f16's denormals.
"""

import platform

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlib
from kernels_numba import levels
from tensorlib import backend
from tensorlib.capture import Capture
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import conv

UNIT = {"f32": 2.0**-24, "f16": 2.0**-24, "bf16": 2.0**-24, "f64": 2.0**-53}
ROUNDING = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8, "f64": 2.0**-53}
CONV = {1: conv.conv1d, 2: conv.conv2d, 3: conv.conv3d}
TRANSPOSE = {1: conv.conv_transpose1d, 2: conv.conv_transpose2d, 3: conv.conv_transpose3d}


def taps(k, stride, dilation, size):
    """Per tap of a window its index, and the slices of what it meets for outputs of `size`."""
    for t in np.ndindex(*k):
        at = [slice(i * d, i * d + s * (n - 1) + 1, s) for i, d, s, n in zip(t, dilation, stride, size)]
        yield t, (..., *at)


def reference(x, w, stride, padding, dilation, groups):
    """(N, C, ...), (O, C / groups, ...) in f64; padding is (before, after) per dim."""
    k = w.shape[2:]
    x = np.pad(x, [(0, 0), (0, 0), *padding])
    size = [(n - d * (m - 1) - 1) // s + 1 for n, d, m, s in zip(x.shape[2:], dilation, k, stride)]
    x, w = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]), w.reshape(groups, -1, *w.shape[1:])
    out = np.zeros((x.shape[0], groups, w.shape[1], *size))
    for t, at in taps(k, stride, dilation, size):
        out += np.einsum("ngc...,goc->ngo...", x[at], w[(..., *t)])
    return out.reshape(x.shape[0], out.shape[1] * out.shape[2], *size)


def reference_transpose(x, w, stride, padding, extra, dilation, groups):
    """(N, C, ...), (C, O / groups, ...) in f64: every input adds to where its taps go."""
    k = w.shape[2:]
    full = [(n - 1) * s + d * (m - 1) + 1 + e for n, s, d, m, e in zip(x.shape[2:], stride, dilation, k, extra)]
    size = x.shape[2:]
    x, w = x.reshape(x.shape[0], groups, x.shape[1] // groups, *size), w.reshape(groups, -1, *w.shape[1:])
    out = np.zeros((x.shape[0], groups, w.shape[2], *full))
    for t, at in taps(k, stride, dilation, size):
        out[at] += np.einsum("ngc...,gco->ngo...", x, w[(..., *t)])
    cut = [slice(p, n - p) for p, n in zip(padding, full)]
    return out[(..., *cut)].reshape(
        x.shape[0], out.shape[1] * out.shape[2], *(n - 2 * p for p, n in zip(padding, full))
    )


def expect(found, exact, size, terms, name):
    """Holds a tensor to the exact sums, where `size` is the sum of the terms' magnitudes."""
    assert found.shape == exact.shape and found.dtype.name == name
    n = (terms + 2) * UNIT[name]
    error = n / (1 - n) * size
    bound = error + ROUNDING[name] * (abs(exact) + error) + 2.0**-25 * (name == "f16")
    assert (abs(found.to("f64").numpy() - exact) <= bound).all()


def numbers(rng, shape, name, kind="plain"):
    """(tensor with the strides of `kind` in memory that is NaN elsewhere, its values in f64)."""
    number = tensorlib.dtype.get(name).numpy_dtype()
    outer = {"padded": [n + 3 for n in shape], "stepped": [2 * n + 1 for n in shape]}.get(kind, shape)
    memory = np.full(outer, np.nan, number)
    view = memory
    if kind == "padded":
        view = memory[tuple(slice(1, n + 1) for n in shape)]
    elif kind == "stepped":
        view = memory[tuple(slice(1, 2 * n, 2) for n in shape)]
    elif kind == "backwards":
        view = memory[tuple(slice(None, None, -1) for _ in shape)]
    elif kind == "transposed":
        view = np.full((*shape[:-2], shape[-1], shape[-2]), np.nan, number).swapaxes(-1, -2)
    view[...] = rng.standard_normal(shape)
    return tensorlib.from_numpy(view), view.astype(np.float64)


KINDS = st.sampled_from(["plain", "plain", "padded", "stepped", "backwards", "transposed"])


@st.composite
def cases(draw):
    dims = draw(st.sampled_from([1, 2, 2, 3]))
    per_dim = lambda values: tuple(draw(values) for _ in range(dims))  # noqa: E731
    groups = draw(st.sampled_from([1, 1, 2, 3, 8]))
    few = st.sampled_from([1, 1, 2, 5] if groups > 1 else [1, 3, 17, 40])
    return {
        "batch": draw(st.sampled_from([0, 1, 1, 2, 3])),
        "channels": groups * draw(few),
        "outputs": draw(few),
        "groups": groups,
        "size": per_dim(st.sampled_from([1, 2, 3, 5, 8, 19] + [40] * (dims < 3))),
        "kernel": per_dim(st.integers(1, 4)),
        "stride": per_dim(st.sampled_from([1, 1, 2, 3])),
        "padding": per_dim(st.sampled_from([0, 0, 1, 2, 5])),
        "dilation": per_dim(st.sampled_from([1, 1, 2, 3])),
        "extra": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["f32", "f32", "f32", "bf16", "f16", "f64"])),
        "kinds": (draw(KINDS), draw(KINDS)),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 9)),
    }


def made(c, weight_shape, outputs):
    """The tensors of a case, and their values with the bias shaped to add."""
    rng = np.random.default_rng(c["seed"])
    x, x_values = numbers(rng, (c["batch"], c["channels"], *c["size"]), c["dtype"], c["kinds"][0])
    w, w_values = numbers(rng, weight_shape, c["dtype"], c["kinds"][1])
    b, b_values = numbers(rng, (outputs,), c["dtype"], "stepped") if c["bias"] else (None, np.zeros(outputs))
    return (x, w, b), (x_values, w_values, b_values.reshape(-1, *(1,) * len(c["size"])))


@pytest.mark.parametrize(
    "k, stride, name", [(3, 1, "f32"), (3, 2, "f32"), (5, 2, "bf16"), (5, 1, "f64"), (7, 1, "f16"), (7, 2, "f32")]
)
def test_depthwise_windows(k, stride, name):
    rng = np.random.default_rng(k)
    # rows below, at and above what a register tile takes; columns below, at and above vectors and their edges
    for height, width, pad in ((k, 70, 0), (1, 3, k // 2), (13, 16, 1), (14, 33, 3), (30, 49, k // 2), (7, 7, k // 2)):
        if min(height, width) + 2 * pad >= k:
            x, x_values = numbers(rng, (2, 3, height, width), name, "padded" if pad == 1 else "plain")
            w, w_values = numbers(rng, (6, 1, k, k), name)
            b, b_values = numbers(rng, (6,), name)
            args = ((stride, stride), [(pad, pad)] * 2, (1, 1), 3)
            exact = reference(x_values, w_values, *args) + b_values[:, None, None]
            size = reference(abs(x_values), abs(w_values), *args) + abs(b_values)[:, None, None]
            expect(conv.conv2d(x, w, b, stride, pad, groups=3), exact, size, k * k + 1, name)


@settings(max_examples=100)
@given(cases())
def test_conv(c):
    window = [c["stride"], [(p, p) for p in c["padding"]], c["dilation"], c["groups"]]
    outputs = c["outputs"] * c["groups"]
    tensors, (x, w, b) = made(c, (outputs, c["channels"] // c["groups"], *c["kernel"]), outputs)
    call = CONV[len(c["size"])]
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(c["dilation"], c["kernel"], c["padding"])]
    if any(n < r for n, r in zip(c["size"], reach)):
        with pytest.raises(ShapeError, match="positive size"):
            call(*tensors, c["stride"], c["padding"], c["dilation"], c["groups"])
        return
    found = call(*tensors, c["stride"], c["padding"], c["dilation"], c["groups"])
    exact, size = reference(x, w, *window) + b, reference(abs(x), abs(w), *window) + abs(b)
    expect(found, exact, size, w[0].size, c["dtype"])


@settings(max_examples=100)
@given(cases())
def test_conv_transpose(c):
    extra = tuple((max(s, d) - 1) * c["extra"] for s, d in zip(c["stride"], c["dilation"]))
    window = [c["stride"], c["padding"], extra, c["dilation"], c["groups"]]
    outputs = c["outputs"] * c["groups"]
    tensors, (x, w, b) = made(c, (c["channels"], c["outputs"], *c["kernel"]), outputs)
    call, arguments = TRANSPOSE[len(c["size"])], (c["stride"], c["padding"], extra, c["groups"], c["dilation"])
    axes = zip(c["size"], c["stride"], c["padding"], c["dilation"], c["kernel"], extra)
    if any((n - 1) * s - 2 * p + d * (k - 1) + e + 1 < 1 for n, s, p, d, k, e in axes):
        with pytest.raises(ShapeError, match="positive size"):
            call(*tensors, *arguments)
        return
    found = call(*tensors, *arguments)
    exact = reference_transpose(x, w, *window) + b
    size = reference_transpose(abs(x), abs(w), *window) + abs(b)
    expect(found, exact, size, w[:, 0].size, c["dtype"])


# several blocks of k, tiles and panels; a batch; groups; rows longer and shorter than a vector
LARGE = [
    ((2, 90, 20, 21), (70, 90, 3, 3), {"padding": 1}),
    ((1, 3, 60, 61), (33, 3, 7, 7), {"stride": 2, "padding": 3}),
    ((3, 60, 20, 20), (40, 60, 1, 1), {}),
    ((2, 64, 14, 14), (96, 16, 3, 3), {"groups": 4}),
    ((2, 40, 56, 57), (40, 1, 5, 5), {"groups": 40, "padding": 2}),
    ((2, 40, 56, 57), (80, 1, 3, 3), {"groups": 40, "stride": 2, "padding": 1}),
]


@pytest.mark.parametrize("x_shape, w_shape, arguments", LARGE)
def test_large_ones_do_not_depend_on_threads(x_shape, w_shape, arguments):
    rng = np.random.default_rng(0)
    (x, x_values), (w, w_values) = numbers(rng, x_shape, "f32"), numbers(rng, w_shape, "f32", "padded")
    found, before = conv.conv2d(x, w, **arguments), backend.threads()
    s, p, g = (arguments.get(k, v) for k, v in (("stride", 1), ("padding", 0), ("groups", 1)))
    window = [(s, s), [(p, p)] * 2, (1, 1), g]
    exact, size = reference(x_values, w_values, *window), reference(abs(x_values), abs(w_values), *window)
    expect(found, exact, size, w_values[0].size, "f32")
    try:
        for n in (1, 3):
            backend.set_num_threads(n)
            again = conv.conv2d(x, tensorlib.from_numpy(np.ascontiguousarray(w.numpy())), **arguments)
            np.testing.assert_array_equal(again.numpy(), found.numpy())
    finally:
        backend.set_num_threads(before)


@pytest.mark.parametrize("kernel, dilation", [(3, 1), (4, 1), (2, 3), (4, 3)])
def test_same_pads_the_end_more(kernel, dilation):
    rng = np.random.default_rng(0)
    (x, x_values), (w, w_values) = numbers(rng, (2, 3, 11), "f32"), numbers(rng, (4, 3, kernel), "f32")
    total = dilation * (kernel - 1)
    window = [(1,), [(total // 2, total - total // 2)], (dilation,), 1]
    found = conv.conv1d(x, w, padding="same", dilation=dilation)
    exact, size = reference(x_values, w_values, *window), reference(abs(x_values), abs(w_values), *window)
    assert found.shape[2] == 11
    expect(found, exact, size, 3 * kernel, "f32")
    valid = conv.conv1d(x, w, padding="valid", dilation=dilation)
    np.testing.assert_array_equal(valid.numpy(), conv.conv1d(x, w, dilation=dilation).numpy())


def test_without_a_batch_dim():
    rng = np.random.default_rng(0)
    (x, _), (w, _) = numbers(rng, (4, 9, 8), "f32"), numbers(rng, (6, 4, 3, 3), "f32")
    np.testing.assert_array_equal(conv.conv2d(x, w).numpy(), conv.conv2d(x.unsqueeze(0), w).numpy()[0])
    back = conv.conv_transpose2d(conv.conv2d(x, w), w)
    assert back.shape == x.shape


def test_a_changed_weight_is_packed_anew():
    x = tensorlib.ones(1, 2, 5, 5)
    for shape, groups in (((8, 2, 3, 3), 1), ((2, 1, 3, 3), 2)):
        w = tensorlib.ones(*shape)
        before = conv.conv2d(x, w, groups=groups).numpy()
        w *= 3
        np.testing.assert_array_equal(conv.conv2d(x, w, groups=groups).numpy(), 3 * before)


def test_replays():
    x, w = tensorlib.ones(1, 2, 5, 5), tensorlib.ones(8, 2, 3, 3)
    with Capture() as recorded:
        y = conv.conv_transpose2d(conv.conv2d(x, w), w, stride=2)
    before = y.numpy().copy()
    x *= 2
    recorded.replay()
    np.testing.assert_array_equal(y.numpy(), 2 * before)


@pytest.mark.parametrize(
    "x, w, arguments, message",
    [
        ((1, 4, 5, 5), (6, 3, 3, 3), {}, r"conv2d: .*C = 4; groups divides C and O"),
        ((1, 4, 5, 5), (6, 2, 3, 3), {"groups": 4}, "groups=4"),
        ((1, 4, 5, 5), (6, 4, 3), {}, "weight of 4"),
        ((4, 5), (6, 4, 3, 3), {}, "input of 4 dims"),
        ((1, 4, 5, 5), (6, 4, 3, 3), {"stride": 0}, "stride=0"),
        ((1, 4, 5, 5), (6, 4, 3, 3), {"stride": (1, 2, 3)}, "or 2 of them"),
        ((1, 4, 5, 5), (6, 4, 3, 3), {"padding": -1}, "padding=-1"),
        ((1, 4, 5, 5), (6, 4, 3, 3), {"padding": "same", "stride": 2}, '"same" at stride 1'),
        ((1, 4, 5, 5), (6, 4, 7, 3), {}, "positive size"),
    ],
)
def test_shapes_that_do_not_fit(x, w, arguments, message):
    with pytest.raises(ShapeError, match=message):
        conv.conv2d(tensorlib.ones(*x), tensorlib.ones(*w), **arguments)


def test_dtypes_and_others_that_do_not_fit():
    x, w = tensorlib.ones(1, 4, 5, 5), tensorlib.ones(6, 4, 3, 3)
    for a, b in ((x, w.to("f16")), (x.to("i32"), w.to("i32"))):
        with pytest.raises(DTypeError, match=r"conv2d: .*one dtype of f32"):
            conv.conv2d(a, b)
    with pytest.raises(ShapeError, match=r"bias \(4,\); expected shape \(6,\)"):
        conv.conv2d(x, w, tensorlib.ones(4))
    with pytest.raises(ShapeError, match="output_padding=2 at stride"):
        conv.conv_transpose2d(x, tensorlib.ones(4, 6, 3, 3), stride=2, output_padding=2)


GUARDED = """
import ctypes, itertools, mmap, numpy as np
from tensorlib.device import Array, Buffer
from tensorlib import dtype
from tensorlib.layout import contiguous
from tensorlib.ops import conv, pooling

libc, PAGE = ctypes.CDLL(None), mmap.PAGESIZE

def empty(shape, name="f32", device=None):
    # NaN; its first byte follows, or its last byte precedes, a page that may not be touched
    d, layout = dtype.get(name), contiguous(shape)
    nbytes = layout.numel() * d.itemsize
    inner = -(-max(nbytes, 1) // PAGE) * PAGE
    memory = mmap.mmap(-1, inner + 2 * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (base, base + PAGE + inner):
        assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) == 0
    ptr = base + PAGE + (inner - nbytes if at_end else 0)
    ctypes.memset(ptr, 255, nbytes)
    return Array(Buffer(ptr, nbytes, memory), layout, d)

def guarded(shape):
    x = rng.standard_normal(shape).astype(np.float32)
    made = empty(shape)
    ctypes.memmove(made.ptr, x.ctypes.data, x.nbytes)
    return made, x

Array.empty = empty  # outputs and scratch memory too

def read(a):
    return np.frombuffer(ctypes.string_at(a.ptr, a.numel() * 4), np.float32).reshape(a.shape)

rng, tested = np.random.default_rng(0), 0
windows = itertools.product(((5, 7), (9, 33)), ((3, 3), (1, 4)), (1, 2, 3), (0, 2), (1, 2), (1, 4), (0, 1))
for size, kernel, stride, padding, dilation, groups, at_end in windows:
    x, xv = guarded((2, 4, *size))
    w, wv = guarded((8, 4 // groups, *kernel))
    b, bv = guarded((8,))
    if any(n + 2 * padding < dilation * (k - 1) + 1 for n, k in zip(size, kernel)):
        continue
    found = read(conv.conv2d(x, w, b, stride, padding, dilation, groups))
    xp = np.pad(xv, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    xp = xp.reshape(2, groups, 4 // groups, *xp.shape[2:])
    exact = 0
    for i, j in np.ndindex(*kernel):
        cut = [slice(t * dilation, t * dilation + stride * (n - 1) + 1, stride)
               for t, n in zip((i, j), found.shape[2:])]
        part = wv[:, :, i, j].reshape(groups, 8 // groups, -1)
        exact = exact + np.einsum("ngcyx,goc->ngoyx", xp[..., cut[0], cut[1]], part)
    exact = exact.reshape(found.shape) + bv[:, None, None]
    assert abs(found - exact).max() < 1e-4, (size, kernel, stride, padding, dilation, groups)
    made = [conv.conv_transpose2d(x, guarded((4, 2, *kernel))[0], None, stride, 0, 0, groups)]
    if POOLS:
        made.append(pooling.max_pool2d(x, kernel, stride, padding // 2 if kernel[0] > 1 else 0))
        made.append(pooling.max_pool2d(x, kernel, stride, return_indices=True)[0])
        made.append(pooling.avg_pool2d(x, kernel, stride, ceil_mode=True))
        made.append(pooling.interpolate(x, scale_factor=1.7, mode="bicubic"))
    assert all(np.isfinite(read(y)).all() for y in made)
    tested += 1
print(tested)
"""
HERE = [
    n for n, v in levels.LEVELS.items() if v.flags <= levels.cpu_flags() and v.triple.startswith(platform.machine())
]


@pytest.mark.parametrize("level", HERE)
def test_nothing_outside_is_touched(run_python, level):
    source = f"POOLS = {level == levels.detect()}\n{GUARDED}"
    assert int(run_python(source, TENSORLIB_CPU_LEVEL=level)) > 100
