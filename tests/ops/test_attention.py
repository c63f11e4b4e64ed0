"""Attention against float64: masks, windows, caps, groups, strides; NaN stays where it is seen; threads, captures."""

import ctypes
import mmap
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_numba import levels
from tensorlib import backend
from tensorlib.capture import Capture
from tensorlib.device import Array, Buffer
from tensorlib.dtype import get
from tensorlib.errors import ContextError, DTypeError, ShapeError
from tensorlib.layout import Layout, contiguous
from tensorlib.ops import fused

U = 2.0**-24  # half an ulp of 1 in f32
GUARD = 64


class Guarded(Array):
    """An Array between two stretches of 0xA5; `made` keeps all of them."""

    __slots__ = ()
    made = []

    @classmethod
    def empty(cls, shape, dtype="f32", device=None):
        size, layout = get(dtype).itemsize, contiguous(shape, GUARD // get(dtype).itemsize)
        buffer = Buffer.allocate(layout.numel() * size + 2 * GUARD)
        ctypes.memset(buffer.ptr, 0xA5, buffer.nbytes)
        out = cls(buffer, layout, get(dtype))
        cls.made.append(out)
        return out

    @classmethod
    def intact(cls):
        return all(
            ctypes.string_at(x.buffer.ptr, GUARD) == ctypes.string_at(x.buffer.ptr + x.buffer.nbytes - GUARD, GUARD)
            == b"\xa5" * GUARD
            for x in cls.made
        )  # fmt: skip


def array(values, dtype=None, cls=Array):
    values = np.ascontiguousarray(values, None if dtype is None else get(dtype).numpy_dtype())
    names = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int64": "i64"}
    out = cls.empty(values.shape, names[values.dtype.name])
    ctypes.memmove(out.ptr, values.ctypes.data, values.nbytes)
    return out


def read(x):
    nbytes = x.numel() * x.dtype.itemsize
    return np.frombuffer(ctypes.string_at(x.ptr, nbytes), x.dtype.numpy_dtype()).reshape(x.shape)


def padded(values, cls=Array):
    """The same values [T, H, D] with gaps between heads and between rows, as in a fused projection's output."""
    t, h, d = values.shape
    wide = array(np.full((t, h + 1, d + 3), np.nan, np.float32), cls=cls)
    out = wide.view(Layout((t, h, d), wide.strides, wide.offset + 1))
    for i in range(t):
        for j in range(h):
            row = np.ascontiguousarray(values[i, j], np.float32)
            ctypes.memmove(out.ptr + 4 * (i * out.strides[0] + j * out.strides[1]), row.ctypes.data, row.nbytes)
    return out


def reference(q, k, v, start, n, causal=True, window=0, softcap=0.0, scale=None):
    """Result and error bound in float64; queries that see nothing give 0.

    Bound, with u = 2^-24 and A = max over visible keys of scale * sum |q||k|: a score is off by at most (D + 12) u A,
    its softcap by 8 u more of the cap, and as an exponent by 4 u of itself (|score| <= A); weights are relative to
    that, twice (numerator and sum). Sums of n terms and a rescaling per 64 keys add (2 n + 8 n / 64 + 40) u.
    """
    (t, h, d), q = q.shape, q.astype(np.float64)
    k, v = (np.repeat(np.asarray(x[:, :n], np.float64), h // x.shape[0], 0) for x in (k, v))
    scale = d**-0.5 if scale is None else scale
    s, most = np.einsum("thd,hnd->thn", q, k) * scale, np.einsum("thd,hnd->thn", abs(q), abs(k)) * abs(scale)
    s = softcap * np.tanh(s / softcap) if softcap else s
    p, j = np.arange(t)[:, None] + start, np.arange(n)
    seen = (j <= p if causal else np.full((t, n), True)) & ((j > p - window) | (window == 0))
    seen &= (j < p + window) | (window == 0) | causal
    s = np.where(seen[:, None], s, -np.inf)
    w = np.exp(s - np.maximum(s.max(-1, keepdims=True, initial=-np.inf), -1e300))
    w /= np.maximum(w.sum(-1, keepdims=True), 1e-300)
    a = np.where(seen[:, None], most, 0).max(-1, initial=0.0)[..., None]
    relative = 2 * ((d + 16) * a + 8 * softcap) + 2 * n + n / 8 + 40
    return np.einsum("thn,hnd->thd", w, v), relative * U * np.einsum("thn,hnd->thd", w, abs(v)) + 1e-30


def check(got, q, k, v, start, n, **options):
    want, bound = reference(q, k, v, start, n, **options)
    assert (abs(got - want) <= bound).all(), np.nanmax(abs(got - want) / bound)


def caches(rng, groups, rows, width, dtype, written):
    """K and V whose rows from `written` on are NaN: nothing may read them."""
    k, v = (rng.standard_normal((groups, rows, width)).astype(get(dtype).numpy_dtype()) for _ in range(2))
    k[:, written:] = v[:, written:] = np.nan
    return k, v


# few kernels, many shapes: decoding is compiled per (dtype, D, heads of a group up to 4)
FEW = [("f16", 64, 1), ("f16", 64, 3), ("bf16", 64, 4), ("f32", 40, 2), ("f16", 128, 7), ("f32", 256, 5)]
MASKS = st.sampled_from([(True, 0), (True, 1), (True, 20), (True, 70), (False, 0), (False, 9)])


@settings(max_examples=60)
@given(st.data())
def test_reference_of_decoding(data):
    dtype, width, group = data.draw(st.sampled_from(FEW))
    groups, t, (causal, window) = (
        data.draw(st.sampled_from([1, 2, 3, 8])),
        data.draw(st.integers(1, 4)),
        data.draw(MASKS),
    )
    start, spare = data.draw(st.sampled_from([0, 1, 11, 15, 60, 62, 64, 200, 509])), data.draw(st.integers(12, 40))
    softcap = data.draw(st.sampled_from([0.0, 0.0, 3.0]))
    rng = np.random.default_rng(start)
    k, v = caches(rng, groups, start + t + spare, width, dtype, start + t)
    q = rng.standard_normal((t, groups * group, width)).astype(np.float32)
    q[:, ::2] *= data.draw(st.sampled_from([1, 60]))  # heads that share loads have maxima of their own
    position = array(np.array([start]))
    got = fused.attention(padded(q), array(k), array(v), position, None, causal, window, softcap)
    check(read(got), q, k, v, start, start + t, causal=causal, window=window, softcap=softcap)


@settings(max_examples=60)
@given(st.data())
def test_reference_of_prefill(data):
    width, dtype = (
        data.draw(st.sampled_from([16, 24, 40, 64, 80, 96, 128])),
        data.draw(st.sampled_from(["f32", "f16", "bf16"])),
    )
    groups, group, (causal, window) = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3)), data.draw(MASKS)
    t, start = data.draw(st.integers(5, 140)), data.draw(st.sampled_from([0, 1, 37, 64, 150]))
    softcap, scale = data.draw(st.sampled_from([0.0, 3.0])), data.draw(st.sampled_from([None, 0.3]))
    rng = np.random.default_rng(t)
    k, v = caches(rng, groups, start + t + data.draw(st.integers(0, 70)), width, dtype, start + t)
    q = rng.standard_normal((t, groups * group, width)).astype(np.float32)
    position = array(np.array([start]))
    got = fused.attention(padded(q), array(k), array(v), position, scale, causal, window, softcap)
    check(read(got), q, k, v, start, start + t, causal=causal, window=window, softcap=softcap, scale=scale)


@pytest.mark.parametrize("t", [2, 70])
def test_reference_of_lengths_and_strided_caches(t):
    rng = np.random.default_rng(3)
    q, kv = rng.standard_normal((t, 6, 64)).astype(np.float32), rng.standard_normal((90, 2, 2, 64)).astype(np.float16)
    both = array(kv)  # [rows, K or V, heads, D]: views of it are caches with heads closer than rows
    k, v = (both.view(both.layout.select(1, i).permute((1, 0, 2))) for i in (0, 1))
    k_values, v_values = kv[:, 0].transpose(1, 0, 2), kv[:, 1].transpose(1, 0, 2)
    for length in (0, 1, 50, 64, 90, 1000):
        for words, values in ((length, v), (array(np.array([length])), array(v_values))):  # strides equal, and not
            got = fused.attention(array(q), k, values, causal=False, length=words)
            check(read(got), q, k_values, v_values, 0, min(length, 90), causal=False)
    got = fused.attention(array(q), k, v)  # all keys; the last query sees the last one
    check(read(got), q, k_values, v_values, 90 - t, 90)


@pytest.mark.parametrize("t", [3, 40])
def test_queries_that_see_nothing_give_0(t):
    q, k = np.ones((t, 2, 64), np.float32), np.ones((2, 50, 64), np.float32)
    got = read(fused.attention(array(q), array(k), array(k), -2))  # queries 0 and 1 stand before the first key
    assert (got[:2] == 0).all() and (abs(got[2:] - 1) <= 100 * U).all()
    assert (read(fused.attention(array(q), array(k), array(k), length=0)) == 0).all()
    assert (read(fused.attention(array(q), array(k), array(k), array(np.array([500])), window=4)) == 0).all()


@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize(("t", "start", "window"), [(4, 90, 0), (4, 90, 3), (60, 30, 0), (60, 30, 8)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_a_number_reaches_exactly_who_sees_it(where, t, start, window, bad):
    rng = np.random.default_rng(1)
    q = rng.standard_normal((t, 6, 64)).astype(np.float32)
    k, v = caches(rng, 2, start + t + 20, 64, "f16", start + t)
    clean = read(fused.attention(array(q), array(k), array(v), start, window=window))
    row = t // 2 if where == "q" else start + t // 2
    {"q": q, "k": k, "v": v}[where][(row, 4, 0) if where == "q" else (1, row, 0)] = bad
    got = read(fused.attention(array(q), array(k), array(v), start, window=window))
    heads, p = np.arange(6), np.arange(t) + start
    if where == "q":
        hit = (np.arange(t) == row)[:, None] & (heads == 4)
    else:
        hit = ((p >= row) & ((window == 0) | (p < row + window)))[:, None] & (heads >= 3)
    assert (got[~hit] == clean[~hit]).all()
    if bad is np.nan or where == "v":  # an infinite q or k gives scores of either sign: NaN, or a weight of 0
        assert not np.isfinite(got[hit][..., 0 if where == "v" else slice(None)]).any()


def results(t, rng, cls=Array):
    q = rng.standard_normal((t, 9, 64)).astype(np.float32)
    k, v = caches(rng, 3, 700, 64, "f16", 600 + t)
    return fused.attention(array(q, cls=cls), array(k), array(v), array(np.array([600])))


@pytest.mark.parametrize("t", [1, 4, 50])
def test_threads_and_passes_change_no_bit(t, monkeypatch):
    want = read(results(t, np.random.default_rng(7)))
    monkeypatch.setattr(fused, "PACKED_BYTES", 1)  # a pass per KV head
    try:
        for threads in (1, 2, 3):
            backend.set_num_threads(threads)
            assert (read(results(t, np.random.default_rng(7))) == want).all()
    finally:
        backend.set_num_threads(None)


@pytest.mark.parametrize("t", [1, 4, 50])
def test_nothing_else_is_written(t, monkeypatch):
    monkeypatch.setattr(fused, "Array", Guarded)  # scratch as well
    for threads in (1, 3):
        backend.set_num_threads(threads)
        Guarded.made.clear()
        results(t, np.random.default_rng(7), Guarded)
        assert len(Guarded.made) >= 4 and Guarded.intact()
    backend.set_num_threads(None)


def fenced(values, dtype=None):
    """The values at the very end of memory: whoever reads a byte behind them dies."""
    values = np.ascontiguousarray(values, None if dtype is None else get(dtype).numpy_dtype())
    page = mmap.PAGESIZE
    size = -(-values.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(base + size), ctypes.c_size_t(page), 0) == 0
    start = base + size - values.nbytes
    ctypes.memmove(start, values.ctypes.data, values.nbytes)
    dtype = {"float32": "f32", "float16": "f16", "int64": "i64"}[values.dtype.name]
    return Array(Buffer(start, values.nbytes, memory), contiguous(values.shape), get(dtype))


def read_at_the_end_of_memory():
    """All ops of fused.py on odd sizes; the test below runs it in another process."""
    rng = np.random.default_rng(0)
    x = lambda *shape, dtype="f32": fenced(rng.standard_normal(shape), dtype)  # noqa: E731
    for t, rows, width, dtype in (
        (1, 77, 64, "f16"),
        (3, 16, 40, "f32"),
        (2, 9, 64, "f16"),
        (70, 77, 40, "f16"),
        (9, 9, 24, "f32"),
    ):
        kv = [x(2, rows, width, dtype=dtype) for _ in range(2)]
        fused.attention(x(t, 2, width), *kv, fenced(np.array([rows - t])))
        fused.append(kv[0], x(t, 2, width), rows - t)
    cos, sin = fused.rope_tables(fenced(np.ones(5, np.float32)), 9)
    for interleaved in (False, True):
        fused.rope(x(3, 2, 11), fenced(read(cos)), fenced(read(sin)), 6, interleaved, out=x(3, 2, 11))
    for width in (1, 15, 17, 63, 65, 130):
        fused.layer_norm(x(2, width, dtype="f16"), x(width, dtype="f16"), x(width))
        fused.rms_norm(x(2, width), x(width))
        fused.swiglu(x(2, width), x(2, width))
        fused.embedding(fenced(np.array([0, 4])), x(5, width, dtype="f16"))


def test_nothing_behind_an_operand_is_read():
    command = [sys.executable, "-c", f"import runpy; runpy.run_path({__file__!r})['read_at_the_end_of_memory']()"]
    root = str(pathlib.Path(__file__).resolve().parents[2])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"


def test_a_captured_step_goes_on_from_where_it_is():
    rng, tokens = np.random.default_rng(5), 150
    q, k, v = (rng.standard_normal((tokens, h, 64)).astype(np.float32) for h in (6, 2, 2))
    cos, sin = fused.rope_tables([10000 ** (-i / 32) for i in range(32)], 200)
    parts = [array(x[:1]) for x in (q, k, v)]
    cache, start = [array(np.full((2, 200, 64), np.nan), "f16") for _ in range(2)], array(np.array([0]))
    with Capture() as step:
        turned = fused.rope(parts[0], cos, sin, start)
        fused.rope_append(cache[0], parts[1], cos, sin, start)
        fused.append(cache[1], parts[2], start)
        out = fused.attention(turned, *cache, start)
        backend.launch(backend.kernel("counter", "add"), (start.ptr, 1), writes=(start,))
    got = [read(out)]
    for i in range(1, tokens):
        for part, values in zip(parts, (q, k, v), strict=True):
            ctypes.memmove(part.ptr, values[i].ctypes.data, values[i].nbytes)
        step.replay()
        got.append(read(out))
    everything = fused.rope(array(q), cos, sin)
    check(np.concatenate(got), read(everything), read(cache[0]), read(cache[1]), 0, tokens)


def test_errors_say_what_is_wrong():
    x = lambda *shape, dtype="f32": Array.empty(shape, dtype)  # noqa: E731
    for q, k, v in ((x(1, 3, 64), x(2, 9, 64), x(2, 9, 64)), (x(1, 2, 64), x(2, 9, 32), x(2, 9, 32))):
        with pytest.raises(ShapeError, match="attention: got q"):
            fused.attention(q, k, v)
    with pytest.raises(ShapeError, match="D of at most 256"):
        fused.attention(x(1, 2, 272), x(2, 9, 272), x(2, 9, 272))
    with pytest.raises(DTypeError, match="expected f32"):
        fused.attention(x(1, 2, 64, dtype="f16"), x(2, 9, 64), x(2, 9, 64))
    with pytest.raises(DTypeError, match="one dtype"):
        fused.attention(x(1, 2, 64), x(2, 9, 64), x(2, 9, 64, dtype="f16"))
    with pytest.raises(ContextError, match="at most 9"):
        fused.attention(x(2, 2, 64), x(2, 9, 64), x(2, 9, 64), 8)
    with pytest.raises(ShapeError, match="stride 1"):
        q = x(2, 64, 2)
        fused.attention(q.view(q.layout.permute((0, 2, 1))), x(2, 9, 64), x(2, 9, 64))


@pytest.mark.parametrize("level", ["avx2", "portable"])
def test_lower_levels(level):
    if (
        level not in levels.LEVELS
        or not levels.LEVELS[level].flags <= levels.cpu_flags()
        or os.uname().machine != "x86_64"
    ):
        pytest.skip(f"this CPU does not run {level}")
    root = pathlib.Path(__file__).resolve().parents[2]
    files = [f"tests/ops/test_{name}.py" for name in ("attention", "norm", "rope")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", "reference or exactly"]
    env = {**os.environ, "TENSORLIB_CPU_LEVEL": level}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:]
