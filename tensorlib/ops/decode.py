"""What a decode step on a GPU writes beside its results: activations in 8 bits, and the counters of last programs.

Products of few rows with quantised weights take activations in 8 bits (quant/gpu.py). Whoever computes activations in a
kernel of its own writes these as well, so that no launch is needed to quantise them.
"""

from math import prod

from tensorlib import backend, tape
from tensorlib.device import CPU, Array
from tensorlib.dtype import get
from tensorlib.layout import contiguous
from tensorlib.ops import fused, movement

ROWS = 8  # of activations: up to so many are quantised
HEADS = 256  # counters of one kernel
GROUP = 32  # query heads of a KV head at most
CACHES = ("f32", "f16", "bf16", "f8e4m3", "f8e5m2")
STREAMS = 64
_counters = {}  # by device: (Array, {stream: its number})


def results(x, shape):
    """(f32 result of `shape`, [its values i8, scales per 32 f32, sums per 16 i32]) in one allocation beside x.

    The last dim divides by 32. The first finds the others as what `derived` from it, once they are written: `kept`.
    """
    rows, k = prod(shape[:-1]), shape[-1]
    sizes = ((shape, "f32", 4), ((rows, k), "i8", 1), ((rows, k // 32), "f32", 4), ((rows, k // 16), "i32", 4))
    starts, end = [], 0
    for size, _, width in sizes:
        starts.append(end)
        end = -(-(end + prod(size) * width) // 64) * 64
    whole = Array.empty((end,), "u8", x.device)
    made = []
    for (size, dtype, width), start in zip(sizes, starts):
        layout = contiguous(size)._replace(offset=start // width)
        made.append((Array if made else type(x))(whole.buffer, layout, get(dtype)))
    return made[0], made[1:]


def kept(x, packed):
    """x, after both were written: a product finds its activations in 8 bits."""
    x.keep("matvec", packed)
    return x


def counters(device):
    """Address of `HEADS` i32 of 0 on a GPU, which kernels leave at 0; made once, before anything is captured.

    Streams have their own. Two graphs must not run at once.
    """
    if device not in _counters:
        made = Array.empty((STREAMS * HEADS,), "i32", device)
        made.buffer.write(made.ptr, bytes(4 * STREAMS * HEADS))
        _counters[device] = made, {}
    made, streams = _counters[device]
    number = streams.setdefault(device.gpu.stream(), len(streams) % STREAMS)
    return made.ptr + 4 * HEADS * number


def plain(*arrays):
    """Whether all are contiguous f32 on a GPU, of 1 to 8 rows, and ask for no gradient."""
    for x in arrays:
        if x.device is CPU or x.dtype.name != "f32" or not x.ndim or not x.is_contiguous() or tape.live(x):
            return False
        if not 0 < x.numel() <= ROWS * x.shape[-1]:
            return False
    return True


def attend(q, k, v, keys, values, cos, sin, start, interleaved=False):
    """`rope_layer`, then causal `attention` of q over the caches: q [T, H, D], k and v [T, G, D] f32 -> [T, H D] f32.

    start: an int, or an i64 Array of one element. On GPUs one query is one launch, if start is an Array and a KV head
    has up to 32 query heads; the result's copy in 8 bits is written with it. Raises as those two do.

    >>> q, k, cache, table = Array.empty((1, 4, 8)), Array.empty((1, 2, 8)), Array.empty((2, 9, 8)), Array.empty((9, 4))
    >>> attend(q, k, k, cache, cache, table, table, 0).shape
    (1, 32)
    """
    if not _is_step(q, k, v, keys, values, cos, sin, start):
        q = fused.rope_layer(q, k, v, keys, values, cos, sin, start, interleaved)
        found = fused.attention(q, keys, values, start=start)
        return movement.reshape(found, (found.shape[0], found.shape[1] * found.shape[2]))
    (_, heads, width), (groups, rows, _) = q.shape, keys.shape
    if width % 32 == 0:
        out, more = results(q, (1, heads * width))
    else:
        out, more = type(q).empty((1, heads * width), "f32", q.device), None
    written = [out.ptr, *((a.ptr for a in more) if more else (0, 0, 0))]
    words = [q.ptr, k.ptr, v.ptr]
    for cache in (keys, values):
        words += [cache.ptr, *(s * cache.dtype.itemsize for s in cache.strides[:2])]
    words += [cos.ptr, sin.ptr, *cos.shape, start.ptr, rows, heads, groups, width, width**-0.5, *written]
    layout = "pairs" if interleaved else "halves"
    kernel = backend.kernel("decode_attention", "step", layout, keys.dtype.name, device=q.device.type)
    reads = (q, k, v, cos, sin, start)
    backend.launch(kernel, [*words, counters(q.device)], 4 * heads * rows * width, reads, (out, keys, values))
    return kept(out, more) if more else out


def _one_row(x):
    return (
        x.device is not CPU
        and x.dtype.name == "f32"
        and x.ndim == 3
        and x.shape[0] == 1
        and x.numel() > 0
        and x.is_contiguous()
        and not tape.live(x)
    )


def _is_step(q, k, v, keys, values, cos, sin, start):
    """Whether all is as the kernel of one query wants it; what is wrong is left to those who say so."""
    if not (_one_row(q) and _one_row(k) and _one_row(v) and isinstance(start, Array) and q.shape[1] <= HEADS):
        return False
    shape, width = k.shape, q.shape[2]
    return (
        q.device is k.device is v.device is keys.device is values.device is cos.device is sin.device is start.device
        and shape == v.shape == (1, keys.shape[0], width)
        and keys.shape == values.shape
        and keys.dtype is values.dtype
        and keys.dtype.name in CACHES
        and keys.strides[2] == values.strides[2] == 1
        and q.shape[1] % shape[1] == 0
        and q.shape[1] // shape[1] <= GROUP
        and width <= 256
        and cos.shape == sin.shape
        and cos.dtype.name == sin.dtype.name == "f32"
        and cos.is_contiguous()
        and sin.is_contiguous()
        and 0 < 2 * cos.shape[1] <= width
        and start.dtype.name == "i64"
        and start.numel() == 1
    )
