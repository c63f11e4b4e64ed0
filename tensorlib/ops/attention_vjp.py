"""`fused.attention` composed of other ops, for f64, and its gradients, which recompute the weights block by block: by
a kernel, or composed, for f64 and softcaps and to be differentiated again.

Shapes: q [T, H, D], k and v [G, rows, D]. The H / G heads of a group stand below one another in products, so that what
belongs to a key is summed over them by the product itself.
"""

from functools import reduce as fold

from tensorlib import backend
from tensorlib.device import Array
from tensorlib.ops import create, elementwise, movement, reduce
from tensorlib.ops.elementwise import add, cast, logical_and, mul, sub, where
from tensorlib.ops.linalg import matmul
from tensorlib.ops.softmax import softmax

LOWEST = -3e38  # the score of a key that is not seen
BLOCK = 1 << 22  # scores at a time


def _seen(q, first, count, rows, start, length, causal, window):
    """Whether queries first to first + count - 1 see each of the rows: bool [count, rows]."""
    keys = create.arange(type(q), rows, device=q.device)
    start, length = (movement.reshape(n, 1) if isinstance(n, Array) else n for n in (start, length))
    at = movement.unsqueeze(add(create.arange(type(q), first, first + count, device=q.device), start), 1)
    ends = start + q.shape[0] if isinstance(start, int) else add(start, q.shape[0])
    seen = elementwise.lt(keys, ends if length is None else length)
    bounds = [elementwise.le(keys, at)] if causal else []
    if window > 0:
        bounds.append(elementwise.gt(keys, sub(at, window)))
        bounds += [] if causal else [elementwise.lt(keys, add(at, window))]
    return fold(logical_and, bounds, movement.expand(seen, (count, rows)))


def _grouped(x, groups):
    """[T, H, D] -> [G, H / G * T, D]"""
    t, heads, width = x.shape
    return movement.reshape(movement.permute(x, 1, 0, 2), (groups, heads // groups * t, width))


def _ungrouped(x, heads):
    groups, rows, width = x.shape
    return movement.permute(movement.reshape(x, (heads, groups * rows // heads, width)), 1, 0, 2)


def _weights(q, k, seen, softcap):
    """(weights, what a gradient of scores is multiplied with or None): q [G, n, D] is scaled."""
    scores, slope = matmul(q, movement.transpose(k, 1, 2)), None
    if softcap:
        capped = elementwise.tanh(elementwise.div(scores, softcap))
        scores, slope = mul(capped, softcap), sub(1.0, elementwise.square(capped))
    shape = scores.shape
    scores = where(seen, movement.reshape(scores, (shape[0], -1, *seen.shape)), LOWEST)
    return movement.reshape(where(seen, softmax(scores, -1), 0.0), shape), slope


def _blocks(q, k, v, start, length, causal, window):
    """(first query, how many, k, v and what is seen of them) of every block of queries.

    Rows that no query of the block sees are 0: memory behind a cache's end may hold anything.
    """
    (t, heads, _), rows = q.shape, k.shape[1]
    size = max(1, min(t, BLOCK // (heads * rows)))
    for first in range(0, t, size):
        count = min(size, t - first)
        ahead = start + first + count if causal and isinstance(start, int) else rows
        some = max(1, min(rows, ahead, length if isinstance(length, int) else rows))
        seen = _seen(q, first, count, some, start, length, causal, window)
        known = movement.unsqueeze(reduce.any(seen, 0), 1)
        yield first, count, seen, *(where(known, cast(movement.narrow(x, 1, 0, some), q.dtype), 0.0) for x in (k, v))


def composed(q, k, v, start, scale, causal, window, softcap, length):
    """`fused.attention` with its defaults filled in: start and length from `fused._positions`."""
    found = []
    for first, count, seen, keys, values in _blocks(q, k, v, start, length, causal, window):
        some = _grouped(mul(movement.narrow(q, 0, first, count), scale), k.shape[0])
        found.append(_ungrouped(matmul(_weights(some, keys, seen, softcap)[0], values), q.shape[1]))
    return movement.cat(found, 0)


def vjp(g, q, k, v, out, start, scale, causal, window, softcap, length):
    """Gradients of q, k and v."""
    groups, heads = k.shape[0], q.shape[1]
    found = []
    for first, count, seen, keys, values in _blocks(q, k, v, start, length, causal, window):
        scaled, g_some, o_some = (
            _grouped(movement.narrow(x, 0, first, count), groups) for x in (mul(q, scale), g, out)
        )
        weights, slope = _weights(scaled, keys, seen, softcap)
        inner = reduce.sum(mul(g_some, o_some), -1, keepdim=True)
        scores = mul(weights, sub(matmul(g_some, movement.transpose(values, 1, 2)), inner))
        scores = scores if slope is None else mul(scores, slope)
        parts = matmul(movement.transpose(scores, 1, 2), scaled), matmul(movement.transpose(weights, 1, 2), g_some)
        dq = _ungrouped(mul(matmul(scores, keys), scale), heads)
        found.append((dq, *(_padded(x, k.shape[1]) for x in parts)))
    dq, dk, dv = zip(*found, strict=True)
    return movement.cat(dq, 0), fold(add, dk), fold(add, dv)


def by_kernel(g, q, k, v, words, reads):
    """The same on CPUs without a softcap, k and v of any float dtype of up to 32 bits: one kernel, which keeps nothing.

    words: the 13 that the kernels of attention begin with.
    """
    found = [type(g).empty(x.shape, x.dtype, x.device) for x in (q, k, v)]
    rows, threads = -(-k.shape[1] // 64) * 64, backend.threads(q.device.type)
    row = 4 * (-(-q.shape[2] // 16) * 16)
    per_thread = 5 * rows * row + 48 * (3 * row + 2 * 4 * rows)
    scratch = Array.empty((threads * per_thread,), "u8", q.device)
    for x in (q, k, v, g):
        words = [*words, x.ptr, x.strides[0] * x.dtype.itemsize, x.strides[1] * x.dtype.itemsize]
    words = [*words, *(x.ptr for x in found), scratch.ptr, per_thread, threads]
    kernel = backend.kernel("attention_vjp", "vjp", k.dtype.name, device=q.device.type)
    backend.launch(kernel, words, q.numel() * rows, [*reads, g], [*found, scratch])
    return tuple(found)


def _padded(x, rows):
    """With zeros behind, so many rows."""
    if x.shape[1] == rows:
        return x
    shape = (x.shape[0], rows - x.shape[1], x.shape[2])
    return movement.cat([x, create.zeros(type(x), shape, dtype=x.dtype, device=x.device)], 1)
