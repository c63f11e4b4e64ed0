"""Fused ops of a transformer: norms, rotary embedding, KV caches, attention, gated activations.

What changes from one decoding step to the next is the position: give it as `start`, an i64 Array of one element that
the kernels read when they run, and a captured step can be replayed. A Python int works too, for good. Results do not
depend on the number of threads. The last dim of every operand must be adjacent in memory; other strides are free.
"""

import struct

from tensorlib import backend, tape
from tensorlib.device import Array
from tensorlib.errors import ContextError, DTypeError, ShapeError
from tensorlib.ops import attention_vjp, create, elementwise, flash, index, movement
from tensorlib.ops.norm import (  # noqa: F401
    FLOATS,
    _adjacent,
    _name,
    adjacent_array,
    embedding,
    geglu,
    layer_norm,
    rms_norm,
    swiglu,
)
from tensorlib.registry import FLOAT_ONLY, define

FEW_QUERIES = 4  # up to so many, attention reads the caches as they are; more are worth packing K and V
FLOAT8 = ("f8e4m3", "f8e5m2")
PACKED_BYTES = 64 << 20  # of K and V at a time: more KV heads than fit are done in several passes


# ---- rotary embedding and caches ------------------------------------------------------------------------------------


def rope_tables(inv_freq, n, device=None):
    """(cos, sin), f32 [n, D/2], of position * inv_freq for positions 0 to n - 1; absolute error 1e-7 up to 1e6.

    inv_freq: D/2 inverse frequencies, an f32 or f64 Array or a list of numbers. Computed in float64.
    Raises ShapeError, DTypeError.
    """
    if not isinstance(inv_freq, Array):
        values = [float(f) for f in inv_freq]
        inv_freq = Array.empty((len(values),), "f64", *([device] if device else []))
        inv_freq.buffer.write(inv_freq.ptr, struct.pack(f"{len(values)}d", *values))
    if inv_freq.dtype.name not in ("f32", "f64"):
        raise DTypeError("rope_tables", inv_freq.dtype, "f32 or f64", "convert it with .to('f64')")
    if inv_freq.ndim != 1 or not inv_freq.is_contiguous() or n < 0:
        got = f"inv_freq of shape {inv_freq.shape}, n {n}"
        raise ShapeError("rope_tables", got, "1-d inv_freq, n of at least 0", "one inverse frequency per pair of dims")
    cos, sin = (type(inv_freq).empty((n, inv_freq.shape[0]), "f32", inv_freq.device) for _ in range(2))
    kernel = backend.kernel("rope", "tables", inv_freq.dtype.name, device=inv_freq.device.type)
    words = [inv_freq.ptr, cos.ptr, sin.ptr, n, inv_freq.shape[0]]
    backend.launch(kernel, words, 32 * cos.numel(), (inv_freq,), (cos, sin))
    return cos, sin


def _turned(x, cos, sin, start, interleaved):
    """`rope` composed of other ops, for f64."""
    t, heads, width = x.shape
    start = movement.reshape(start, 1) if isinstance(start, Array) else start
    half, places = cos.shape[1], elementwise.add(create.arange(type(x), t, device=x.device), start)
    known = elementwise.logical_and(elementwise.ge(places, 0), elementwise.lt(places, cos.shape[0]))
    rows, known = elementwise.where(known, places, 0), movement.unsqueeze(movement.unsqueeze(known, -1), -1)

    def angles(table):
        found = movement.unsqueeze(elementwise.cast(index.index_select(table, 0, rows), x.dtype), 1)
        return elementwise.where(known, found, float("nan"))

    c, s = angles(cos), angles(sin)
    split = (t, heads, half, 2) if interleaved else (t, heads, 2, half)
    pairs, axis = movement.reshape(movement.narrow(x, 2, 0, 2 * half), split), 3 if interleaved else 2
    u, v = movement.select(pairs, axis, 0), movement.select(pairs, axis, 1)
    mul, add, sub = elementwise.mul, elementwise.add, elementwise.sub
    turned = movement.stack([sub(mul(u, c), mul(v, s)), add(mul(v, c), mul(u, s))], axis)
    rest = movement.narrow(x, 2, 2 * half, width - 2 * half)
    return movement.cat([movement.reshape(turned, (t, heads, 2 * half)), rest], 2)


def _rope_ref(np, x, cos, sin, start=0, interleaved=False, out=None, out_start=False):
    half, places = cos.shape[1], np.arange(x.shape[0]) + start
    c, s = cos[places][:, None], sin[places][:, None]
    found = x.copy()
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(half), slice(half, 2 * half))
    )
    u, v = x[..., first], x[..., second]
    found[..., first], found[..., second] = u * c - v * s, v * c + u * s
    return found


def _rope_domain(s, dtype):
    shape = (s.integer(1, 3), s.integer(1, 3), s.integer(2, 5 if s.smooth else 70))
    start, half = s.integer(0, 2), s.integer(1, shape[2] // 2)
    tables = (s.array((5, half), low=-1, high=1).copy() for _ in range(2))
    return (adjacent_array(s, shape), *tables, start), {"interleaved": s.boolean()}


@define(
    "fused",
    FLOAT_ONLY,
    _rope_ref,
    domain=_rope_domain,
    vjp={
        "x": lambda g, cos, sin, start, interleaved: rope(
            movement.contiguous(g), cos, elementwise.neg(sin), start, interleaved
        )
    },
)
def rope(x, cos, sin, start=0, interleaved=False, out=None, out_start=False):
    """Rotary position embedding (Su et al., arXiv:2104.09864) of x [T, H, D] f32; row t has position start + t.

    cos, sin: rows of `rope_tables`, [n, R/2] with R <= D: the first R dims turn, the others are copied. Dims i and
    i + R/2 turn together (Hugging Face), or, `interleaved`, 2 i and 2 i + 1 (GGUF's Llama). A position of n or more
    gives NaN.
    out: where to write, [rows, H, D] f32, f16 or bf16, at row t, or with `out_start` at row start + t (rows outside are
    not written); by default a new f32 Array. Returns it. Without out, x may be f64, with tables of f32 or f64.
    Raises ShapeError, DTypeError.

    The gradient of x turns back. Tables have none.
    """
    wide = x.dtype.name == "f64" and out is None
    if not wide:
        _only_f32("rope", x, cos, sin)
    _check_rope(x, cos, sin)
    if wide:
        return _turned(x, cos, sin, start, interleaved)
    out = type(x).empty(x.shape, "f32", x.device) if out is None else out
    if out.ndim != 3 or out.shape[1:] != x.shape[1:] or (not out_start and out.shape[0] < x.shape[0]):
        got = f"out of shape {out.shape} for x {x.shape}"
        raise ShapeError("rope", got, "[rows, H, D]", "permute the cache's dims")
    _adjacent("rope", x, cos, sin, out)
    (t, heads, width), half = x.shape, cos.shape[1]
    words = [*_matrix(x), cos.ptr, sin.ptr, cos.shape[0], half, *_matrix(out), out.shape[0], t, heads, width]
    layout = "pairs" if interleaved else "halves"
    kernel = backend.kernel("rope", "rope", layout, _cache_name("rope", out), device=x.device.type)
    words += [*_position("rope", start), int(out_start)]
    backend.launch(kernel, words, 4 * x.numel(), _reads(x, cos, sin, start), (out,))
    return out


def append(cache, x, start):
    """Writes x [T, H, D] (f32) to rows start to start + T - 1 of a cache [H, rows, D] (f32, f16, bf16); returns that.

    Rows outside the cache are not written. Raises ShapeError, DTypeError; GradError if an operand requires a gradient.
    """
    out = _cache_rows("append", cache, x)
    (t, heads, width) = x.shape
    words = [*_matrix(x), *_matrix(out), out.shape[0], t, heads, width, *_position("append", start)]
    kernel = backend.kernel("rope", "append", _cache_name("append", cache), device=x.device.type)
    backend.launch(kernel, words, x.numel(), _reads(x, start), (cache,))
    return cache


def rope_append(cache, x, cos, sin, start, interleaved=False):
    """`append` of `rope(x, ...)` in one pass. Returns the cache. Raises as the two do."""
    rope(x, cos, sin, start, interleaved, _cache_rows("rope_append", cache, x), out_start=True)
    return cache


def rope_layer(q, k, v, keys, values, cos, sin, start, interleaved=False):
    """What a layer does before attention: `rope` of q, `rope_append` of k to keys, `append` of v to values.

    q [T, H, D], k and v [T, G, D] f32; caches as in `append`. Returns q turned. One launch on GPUs. Raises as those.
    """
    if q.device.type == "cpu":
        rope_append(keys, k, cos, sin, start, interleaved)
        append(values, v, start)
        return rope(q, cos, sin, start, interleaved)
    if q.ndim != 3 or (q.shape[0], q.shape[2], k.shape) != (k.shape[0], k.shape[2], v.shape):
        got = f"q {q.shape}, k {k.shape}, v {v.shape}"
        raise ShapeError("rope_layer", got, "q [T, H, D], k and v [T, G, D]", "reshape the projections")
    rows, more = _cache_rows("rope_layer", keys, k), _cache_rows("rope_layer", values, v)
    _only_f32("rope_layer", q, cos, sin)
    _check_rope(q, cos, sin)
    if rows.shape != more.shape or keys.dtype is not values.dtype:
        got = f"keys {keys.dtype} {keys.shape}, values {values.dtype} {values.shape}"
        raise ShapeError("rope_layer", got, "two caches of one shape and dtype", "allocate them alike")
    _adjacent("rope_layer", q, cos, sin)
    out = type(q).empty(q.shape, "f32", q.device)
    words = [q.shape[0], q.shape[2], cos.ptr, sin.ptr, *cos.shape, *_position("rope_layer", start)]
    words += [*_matrix(q), *_matrix(out), q.shape[1], *_matrix(k), *_matrix(rows), *_matrix(v), *_matrix(more)]
    layout = "pairs" if interleaved else "halves"
    kernel = backend.kernel("rope", "layer", layout, "f32", _cache_name("rope_layer", keys), device=q.device.type)
    reads = _reads(q, k, v, cos, sin, start)
    backend.launch(kernel, [*words, k.shape[1], rows.shape[0]], 1, reads, (out, keys, values))
    return out


def _cache_rows(op, cache, x):
    """The cache [H, rows, D] as [rows, H, D]."""
    if x.ndim != 3 or cache.ndim != 3 or (cache.shape[0], cache.shape[2]) != x.shape[1:]:
        got = f"a cache of shape {cache.shape} for x {x.shape}"
        raise ShapeError(op, got, "a cache [H, rows, D] for x [T, H, D]", "allocate the cache with x's heads and width")
    _only_f32(op, x)
    _adjacent(op, cache, x)
    return cache.view(cache.layout.permute((1, 0, 2)))


def _check_rope(x, cos, sin):
    if x.ndim != 3 or cos.ndim != 2 or cos.shape != sin.shape or 2 * cos.shape[1] > x.shape[2] or cos.shape[0] == 0:
        got = f"x {x.shape}, cos {cos.shape}, sin {sin.shape}"
        raise ShapeError("rope", got, "x [T, H, D] and tables [n, R/2] with R <= D", "make them with rope_tables")
    if not (cos.is_contiguous() and sin.is_contiguous()):
        raise ShapeError("rope", f"tables of strides {cos.strides}", "contiguous tables", "make them with rope_tables")


def _cache_name(op, x):
    """The dtype of a cache; GPUs also take float8."""
    return x.dtype.name if x.dtype.name in FLOAT8 and x.device.type != "cpu" else _name(op, x)


def _only_f32(op, *arrays):
    for x in arrays:
        if x.dtype.name != "f32":
            raise DTypeError(op, x.dtype, "f32", "convert it with .to('f32')")


def _matrix(x):
    """Address and byte strides of the first two dims."""
    return x.ptr, x.strides[0] * x.dtype.itemsize, x.strides[1] * x.dtype.itemsize


def _position(op, start):
    """Two words: the address of an i64 and 0, or 0 and a value."""
    if isinstance(start, int):
        return 0, start
    if start.dtype.name != "i64" or start.numel() != 1:
        raise DTypeError(op, f"a position of {start.dtype} {start.shape}", "an int, or one i64 element", "convert it")
    return start.ptr, 0


def _reads(*operands):
    return [x for x in operands if isinstance(x, Array)]


# ---- attention ------------------------------------------------------------------------------------------------------


def _attention_vjp(g, q, k, v, out, start, scale, causal, window, softcap, length):
    if 0 in q.shape:
        return (create.zeros(type(g), x.shape, dtype=g.dtype, device=g.device) for x in (q, k, v))
    start, length = _positions(start, length, q.shape[0], k.shape[1], causal or window)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    on_gpu, on_cpu = hasattr(out.buffer, "sums"), q.device.type == "cpu" and q.dtype.name == "f32" and not softcap
    if (on_gpu or on_cpu) and not tape.mode.recording:
        words = _attention_words(q, k, start, length, scale, causal, window, softcap)
        g, reads = movement.contiguous(elementwise.cast(g, q.dtype)), _reads(q, k, v, start, length)
        return flash.vjp(g, q, k, v, out, words, reads) if on_gpu else attention_vjp.by_kernel(g, q, k, v, words, reads)
    return attention_vjp.vjp(g, q, k, v, out, start, scale, causal, window, softcap, length)


def _attention_ref(np, q, k, v, start=None, scale=None, causal=True, window=0, softcap=0.0, length=None):
    t, rows = q.shape[0], k.shape[1]
    start, length = _positions(start, length, t, rows, True)
    at, keys = np.arange(t)[:, None] + start, np.arange(rows)
    seen = (keys < (start + t if length is None else length)) & (at >= keys if causal else True)
    if window:
        seen = seen & (keys > at - window) & (keys < at + window)
    k, v = (np.repeat(x, q.shape[1] // k.shape[0], 0) for x in (k, v))
    scores = np.einsum("thd,hrd->htr", q, k) * (q.shape[2] ** -0.5 if scale is None else scale)
    scores = softcap * np.tanh(scores / softcap) if softcap else scores
    e = np.where(seen, np.exp(scores - np.max(scores, -1, keepdims=True)), 0)
    total = np.sum(e, -1, keepdims=True)
    return np.einsum("htr,hrd->thd", e / np.where(total == 0, 1, total), v)


def _attention_domain(s, dtype):
    t, groups, width, rows = s.integer(1, 3), s.integer(1, 2), s.integer(1, 3 if s.smooth else 40), s.integer(3, 5)
    shapes = [(t, groups * s.integer(1, 2), width)] + [(groups, rows, width)] * 2
    options = {"causal": s.boolean(), "window": s.pick([0, 0, 2]), "softcap": s.pick([0.0, 0.0, 2.0])}
    return (
        *(adjacent_array(s, shape, low=-2, high=2) for shape in shapes),
        s.pick([None, s.integer(0, rows - t)]),
    ), options


@define(
    "fused",
    FLOAT_ONLY,
    _attention_ref,
    arity=3,
    domain=_attention_domain,
    vjp={("q", "k", "v"): _attention_vjp},
)
def attention(q, k, v, start=None, scale=None, causal=True, window=0, softcap=0.0, length=None):
    """softmax(q k^T * scale) v per head: q [T, H, D] f32, k and v caches [G, rows, D] of one dtype -> [T, H, D] f32.

    H is a multiple of G: query head h attends with KV head h // (H / G). D is at most 256. Query t stands at position
    start + t among `length` keys; by default the keys end with the last query: length is start + T, or without a start
    all rows of k. Causal: it sees keys up to its own position. window > 0: only the last `window` of them (not causal:
    those less than `window` away). softcap c: scores become c * tanh(score / c). Queries that see nothing give 0.
    start and length are ints or i64 Arrays of one element. scale is 1 / sqrt(D) by default.
    Raises ShapeError, DTypeError, ContextError if start + T is known to exceed the rows.

    Flash attention (Dao et al., arXiv:2205.14135) for many queries, ranges of keys read once for few. q may be f64,
    and then k and v, too: that is computed from the definition, as gradients are. On GPUs the caches may be float8, and
    q has their dtype if it is f16 or bf16.
    """
    _check_attention(q, k, v)
    (t, _, width), rows = q.shape, k.shape[1]
    out = type(q).empty(q.shape, q.dtype, q.device)
    if 0 in q.shape:
        return out
    start, length = _positions(start, length, t, rows, causal or window)
    scale = width**-0.5 if scale is None else scale
    if q.dtype.name == "f64":
        return attention_vjp.composed(q, k, v, start, scale, causal, window, softcap, length)
    words = _attention_words(q, k, start, length, scale, causal, window, softcap)
    reads = _reads(q, k, v, start, length)
    if q.device.type != "cpu" and k.dtype.name in FLOATS and any(map(tape.live, (q, k, v))):
        flash.forward(out, q, k, v, words, reads, sums=flash.sums_of(out, q))
        return out
    few = t <= FEW_QUERIES and rows >= 16
    (_decode if few else _prefill)(out, q, k, v, words, reads)
    return out


def _attention_words(q, k, start, length, scale, causal, window, softcap):
    """What the words of all kernels of attention begin with."""
    first, count = _position("attention", start), (0, -1) if length is None else _position("attention", length)
    words = [*q.shape[:2], k.shape[0], q.shape[2], *first, *count, k.shape[1]]
    return [*words, int(causal), window, float(scale), float(softcap)]


def _check_attention(q, k, v):
    if q.dtype.name != "f64":
        if q.device.type == "cpu" or q.dtype is not k.dtype:
            _only_f32("attention", q)
        _cache_name("attention", k)
    if k.dtype is not v.dtype:
        raise DTypeError("attention", f"k of {k.dtype}, v of {v.dtype}", "one dtype", "convert one of them")
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    fit = q.ndim == k.ndim == 3 and k.shape == v.shape and k.shape[0] and k.shape[1] and q.shape[2] == k.shape[2]
    if not fit or q.shape[1] % k.shape[0]:
        expected = "q [T, H, D], k and v [G, rows, D], H a multiple of G"
        raise ShapeError("attention", shapes, expected, "permute the dims")
    if q.shape[2] > 256:
        raise ShapeError("attention", shapes, "D of at most 256", "compose it of matmul and softmax")
    _adjacent("attention", q, k, v)


def _positions(start, length, t, rows, ordered):
    """start and length by default; a length of None is start + t."""
    if start is None:
        if ordered and length is not None and not isinstance(length, int):
            got = "a length in memory and no start"
            raise ShapeError("attention", got, "a start, if positions matter", "give start as an Array, too")
        keys = length if isinstance(length, int) else rows
        start, length = keys - t, keys if length is None else length
    if isinstance(start, int) and length is None and start + t > rows:
        got = f"{t} queries from position {start}"
        raise ContextError("attention", got, f"at most {rows}, the cache's rows", "allocate a longer cache")
    return start, length


def _scratch(nbytes, device):
    return Array.empty((nbytes,), "u8", device)


def _prefill(out, q, k, v, words, reads, mask=(0, 0, 0, 0, 1)):
    if q.device.type != "cpu":
        flash.forward(out, q, k, v, words, reads, mask)
        return
    (t, heads, width), (groups, rows, _) = q.shape, k.shape
    row, threads = 4 * (-(-width // 16) * 16), backend.threads(q.device.type)
    head = -(-rows // 64) * 64 * row
    per_pass = max(1, min(groups, PACKED_BYTES // (2 * head)))
    packed_k, packed_v = _scratch(per_pass * head, q.device), _scratch(per_pass * head, q.device)
    per_thread = 48 * (2 * row + 192) + 1536
    scratch = _scratch(threads * per_thread, q.device)
    pack = backend.kernel("attention", "pack", k.dtype.name, device=q.device.type)
    kernel = backend.kernel("attention", "prefill", device=q.device.type)
    for first in range(0, groups, per_pass):
        count = min(per_pass, groups - first)
        some = [*words, *_matrix(k), *_matrix(v), packed_k.ptr, packed_v.ptr, first, count]
        backend.launch(pack, some, count * rows * width, reads, (packed_k, packed_v))
        some = [*words, *_matrix(q), packed_k.ptr, packed_v.ptr, out.ptr, first, count]
        some += [scratch.ptr, per_thread, threads, *_matrix(out)[1:], *mask]
        work = count * (heads // groups) * t * rows * width // 8
        backend.launch(kernel, some, work, [*reads, packed_k, packed_v], (out, scratch))


def _decode(out, q, k, v, words, reads):
    if q.device.type != "cpu":
        flash.forward(out, q, k, v, words, reads)
        return
    (t, heads, width), (groups, rows, _) = q.shape, k.shape
    row, threads = 4 * (-(-width // 16) * 16), backend.threads(q.device.type)
    per = 64 if groups < 8 else 256  # keys of a range: short ones keep threads busy where there are few KV heads
    ranges, together = -(-rows // per), min(4, heads // groups)
    records = _scratch(t * heads * ranges * (row + 64), q.device)
    per_thread = together * row + 16 * per + 1024
    scratch = _scratch(threads * per_thread, q.device)
    kernel = backend.kernel("attention_decode", "decode", k.dtype.name, width, together, device=q.device.type)
    merge = backend.kernel("attention_decode", "merge", device=q.device.type)
    some = [*words, *_matrix(q), *_matrix(k), *_matrix(v), records.ptr, per, ranges, scratch.ptr, per_thread, threads]
    backend.launch(kernel, some, t * heads * rows * width // 8, reads, (records, scratch))
    work = t * heads * ranges * width // 8
    backend.launch(merge, [*words, records.ptr, per, ranges, *_matrix(out)], work, [*reads, records], (out, records))
