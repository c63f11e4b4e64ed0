"""Launches of the attention kernels of GPUs (kernels_triton/attention.py)."""

from tensorlib import backend

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
