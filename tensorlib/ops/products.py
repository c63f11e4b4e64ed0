"""Matrix products on GPUs: one launch per product, with bias, activation and residual in it."""

from tensorlib import backend
from tensorlib import layout as _layout
from tensorlib.layout import Layout
from tensorlib.ops.precision import get_float32_matmul_precision


def launch(out, a, b, bias=None, accumulate=False, act="none", residual=None, precision=None):
    """out = act(a @ b + bias) + residual on a GPU: (..., M, N), (..., M, K), (..., K, N) of equal batch dims.

    `accumulate` adds to what `out` holds; `precision` overrides the one that is set for f32. See
    kernels_triton/matmul.py for the words.
    """
    residual, precision = out if accumulate else residual, precision or get_float32_matmul_precision()
    names = [x.dtype.name if x is not None else "none" for x in (a, b, out, bias, residual)]
    kernel = backend.kernel("matmul", "product", *names, act, precision, device=out.device.type)
    (m, n), k, given = out.shape[-2:], a.shape[-1], [x for x in (out, a, b, residual) if x is not None]
    words = [x.ptr if x is not None else 0 for x in (a, b, out, bias, residual)]
    words += [m, n, k, *a.strides[-2:], *b.strides[-2:], *out.strides[-2:], bias.strides[0] if bias is not None else 0]
    words += residual.strides[-2:] if residual is not None else (0, 0)
    sizes, (c, *others) = _layout.collapse(*(Layout(x.shape[:-2], x.strides[:-2]) for x in given))
    others += [(0,) * len(sizes)] if residual is None else []
    dims = [] if all(s == 1 for s in sizes) else list(zip(sizes, *others[:2], c, others[2], strict=True))
    words += [len(dims), *(word for dim in dims for word in dim)]
    reads = [x for x in (a, b, bias, residual) if x is not None]
    backend.launch(kernel, words, out.numel() * k, reads, (out,))
