"""Launches of the attention kernels of GPUs (kernels_triton/attention.py, attention_vjp.py)."""

from tensorlib import backend
from tensorlib.device import Array
from tensorlib.ops import create, movement
from tensorlib.ops.elementwise import cast
from tensorlib.ops.transfer import to_device

NOTHING = (0, 0, 0, 0, 1)  # no mask


def steps(x, dims=2):
    """Address and byte strides of the first dims."""
    return x.ptr, *(s * x.dtype.itemsize for s in x.strides[:dims])


def reach(causal, window):
    """How many keys before and after its own place a query sees, -1 for all."""
    before = window - 1 if window > 0 else -1
    return before, 0 if causal else before


def forward(out, q, k, v, words, reads, mask=NOTHING, slopes=None, sums=None):
    """Attention of q [T, H, D] into out; words: the 13 that the kernels of the CPU begin with."""
    some = [*words[:9], *reach(*words[9:11]), *words[11:13], *steps(q), *steps(k), *steps(v), *steps(out), *mask]
    some += [slopes.ptr if slopes is not None else 0, sums.ptr if sums is not None else 0, *(0,) * 8]
    names = (x.dtype.name for x in (q, k, out))
    kernel = backend.kernel("attention", "forward", *names, "i64", device=q.device.type)
    backend.launch(kernel, some, 1, reads, (out,) if sums is None else (out, sums))


def sums_of(out, q):
    """Memory for log2 of the sums of a result's rows, which its gradient needs: [heads, T], kept with the result's."""
    out.buffer.sums = Array.empty((q.shape[1], q.shape[0]), "f32", q.device)
    return out.buffer.sums


def vjp(g, q, k, v, out, words, reads):
    """Gradients of q, k and v, in their dtypes; out: what `forward` gave with sums."""
    found = [type(g).empty(x.shape, x.dtype, x.device) for x in (q, k, v)]
    sums = out.buffer.sums
    some = [*words[:9], *reach(*words[9:11]), *words[11:13], *steps(q), *steps(k), *steps(v), *steps(out), *steps(g)]
    kernel = backend.kernel("attention_vjp", "vjp", q.dtype.name, k.dtype.name, device=q.device.type)
    backend.launch(kernel, [*some, sums.ptr, *(x.ptr for x in found)], 1, [*reads, g, out, sums], found)
    return tuple(found)


# ---- several sequences ----------------------------------------------------------------------------------------------


def _integers(x, like, dtype="i64"):
    """A list of integers, or a tensor of them, contiguous on the device of `like`, i64 (a table: i32, too)."""
    if not hasattr(x, "dtype"):
        return create.tensor(type(like), list(x), dtype="i64", device=like.device)
    x = to_device(x, like.device)
    return movement.contiguous(x if x.dtype.name in ("i64", dtype) else cast(x, "i64"))


def _sequences(q, k, v, rows, scale, sides, softcap, slopes, integers, pages):
    """One launch: `integers` are starts in q, starts in k or lengths, and, with pages, a table."""
    out = type(q).empty(q.shape, q.dtype, q.device)
    if 0 in q.shape:
        return out
    scale = q.shape[2] ** -0.5 if scale is None else scale
    words = [*q.shape[:2], k.shape[0], q.shape[2], 0, 0, 0, -1, rows, *sides, float(scale), float(softcap)]
    words += [*steps(q), *steps(k), *steps(v), *steps(out), *NOTHING, slopes.ptr if slopes is not None else 0, 0]
    words += [integers[0].ptr, integers[1].ptr, integers[0].shape[0] - 1, *pages]
    table = integers[2].dtype.name if len(integers) > 2 else "i64"
    names = (x.dtype.name for x in (q, k, out))
    kernel = backend.kernel("attention", "forward", *names, table, device=q.device.type)
    reads = [x for x in (q, k, v, slopes, *integers) if x is not None]
    backend.launch(kernel, words, 1, reads, (out,))
    return out


def _adjacent(x):
    return x if x.strides[-1] == 1 or x.shape[-1] == 1 else movement.contiguous(x)


def varlen(q, k, v, starts, key_starts, scale, sides, slopes):
    """`varlen_attn` of q [total, H, D], k and v [total, G, D]; starts are lists or tensors."""
    q, k, v = map(_adjacent, (q, k, v))
    slopes = None if slopes is None else movement.contiguous(cast(slopes, "f32"))
    heads_first = (x.view(x.layout.permute((1, 0, 2))) for x in (k, v))
    integers = [_integers(x, q) for x in (starts, key_starts)]
    return _sequences(q, *heads_first, k.shape[0], scale, sides, 0.0, slopes, integers, (0,) * 5)


def paged(q, k, v, table, lengths, starts, scale, window, softcap):
    """`paged_attention` of pages [P, G, rows, D]."""
    q, k, v = map(_adjacent, (q, k, v))
    integers = [_integers(starts, q), _integers(lengths, q), _integers(table, q, "i32")]
    size, most = k.shape[2], integers[2].shape[1]
    pages = (integers[2].ptr, most, size, *(x.strides[0] * x.dtype.itemsize for x in (k, v)))
    views = (x.view(x.layout.select(0, 0)) for x in (k, v))
    return _sequences(q, *views, most * size, scale, reach(True, window), softcap, None, integers, pages)
