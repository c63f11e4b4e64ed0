"""Convolutions and transposed convolutions in one, two and three dims, with torch.nn.functional's arguments.

One kernel in three dims does them (kernels_numba/conv.py; depthwise.py where a group has one input channel): the input
is read where it lies, whatever its strides, and neither padded nor unfolded. (GPUs copy most inputs of f16 and bf16
with channels adjacent and zeros around them: kernels_triton/implicit.py.) Sums are f32 for f32, f16 and bf16, and f64
for f64; a result is within (terms + 1) u sum |x||w| of the exact one, u = 2**-24 (f64: 2**-53), before it is rounded to
its dtype.
"""

from collections.abc import Callable
from itertools import product
from math import prod
from typing import NamedTuple

from tensorlib import backend
from tensorlib.device import Array, Buffer
from tensorlib.errors import DeviceError, DTypeError, ShapeError
from tensorlib.layout import Layout
from tensorlib.layout import contiguous as row_major
from tensorlib.ops import conv_rows
from tensorlib.ops._launch import copy_into, fill
from tensorlib.ops.conv_shape import LEAST, Window, deep, filled_channels, folds, padding_of, per_dim, phases
from tensorlib.ops.movement import contiguous
from tensorlib.registry import FLOAT_ONLY, define

DEPTH = 768  # terms per block at most: 14 rows and 32 columns of it stay in a core's L1 and L2
GROUP = 256  # output positions that one thread packs at a time
CHUNK = 24 << 10  # bytes of input that a thread sums windows over at a time
DIRECT = 8  # input channels per group below which a GPU takes no matrix product, a CPU one per example
FEW = 4  # output channels per group up to which a group of one input channel is summed without packing
SQUARES = (3, 5, 7)  # windows that have kernels of their own there
FLOATS = ("f32", "f16", "bf16", "f64")
HALVES = ("f16", "bf16")
KNOWN = 1 << 12  # calls that are remembered at most
_known = {}  # by layouts and arguments: (bytes of the output, its layout, Call, folded)


@define("conv", FLOAT_ONLY, **conv_rows.conv(1))
def conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """input (N, C, L) or (C, L), weight (O, C / groups, K), bias (O,) -> (N, O, L') or (O, L'). See `conv2d`.

    >>> from tensorlib.device import Array
    >>> conv1d(Array.empty((2, 4, 10)), Array.empty((6, 4, 3)), padding="same").shape
    (2, 6, 10)
    """
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


@define("conv", FLOAT_ONLY, **conv_rows.conv(2))
def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """input (N, C, H, W) or (C, H, W), weight (O, C / groups, KH, KW), bias (O,) -> (N, O, H', W') or (O, H', W').

    stride, padding and dilation are a number or one per dim; padding may be "valid" or (at stride 1) "same", which pads
    the end by one more where it must. H' = (H + 2 padding - dilation (KH - 1) - 1) // stride + 1. One dtype of f32,
    f16, bf16, f64. Raises ShapeError, DTypeError, DeviceError.

    >>> from tensorlib.device import Array
    >>> conv2d(Array.empty((2, 4, 9, 9)), Array.empty((6, 2, 3, 3)), stride=2, padding=1, groups=2).shape
    (2, 6, 5, 5)
    """
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


@define("conv", FLOAT_ONLY, **conv_rows.conv(3))
def conv3d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """input (N, C, D, H, W) or (C, D, H, W), weight (O, C / groups, KD, KH, KW), bias (O,) -> (N, O, D', H', W').

    See `conv2d`.

    >>> from tensorlib.device import Array
    >>> conv3d(Array.empty((1, 4, 5, 5, 5)), Array.empty((6, 4, 3, 3, 3))).shape
    (1, 6, 3, 3, 3)
    """
    return _conv("conv3d", 3, input, weight, bias, stride, padding, dilation, groups)


@define("conv", FLOAT_ONLY, **conv_rows.transpose(1))
def conv_transpose1d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """input (N, C, L) or (C, L), weight (C, O / groups, K), bias (O,) -> (N, O, L'). See `conv_transpose2d`.

    >>> from tensorlib.device import Array
    >>> conv_transpose1d(Array.empty((2, 4, 10)), Array.empty((4, 6, 4)), stride=2, padding=1).shape
    (2, 6, 20)
    """
    return _transpose("conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation)


@define("conv", FLOAT_ONLY, **conv_rows.transpose(2))
def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """input (N, C, H, W) or (C, H, W), weight (C, O / groups, KH, KW), bias (O,) -> (N, O, H', W') or (O, H', W').

    The gradient of `conv2d` with respect to its input: H' = (H - 1) stride - 2 padding + dilation (KH - 1)
    + output_padding + 1, where output_padding is below stride or dilation. Raises ShapeError, DTypeError, DeviceError.

    >>> from tensorlib.device import Array
    >>> conv_transpose2d(Array.empty((2, 4, 5, 5)), Array.empty((4, 6, 3, 3)), stride=2, output_padding=1).shape
    (2, 6, 12, 12)
    """
    return _transpose("conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation)


@define("conv", FLOAT_ONLY, **conv_rows.transpose(3))
def conv_transpose3d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """input (N, C, D, H, W) or (C, D, H, W), weight (C, O / groups, KD, KH, KW), bias (O,) -> (N, O, D', H', W').

    See `conv_transpose2d`.

    >>> from tensorlib.device import Array
    >>> conv_transpose3d(Array.empty((1, 4, 3, 3, 3)), Array.empty((4, 6, 2, 2, 2)), stride=2).shape
    (1, 6, 6, 6, 6)
    """
    return _transpose("conv_transpose3d", 3, input, weight, bias, stride, padding, output_padding, groups, dilation)


# ---- arguments ------------------------------------------------------------------------------------------------------


def _operands(op, dims, x, weight, bias, groups, transposed):
    """Checks the operands; x as (N, C, ...)."""
    if weight.ndim != dims + 2 or x.ndim not in (dims + 1, dims + 2) or 0 in weight.shape[1:]:
        got = f"input {x.shape} and weight {weight.shape}"
        expected = f"input of {dims + 2} dims (or {dims + 1}, without N), weight of {dims + 2}, no size 0"
        raise ShapeError(op, got, expected, "see the docstring for the shapes")
    if any(a is not None and a.device != x.device for a in (weight, bias)):
        raise DeviceError(op, "operands on several devices", f"all on {x.device}", "move them with .to(device)")
    if any(a is not None and a.dtype is not x.dtype for a in (weight, bias)) or x.dtype.name not in FLOATS:
        names = ", ".join(str(a.dtype) for a in (x, weight, bias) if a is not None)
        raise DTypeError(op, names, f"one dtype of {', '.join(FLOATS)}", "convert the operands with .to(dtype)")
    x = x if x.ndim == dims + 2 else x.view(x.layout.unsqueeze(0))
    channels = weight.shape[0] if transposed else weight.shape[1] * groups
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    if not isinstance(groups, int) or groups < 1 or weight.shape[0] % groups or x.shape[1] != channels:
        got = f"input {x.shape}, weight {weight.shape}, groups={groups}"
        where = "(C, O / groups, ...)" if transposed else "(O, C / groups, ...)"
        raise ShapeError(op, got, f"a weight {where} with C = {x.shape[1]}", "groups divides C and O")
    if bias is not None and bias.shape != (outputs,):
        raise ShapeError(op, f"bias {bias.shape}", f"shape ({outputs},)", "one number per output channel")
    return x, outputs


def _sized(op, x, weight, size):
    """`size`, unless the output would be empty along a dim."""
    if any(n < 1 for n in size):
        got = f"input {x.shape} and weight {weight.shape}, which give an output of size {tuple(size)}"
        raise ShapeError(op, got, "a positive size", "pad more, or use a smaller kernel or dilation")
    return tuple(size)


def _volume(layout):
    """(N, C, ...) as (N, C, D, H, W)."""
    while layout.ndim < 5:
        layout = layout.unsqueeze(2)
    return layout


def _batched(out, x, dims):
    """out as x was given: without N if x had none."""
    return out if x.ndim == dims + 2 else out.view(out.layout.squeeze([0]))


def _conv(op, dims, x, weight, bias, stride, padding, dilation, groups):
    if list in (type(stride), type(padding), type(dilation)):
        stride, padding, dilation = (tuple(v) if isinstance(v, list) else v for v in (stride, padding, dilation))
    device, last = x.device, None if bias is None else (bias.layout, bias.dtype, bias.device)
    own = x.layout, x.dtype, device, weight.layout, weight.dtype, weight.device, last
    key = (op, backend.threads(device.type), stride, padding, dilation, groups, *own)
    known = _known.get(key)
    if known is None:
        if len(_known) >= KNOWN:
            _known.clear()
        shape, *rest = _prepared(op, dims, x, weight, bias, stride, padding, dilation, groups)
        known = _known[key] = prod(shape) * x.dtype.itemsize, row_major(shape), *rest
    nbytes, layout, call, folded = known
    out = type(x)(Buffer.allocate(nbytes, device), layout, x.dtype)
    _launch(call, out, x, weight, bias)
    return contiguous(out.view(out.layout.permute((1, 0, *range(2, out.ndim))))) if folded else out


def _prepared(op, dims, x, weight, bias, stride, padding, dilation, groups):
    """The output's shape, the call that fills it, and whether batch and channels change places in it."""
    batch, outputs = _operands(op, dims, x, weight, bias, groups, False)
    kernel = weight.shape[2:]
    stride, dilation = per_dim(op, "stride", stride, dims, 1), per_dim(op, "dilation", dilation, dims, 1)
    before, total = padding_of(op, padding, kernel, stride, dilation)
    extent = zip(batch.shape[2:], total, dilation, kernel, stride)
    size = _sized(op, x, weight, [(n + t - d * (k - 1) - 1) // s + 1 for n, t, d, k, s in extent])
    window = Window(deep(size, 1), deep(stride, 1), deep(before, 0), deep(dilation, 1))
    volume, taps = batch.view(_volume(batch.layout)), _volume(weight.layout)
    if x.ndim == dims + 2 and _folding(dims, volume, taps, size, groups):
        call = _folded(volume, taps, ("conv", groups), bias, outputs, window, groups)
        return (outputs, batch.shape[0], *size), call, True
    call = _call((batch.shape[0], outputs, *window.size), volume, taps, ("conv", groups), bias, window, groups)
    return (*batch.shape[: x.ndim - dims - 1], outputs, *size), call, False


# ---- the transposed convolution as one convolution per phase --------------------------------------------------------


def _transpose(op, dims, x, weight, bias, stride, padding, output_padding, groups, dilation):
    batch, outputs = _operands(op, dims, x, weight, bias, groups, True)
    kernel, stride = weight.shape[2:], per_dim(op, "stride", stride, dims, 1)
    dilation, before = per_dim(op, "dilation", dilation, dims, 1), per_dim(op, "padding", padding, dims, 0)
    extra = per_dim(op, "output_padding", output_padding, dims, 0)
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation)):
        got = f"output_padding={output_padding} at stride {stride}, dilation {dilation}"
        raise ShapeError(op, got, "less than the stride or the dilation", "it only chooses among sizes of one stride")
    extent = zip(batch.shape[2:], stride, before, dilation, kernel, extra)
    size = _sized(op, x, weight, [(n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, s, p, d, k, e in extent])
    out = type(x).empty((batch.shape[0], outputs, *size), x.dtype, x.device)
    volume, source = _volume(out.layout), batch.view(_volume(batch.layout))
    full = (weight.shape[0] // groups, weight.shape[1])
    taps = _volume(weight.layout).reshape((groups * full[0], full[1], *deep(kernel, 1)))
    plan = zip(deep(size, 1), deep(kernel, 1), deep(stride, 1), deep(before, 0), deep(dilation, 1))
    for phase in product(*(list(phases(*axis)) for axis in plan)):
        starts, counts, slices, pads, steps = zip(*phase)
        part, mine = volume, taps
        for d, (start, s, cut) in enumerate(zip(starts, deep(stride, 1), slices), 2):
            part, mine = part.slice(d, slice(start, None, s)), mine.slice(d, cut)
        window = Window(counts, (1, 1, 1), pads, steps)
        key = ("conv_transpose", groups, stride, starts, before, dilation)
        own = _swapped(mine, groups)
        if _folding(dims, source, own, counts, groups):
            target = Array.empty((outputs, part.shape[0], *counts), out.dtype, out.device)
            _launch(_folded(source, own, key, bias, outputs, window, groups), target, source, weight, bias)
            target = target.view(target.layout.permute((1, 0, 2, 3, 4)))
        else:
            target = out.view(part) if part.is_contiguous() else Array.empty(part.shape, out.dtype, out.device)
            _launch(_call(target.shape, source, own, key, bias, window, groups), target, source, weight, bias)
        if target.ptr != out.ptr + (part.offset - out.offset) * out.dtype.itemsize:
            copy_into(out.view(part), target)
    return _batched(out, x, dims)


def _folding(dims, x, taps, size, groups):
    """Whether `_folded` is the better way."""
    plain = dims < 3 and x.device.type == "cpu" and 0 not in (*x.shape, *taps.shape)
    return plain and x.shape[1] // groups >= DIRECT and folds(x.shape[0], size)


def _folded(x, taps, key, bias, outputs, window, groups):
    """`_call` of x (N, C, 1, H, W) for an output (O, N, 1, H', W'): examples lie one behind the other, as a depth."""
    window = Window(*((first, *rest) for first, (_, *rest) in zip((x.shape[0], 1, 0, 1), window)))
    x = x.view(x.layout.permute((2, 1, 0, 3, 4)))
    return _call((1, outputs, *window.size), x, taps, key, bias, window, groups)


def _swapped(layout, groups):
    """(C, O / groups, ...) as (groups, O / groups, C / groups, ...)."""
    c, o, *taps = layout.shape
    s_c, s_o, *rest = layout.strides
    shape = (groups, o, c // groups, *taps)
    return Layout(shape, (s_c * (c // groups), s_o, s_c, *rest), layout.offset)


# ---- launches -------------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A launch without its operands' addresses: the kernel, the words between those of the operands and of the scratch
    memory, its bytes, the words behind it; how the weights are laid out for the kernel, and under which key.
    """

    kernel: backend.Kernel
    words: tuple
    scratch: int
    rest: tuple
    key: tuple
    laid_out: Callable
    work: int


def _launch(call, out, x, weight, bias):
    if 0 in out.shape:
        return
    if call is None:
        _only_bias(out, bias)
        return
    first = weight.derived(call.key, lambda: call.laid_out(weight))
    words = [first.ptr, x.ptr, out.ptr, 0 if bias is None else bias.ptr, *call.words]
    reads, writes = [x, first] if bias is None else [x, first, bias], [out]
    if call.scratch:
        writes.append(Array.empty((call.scratch,), "u8", x.device))
        words += [writes[1].ptr, *call.rest]
    backend.launch(call.kernel, words, call.work, reads, writes)


def _call(shape, x, taps, key, bias, window, groups):
    """The Call for an output of `shape` (N, O, D, H, W), x (N, C, D, H, W), taps (layout of (..., C / groups, KD, KH,
    KW) in the weight); None if no input is met.
    """
    m, channels, kernel = shape[1] // groups, x.shape[1] // groups, taps.shape[-3:]
    terms = channels * prod(kernel)
    if not terms or 0 in x.shape or 0 in shape:
        return None
    window, layout = _flat(window, x.layout, kernel)
    words = [0 if bias is None else bias.strides[0]]
    words += [x.shape[0], groups, m, channels, *layout.strides, *layout.shape[2:]]
    words += [*window.size, *kernel, *window.stride, *window.padding, *window.dilation]
    work = prod(shape) * terms
    if x.device.type != "cpu":
        return _on_gpu(x, taps, key, words, work)
    if channels == 1 and groups > 1 and m <= FEW:
        return _depthwise(x, taps, key, words, window, work)
    size, positions = 8 if x.dtype.name == "f64" else 4, prod(window.size)
    threads, blocks = backend.threads(x.device.type), -(-terms // DEPTH)
    deep, group = -(-terms // (16 * blocks)) * 16, min(GROUP, -(-positions // 32) * 32)
    # what the kernel lays out: packed panels, descriptions of their runs (at most one per position), unfinished tiles
    held = (m + 16) * group if blocks > 1 else 16 * 32
    per_thread = size * (group * deep + 32) + 128 * group + size * held
    per_thread = -(-per_thread // 64) * 64
    parts = min(-(-m // 64), max(1, 2 * threads // (-(-positions // 32) * x.shape[0] * groups)))
    found = backend.kernel("conv", "conv", x.dtype.name, device=x.device.type)
    words, rest, key = (*words, parts, group, deep), (per_thread, threads), ("packed", *key)
    packed = lambda weight: _packed(weight.view(taps), groups, m, terms)  # noqa: E731
    return Call(found, words, threads * per_thread, rest, key, packed, work // 8)


def _on_gpu(x, taps, key, words, work):
    dtype, (groups, m, channels) = x.dtype.name, words[2:5]
    filled = filled_channels(channels, groups) if dtype in HALVES and m >= LEAST else 0
    name = "implicit" if filled else "direct" if channels < DIRECT else "conv"
    found = backend.kernel("conv", name, dtype, device=x.device.type)
    if name == "implicit":
        words, key = (*words, filled), (filled, *key)
    return Call(found, words, 0, (), ("taps first", *key), lambda w: _taps_first(w.view(taps), filled), work)


def _depthwise(x, taps, key, words, window, work):
    kernel, key = taps.shape[-3:], ("rows", *key)
    size, rows = 8 if x.dtype.name == "f64" else 4, lambda weight: contiguous(weight.view(taps))
    if _small(x, kernel, window):
        found = backend.kernel("depthwise", "planes", x.dtype.name, kernel[1], window.stride[2], device=x.device.type)
        return Call(found, tuple(words), 0, (), key, rows, work)
    reach = [(k - 1) * abs(d) for k, d in zip(kernel, window.dilation)]
    phases = kernel[0] * prod(min(s, r + 1) for s, r in zip(window.stride[1:], reach[1:]))
    pitch, more = window.size[2] + reach[2] // window.stride[2], reach[1] // window.stride[1]
    # rows of output per chunk, so that what they read stays in a core's L1
    chunk = max(1, min(window.size[1], CHUNK // (size * phases * pitch) - more))
    per_thread = 16 * prod(kernel) + size * (phases * (chunk + more) * pitch + 256)
    per_thread, threads = -(-per_thread // 64) * 64, backend.threads(x.device.type)
    found = backend.kernel("depthwise", "depthwise", x.dtype.name, device=x.device.type)
    return Call(found, (*words, chunk, 0, 0), threads * per_thread, (per_thread, threads), key, rows, work)


def _small(x, kernel, window):
    """Whether a kernel for square windows takes it: two dims, stride 1 or 2, no dilation, adjacent columns."""
    flat = kernel[0] == window.size[0] == x.shape[2] == 1 and window.padding[0] == 0
    square = kernel[1] == kernel[2] in SQUARES and window.stride[1] == window.stride[2] in (1, 2)
    return flat and square and window.dilation[1:] == (1, 1) and x.strides[-1] == 1


def _only_bias(out, bias):
    if bias is None:
        fill(out, 0)
    else:
        columns = Layout(out.shape, (0, bias.strides[0]) + (0,) * (out.ndim - 2), bias.offset)
        copy_into(out, bias.view(columns))


def _flat(window, layout, kernel):
    """Of a convolution by single taps at stride 1 without padding: one long row, if the input's strides allow."""
    plain = prod(kernel) == 1 and set(window.stride) == {1} and set(window.padding) == {0}
    plain = plain and layout.shape[2:] == tuple(window.size)
    row = layout.reshape((*layout.shape[:2], 1, 1, prod(window.size))) if plain else None
    if row is None:
        return window, layout
    return window._replace(size=row.shape[2:]), row


def _taps_first(taps, filled=0):
    """The weights as (..., output channels, taps, input channels), contiguous; `filled` channels, if there are less."""
    channels, lead = taps.shape[-4], range(taps.ndim - 4)
    taps = taps.view(taps.layout.permute((*lead, -3, -2, -1, -4)))
    if channels >= filled:
        return contiguous(taps)
    wider = Array.empty((*taps.shape[:-1], filled), taps.dtype, taps.device)
    fill(wider, 0)
    copy_into(wider.view(wider.layout.slice(wider.ndim - 1, slice(channels))), taps)
    return wider


def _packed(taps, groups, m, terms):
    """The weights as tiles of up to 16 output channels, for the register tile (kernels_numba/matmul.py).

    The terms are in order of tap, then of input channel: a panel's runs are then the same for all channels.
    """
    taps = _taps_first(taps)
    wide = "f64" if taps.dtype.name == "f64" else "f32"
    packed = Array.empty((groups * (m + 16) * (terms + 8) * (8 if wide == "f64" else 4),), "u8", taps.device)
    kernel = backend.kernel("matmul", "pack", taps.dtype.name, wide, device=taps.device.type)
    words = [taps.ptr, packed.ptr, m, terms, terms, 1, 1, groups, m * terms]
    backend.launch(kernel, words, taps.numel(), (taps,), (packed,))
    return packed
