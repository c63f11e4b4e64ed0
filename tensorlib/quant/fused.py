"""Products of up to 8 rows with quantised weights on a GPU, with what a model does before and after, in one launch.

Kernels: kernels_triton/decode_matvec.py. `fits` says whether they can be used; if not, callers compose the parts.
"""

from itertools import groupby

from tensorlib import backend
from tensorlib.ops import decode
from tensorlib.quant import gpu
from tensorlib.quant.tensor import QTensor

TOGETHER = 3  # weights of a launch


def fits(x, *weights):
    """Whether the weights are matrices in planes where x [..., K] is, and x is plain f32 of up to 8 rows.

    >>> from tensorlib.device import Array
    >>> fits(Array.empty((1, 64)))  # not on a GPU
    False
    """
    return decode.plain(x) and all(
        type(w) is QTensor
        and w.planes is not None
        and w.device is x.device
        and w.ndim == 2
        and w.shape[1] == x.shape[-1]
        for w in weights
    )


def linears(x, weights):
    """[x times each weight, transposed]: one launch per three weights of one format that follow each other."""
    found = []
    for _, run in groupby(weights, lambda w: w.format.name):
        run = list(run)
        for i in range(0, len(run), TOGETHER):
            found += _several(x, run[i : i + TOGETHER])
    return found


def _several(x, weights):
    if len(weights) == 1:
        return [weights[0].linear(x)]
    k = x.shape[-1]
    rows, y = x.numel() // k, gpu.packed(x)
    outs = [type(x).empty((*x.shape[:-1], w.shape[0]), "f32", x.device) for w in weights]
    words = [*(a.ptr for a in y), k, rows]
    for w, out in zip(weights, outs):
        words += [*w.where, out.ptr, w.shape[0]]
    kernel = backend.kernel("decode_matvec", "several", weights[0].format.name, device=x.device.type)
    backend.launch(kernel, words, 2 * rows * k * sum(w.shape[0] for w in weights), (*weights, *y), outs)
    return outs


def gated(x, gate, up):
    """silu(x times gate) * (x times up), of two weights [N, K] of one format, N a multiple of 32."""
    (n, k), rows, y = gate.shape, x.numel() // x.shape[-1], gpu.packed(x)
    out, more = decode.results(x, (*x.shape[:-1], n))
    words = [*gate.where, *up.where, *(a.ptr for a in (*y, out, *more)), n, k, rows]
    kernel = backend.kernel("decode_matvec", "gated", gate.format.name, device=x.device.type)
    backend.launch(kernel, words, 4 * rows * n * k, (gate, up, *y), (out,))
    return decode.kept(out, more)


def closing(residual, weight, x, scale, eps):
    """(residual + x times weight, the RMSNorm of that with weights `scale` [N]), N a multiple of 32."""
    (n, k), rows, y = weight.shape, x.numel() // x.shape[-1], gpu.packed(x)
    out = type(x).empty(residual.shape, "f32", x.device)
    normed, more = decode.results(x, residual.shape)
    words = [*weight.where, *(a.ptr for a in (*y, residual, out, normed, *more, scale)), decode.counters(x.device)]
    kernel = backend.kernel("decode_matvec", "closing", weight.format.name, scale.dtype.name, device=x.device.type)
    backend.launch(
        kernel, [*words, n, k, rows, float(eps)], 2 * rows * n * k, (weight, *y, residual, scale), (out, normed)
    )
    return out, decode.kept(normed, more)
