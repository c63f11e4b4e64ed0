"""Panels: a weight of f32 in the order in which a product on the CPU reads it, so that none of them has to sort it."""

from tensorlib import backend, tape
from tensorlib.device import CPU, Array
from tensorlib.errors import DTypeError, GradError, ShapeError
from tensorlib.ops import create, elementwise, linalg, movement


def columns():
    """How many rows of a weight (columns of the product) are a panel: kernels_numba/matmul.py, TILES."""
    return 32 if backend.backend().level == "avx512vnni" else 16


def tall(rows):
    """How high tiles of x are at most: 8 where that fills up fewer rows than the level's height does, which 0 stands
    for. 16 rows are 8 and 8, not 14 and 4.
    """
    if backend.backend().level != "avx512vnni":
        return 0
    least = rows // 14 * 14 + next(h for h in (0, 4, 8, 14) if h >= rows % 14)
    return 8 if -(-rows // 4) * 4 < least else 0


class Panels:
    """A weight [N, K]: panels of `columns()` rows, each [K, columns], the last one filled up with zeros.

    >>> from tensorlib.device import Array
    >>> Panels(Array.empty((5, 3))).linear(Array.empty((2, 7, 3))).shape
    (2, 7, 5)
    """

    node, requires_grad = None, False

    def __init__(self, weight):
        (n, k), width = weight.shape, columns()
        self.shape, self.device, self.dtype = weight.shape, weight.device, weight.dtype
        if n % width:
            filler = create.zeros(type(weight), (-n % width, k), dtype=weight.dtype, device=weight.device)
            weight = movement.cat([weight.handle(), filler], 0)
        panels = movement.reshape(weight.handle(), (-(-n // width), width, k))
        self.data = movement.contiguous(movement.transpose(panels, 1, 2))

    @staticmethod
    def fits(weight):
        """Whether an Array can be ordered so: a matrix of f32 on the CPU."""
        return weight.ndim == 2 and weight.dtype.name == "f32" and weight.device is CPU and 0 not in weight.shape

    def __repr__(self):
        return f"Panels(shape={self.shape})"

    def closes(self, x, *more):
        """Whether `closed` can be called: it says itself what is wrong with x."""
        return not (tape.used and tape.mode.recording and any(map(tape.live, more)))

    def linear(self, x, bias=None):
        """x [..., K] f32 times this weight transposed, plus bias [N]: [..., N]. ShapeError, DTypeError, GradError.

        From 5 rows on the sums are those of `linear`, in the same order.
        """
        return self.closed(x, bias)

    def closed(self, x, bias=None, act="none", residual=None):
        """act(`linear`) + residual (x's dims, N; contiguous f32), in one launch beside x's packing."""
        n, k = self.shape
        if not x.shape or x.shape[-1] != k or (bias is not None and bias.shape != (n,)):
            got, expected = f"x {x.shape}, bias {getattr(bias, 'shape', None)}", f"x [..., {k}] and bias [{n}]"
            raise ShapeError("linear", got, expected, "transpose or reshape x")
        if x.dtype.name != "f32" or x.device is not CPU:
            raise DTypeError("linear", f"x of {x.dtype} on {x.device}", "f32 on the CPU", "convert it with .to")
        if tape.used and tape.mode.recording and tape.live(x):
            fix = "load the model without prepack to train it, or call it in no_grad()"
            raise GradError("linear", "an operand that requires a gradient", "none with weights in panels", fix)
        x = movement.contiguous(x)
        out = type(x).empty((*x.shape[:-1], n), "f32", x.device)
        rows = x.numel() // k
        if rows:
            bias = bias if bias is None else movement.contiguous(elementwise.cast(bias, "f32"))
            self._product(out, x, bias, rows, act, residual)
        return out

    def _product(self, out, x, bias, rows, act, residual):
        (n, k), threads = self.shape, backend.threads()
        most = max(64, linalg.PACKED_BYTES // (4 * k))
        if rows > most:
            wide = out.layout.reshape((rows, n))
            flat = [movement.reshape(x, (rows, k)), out.view(wide)]
            flat += [] if residual is None else [movement.reshape(residual, (rows, n))]
            for start in range(0, rows, most):
                count = min(most, rows - start)
                some, to, *more = (a.view(a.layout.narrow(0, start, count)) for a in flat)
                self._product(to, some, bias, count, act, *more or [None])
            return
        plan, high = linalg._plan((rows, n), (n, 1), k, (k, 1), (1, k), 4, threads, 1 << 62), tall(rows)

        def pack():
            tiles = Array.empty((plan.nbytes - plan.packed,), "u8", CPU)
            kernel = backend.kernel("matmul", "pack", "f32", "f32", *([high] if high else []))
            backend.launch(kernel, [x.ptr, tiles.ptr, *plan.pack], plan.elements, (x,), (tiles,))
            return tiles

        tiles = x.derived(("tiles", threads, high), pack)
        scratch, more = Array.empty((plan.packed,), "u8", CPU), [a for a in (bias, residual) if a is not None]
        parts, group, depth = plan.blocks
        words = [tiles.ptr, self.data.ptr, out.ptr, rows, n, k, *(0 if a is None else a.ptr for a in (bias, residual))]
        words += [parts, group // columns(), depth, scratch.ptr, *plan.rest[:2]]
        kernel = backend.kernel("panels", "panels", high, act)
        backend.launch(kernel, words, rows * n * k // 16, [tiles, self.data, *more], (out, scratch))
