"""Attention, rotary embeddings and caches of the GPU backend, interpreted: what the rows of the ops do not reach."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tensorlib.capture import Capture
from tensorlib.device import Device
from tensorlib.dtype import get
from tensorlib.ops import fused

U = {"f32": 2.0**-24, "f16": 2.0**-17, "bf16": 2.0**-17}  # of products: 2 terms of a narrow cache's dtype have 17 bits


def array(values, dtype=None):
    """NumPy values on the device, in a dtype of ours."""
    values = np.ascontiguousarray(values)
    d = get(dtype or {"float32": "f32", "int64": "i64", "int32": "i32", "float16": "f16"}[values.dtype.name])
    values = values.astype(d.numpy_dtype())
    out = tensorlib.empty(values.shape, dtype=d.name, device="cuda:0")
    out.buffer.write(out.ptr, values.tobytes())
    return out


def read(x):
    """The elements of a contiguous result, in float64."""
    data = x.buffer.read(x.buffer.ptr, x.buffer.nbytes)
    return np.frombuffer(data, x.dtype.numpy_dtype()).reshape(x.shape).astype(np.float64)


def rounded(values, dtype):
    """What a dtype keeps of values."""
    return values.astype(get(dtype).numpy_dtype()).astype(np.float64)


def reference(q, k, v, start, n, left=-1, right=0, softcap=0.0, scale=None, bias=None):
    """(result, bound per unit of rounding) in float64; the bound as in tests/ops/test_attention.py."""
    (t, h, d), q = q.shape, q.astype(np.float64)
    k, v = (np.repeat(np.asarray(x[:, :n], np.float64), h // x.shape[0], 0) for x in (k, v))
    scale = d**-0.5 if scale is None else scale
    s, most = np.einsum("thd,hnd->thn", q, k) * scale, np.einsum("thd,hnd->thn", abs(q), abs(k)) * abs(scale)
    s = softcap * np.tanh(s / softcap) if softcap else s
    distance = np.arange(n) - (np.arange(t)[:, None] + start)
    seen = ((distance >= -left) | (left < 0)) & ((distance <= right) | (right < 0))
    s = s if bias is None else s + bias
    s = np.where(seen[:, None], s, -np.inf)
    w = np.exp(s - np.maximum(s.max(-1, keepdims=True, initial=-np.inf), -1e300))
    w /= np.maximum(w.sum(-1, keepdims=True), 1e-300)
    a = np.where(seen[:, None], most, 0).max(-1, initial=0.0)[..., None]
    relative = 2 * ((d + 16) * a + 8 * softcap) + 2 * n + n / 8 + 40
    return np.einsum("thn,hnd->thd", w, v), relative * np.einsum("thn,hnd->thd", w, abs(v)) + 1e-20


def check(found, want, bound, unit):
    assert not np.isnan(found).any()
    assert (abs(found - want) <= unit * bound).all(), np.max(abs(found - want) / (unit * bound))


def operands(rng, t, heads, groups, rows, d, kv, written):
    """q and caches whose rows from `written` on are NaN."""
    q = rng.standard_normal((t, heads, d)).astype(np.float32)
    k, v = (rounded(rng.standard_normal((groups, rows, d)), kv) for _ in range(2))
    k[:, written:] = v[:, written:] = np.nan
    return q, k, v


# T, heads, KV heads, rows, D, start, causal, window, softcap, cache
CASES = [
    (70, 2, 1, 150, 64, 37, True, 0, 0.0, "f16"),
    (70, 2, 2, 150, 64, 0, True, 20, 0.0, "f32"),
    (66, 1, 1, 140, 40, 70, False, 9, 3.0, "bf16"),
    (130, 2, 2, 130, 16, 0, True, 70, 0.0, "f16"),
    (65, 1, 1, 200, 128, 100, False, 0, 3.0, "f32"),
    (1, 8, 2, 400, 64, 301, True, 0, 0.0, "f16"),
    (1, 14, 2, 400, 64, 301, True, 50, 0.0, "bf16"),
    (3, 4, 1, 300, 128, 200, True, 0, 2.0, "f32"),
    (4, 40, 2, 90, 32, 60, False, 30, 0.0, "f16"),
    (2, 2, 2, 20, 256, 3, True, 0, 0.0, "f16"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("placed", [False, True])
def test_reference(case, placed, device):
    t, heads, groups, rows, d, start, causal, window, softcap, kv = case
    q, k, v = operands(np.random.default_rng(t), t, heads, groups, rows, d, kv, start + t)
    q[:, ::2] *= 30
    place = array(np.array([start])) if placed else start
    found = fused.attention(array(q), array(k, kv), array(v, kv), place, None, causal, window, softcap)
    left = window - 1 if window else -1
    want, bound = reference(q, k, v, start, start + t, left, 0 if causal else left, softcap)
    check(read(found), want, bound, U["f32"] if kv == "f32" else 2.0**-19)
    device.check()


@pytest.mark.parametrize("kv", ["f8e4m3", "f8e5m2"])
@pytest.mark.parametrize("t", [1, 70])
def test_float8_caches(kv, t, device):
    q, k, v = operands(np.random.default_rng(1), t, 4, 2, 100, 64, kv, 20 + t)
    found = fused.attention(array(q), array(k, kv), array(v, kv), 20)
    check(read(found), *reference(q, k, v, 20, 20 + t), 2.0**-19)


@pytest.mark.parametrize("t", [1, 70])
def test_nothing_seen_and_negative_scales(t, device):
    q, k, v = operands(np.random.default_rng(2), t, 2, 1, 90, 32, "f16", 90)
    found = read(fused.attention(array(q), array(k, "f16"), array(v, "f16"), -40, -0.3, length=5))
    want, bound = reference(q, k, v, -40, 5, scale=-0.3)
    check(found, want, bound, 2.0**-19)
    assert (found[: min(t, 40)] == 0).all()
    empty = fused.attention(
        array(q), array(k, "f16"), array(v, "f16"), array(np.array([3])), length=array(np.array([0]))
    )
    assert (read(empty) == 0).all()


@pytest.mark.parametrize("t", [1, 70])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_a_scale_of_0_gives_means(t, softcap, device):
    q, k, v = operands(np.random.default_rng(7), t, 2, 1, 90, 32, "f16", 5 + t)
    for window, left in ((0, -1), (9, 8)):
        found = fused.attention(array(q), array(k, "f16"), array(v, "f16"), 5, 0.0, True, window, softcap)
        check(read(found), *reference(q, k, v, 5, 5 + t, left, 0, softcap, 0.0), 2.0**-19)


def test_nan_in_a_value_that_no_query_of_a_tile_sees_stays_out(device):
    q, k, v = operands(np.random.default_rng(8), 140, 1, 1, 150, 32, "f16", 150)
    v[:, 149] = np.nan  # seen by the last query alone, in a block whose other keys more queries see
    found = read(fused.attention(array(q), array(k, "f16"), array(v, "f16"), 10))
    assert np.isnan(found[139]).all()
    want, bound = reference(q[:128], k, v, 10, 138)
    check(found[:128], want, bound, 2.0**-19)


def test_a_captured_step_moves_on(device):
    """Positions are read when a kernel runs: one capture decodes at any place."""
    q, k, v = operands(np.random.default_rng(3), 1, 4, 2, 300, 64, "f16", 300)
    position, keys, values = array(np.array([5])), array(k, "f16"), array(v, "f16")
    rows = array(q)
    with Capture("cuda:0") as step:
        found = fused.attention(rows, keys, values, position)
    for place in (5, 64, 250):
        position.buffer.write(position.ptr, np.int64(place).tobytes())
        step.replay()
        check(read(found), *reference(q, k, v, place, place + 1), 2.0**-19)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("t", [2, 40])
def test_scaled_dot_product_attention(dtype, t, device):
    """Narrow operands are multiplied as they are: at most twice the error of weights rounded to their dtype."""
    rng = np.random.default_rng(4)
    q, k, v = (rounded(rng.standard_normal((2, h, n, 32)), dtype) for h, n in ((4, t), (2, 50), (2, 50)))
    mask = rng.standard_normal((4, t, 50)).astype(np.float32)
    mask[:, 1], mask[:, 0, 7:] = -np.inf, -np.inf
    for causal, bias in ((True, None), (False, None), (False, mask)):
        given = None if bias is None else array(bias)
        some = (array(x, dtype) for x in (q, k, v))
        found = tensorlib.scaled_dot_product_attention(*some, given, is_causal=causal, enable_gqa=True)
        assert found.dtype.name == dtype
        for b in range(2):
            want, bound = reference(
                q[b].transpose(1, 0, 2), k[b], v[b], 0, 50, -1, 0 if causal else -1,
                bias=None if bias is None else bias.transpose(1, 0, 2),
            )  # fmt: skip
            narrow = {"f32": 0, "f16": 2.0**-10, "bf16": 2.0**-7}[dtype]
            inside = 2 * narrow * np.abs(v).max() + U["f32"] * bound
            assert (abs(read(found)[b].transpose(1, 0, 2) - want) <= inside).all()


def test_ropes_and_appends_of_a_layer(device):
    """One launch, or the three that it stands for: the same bits; float8 caches round as casts do."""
    rng = np.random.default_rng(5)
    q, k, v = (array(rng.standard_normal((3, h, 16)).astype(np.float32)) for h in (4, 2, 2))
    cos, sin = fused.rope_tables([1.0, 0.1, 0.01, 0.001, 1e-4], 20, Device("cuda:0"))
    for dtype in ("f16", "f8e4m3", "f8e5m2", "f32"):
        for interleaved in (False, True):
            caches = [tensorlib.zeros((2, 9, 16), dtype=dtype).to("cuda:0") for _ in range(4)]
            start = array(np.array([4]))
            turned = fused.rope_layer(q, k, v, caches[0], caches[1], cos, sin, start, interleaved)
            fused.rope_append(caches[2], k, cos, sin, start, interleaved)
            fused.append(caches[3], v, start)
            np.testing.assert_array_equal(read(turned), read(fused.rope(q, cos, sin, 4, interleaved)))
            for a, b in ((0, 2), (1, 3)):
                np.testing.assert_array_equal(read(caches[a]), read(caches[b]))
            np.testing.assert_array_equal(read(caches[1])[:, 4:7], rounded(read(v), dtype).transpose(1, 0, 2))
    device.check()


def test_rounding_to_float8(device):
    """Every boundary between two numbers, and both sides of it."""
    for dtype in ("f8e4m3", "f8e5m2"):
        codes = np.arange(256, dtype=np.uint8).view(get(dtype).numpy_dtype()).astype(np.float32)
        finite = np.sort(codes[np.isfinite(codes)])
        middle = (finite[1:] + finite[:-1]) / 2
        x = np.concatenate([finite, middle, np.nextafter(middle, np.float32(9e9)), [np.nan, 1e9, -1e9, np.inf]])
        x = np.resize(x.astype(np.float32), (1, 1, 1024))
        cache = tensorlib.zeros((1, 1, 1024), dtype=dtype).to("cuda:0")
        fused.append(cache, array(x), 0)
        want = tensorlib.from_numpy(x).to(dtype)
        got = np.frombuffer(cache.buffer.read(cache.ptr, 1024), np.uint8)
        np.testing.assert_array_equal(got, np.frombuffer(want.buffer.read(want.ptr, 1024), np.uint8))


def test_a_cache_and_tables_on_the_device(device):
    rotary = nn.RotaryEmbedding(16, 64)
    cache = nn.KVCache(2, 2, 12, 16, device="cuda:0")
    rng = np.random.default_rng(6)
    k, v = (array(rng.standard_normal((5, 2, 16)).astype(np.float32)) for _ in range(2))
    cache.reserve(5)
    _, values = cache.append(1, k, v, rotary)
    cache.advance(5)
    assert cache.start.tolist() == [5]
    np.testing.assert_array_equal(read(values)[:, :5], rounded(read(v), "f16").transpose(1, 0, 2))
    cos, _ = rotary.tables("cuda:0")
    np.testing.assert_allclose(read(cos)[:, 1], np.cos(np.arange(64) * 10000 ** (-1 / 8)), atol=1e-7)
    cache.reset(2)
    assert cache.start.tolist() == [2]


LENGTHS = [(0, 5), (70, 130), (1, 1), (0, 0), (3, 90)]  # queries and keys of sequences


@pytest.mark.parametrize("counts", [LENGTHS, [(1, 77), (1, 3), (1, 130)]], ids=["mixed", "decoding"])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_sequences_of_several_lengths(counts, dtype, device):
    """One kernel: as sequence by sequence, with a window and ALiBi; starts are read by it, and may be on the device."""
    rng = np.random.default_rng(8)
    q0, k0 = ([int(n) for n in np.cumsum([0, *(c[i] for c in counts)])] for i in (0, 1))
    q, k, v = (rounded(rng.standard_normal((n[-1], h, 32)), dtype) for n, h in ((q0, 4), (k0, 2), (k0, 2)))
    slopes = np.float32([0.5, 0.25, 0.0, 1.0])
    for window, alibi in (((-1, -1), None), ((20, 3), slopes)):
        starts = (array(np.array(n)) for n in (q0, k0))
        given = None if alibi is None else array(alibi)
        before = device.launches
        some = (array(x, dtype) for x in (q, k, v))
        found = tensorlib.varlen_attn(*some, *starts, is_causal=alibi is None, window_size=window, alibi=given)
        assert device.launches - before <= 2
        for i, (n, m) in enumerate(counts):
            distance = np.arange(m) - (np.arange(n)[:, None] + m - n)
            bias = None if alibi is None else -alibi[None, :, None] * abs(distance)[:, None]
            keys = (x[k0[i] : k0[i + 1]].transpose(1, 0, 2) for x in (k, v))
            left, right = window[0], 0 if alibi is None else window[1]
            if m:
                want, bound = reference(q[q0[i] : q0[i + 1]], *keys, m - n, m, left, right, bias=bias)
                narrow = 0 if dtype == "f32" else 2.0**-9 * np.abs(v).max()
                got = read(found)[q0[i] : q0[i + 1]]
                assert (abs(got - want) <= narrow + U["f32"] * bound).all()


@pytest.mark.parametrize("kv", ["f16", "f8e4m3", "f32"])
@pytest.mark.parametrize("index", ["i64", "i32"])
def test_pages(kv, index, device):
    """Pages in any order are what one stretch is; behind a sequence's length there may be anything."""
    rng = np.random.default_rng(9)
    counts, lengths = [1, 3, 20], [40, 3, 37]
    q = rng.standard_normal((24, 6, 32)).astype(np.float32)
    k, v = (rounded(rng.standard_normal((3, 3, 48, 32)), kv) for _ in range(2))
    table = np.array([[7, 2, 11], [0, 9, 9], [5, 1, 3]])
    pages = [np.full((12, 3, 16, 32), np.nan) for _ in range(2)]
    for i, n in enumerate(lengths):
        for x, page in zip((k, v), pages):
            x[i, :, n:] = np.nan
            for j in range(-(-n // 16)):
                page[table[i, j]] = x[i, :, 16 * j : 16 * j + 16]
    starts = array(np.cumsum([0, *counts]))
    given = (array(q), array(pages[0], kv), array(pages[1], kv), array(table, index), array(np.array(lengths)), starts)
    found = read(tensorlib.paged_attention(*given, window=30, softcap=4.0))
    for i, n in enumerate(lengths):
        rows = slice(sum(counts[:i]), sum(counts[: i + 1]))
        want, bound = reference(q[rows], k[i], v[i], n - counts[i], n, 29, 0, 4.0)
        check(found[rows], want, bound, 2.0**-19)
    one = tensorlib.paged_attention(*(array(x) if i == 0 else x for i, x in enumerate([q[:3], *given[1:5]])))
    for i, n in enumerate(lengths):
        check(read(one)[i : i + 1], *reference(q[i : i + 1], k[i], v[i], n - 1, n), 2.0**-19)
    device.check()
