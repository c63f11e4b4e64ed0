"""Dense weights to GGML blocks: `quantize` a tensor, `encode` NumPy rows.

Scales are searched so that the squared error is small, weighted by `imatrix` where one is given: the importance of each
column, as collected from activations (mean squares). Without one all columns count alike.

    q4_0 q4_1 q5_0 q5_1 q8_0 q8_1 q8_k    every scale by least squares over several roundings
    q2_k q3_k q4_k q5_k q6_k iq4_xs       and the scales of a block together, by neighbours and least squares in turn
    iq4_nl tq1_0 tq2_0 q2_0               as the first row
    q1_0                                  the mean absolute value, which is best
    mxfp4 nvfp4                           the best of the powers of two, or small floats, about the largest element
    f32 f16 bf16 f64                      rounded
    iq1_* iq2_* iq3_*                     the best of all entries of the grid, for several scales; then as q6_k
    integers                              no encoder: NoKernel

Everything is computed in f32 on the CPU by all threads; the same numbers come from any number of threads.
"""

from tensorlib import backend
from tensorlib.errors import DTypeError, EncodeError, NoKernel, ShapeError
from tensorlib.ops import exchange, transfer
from tensorlib.quant import formats, source
from tensorlib.quant.tensor import QTensor, from_bytes

_told = set()
_WORK = 64  # elementary operations per element, about
_HALF, _FLOAT = 65504.0, 3.0e38
# the largest absolute value that the largest scale of a format reaches; a little less than that is held exactly enough
_LIMITS = {
    "q4_0": 8 * _HALF, "q4_1": _HALF, "q5_0": 16 * _HALF, "q5_1": _HALF, "q8_0": 127 * _HALF, "q8_1": 127 * _HALF,
    "q2_k": 15 * _HALF, "q3_k": 93 * _HALF, "q4_k": 63 * _HALF, "q5_k": 63 * _HALF, "q6_k": 31 * 127 * _HALF,
    "q8_k": _FLOAT, "iq4_nl": 113 * _HALF, "iq4_xs": 31 * 113 * _HALF, "mxfp4": _FLOAT, "nvfp4": 12 * 224.0,
    "tq1_0": _HALF, "tq2_0": _HALF, "q1_0": _HALF, "q2_0": _HALF,
    "iq1_s": 15 * _HALF, "iq1_m": 15 * _HALF,
    "iq2_xxs": 31 / 8 * 43 * _HALF, "iq2_xs": 31 / 8 * 43 * _HALF, "iq2_s": 31 / 8 * 43 * _HALF,
    "iq3_xxs": 31 / 4 * 62 * _HALF, "iq3_s": 31 * 15 * _HALF,
}  # fmt: skip
_PLAIN = ("f32", "f64", "f16", "bf16")
_LEAST = 1e-6  # of the mean importance: what a column counts at least


def quantize(x, format, imatrix=None):
    """The weights x [..., K] (f32, f16, bf16 or f64, any strides) as a QTensor of `format`, on x's device.

    imatrix: importances of the columns, [K] or, for x of three dims, [x.shape[0], K]: a tensor, a NumPy array or
    numbers. Computed on the CPU, which is said in the log for an x elsewhere. Raises ShapeError if K is not whole
    blocks, EncodeError (which names the row) for NaN, infinities and what is beyond the format's largest scale,
    NoKernel for a format without an encoder.

    >>> import tensorlib
    >>> w = tensorlib.quantize(tensorlib.arange(64, dtype="f32").view(2, 32), "q8_0")
    >>> w, w.dequantize()[1, 30:].round()
    (QTensor(shape=(2, 32), format=q8_0, 68 bytes), tensor([62., 63.]))
    """
    row = formats.get(format)
    if x.device.type != "cpu" and "device" not in _told:
        _told.add("device")
        backend.log(f"quantize: encoding on the CPU what is on {x.device}")
    blocks = encode(row, _array(x), None if imatrix is None else _array(imatrix))
    made = from_bytes(blocks.reshape(-1), x.shape, row) if blocks.size else QTensor(_empty(), 0, x.shape, row)
    return made.to(x.device)


def _empty():
    from tensorlib.device import Buffer

    return Buffer.allocate(0)


def _array(x):
    """A NumPy array of the same numbers, on the CPU."""
    import numpy as np

    return exchange.numpy(transfer.to(x.handle(), "cpu")) if hasattr(x, "handle") else np.asarray(x)


def encode(format, rows, importance=None):
    """Blocks of `format`: NumPy rows [..., K] of floats -> uint8 [..., bytes of a row]. Errors: see `quantize`.

    importance: [K], or rows.shape[:1] + (K,).

    >>> import numpy as np
    >>> encode("q4_0", np.zeros((3, 64), np.float32)).shape
    (3, 36)
    """
    import numpy as np

    row, rows = formats.get(format), np.asarray(rows)
    if rows.dtype.kind != "f" and rows.dtype.name not in ("bfloat16",):
        raise DTypeError(f"encode {row.name}", f"rows of {rows.dtype}", "f32, f16, bf16 or f64", "convert them")
    if not rows.ndim:
        raise ShapeError(f"encode {row.name}", "a number", "rows [..., K]", "reshape it to one row")
    width = row.row_bytes(rows.shape[-1])
    if row.name in _PLAIN:
        return _rounded(row, rows).view(np.uint8).reshape(*rows.shape[:-1], width)
    if row.name not in _LIMITS:
        fix = f"encode to one of {', '.join(_LIMITS)}"
        raise NoKernel(f"encode {row.name}", "no encoder for it", "a format that has one", fix)
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(rows, np.float32)
    out = np.empty((*rows.shape[:-1], width), np.uint8)
    if not out.size:
        return out
    weights = _weights(row, data, importance)
    parts = [(data, out, weights)] if weights is None or weights.ndim == 1 else zip(data, out, weights, strict=True)
    for number, (part, blocks, weight) in enumerate(parts):
        top = _launch(row, part, blocks, weight)
        if not top <= _LIMITS[row.name]:
            raise _refused(row, part.reshape(-1, part.shape[-1]), number * (part.size // part.shape[-1]))
    return out


def _rounded(row, rows):
    """Rows in a plain float format."""
    import numpy as np

    if row.name == "bf16":
        import ml_dtypes

        return np.ascontiguousarray(rows, ml_dtypes.bfloat16)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(rows, {"f32": "<f4", "f64": "<f8", "f16": "<f2"}[row.name])


def _weights(row, data, importance):
    """Importances with a mean of 1 along each row of them, none of them 0; None for none."""
    import numpy as np

    if importance is None:
        if backend.backend().quant.ENCODED[row.name]:
            return None
        return np.ones(row.elements, np.float32)
    weights = np.asarray(importance, np.float64)
    k = data.shape[-1]
    if weights.shape not in ((k,), (data.shape[0], k)) or (weights.ndim == 2 and data.ndim < 3):
        got, expected = (
            f"importances {weights.shape} for rows {data.shape}",
            f"[{k}], or [{data.shape[0]}, {k}] of 3 dims",
        )
        raise ShapeError(f"encode {row.name}", got, expected, "give one importance per column")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        fix = "collect the imatrix again, or leave it out"
        raise EncodeError(f"encode {row.name}", "importances that are negative or not finite", "numbers from 0 on", fix)
    mean = weights.mean(-1, keepdims=True)
    weights = np.divide(weights, mean, out=np.ones_like(weights), where=mean > 0)
    return np.ascontiguousarray(np.maximum(weights, _LEAST), np.float32)


def _launch(row, data, out, weights):
    """Encodes contiguous f32 into `out`; returns the largest absolute value, NaN if one is NaN or infinite."""
    import numpy as np

    state = np.zeros(backend.threads(), np.float32)
    text = {"source": lambda: source.source(row), "source_key": source.key(row)} if isinstance(row.table, str) else {}
    kernel = backend.kernel("encode", "encode", row.name, "plain" if weights is None else "weighted", **text)
    columns = (0, 1) if weights is None else (weights.ctypes.data, weights.size)
    args = (data.ctypes.data, out.ctypes.data, data.size // row.elements, *columns, state.ctypes.data)
    backend.launch(kernel, args, _WORK * data.size)
    return state.max()


def _refused(row, data, first):
    """The error for values that `row` cannot hold; `first` is the number of the first row of data."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(data) <= _LIMITS[row.name])
    at, column = (int(i) for i in np.argwhere(bad)[0])
    got = f"{data[at, column]} in row {first + at}, column {column}"
    expected = f"finite numbers up to {_LIMITS[row.name]:.4g}"
    return EncodeError(f"encode {row.name}", got, expected, "mend or scale the weights, or choose a wider format")
