"""Launches of the attention kernels of GPUs (kernels_triton/attention.py, attention_vjp.py)."""

from tensorlib import backend
from tensorlib.device import Array

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
