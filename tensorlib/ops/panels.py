"""Panels: a weight of f32 in the order in which a product on the CPU reads it, so that none of them has to sort it."""

from tensorlib import backend, tape
from tensorlib.device import CPU, Array
from tensorlib.errors import DTypeError, GradError, ShapeError
from tensorlib.ops import create, linalg, movement


def columns():
    """How many rows of a weight (columns of the product) are a panel: kernels_numba/matmul.py, TILES."""
    return 32 if backend.backend().level == "avx512vnni" else 16


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

    def linear(self, x, bias=None):
        """x [..., K] f32 times this weight transposed, plus bias [N] f32: [..., N]. ShapeError, DTypeError, GradError.

        From 5 rows on the sums are those of `linear`, in the same order.
        """
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
            self._product(out, x, bias, rows)
        return out

    def _product(self, out, x, bias, rows):
        (n, k), threads = self.shape, backend.threads()
        most = max(64, linalg.PACKED_BYTES // (4 * k))
        if rows > most:
            flat, to = movement.reshape(x, (rows, k)), out.view(out.layout.reshape((rows, n)))
            for start in range(0, rows, most):
                count = min(most, rows - start)
                parts = (a.view(a.layout.narrow(0, start, count)) for a in (to, flat))
                self._product(*parts, bias, count)
            return
        plan = linalg._plan((rows, n), (n, 1), k, (k, 1), (1, k), 4, threads, 1 << 62)

        def pack():
            tiles = Array.empty((plan.nbytes - plan.packed,), "u8", CPU)
            kernel = backend.kernel("matmul", "pack", "f32", "f32")
            backend.launch(kernel, [x.ptr, tiles.ptr, *plan.pack], plan.elements, (x,), (tiles,))
            return tiles

        tiles = x.derived(("tiles", threads), pack)
        scratch = Array.empty((plan.packed,), "u8", CPU)
        words = [tiles.ptr, self.data.ptr, out.ptr, *plan.sizes, *linalg._bias_words(bias), 0, *plan.blocks]
        reads = [tiles, self.data, *([] if bias is None else [bias])]
        kernel = backend.kernel("matmul", "panels")
        backend.launch(kernel, [*words, scratch.ptr, *plan.rest], rows * n * k // 16, reads, (out, scratch))
