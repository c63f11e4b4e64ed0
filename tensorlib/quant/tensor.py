"""QTensor: a weight as its file stores it, in GGML blocks. `linear` and `embedding` use the blocks directly.

A product with a QTensor quantises the activations to 8 bits per 32 (their rounding, at most 1/254 of a block's largest
value each, is the only error beside f32's); weights are exact. With floats of 4 or 8 bits activations stay f32. Formats
without a kernel of their own are dequantised once, which takes four bytes per weight, and is said in the log.

`to("cuda:0")` sorts the bits of a format into planes that a GPU reads well (`gpu.py`); nothing is rounded.

Gradients flow through a product to the activations, as if those had not been rounded; blocks themselves have none.
"""

from math import prod

from tensorlib import backend, tape
from tensorlib.device import CPU, Array, Buffer
from tensorlib.errors import DeviceError, DTypeError, GradError, ShapeError
from tensorlib.memo import memoised
from tensorlib.ops import create, elementwise, linalg, moe, movement
from tensorlib.ops._launch import fill
from tensorlib.quant import floats, formats, gpu, mixtures, source
from tensorlib.quant.like import Like
from tensorlib.registry import FLOAT_ONLY, Op

MATVEC_ROWS = 16  # up to so many rows packing panels of weights costs more than it saves (measured: equal at 24)
TILES = {1: 1, 2: 1, 4: 1, 8: 2}  # rows of a tile of panels -> up to how many tiles it is better than the largest
DENSE_BYTES = 4 << 20  # of weights that a product with the blocks themselves (not transposed) dequantises at a time
_told = set()


class QTensor(Like):
    """Blocks of `format` (a row of `tensorlib.quant.formats`) at byte `offset` of `buffer`; `shape` counts weights.

    On GPUs `planes` says where in the buffer the planes of the blocks' bits begin; None: blocks as in the file. On the
    CPU `panels` has the weights once more, as products of several rows read them (`prepacked`), or is None.
    Raises ShapeError if the last dim is not whole blocks, or the buffer is too short.
    """

    __slots__ = ("_dense", "buffer", "format", "offset", "panels", "planes", "shape")
    node, requires_grad, dtype = None, False, None

    def __init__(self, buffer, offset, shape, format, planes=None):
        self.buffer, self.offset, self.shape, self.format = buffer, offset, tuple(shape), formats.get(format)
        self._dense, self.planes, self.panels = None, planes, None
        need = offset + self.nbytes
        if need > buffer.nbytes and planes is None:
            raise ShapeError("QTensor", f"{buffer.nbytes} bytes", f"at least {need}", "give the buffer that holds it")

    def __repr__(self):
        return f"QTensor(shape={self.shape}, format={self.format.name}, {self.nbytes} bytes)"

    def requires_grad_(self, requires_grad=True):
        """Itself for False; blocks have no gradient: GradError."""
        if requires_grad:
            fix = "train a dense copy, .dequantize(), or weights beside it"
            raise GradError("requires_grad_", f"a weight in blocks of {self.format.name}", "a float tensor", fix)
        return self

    @property
    def ndim(self):
        return len(self.shape)

    def numel(self):
        """Number of weights."""
        return prod(self.shape)

    @property
    def device(self):
        return self.buffer.device

    @property
    def layout(self):
        """What a product with it depends on beside its device: see `tensorlib.memo`."""
        return self.shape, self.format, self.offset, self.planes, self.panels and self.panels.ptr

    @property
    def ptr(self):
        """Address of the first block."""
        return self.buffer.ptr + self.offset

    @property
    def nbytes(self):
        return prod(self.shape[:-1]) * self.format.row_bytes(self.shape[-1])

    @property
    def blocks(self):
        """How many blocks there are."""
        return prod(self.shape) // self.format.elements

    @property
    def where(self):
        """Addresses of the blocks, or of the planes; of an empty one at the buffer's end its start, which it owns."""
        if self.planes is None:
            return (self.ptr,)
        first, nbytes = self.buffer.ptr, self.buffer.nbytes
        return tuple(first + start if start < nbytes else first for start in self.planes)

    def to(self, device):
        """On another device; itself if it is there. Raises DeviceError if there is no such device."""
        return gpu.moved(self, device)

    def dequantize(self, dtype="f32", cls=None):
        """All weights as a dense Tensor (or a `cls`) of f32, f16 or bf16."""
        out = (cls or Array.usual).empty(self.shape, dtype, self.device)
        kernel, unit = self._kernel("dequantize", "planes", out.dtype.name)
        backend.launch(kernel, (*self.where, out.ptr, out.numel() // unit), 4 * out.numel(), (self,), (out,))
        return out

    def _kernel(self, of_blocks, of_planes, dtype):
        """The kernel for where this is, and how many weights it counts as one."""
        if self.planes is not None:
            return backend.kernel("dequant", of_planes, self.format.name, dtype, device=self.device.type), 32
        text, params = lambda: source.source(self.format), (self.format.name, dtype)
        key, device = source.key(self.format), self.device.type
        found = backend.kernel("dequant", of_blocks, *params, device=device, source=text, source_key=key)
        return found, self.format.elements

    def embedding(self, ids, dtype="f32"):
        """Rows `ids` (i64, any shape) of this [V, D] table, dequantised: ids.shape + (D,). A row out of range becomes
        NaN.
        """
        if self.ndim != 2 or ids.dtype.name != "i64" or not ids.is_contiguous():
            got = f"table {self.shape}, ids of {ids.dtype}"
            raise ShapeError(
                "embedding", got, "a [V, D] table and contiguous ids of i64", "call ids.to('i64').contiguous()"
            )
        self._together("embedding", ids)
        rows, width = self.shape
        out = type(ids).empty((*ids.shape, width), dtype, self.device)
        kernel, unit = self._kernel("dequantize_rows", "planes_rows", out.dtype.name)
        args = (*self.where, ids.ptr, out.ptr, ids.numel(), width // unit, rows)
        backend.launch(kernel, args, 4 * out.numel(), (self, ids), (out,))
        return out

    def linear(self, x, residual=None):
        """x [..., K] f32 times this [N, K] weight, transposed: [..., N] f32, plus `residual` (same shape,
        contiguous). Differentiable in both. On GPUs x may be f16 or bf16, and so is what comes. ShapeError, DTypeError.
        """
        live = tape.used and tape.mode.recording and (tape.live(x) or tape.live(residual))
        if x.memo is not None and "matvec" in x.memo[1] and not live:
            return self._linear(x, residual)  # a repeated call would make x's copy in 8 bits anew
        return quantized_linear(x, self, residual)

    def _linear(self, x, residual):
        n, k = self._check("linear", x, 1)
        if x.device is not CPU:
            return gpu.linear(self, x, residual)
        x = movement.contiguous(x)
        plan = backend.backend().quant
        if self.format.name not in plan.BIAS and self.format.name not in plan.STRIDES:
            return self._linear_dense(x, residual)
        out = type(x).empty((*x.shape[:-1], n), "f32", x.device)
        rows = x.numel() // k if k else 0
        if rows and self.format.name in plan.STRIDES:
            floats.linear(self, x, out, residual, rows, n, k)
        elif rows:
            by = self._kept if self.panels else self._matvec if rows <= MATVEC_ROWS else self._matmul
            by(plan, x, out, residual, rows, n, k)
        return out

    def closes(self, x, *more):
        """Whether `closed` can be called: with panels, f32 alone, and where nothing is recorded."""
        live = tape.used and tape.mode.recording and any(map(tape.live, (x, *more)))
        return self.panels is not None and x.dtype.name == "f32" and x.device is CPU and not live

    def closed(self, x, bias=None, act="none", residual=None):
        """act(`linear` + bias [N]) + residual (x's dims, N; contiguous) in one launch; an `act` of the kernels."""
        n, k = self._check("linear", x, 1)
        out, rows = type(x).empty((*x.shape[:-1], n), "f32", x.device), x.numel() // k
        if rows:
            self._kept(backend.backend().quant, movement.contiguous(x), out, residual, rows, n, k, bias, act)
        return out

    def _check(self, op, x, dim):
        """This weight's sizes, if it is a matrix whose size at `dim` is x's last."""
        if self.ndim != 2 or not x.ndim or x.shape[-1] != self.shape[dim]:
            got, expected = f"x {x.shape} and weight {self.shape}", f"x [..., {'NK'[dim]}] and weight [N, K]"
            raise ShapeError(op, got, expected, "transpose or reshape x")
        if x.dtype.name != "f32" and (x.device is CPU or x.dtype.name not in ("f16", "bf16")):
            raise DTypeError(op, f"x of {x.dtype}", "f32 with a quantised weight", "call x.to('f32')")
        self._together(op, x)
        return self.shape

    def _together(self, op, x):
        if x.device is not self.device:
            got = f"x on {x.device} and a weight on {self.device}"
            raise DeviceError(op, got, "both on one device", "move one of them with .to(device)")

    def rows(self, start, count):
        """Some of the rows of a matrix, or of several matrices, over the same memory."""
        shape = (count, *self.shape[1:])
        if self.planes is not None:
            return QTensor(self.buffer, 0, shape, self.format, gpu.rows_of(self, start))
        offset = self.offset + start * prod(self.shape[1:-1]) * self.format.row_bytes(self.shape[-1])
        return QTensor(self.buffer, offset, shape, self.format)

    def by_choice(self, x, up=None):
        """For `moe.chosen` on the CPU of this [E, N, K] weight, and one like it, and contiguous x [R, K] f32: (kernel,
        x as it reads that, both weights or their dense copies).
        """
        plan = backend.backend().quant
        if self.format.name in plan.STRIDES:
            return floats.by_choice(self, x, up)
        if self.format.name not in plan.BIAS:
            return moe.by_choice(self._as_dense(type(x)), x, up if up is None else up._as_dense(type(x)))
        kernel = backend.kernel("quant", "experts", self.format.name, **self._source())
        return kernel, self._packed(plan, x, *x.shape), self, up

    @property
    def halves(self):
        """Whether a GPU's products with it are of f16: see `gpu.py`."""
        return self.planes is not None and self.format.name not in gpu.WIDE

    def mixed(self, x, weights, experts, ups):
        """`moe.mix` on a GPU, of which this is w_down: all of a prompt's choices in a few launches."""
        return mixtures.mixed(x, weights, experts, ups, self)

    def grouped(self, x, ends):
        """Rows of x [R, K] in groups, which end at `ends`, times a matrix each of this [G, N, K], transposed: [R, N].

        As `linear` of each, which the gradient of x is of, too.
        """
        return quantized_grouped(x, self, ends)

    def gathered(self, ids):
        """The matrices `ids` (i64 [C], on this device) of [E, N, K], dequantised: [C, N, K] f32. On GPUs."""
        many, n, k = self.shape
        table = QTensor(self.buffer, self.offset, (many * n, k), self.format, self.planes)
        rows = elementwise.add(
            elementwise.mul(movement.unsqueeze(ids, 1), n), create.arange(type(ids), n, device=self.device)
        )
        return table.embedding(movement.contiguous(rows))

    def _packed(self, plan, x, rows, k):
        """Activations as matvec takes them."""
        runs = self.format.name in plan.RUNS

        def pack():
            packed = Array.empty((rows * plan.row_bytes(k, runs),), "u8", CPU)
            kernel = backend.kernel("quant", "quantize_runs" if runs else "quantize")
            backend.launch(kernel, (x.ptr, 4 * k, k, rows, packed.ptr), 4 * rows * k, (x,), (packed,))
            return packed

        return x.derived("runs" if runs else "groups", pack)

    def _matvec(self, plan, x, out, residual, rows, n, k):
        y = self._packed(plan, x, rows, k)
        args = (self.ptr, y.ptr, out.ptr, n, k, residual.ptr if residual is not None else 0, rows)
        reads = (self, y) if residual is None else (self, y, residual)
        kernel = backend.kernel("quant", "matvec", self.format.name, **self._source())
        backend.launch(kernel, args, 2 * rows * n * k, reads, (out,))

    def prepacked(self):
        """The same weight with `panels`, for products of several rows, which find it unpacked: 9 bits of memory more
        per weight (10 to 12 with minima or scales per 16). Itself where that is not known: on GPUs, of other formats.

        >>> weight = from_bytes(bytes(34 * 32), (16, 64), "q8_0").prepacked()
        >>> weight.panels.shape, weight.linear(Array.empty((3, 64))).shape
        ((1152,), (3, 16))
        """
        plan = backend.backend().quant
        if self.device is not CPU or self.ndim != 2 or self.panels or self.format.name not in plan.BIAS:
            return self
        (n, k), made = self.shape, QTensor(self.buffer, self.offset, self.shape, self.format)
        made.panels = Array.empty((plan.panel_bytes(n, k, self.format.name),), "u8", CPU)
        scratch = Array.empty((plan.TRANSPOSES * backend.threads(),), "u8", CPU)
        kernel = backend.kernel("quant", "panels", self.format.name, **self._source())
        words = (self.ptr, made.panels.ptr, n, k, scratch.ptr, plan.TRANSPOSES)
        backend.launch(kernel, words, 4 * n * k, (self,), (made.panels, scratch))
        return made

    def _tiles(self, plan, x, rows, k, tokens):
        """Activations as products with panels take them."""
        halves, bias = plan.HALVES.get(self.format.name, 0), plan.BIAS[self.format.name]

        def pack():
            packed = Array.empty((plan.tiles_bytes(rows, k, tokens, halves),), "u8", CPU)
            args = (x.ptr, 4 * k, k, rows, packed.ptr, bias)
            kernel = backend.kernel("quant", "quantize_tiles", tokens, halves)
            backend.launch(kernel, args, 4 * rows * k, (x,), (packed,))
            return packed

        return x.derived(("tiles", tokens, halves, bias), pack)

    def _kept(self, plan, x, out, residual, rows, n, k, bias=None, act="none"):
        most = backend.backend().tokens
        tokens = next((few for few in TILES if rows <= few * TILES[few] and few <= most), most)
        y = self._tiles(plan, x, rows, k, tokens)
        more = [a for a in (residual, bias) if a is not None]
        ends = [a.ptr if a is not None else 0 for a in (residual, bias)]
        args, reads = (self.panels.ptr, y.ptr, out.ptr, n, k, ends[0], rows, ends[1]), (self.panels, y, *more)
        kernel = backend.kernel("quant", "kept", self.format.name, tokens, act, **self._source())
        backend.launch(kernel, args, 2 * rows * n * k, reads, (out,))

    def _matmul(self, plan, x, out, residual, rows, n, k):
        tokens = backend.backend().tokens
        y, scratch = self._tiles(plan, x, rows, k, tokens), Array.empty((plan.SCRATCH * backend.threads(),), "u8", CPU)
        args = (self.ptr, y.ptr, out.ptr, n, k, residual.ptr if residual is not None else 0, rows, scratch.ptr)
        reads = (self, y) if residual is None else (self, y, residual)
        kernel = backend.kernel("quant", "matmul", self.format.name, tokens, **self._source())
        backend.launch(kernel, (*args, plan.SCRATCH), 2 * rows * n * k, reads, (out, scratch))

    def _source(self):
        """The decode source, for the kernels of formats with a grid: it brings that."""
        if not isinstance(self.format.table, str):
            return {}
        return {"source": lambda: source.source(self.format), "source_key": source.key(self.format)}

    def _linear_dense(self, x, residual):
        out = linalg.linear(x, self._as_dense(type(x)))
        return out if residual is None else elementwise.add(out, residual)

    def _as_dense(self, cls):
        name = self.format.name
        if name not in _told:
            _told.add(name)
            backend.log(f"{name} has no matmul kernel on the CPU yet: such weights are dequantised to f32 once")
        if self._dense is None:
            self._dense = self.dequantize("f32", cls)
        return self._dense


# ---- products on the tape --------------------------------------------------------------------------------------------


def _recorded(memo, **vjp):
    """Decorator: on the tape, but not among the rows, since a weight in blocks is no operand that tests can draw."""

    def decorate(function):
        op = Op(function.__name__, "linalg", len(vjp), FLOAT_ONLY, None, function.__doc__, None, vjp)
        return memoised(op, function, gpu=True, operands=memo) if memo else tape.recorded(op, function)

    return decorate


@_recorded(3, x=lambda g, weight: quantized_product(g, weight), residual=lambda g: g)
def quantized_linear(x, weight, residual=None):
    """x [..., K] times a quantised weight [N, K], transposed, plus residual: what `QTensor.linear` calls."""
    return weight._linear(x, residual)


@_recorded(0, x=lambda g, weight: quantized_linear(g, weight))
def quantized_product(x, weight):
    """x [..., N] f32 times a quantised weight [N, K]: [..., K] f32, with the weights as f32. ShapeError, DTypeError.

    Not more than 4 MiB of weights are dequantised at a time.
    """
    n, k = weight._check("quantized_product", x, 0)
    out = type(x).empty((*x.shape[:-1], k), x.dtype, x.device)
    flat, rows = movement.reshape(x, (prod(x.shape[:-1]), n)), max(1, DENSE_BYTES // (4 * k)) if k else 1
    total = movement.reshape(out, (flat.shape[0], k))
    for start in range(0, n, rows):
        some = weight.rows(start, min(rows, n - start))
        linalg._product(total, movement.narrow(flat, 1, start, some.shape[0]), some.dequantize(), None, start > 0)
    return out if n else fill(out, 0)


def _groups(function):
    """function(rows of x, their matrix) of every group that has some, joined."""

    def by_group(x, weight, ends):
        starts = [0, *ends[:-1]]
        some = [
            function(movement.narrow(x, 0, low, high - low), weight[i])
            for i, (low, high) in enumerate(zip(starts, ends, strict=True))
            if high > low
        ]
        return movement.cat(some)

    return by_group


@_recorded(0, x=lambda g, weight, ends: quantized_grouped_product(g, weight, ends))
def quantized_grouped(x, weight, ends):
    """What `QTensor.grouped` calls."""
    return _groups(quantized_linear)(x, weight, ends)


@_recorded(0, x=lambda g, weight, ends: quantized_grouped(g, weight, ends))
def quantized_grouped_product(x, weight, ends):
    """`quantized_product` of the rows of groups with a matrix each."""
    return _groups(quantized_product)(x, weight, ends)


def from_bytes(data, shape, format):
    """A QTensor over the bytes of any object with the buffer protocol (uint8 NumPy array, bytes), uncopied.

    >>> from_bytes(bytes(34 * 4), (2, 64), "q8_0")
    QTensor(shape=(2, 64), format=q8_0, 136 bytes)
    """
    return QTensor(Buffer.of(data), 0, shape, format)
