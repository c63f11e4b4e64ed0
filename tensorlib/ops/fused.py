"""Fused ops of a transformer: norms, rotary embedding, KV caches, attention, gated activations.

What changes from one decoding step to the next is the position: give it as `start`, an i64 Array of one element that
the kernels read when they run, and a captured step can be replayed. A Python int works too, for good. Results do not
depend on the number of threads. The last dim of every operand must be adjacent in memory; other strides are free.
"""

import ctypes
from math import prod

from tensorlib import backend
from tensorlib.device import Array
from tensorlib.errors import ContextError, DTypeError, ShapeError
from tensorlib.layout import Layout, collapse

FLOATS = ("f32", "f16", "bf16")
FEW_QUERIES = 4  # up to so many, attention reads the caches as they are; more are worth packing K and V
PACKED_BYTES = 64 << 20  # of K and V at a time: more KV heads than fit are done in several passes


# ---- rows -----------------------------------------------------------------------------------------------------------


def rms_norm(x, weight, eps=1e-5, out_dtype=None, offset=0.0):
    """x / sqrt(mean(x^2) + eps) * (weight + offset), over the last dim, in f32 (Zhang and Sennrich, arXiv:1910.07467).

    x (..., D) and weight (D) or None are f32, f16 or bf16; the result has `out_dtype`, by default x's. Gemma's weights
    want offset=1.0. Raises ShapeError, DTypeError.

    >>> rms_norm(Array.empty((2, 3, 576)), Array.empty((576,)), 1e-5).shape
    (2, 3, 576)
    """
    out = type(x).empty(x.shape, out_dtype or x.dtype, x.device)
    names = [_name("rms_norm", x), _weight_name("rms_norm", weight, x), _name("rms_norm", out)]
    words = [x.ptr, _pointer(weight), out.ptr, _width(x), float(eps), float(offset)]
    return _launch_rows("norm", "rms_norm", names, words, (x,), out, (weight,), 4)


def layer_norm(x, weight=None, bias=None, eps=1e-5, out_dtype=None):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last dim, in f32 (Ba et al., arXiv:1607.06450).

    x (..., D), weight and bias (D) or None are f32, f16 or bf16. Raises ShapeError, DTypeError.

    >>> layer_norm(Array.empty((2, 768), "f16"), None, None).dtype
    f16
    """
    out = type(x).empty(x.shape, out_dtype or x.dtype, x.device)
    names = [_name("layer_norm", x), *(_weight_name("layer_norm", w, x) for w in (weight, bias))]
    words = [x.ptr, _pointer(weight), out.ptr, _width(x), float(eps), _pointer(bias)]
    return _launch_rows("norm", "layer_norm", [*names, _name("layer_norm", out)], words, (x,), out, (weight, bias), 6)


def swiglu(gate, up):
    """silu(gate) * up, elementwise: both (..., D) of one dtype (Shazeer, arXiv:2002.05202). ShapeError, DTypeError."""
    return _gated("swiglu", gate, up)


def geglu(gate, up):
    """gelu(gate) * up with GELU's tanh form. ShapeError, DTypeError."""
    return _gated("geglu", gate, up)


def _gated(op, gate, up):
    if gate.shape != up.shape:
        fix = "split one projection in two halves"
        raise ShapeError(op, f"shapes {gate.shape} and {up.shape}", "two equal shapes", fix)
    if gate.dtype is not up.dtype:
        raise DTypeError(op, f"{gate.dtype} and {up.dtype}", "one dtype", "convert one operand with .to(dtype)")
    out = type(gate).empty(gate.shape, gate.dtype, gate.device)
    words = [gate.ptr, up.ptr, out.ptr, _width(gate)]
    return _launch_rows("norm", op, [_name(op, gate)], words, (gate, up), out, (), 20)


def _launch_rows(room, name, params, words, inputs, out, weights, cost):
    """Appends the number of rows and the table of the leading dims to `words` and launches; returns `out`."""
    if 0 in out.shape:
        return out
    for x in inputs:
        _adjacent(name, x)
    sizes, strides = collapse(*(Layout(a.shape[:-1], a.strides[:-1]) for a in (out, *inputs)))
    sizes, strides = (sizes, strides) if out.ndim > 1 else ((1,), strides)
    table = [len(sizes)]
    for d, size in enumerate(sizes):
        steps = [s[d] * a.dtype.itemsize for s, a in zip(strides, (out, *inputs), strict=True)]
        table += [size, *steps[1:], steps[0]]
    kernel = backend.kernel(room, name, *params, device=out.device.type)
    reads = [*inputs, *(w for w in weights if w is not None)]
    backend.launch(kernel, [*words, prod(sizes), *table], cost * out.numel(), reads, (out,))
    return out


def _name(op, x):
    if x.dtype.name not in FLOATS:
        raise DTypeError(op, x.dtype, "f32, f16 or bf16", "convert it with .to('f32')")
    return x.dtype.name


def _weight_name(op, weight, x):
    if weight is None:
        return "none"
    if weight.shape != x.shape[-1:] or not weight.is_contiguous():
        got = f"a weight of shape {weight.shape} for x {x.shape}"
        raise ShapeError(op, got, f"a contiguous weight of shape {x.shape[-1:]}", "take the layer's own weight")
    return _name(op, weight)


def _pointer(x):
    return 0 if x is None else x.ptr


def _width(x):
    if not x.shape:
        raise ShapeError("norm", "a 0-d tensor", "at least one dim", "add one with unsqueeze(0)")
    return x.shape[-1]


def _adjacent(op, *arrays):
    for x in arrays:
        if x.shape[-1] > 1 and x.strides[-1] != 1:
            raise ShapeError(op, f"strides {x.strides}", "a last dim of stride 1", "call .contiguous() first")


def embedding(ids, weight):
    """Rows of weight [V, D] (f32, f16, bf16) by ids (i64, any shape): ids.shape + (D,), f32; NaN for other ids.

    Raises ShapeError, DTypeError.
    """
    if ids.dtype.name != "i64":
        raise DTypeError("embedding", f"ids of {ids.dtype}", "i64", "convert them with .to('i64')")
    if weight.ndim != 2 or not ids.is_contiguous():
        got = f"weight {weight.shape}, ids of strides {ids.strides}"
        raise ShapeError("embedding", got, "weight [V, D], contiguous ids", "call ids.contiguous()")
    _adjacent("embedding", weight)
    out = type(ids).empty((*ids.shape, weight.shape[1]), "f32", weight.device)
    kernel = backend.kernel("norm", "embedding", _name("embedding", weight), device=weight.device.type)
    step = weight.strides[0] * weight.dtype.itemsize
    words = [ids.ptr, weight.ptr, step, weight.shape[0], out.ptr, weight.shape[1], ids.numel()]
    backend.launch(kernel, words, 2 * out.numel(), (ids, weight), (out,))
    return out


# ---- rotary embedding and caches ------------------------------------------------------------------------------------


def rope_tables(inv_freq, n, device=None):
    """(cos, sin), f32 [n, D/2], of position * inv_freq for positions 0 to n - 1; absolute error 1e-7 up to 1e6.

    inv_freq: D/2 inverse frequencies, an f32 or f64 Array or a list of numbers. Computed in float64.
    Raises ShapeError, DTypeError.
    """
    if not isinstance(inv_freq, Array):
        values = [float(f) for f in inv_freq]
        inv_freq = Array.empty((len(values),), "f64", *([device] if device else []))
        (ctypes.c_double * len(values)).from_address(inv_freq.ptr)[:] = values
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


def rope(x, cos, sin, start=0, interleaved=False, out=None, out_start=False):
    """Rotary position embedding (Su et al., arXiv:2104.09864) of x [T, H, D] f32; row t has position start + t.

    cos, sin: rows of `rope_tables`, [n, R/2] with R <= D: the first R dims turn, the others are copied. Dims i and
    i + R/2 turn together (Hugging Face), or, `interleaved`, 2 i and 2 i + 1 (GGUF's Llama). A position of n or more
    gives NaN.
    out: where to write, [rows, H, D] f32, f16 or bf16, at row t, or with `out_start` at row start + t (rows outside are
    not written); by default a new f32 Array. Returns it. Raises ShapeError, DTypeError.
    """
    _check_rope(x, cos, sin)
    out = type(x).empty(x.shape, "f32", x.device) if out is None else out
    if out.ndim != 3 or out.shape[1:] != x.shape[1:] or (not out_start and out.shape[0] < x.shape[0]):
        got = f"out of shape {out.shape} for x {x.shape}"
        raise ShapeError("rope", got, "[rows, H, D]", "permute the cache's dims")
    _adjacent("rope", x, cos, sin, out)
    (t, heads, width), half = x.shape, cos.shape[1]
    words = [*_matrix(x), cos.ptr, sin.ptr, cos.shape[0], half, *_matrix(out), out.shape[0], t, heads, width]
    layout = "pairs" if interleaved else "halves"
    kernel = backend.kernel("rope", "rope", layout, _name("rope", out), device=x.device.type)
    words += [*_position("rope", start), int(out_start)]
    backend.launch(kernel, words, 4 * x.numel(), _reads(x, cos, sin, start), (out,))
    return out


def append(cache, x, start):
    """Writes x [T, H, D] (f32) to rows start to start + T - 1 of a cache [H, rows, D] (f32, f16, bf16); returns that.

    Rows outside the cache are not written. Raises ShapeError, DTypeError.
    """
    out = _cache_rows("append", cache, x)
    (t, heads, width) = x.shape
    words = [*_matrix(x), *_matrix(out), out.shape[0], t, heads, width, *_position("append", start)]
    kernel = backend.kernel("rope", "append", _name("append", cache), device=x.device.type)
    backend.launch(kernel, words, x.numel(), _reads(x, start), (cache,))
    return cache


def rope_append(cache, x, cos, sin, start, interleaved=False):
    """`append` of `rope(x, ...)` in one pass. Returns the cache."""
    rope(x, cos, sin, start, interleaved, _cache_rows("rope_append", cache, x), out_start=True)
    return cache


def _cache_rows(op, cache, x):
    """The cache [H, rows, D] as [rows, H, D]."""
    if x.ndim != 3 or cache.ndim != 3 or (cache.shape[0], cache.shape[2]) != x.shape[1:]:
        got = f"a cache of shape {cache.shape} for x {x.shape}"
        raise ShapeError(op, got, "a cache [H, rows, D] for x [T, H, D]", "allocate the cache with x's heads and width")
    _only_f32(op, x)
    _adjacent(op, cache, x)
    return cache.view(cache.layout.permute((1, 0, 2)))


def _check_rope(x, cos, sin):
    _only_f32("rope", x, cos, sin)
    if x.ndim != 3 or cos.ndim != 2 or cos.shape != sin.shape or 2 * cos.shape[1] > x.shape[2] or cos.shape[0] == 0:
        got = f"x {x.shape}, cos {cos.shape}, sin {sin.shape}"
        raise ShapeError("rope", got, "x [T, H, D] and tables [n, R/2] with R <= D", "make them with rope_tables")
    if not (cos.is_contiguous() and sin.is_contiguous()):
        raise ShapeError("rope", f"tables of strides {cos.strides}", "contiguous tables", "make them with rope_tables")


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


def attention(q, k, v, start=None, scale=None, causal=True, window=0, softcap=0.0, length=None):
    """softmax(q k^T * scale) v per head: q [T, H, D] f32, k and v caches [G, rows, D] of one dtype -> [T, H, D] f32.

    H is a multiple of G: query head h attends with KV head h // (H / G). D is at most 256. Query t stands at position
    start + t among `length` keys; by default the keys end with the last query: length is start + T, or without a start
    all rows of k. Causal: it sees keys up to its own position. window > 0: only the last `window` of them (not causal:
    those less than `window` away). softcap c: scores become c * tanh(score / c). Queries that see nothing give 0.
    start and length are ints or i64 Arrays of one element. scale is 1 / sqrt(D) by default.
    Raises ShapeError, DTypeError, ContextError if start + T is known to exceed the rows.

    Flash attention (Dao et al., arXiv:2205.14135) for many queries, ranges of keys read once for few.
    """
    _check_attention(q, k, v)
    (t, heads, width), rows = q.shape, k.shape[1]
    out = type(q).empty(q.shape, "f32", q.device)
    if 0 in q.shape:
        return out
    first, count = _span(start, length, t, rows, causal or window)
    scale = width**-0.5 if scale is None else scale
    words = [t, heads, k.shape[0], width, *first, *count, rows, int(causal), window, float(scale), float(softcap)]
    reads = _reads(q, k, v, start, length)
    few = t <= FEW_QUERIES and rows >= 16
    (_decode if few else _prefill)(out, q, k, v, words, reads)
    return out


def _check_attention(q, k, v):
    _only_f32("attention", q)
    _name("attention", k)
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


def _span(start, length, t, rows, ordered):
    """The words of start and of length."""
    if start is None:
        if ordered and length is not None and not isinstance(length, int):
            got = "a length in memory and no start"
            raise ShapeError("attention", got, "a start, if positions matter", "give start as an Array, too")
        keys = length if isinstance(length, int) else rows
        start, length = keys - t, keys if length is None else length
    if isinstance(start, int) and length is None and start + t > rows:
        got = f"{t} queries from position {start}"
        raise ContextError("attention", got, f"at most {rows}, the cache's rows", "allocate a longer cache")
    return _position("attention", start), (0, -1) if length is None else _position("attention", length)


def _scratch(nbytes, device):
    return Array.empty((nbytes,), "u8", device)


def _prefill(out, q, k, v, words, reads):
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
        some += [scratch.ptr, per_thread, threads]
        work = count * (heads // groups) * t * rows * width // 8
        backend.launch(kernel, some, work, [*reads, packed_k, packed_v], (out, scratch))


def _decode(out, q, k, v, words, reads):
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
    backend.launch(merge, [*words, records.ptr, per, ranges, out.ptr], work, [*reads, records], (out, records))
