"""`scaled_dot_product_attention` with torch.nn.functional's arguments and shapes.

Flash attention (kernels_numba/attention.py; attention_decode.py for few queries) where it applies: floats of up to 32
bits, heads of one width up to 256, no dropout, no mask together with a gradient. The rest is composed of
products and a softmax.
"""

import functools
from math import prod

from tensorlib import random, tape
from tensorlib.errors import DeviceError, DTypeError, ShapeError
from tensorlib.layout import Layout, broadcast_shapes
from tensorlib.memo import memoised
from tensorlib.ops import create, elementwise, index, linalg, movement, reduce, softmax
from tensorlib.ops.elementwise import cast
from tensorlib.ops.fused import FEW_QUERIES, FLOATS, _decode, _prefill, attention

OP = "scaled_dot_product_attention"
WIDEST = 256  # head that the kernels take
HIDDEN = -2.9e38  # scores up to this one are those of no key; in the kernels, too, give or take log2(e)


def _quick(function):
    """`function`, whose calls on GPUs are repeated where nothing is drawn at random."""
    again = memoised(None, function, operands=4, gpu=True)

    @functools.wraps(function)
    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        run = function if dropout_p else again
        return run(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)

    return attend


@_quick
def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """softmax(query key^T * scale + attn_mask) value: query (..., H, T, D), key (..., G, S, D), value (..., G, S, E).

    The result is (..., H, T, E), in the operands' one dtype (f32, f16, bf16; f64). G is H, or with enable_gqa a divisor
    of it: H / G query heads in a row share a key head. attn_mask (broadcast to (..., H, T, S)) is bool, True where a
    query sees a key, or a float to add. is_causal: query t sees keys 0 to t; not together with a mask. A query that
    sees nothing gives 0. scale is 1 / sqrt(D) by default. dropout_p: probability to drop a weight, as torch always
    applied. Raises ShapeError, DTypeError, DeviceError.

    Flash attention (Dao et al., arXiv:2205.14135). Masks below -2e38 may count as -inf.

    >>> from tensorlib.device import Array
    >>> q, k = Array.empty((2, 8, 10, 64)), Array.empty((2, 4, 30, 64))
    >>> scaled_dot_product_attention(q, k, k, enable_gqa=True).shape
    (2, 8, 10, 64)
    """
    operands = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
    shape = _check(is_causal, enable_gqa, *((x.shape, x.dtype, x.device) for x in operands))
    if scale is None:
        scale = max(query.shape[-1], 1) ** -0.5
    recording = tape.used and tape.mode.recording and any(tape.node_of(x) is not None for x in operands)
    narrow = query.shape[-1] == value.shape[-1] <= WIDEST and query.dtype.name in FLOATS
    same = query.ndim > 2 and query.shape[:-3] == key.shape[:-3] and key.shape[:-2] == value.shape[:-2]
    same = same and query.shape[:-2] == shape[:-2]
    composed = not (narrow and same) or dropout_p or 0 in (*shape, key.shape[-2], *query.shape)
    if recording and not composed and attn_mask is None:
        return _differentiated(query, key, value, is_causal, float(scale))
    if composed or recording:
        return _composed(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    compute = "f32" if query.device.type == "cpu" else query.dtype
    q = cast(_adjacent(query), compute)
    out = type(query).empty(shape, compute, query.device)
    mask = None if attn_mask is None else _expanded(_additive(attn_mask), (*shape[:-1], key.shape[-2]))
    _flash(out, q, _adjacent(key), _adjacent(value), mask, is_causal, float(scale))
    return cast(out, query.dtype)


@functools.lru_cache(1 << 12)
def _check(causal, gqa, *operands):
    """The result's shape. operands: (shape, dtype, device) of query, key, value and the mask, if there is one."""
    (q, k, v), dtypes, devices = (tuple(column[:3]) for column in zip(*operands))
    shapes = f"query {q}, key {k}, value {v}"
    if {device for _, _, device in operands} != {devices[0]}:
        raise DeviceError(OP, "operands on several devices", f"all on {devices[0]}", "move them with .to(device)")
    if len(set(dtypes)) > 1 or dtypes[0].name not in (*FLOATS, "f64"):
        raise DTypeError(OP, ", ".join(map(str, dtypes)), "one float dtype", "convert them with .to(dtype)")
    fits = min(map(len, (q, k, v))) >= 2 and q[-1] == k[-1] and k[-2] == v[-2]
    if not fits:
        expected = "query (..., H, T, D), key (..., G, S, D), value (..., G, S, E)"
        raise ShapeError(OP, shapes, expected, "transpose or reshape them")
    heads, others = q[:-2], (k[:-2], v[:-2])
    if gqa and len(q) > 2:
        if any(len(o) < 1 or o[-1] < 1 or q[-3] % o[-1] for o in others):
            raise ShapeError(OP, shapes, "key heads that divide the query's", "repeat or split the heads")
        others = [(*o[:-1], q[-3]) for o in others]
    batch = broadcast_shapes(OP, heads, *others)
    if len(operands) > 3:
        _check_mask(operands[3], (*batch, q[-2], k[-2]), causal)
    return (*batch, q[-2], v[-1])


def _check_mask(operand, full, causal):
    mask, dtype, _ = operand
    if causal:
        raise ShapeError(OP, "is_causal and a mask", "one of them", "put the causal part into the mask")
    if dtype.kind not in "bf":
        raise DTypeError(OP, f"a mask of {dtype}", "bool or a float", "convert it with .to(dtype)")
    if broadcast_shapes(OP, mask, full) != full:
        raise ShapeError(OP, f"a mask of shape {mask}", f"one that broadcasts to {full}", "reshape the mask")


def _adjacent(x):
    return x if x.strides[-1] == 1 or x.shape[-1] == 1 else cast(x, x.dtype, copy=True)


def _additive(mask, dtype="f32"):
    """A bool mask as numbers to add: log of 1 and of 0."""
    return elementwise.log(cast(mask, dtype)) if mask.dtype.kind == "b" else cast(mask, dtype)


def _expanded(mask, shape):
    """The mask broadcast to `shape`, its last dim adjacent in memory."""
    if mask.shape[-1:] != shape[-1:] or (mask.strides[-1] != 1 and shape[-1] > 1):
        mask = mask.view(mask.layout.expand((*mask.shape[:-1], shape[-1])))
        mask = cast(mask, mask.dtype, copy=True)
    return mask.view(mask.layout.expand(shape))


def _differentiated(query, key, value, causal, scale):
    """`fused.attention`, which has a gradient of its own, of batches among the heads."""
    q = cast(query, "f32") if query.device.type == "cpu" else query
    q, k, v = (movement.reshape(x, (-1, *x.shape[-2:])) for x in (q, key, value))
    q, k, v = (x if x.strides[-1] == 1 else movement.contiguous(x) for x in (movement.permute(q, 1, 0, 2), k, v))
    found = attention(q, k, v, 0, scale, causal, length=k.shape[1])
    return cast(movement.reshape(movement.permute(found, 1, 0, 2), query.shape), query.dtype)


# ---- the kernels ----------------------------------------------------------------------------------------------------


@functools.lru_cache(1 << 12)
def _folded(q, k, v):
    """Layouts of q as (T, heads, D), of k and v as (heads, S, D), with batches among the heads; None where one has to
    be moved for that.
    """
    found = [x.reshape((prod(x.shape[:-2]), *x.shape[-2:])) for x in (q, k, v)]
    return None if None in found else (found[0].permute((1, 0, 2)), *found[1:])


def _flash(out, q, k, v, mask, causal, scale):
    """Heads and batches in one launch where their strides allow, else batch after batch. `out` is contiguous."""
    folded, heads = _folded(q.layout, k.layout, v.layout), q.shape[-3]
    steps = None if mask is None else mask.layout.reshape((prod(q.shape[:-3]), *mask.shape[-3:]))
    if folded is None or (mask is not None and steps is None):
        for i in range(q.shape[0]):
            parts = [None if x is None else x.view(x.layout.select(0, i)) for x in (out, q, k, v, mask)]
            _flash(*parts, causal, scale)
        return
    q, k, v = (x.view(layout) for x, layout in zip((q, k, v), folded))
    (t, all_heads, width), (groups, rows, _) = q.shape, k.shape
    out = out.view(Layout((t, all_heads, width), (width, t * width, 1), out.layout.offset))
    words = [t, all_heads, groups, width, 0, 0, 0, rows, rows, int(causal), 0, scale, 0.0]
    if t <= FEW_QUERIES and rows >= 16 and mask is None:
        _decode(out, q, k, v, words, [q, k, v])
    elif mask is None:
        _prefill(out, q, k, v, words, [q, k, v])
    else:
        _prefill(out, q, k, v, words, [q, k, v, mask], (mask.ptr, *(4 * s for s in steps.strides[:3]), heads))


# ---- composed -------------------------------------------------------------------------------------------------------


def _composed(q, k, v, mask, dropout, causal, scale, gqa):
    dtype, compute = q.dtype, "f64" if q.dtype.name == "f64" else "f32"
    q, k, v = (cast(x, compute) for x in (q, k, v))
    if gqa and q.ndim > 2:
        k, v = (movement.repeat_interleave(x, q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    weights = attention_weights(q, k, mask, causal, scale)
    return cast(linalg.matmul(random.dropout(weights, dropout), v), dtype)


def attention_weights(query, key, attn_mask=None, is_causal=False, scale=None):
    """What `scaled_dot_product_attention` weighs values with: (..., H, T, D) and (..., H, S, D) of f32 or f64 give
    (..., H, T, S). Rows of queries that see nothing are 0. Raises as matmul does.
    """
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    scores = linalg.matmul(elementwise.mul(query, scale), movement.transpose(key, -2, -1))
    if is_causal:
        attn_mask = index.tril(create.ones(type(query), scores.shape[-2:], dtype="bool", device=query.device))
    if attn_mask is not None:
        scores = elementwise.add(scores, _additive(attn_mask, scores.dtype))
    if not scores.shape[-1]:
        return scores
    if attn_mask is None:
        return softmax.softmax(scores, -1)
    # rows that see nothing: 0, and no NaN in their gradient
    hidden = elementwise.le(reduce.amax(scores.handle(), -1, keepdim=True), HIDDEN)
    weights = softmax.softmax(elementwise.masked_fill(scores, hidden, 0.0), -1)
    return elementwise.masked_fill(weights, hidden, 0.0)
