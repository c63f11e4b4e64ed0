"""Cross-entropy of rows of logits, and of logits that are a linear function and never exist all at once.

On the CPU these are compositions; other devices have kernels for the rows and for their gradients.

>>> import tensorlib
>>> x, weight = tensorlib.tensor([[1.0, 0.0]]), tensorlib.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
>>> linear_cross_entropy(x, weight, tensorlib.tensor([0]))
tensor(0.2395)
"""

from tensorlib import backend, tape
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import create, elementwise, movement, reduce
from tensorlib.ops.elementwise import add, cast, div, mul, neg, sub, where
from tensorlib.ops.exchange import item
from tensorlib.ops.index import gather, index_select
from tensorlib.ops.linalg import linear, matmul
from tensorlib.ops.softmax import log_softmax, logsumexp, softmax
from tensorlib.registry import FLOAT_ONLY, define

NAN = float("nan")
FLOATS = ("f32", "f16", "bf16", "f64")
CHUNK = {"cpu": 1 << 22}  # logits that exist at a time
GPU_CHUNK = 1 << 27


# ---- rows ------------------------------------------------------------------------------------------------------------


def _wide(x):
    return x if x.dtype.name == "f64" else cast(x, "f32")


def _column(x):
    return movement.unsqueeze(x, 1)


def _classes(target, n, ignore_index):
    """(whether a row counts, whether its class is one, that class or 0)"""
    there = elementwise.logical_and(elementwise.ge(target, 0), elementwise.lt(target, n))
    return elementwise.ne(target, ignore_index), there, where(there, target, 0)


def _rows_composed(input, target, weight, ignore_index, label_smoothing):
    logs = log_softmax(_wide(input), 1)
    valid, there, at = _classes(target, logs.shape[1], ignore_index)
    loss = mul(neg(movement.squeeze(gather(logs, 1, _column(at)), 1)), 1 - label_smoothing)
    loss = loss if weight is None else mul(loss, index_select(weight, 0, at))
    if label_smoothing:
        smooth = reduce.sum(logs if weight is None else mul(logs, weight), 1)
        loss = sub(loss, mul(smooth, label_smoothing / logs.shape[1]))
    return where(valid, where(there, loss, NAN), 0.0), logsumexp(_wide(input), 1)


def _slopes_composed(g, h, input, target, weight, ignore_index, label_smoothing):
    """Gradient of the rows' logits from those of losses, g, and of logs of sums, h (or None)."""
    n = input.shape[1]
    valid, there, at = _classes(target, n, ignore_index)
    g = where(valid, where(there, g, NAN), 0.0)
    own = mul(g, 1 - label_smoothing)
    own = own if weight is None else mul(own, index_select(weight, 0, at))
    every = mul(g, label_smoothing / n)
    scale = add(own, mul(every, n if weight is None else reduce.sum(weight)))
    scale = scale if h is None else add(scale, h)
    picked = elementwise.eq(create.arange(type(input), n, device=input.device), _column(at))
    found = sub(mul(softmax(_wide(input), 1), _column(scale)), where(picked, _column(own), 0.0))
    if label_smoothing:
        found = sub(found, _column(every) if weight is None else mul(_column(every), weight))
    return found


def _launch(name, words, reads, writes, input, weight):
    kernel = backend.kernel(
        "loss", name, input.dtype.name, "none" if weight is None else "f32", device=input.device.type
    )
    backend.launch(kernel, words, 8 * input.numel(), [x for x in reads if x is not None], writes)


def _rows_kernel(input, target, weight, ignore_index, label_smoothing):
    target, weight = movement.contiguous(target), weight if weight is None else movement.contiguous(weight)
    n, wide = input.shape[1], "f64" if input.dtype.name == "f64" else "f32"
    loss, sums = (type(input).empty(input.shape[:1], wide, input.device) for _ in range(2))
    words = [input.ptr, input.strides[0], target.ptr, 0 if weight is None else weight.ptr, loss.ptr, sums.ptr]
    words += [input.shape[0], n, int(ignore_index), float(label_smoothing)]
    _launch("cross_entropy", words, (input, target, weight), (loss, sums), input, weight)
    return loss, sums


def _slopes_kernel(g, h, input, target, weight, ignore_index, label_smoothing, sums, out=None):
    """As `_slopes_composed`, to `out`, which may be `input`."""
    target, weight = movement.contiguous(target), weight if weight is None else movement.contiguous(weight)
    out = type(input).empty(input.shape, input.dtype, input.device) if out is None else out
    whole = reduce.sum(weight) if weight is not None and label_smoothing else None
    g, h = (x if x is None else movement.contiguous(cast(x, sums.dtype)) for x in (g, h))
    pointers = [0 if x is None else x.ptr for x in (weight, whole, g, h, sums, out)]
    words = [input.ptr, input.strides[0], target.ptr, *pointers, out.strides[0]]
    words += [*input.shape, int(ignore_index), float(label_smoothing)]
    _launch("cross_entropy_vjp", words, (input, target, weight, whole, g, h, sums), (out,), input, weight)
    return out


def _kernels(input):
    return input.device.type != "cpu" and 0 not in input.shape


def _rows_vjp(g, input, target, weight, ignore_index, label_smoothing, out):
    if _kernels(input) and not tape.mode.recording:
        rest = target, weight, ignore_index, label_smoothing
        return _slopes_kernel(*g, _adjacent(input), *rest, out[1])
    return _slopes_composed(*g, input, target, weight, ignore_index, label_smoothing)


def _adjacent(x):
    return x if x.strides[1] == 1 or x.shape[1] == 1 else movement.contiguous(x)


def _rows_ref(np, input, target, weight=None, ignore_index=-100, label_smoothing=0.0):
    n, top = input.shape[1], np.max(input, 1, keepdims=True)
    sums = top + np.log(np.sum(np.exp(input - top), 1, keepdims=True))
    own, at = np.ones(n) if weight is None else weight, np.where((target < 0) | (target >= n), 0, target)
    loss = (sums[:, 0] - input[np.arange(len(at)), at]) * own[at] * (1 - label_smoothing)
    loss = loss + np.sum((sums - input) * own, 1) * label_smoothing / n
    return np.where(target == ignore_index, 0, np.where(at == target, loss, np.nan)), sums[:, 0]


def _rows_domain(s, dtype):
    n, c = s.integer(1, 4), s.integer(1, 5 if s.smooth else 70)
    weight = s.pick([None, s.array((c,), "f64" if dtype == "f64" else "f32", 0.1, 3).copy()])
    options = {"ignore_index": s.pick([-100, 0]), "label_smoothing": s.pick([0.0, 0.1])}
    return (s.array((n, c), None, -9, 9), s.array((n,), "i64", 0, c - 1).copy(), weight), options


@define("fused", FLOAT_ONLY, _rows_ref, 3, _rows_domain, vjp={"input": _rows_vjp})
def _cross_entropy_rows(input, target, weight=None, ignore_index=-100, label_smoothing=0.0):
    """(losses, logs of the sums of e ** x) of rows of logits (N, C) against classes (N) of i64, in f32 (f64 of f64).

    weight (C) is None or of the results' dtype; a class outside gives NaN.
    """
    rest = target, weight, ignore_index, label_smoothing
    return _rows_kernel(_adjacent(input), *rest) if _kernels(input) else _rows_composed(input, *rest)


cross_entropy_rows = _cross_entropy_rows


def mean_weights(target, weight, ignore_index, dtype):
    """What a mean over targets divides by: the sum of their weights, of those that count."""
    valid = elementwise.ne(target, ignore_index)
    if weight is None:
        return reduce.sum(cast(valid, dtype))
    there = _classes(target, weight.shape[0], ignore_index)[2]
    return reduce.sum(where(valid, index_select(weight, 0, there), 0.0))


def check_classes(op, target, n, ignore_index):
    """ShapeError for classes outside of [0, n)."""
    seen = where(elementwise.ne(target, ignore_index), target, 0)
    if seen.numel() and (item(reduce.amin(seen)) < 0 or item(reduce.amax(seen)) >= n):
        got = f"classes from {item(reduce.amin(seen))} to {item(reduce.amax(seen))}"
        raise ShapeError(op, got, f"classes in [0, {n - 1}]", "or set ignore_index")


# ---- linear functions ------------------------------------------------------------------------------------------------


def _chunks(input, classes):
    """Rows [first, last) at a time, so that not too many logits exist."""
    size = max(16, CHUNK.get(input.device.type, GPU_CHUNK) // max(classes, 1))
    return [(i, min(i + size, input.shape[0])) for i in range(0, input.shape[0], size)]


def _check_linear(input, linear_weight, target, linear_bias, weight, reduction):
    op = "linear_cross_entropy"
    if input.ndim != 2 or linear_weight.ndim != 2 or input.shape[1] != linear_weight.shape[1]:
        got = f"input {input.shape}, linear_weight {linear_weight.shape}"
        raise ShapeError(op, got, "(N, D) and (C, D)", "reshape the input to rows")
    if target.dtype.kind not in "iu":
        raise DTypeError(op, f"a target of {target.dtype}", "integers", "convert it with .to('i64')")
    if target.shape != input.shape[:1]:
        raise ShapeError(op, f"a target of shape {target.shape}", f"{input.shape[:1]}", "one class per row")
    for name, x in (("linear_bias", linear_bias), ("weight", weight)):
        if x is not None and x.shape != linear_weight.shape[:1]:
            raise ShapeError(op, f"{name} of shape {x.shape}", f"{linear_weight.shape[:1]}", "one element per class")
    if reduction not in ("mean", "sum", "none"):
        raise ShapeError(op, f"reduction {reduction!r}", "mean, sum, none", "use one of these")


def _linear_vjp(
    g, input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing, needs
):  # fmt: skip
    """Gradients of input, linear_weight and linear_bias, chunk by chunk: logits are computed anew."""
    target, weight = cast(target, "i64"), None if weight is None else _wide(cast(weight, input.dtype))
    rest = weight, ignore_index, label_smoothing
    g = _wide(g)
    if reduction == "mean":
        g = div(g, mean_weights(target, weight, ignore_index, g.dtype))
    g = movement.expand(g, target.shape) if reduction != "none" else g
    rows, of_weight, of_bias = [], None, None
    for first, last in _chunks(input, linear_weight.shape[0]):
        own, chosen = (movement.narrow(x, 0, first, last - first) for x in (input, target))
        logits = linear(own, linear_weight, linear_bias)
        slopes = movement.narrow(g, 0, first, last - first)
        if _kernels(logits) and not tape.mode.recording:
            sums = _rows_kernel(logits, chosen, *rest)[1]
            d = _slopes_kernel(slopes, None, logits, chosen, *rest, sums, logits)
        else:
            d = cast(_slopes_composed(slopes, None, logits, chosen, *rest), logits.dtype)
        if "input" in needs:
            rows.append(matmul(d, linear_weight))
        if "linear_weight" in needs:
            part = _wide(matmul(movement.transpose(d, 0, 1), own))
            of_weight = part if of_weight is None else add(of_weight, part)
        if "linear_bias" in needs:
            part = reduce.sum(_wide(d), 0)
            of_bias = part if of_bias is None else add(of_bias, part)
    return movement.cat(rows, 0) if rows else None, of_weight, of_bias


def _linear_ref(
    np, input, linear_weight, target, linear_bias=None, weight=None, reduction="mean", ignore_index=-100,
    label_smoothing=0.0,
):  # fmt: skip
    logits = input @ linear_weight.T + (0 if linear_bias is None else linear_bias)
    loss, _ = _rows_ref(np, logits, target, weight, ignore_index, label_smoothing)
    own = np.ones(logits.shape[1]) if weight is None else weight
    total = np.sum(np.where(target == ignore_index, 0, own[target]))
    return loss if reduction == "none" else np.sum(loss) / (total if reduction == "mean" else 1)


def _linear_domain(s, dtype):
    n, d, c = s.integer(1, 4), s.integer(1, 3 if s.smooth else 20), s.integer(2, 5)
    weight, bias = s.pick([None, s.array((c,), None, 0.5, 3)]), s.pick([None, s.array((c,), None, -2, 2)])
    options = {"linear_bias": bias, "weight": weight, "reduction": s.pick(["mean", "sum", "none"])}
    args = s.array((n, d), None, -2, 2), s.array((c, d), None, -2, 2), s.array((n,), "i64", 0, c - 1)
    return args, options | {"label_smoothing": s.pick([0.0, 0.1])}


@define(
    "fused",
    FLOAT_ONLY,
    _linear_ref,
    3,
    _linear_domain,
    vjp={("input", "linear_weight", "linear_bias"): _linear_vjp},
)
def linear_cross_entropy(
    input, linear_weight, target, linear_bias=None, weight=None, reduction="mean", ignore_index=-100,
    label_smoothing=0.0,
):  # fmt: skip
    """`cross_entropy(linear(input, linear_weight, linear_bias), target)`, whose logits never exist all at once.

    input (N, D), linear_weight (C, D), target (N) of classes; the result is a number, or (N). Gradients compute logits
    anew, some rows at a time (as in Wijmans et al., arXiv:2411.09009). On the CPU classes outside raise ShapeError,
    elsewhere their loss is NaN. ShapeError, DTypeError.
    """
    _check_linear(input, linear_weight, target, linear_bias, weight, reduction)
    target, weight = cast(target, "i64"), None if weight is None else _wide(cast(weight, input.dtype))
    if input.device.type == "cpu":
        check_classes("linear_cross_entropy", target, linear_weight.shape[0], ignore_index)
    losses = []
    for first, last in _chunks(input, linear_weight.shape[0]):
        own, chosen = (movement.narrow(x, 0, first, last - first) for x in (input, target))
        logits = linear(own, linear_weight, linear_bias)
        losses.append(cross_entropy_rows(logits, chosen, weight, ignore_index, label_smoothing)[0])
    wide = "f64" if input.dtype.name == "f64" else "f32"
    loss = movement.cat(losses, 0) if losses else type(input).empty((0,), wide, input.device)
    if reduction != "none":
        loss = reduce.sum(loss)
    if reduction == "mean":
        loss = div(loss, mean_weights(target, weight, ignore_index, loss.dtype))
    return cast(loss, input.dtype)
