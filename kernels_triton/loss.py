"""Cross-entropy of rows of logits against classes, and its gradient: logits are read once by each.

The forward pass keeps a running top and sum of exponentials (Milakov and Gimelshein, arXiv:1805.02867), the top over
what one thread loads at a time: little more than one exponential per logit. The gradient may overwrite the logits.
Room loss has no CPU kernels: `tensorlib/ops/loss_rows.py` composes other ops there. Words of

    cross_entropy (logits' dtype, weight's or "none")
        logits, elements from row to row, classes (i64), weight or 0, losses, logs of sums, rows, n, ignored class,
        smoothing (f64)
    cross_entropy_vjp (the same)
        logits, elements from row to row, classes, weight or 0, sum of the weight (one element) or 0, slopes of losses,
        slopes of logs of sums or 0, logs of sums, output, elements from row to row, rows, n, ignored class, smoothing

Losses, sums, weight and slopes are f32 (f64 for logits of f64). The ignored class has no loss; a class outside of
[0, n) has NaN.
"""

import functools

import triton
import triton.language as tl
from triton.language.extra import libdevice

from .dims import WIDTH
from .launch import Kernel, blocks, power_of_2
from .softmax import finite
from .tiles import cells, exponential, largest

TILE = 4096  # logits at a time: 8 warps
PIECE = 2048  # logits of a row that a program of the gradient takes


@triton.jit
def loss_rows(
    x, step, target, weight, losses, sums, n, ignored, smoothing,
    ACC: tl.constexpr, WEIGHT: tl.constexpr, SMOOTH: tl.constexpr, ACCURATE: tl.constexpr, L: tl.constexpr,
    K: tl.constexpr,
):  # fmt: skip
    """Loss of a row and the log of the sum of its exponentials; tiles of L lanes by K adjacent logits."""
    row = tl.program_id(0).to(tl.int64)
    x += row * step
    place = tl.arange(0, L)[:, None] * K + tl.arange(0, K)[None, :]
    top = tl.full([L], float("-inf"), ACC)
    total = tl.zeros([L], ACC)
    plain = tl.zeros([L, K], ACC)
    weights = tl.zeros([L, K], ACC)
    for at in tl.range(0, n, L * K):
        inside = at + place < n
        v = tl.load(x + at + place, mask=inside, other=float("-inf")).to(ACC)
        new = largest(top, tl.reduce(v, 1, largest))
        shift = finite(new)
        e = tl.sum(exponential(v - shift[:, None], ACCURATE), 1)
        total = total * exponential(top - shift, ACCURATE) + e
        top = new
        if SMOOTH and WEIGHT:
            w = tl.load(weight + at + place, mask=inside, other=0.0)
            plain += tl.where(inside, v, 0.0) * w
            weights += w
        elif SMOOTH:
            plain += tl.where(inside, v, 0.0)
    best = tl.reduce(top, 0, largest)
    s = best + libdevice.log(tl.sum(total * exponential(top - finite(best), ACCURATE), 0))
    tl.store(sums + row, s)
    t = tl.load(target + row)
    known = (t >= 0) & (t < n)
    loss = (s - tl.load(x + t, mask=known, other=0.0).to(ACC)) * (1.0 - smoothing)
    if WEIGHT:
        loss *= tl.load(weight + t, mask=known, other=0.0)
    if SMOOTH and WEIGHT:
        loss += (tl.sum(tl.sum(weights, 1), 0) * s - tl.sum(tl.sum(plain, 1), 0)) * (smoothing / n)
    elif SMOOTH:
        loss += (s - tl.sum(tl.sum(plain, 1), 0) / n) * smoothing
    loss = tl.where(known, loss, float("nan"))
    tl.store(losses + row, tl.where(t == ignored, 0.0, loss))


@triton.jit
def loss_slopes(
    x, step, target, weight, whole, g, h, sums, out, out_step, n, pieces, ignored, smoothing,
    ACC: tl.constexpr, WEIGHT: tl.constexpr, SMOOTH: tl.constexpr, BOTH: tl.constexpr, ACCURATE: tl.constexpr,
    R: tl.constexpr,
):  # fmt: skip
    """Gradient of a piece of a row: from the slope of its loss, and if BOTH of the log of its sum."""
    pid = tl.program_id(0)
    row = (pid // pieces).to(tl.int64)
    c = (pid % pieces) * R + tl.arange(0, R)
    inside = c < n
    t = tl.load(target + row)
    known = (t >= 0) & (t < n)
    slope = tl.where(known, tl.load(g + row), float("nan"))
    slope = tl.where(t == ignored, 0.0, slope)
    own = slope * (1.0 - smoothing)
    if WEIGHT:
        own *= tl.load(weight + t, mask=known, other=0.0)
    every = slope * (smoothing / n)
    scale = own
    if SMOOTH and WEIGHT:
        scale += every * tl.load(whole)
    elif SMOOTH:
        scale += slope * smoothing
    if BOTH:
        scale += tl.load(h + row)
    v = tl.load(x + row * step + c, mask=inside, other=float("-inf")).to(ACC)
    d = exponential(v - tl.load(sums + row), ACCURATE) * scale
    d -= tl.where(c == t, own, 0.0)
    if SMOOTH and WEIGHT:
        d -= every * tl.load(weight + c, mask=inside, other=0.0)
    elif SMOOTH:
        d -= every
    tl.store(out + row * out_step + c, d.to(out.dtype.element_ty), mask=inside)


def _constants(dtype, weight, smooth):
    wide = dtype == "f64"
    consts = {"ACC": tl.float64 if wide else tl.float32, "WEIGHT": weight != "none", "SMOOTH": smooth}
    return ("*fp64" if wide else "*fp32"), ("fp64" if wide else "fp32"), consts | {"ACCURATE": WIDTH[dtype] > 2}


@functools.cache
def loss_kernel(dtype, weight, smooth, size):
    """The Kernel of `loss_rows` for tiles of `size`."""
    real, number, consts = _constants(dtype, weight, smooth)
    types = (cells(dtype), "i64", "*i64", real, real, real, "i32", "i64", number)
    k = min(16 // WIDTH[dtype], size)
    made = Kernel(loss_rows, types, ("step", "n"), max(1, min(8, size // 512)), **consts, L=size // k, K=k)
    made.items = size
    return made


@functools.cache
def slopes_kernel(dtype, weight, smooth, both, size):
    """The Kernel of `loss_slopes` for pieces of `size`."""
    real, number, consts = _constants(dtype, weight, smooth)
    types = (cells(dtype), "i64", "*i64", *(real,) * 5, cells(dtype), "i64", "i32", "i32", "i64", number)
    made = Kernel(loss_slopes, types, ("step", "out_step", "n"), 4, **consts, BOTH=both, R=size)
    made.items = size
    return made


def build(name, *params, source=None):
    """See kernels_triton/__init__.py."""
    dtype, weight = params
    if name not in ("cross_entropy", "cross_entropy_vjp") or dtype not in ("f16", "bf16", "f32", "f64"):
        return None

    def forward(gpu, words):
        x, step, target, w, losses, sums, rows, n, ignored, smoothing = words
        kernel = loss_kernel(dtype, weight, smoothing != 0, min(TILE, max(16, power_of_2(n))))
        kernel(gpu, (rows, 1, 1), x, step, target, w or sums, losses, sums, n, ignored, smoothing)

    def backward(gpu, words):
        x, step, target, w, whole, g, h, sums, out, out_step, rows, n, ignored, smoothing = words
        size = min(PIECE, max(16, power_of_2(n)))
        kernel = slopes_kernel(dtype, weight, smoothing != 0, h != 0, size)
        pieces = blocks(n, size)
        pointers = w or sums, whole or sums, g, h or sums, sums, out
        kernel(gpu, (rows * pieces, 1, 1), x, step, target, *pointers, out_step, n, pieces, ignored, smoothing)

    return forward if name == "cross_entropy" else backward


def variants(arch):
    """Representative kernels."""
    found = {}
    for dtype in ("f32", "bf16"):
        found[f"cross_entropy {dtype}"] = loss_kernel(dtype, "none", False, TILE)
        found[f"cross_entropy smooth weighted {dtype}"] = loss_kernel(dtype, "f32", True, TILE)
        found[f"cross_entropy_vjp {dtype}"] = slopes_kernel(dtype, "none", False, False, PIECE)
        found[f"cross_entropy_vjp smooth weighted {dtype}"] = slopes_kernel(dtype, "f32", True, True, PIECE)
    return found
