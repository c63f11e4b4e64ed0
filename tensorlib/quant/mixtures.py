"""Mixtures of experts whose weights are in planes on a GPU: see kernels_triton/moe_quant.py."""

from tensorlib import backend
from tensorlib.device import Array
from tensorlib.ops import moe, movement
from tensorlib.quant import gpu


def mixed(x, weights, experts, ups, down):
    """x [T, D] through the experts of each: [T, D] in x's dtype. `ups`: gate above up (E, 2 I, D), or both, (E, I, D).

    Activations are rounded to f16 twice, as products of prompts do; the launches do not depend on what was chosen.
    """
    x, weights = movement.contiguous(x), movement.contiguous(weights)
    (tokens, d), top_k, (many, _, inner) = x.shape, weights.shape[1], down.shape
    n, device, cls = tokens * top_k, x.device, type(x)
    where = (*moe.sorted_choices(experts, many), n, many)
    hidden, parts = cls.empty((n, 2, inner), "f32", device), cls.empty((top_k, tokens, d), "f32", device)
    packed = x.derived("matmul", lambda: gpu._halves(x, tokens, d))
    for i, w in enumerate(ups):
        _product(w, packed, None, hidden, 4 * inner * i, 2 * inner, (top_k, 1), where)
    y = [Array.empty((n, inner), "f16", device), Array.empty((n, 1), "f32", device)]
    kernel = backend.kernel("moe_quant", "gated", device=device.type)
    backend.launch(kernel, (hidden.ptr, *(a.ptr for a in y), inner, n), 8 * n * inner, (hidden,), y)
    _product(down, y, weights, parts, 0, d, (1, top_k), where)
    return moe.summed(parts, x.dtype)


def _product(w, x, weights, out, offset, lead, steps, where):
    """Every choice's row of x times the matrix of its expert, to rows of `lead` floats at byte `offset` of out."""
    (_, rows, k), (ids, of_blocks, height, blocks, n, many) = w.shape, where
    addresses = *w.where, *(a.ptr for a in x), ids.ptr, of_blocks.ptr, 0 if weights is None else weights.ptr
    words = *addresses, out.ptr + offset, n, *steps, many, rows, lead, k, height, blocks
    reads = (w, *x, ids, of_blocks) if weights is None else (w, *x, ids, of_blocks, weights)
    kernel = backend.kernel("moe_quant", "product", w.format.name, device=out.device.type)
    backend.launch(kernel, words, 2 * n * rows * k, reads, (out,))
