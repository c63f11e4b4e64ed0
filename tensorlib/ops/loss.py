"""Losses and distances, with PyTorch's names and reductions ("mean", "sum", "none"). All are built of other ops.

>>> import tensorlib
>>> logits, target = tensorlib.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), tensorlib.tensor([0, 2])
>>> cross_entropy(logits, target), mse_loss(logits, logits + 2)
(tensor(0.6691), tensor(4.))
"""

from math import log as _log
from math import pi

from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import broadcast_shapes
from tensorlib.ops import create, elementwise, loss_rows, movement, reduce
from tensorlib.ops.elementwise import abs, add, cast, clamp, div, exp, log, mul, neg, softplus, square, sub, where
from tensorlib.ops.index import gather, index_select
from tensorlib.ops.linalg import linear, matmul
from tensorlib.ops.loss_rows import linear_cross_entropy as linear_cross_entropy
from tensorlib.ops.softmax import log_softmax
from tensorlib.ops.special import xlogy
from tensorlib.registry import FLOAT_ONLY, define

REDUCTIONS = ("mean", "sum", "none")


def _composite(ref=None, arity=2):
    return define("composite", FLOAT_ONLY, ref, arity)


def _reduced(op, loss, reduction):
    if reduction not in REDUCTIONS:
        raise ShapeError(op, f"reduction {reduction!r}", ", ".join(REDUCTIONS), "use one of these")
    return loss if reduction == "none" else (reduce.mean if reduction == "mean" else reduce.sum)(loss)


def _pair(op, input, target):
    """ShapeError unless the two have one shape: a broadcast target would be a mistake. DTypeError but for floats."""
    FLOAT_ONLY.apply(op, input.dtype)
    if input.shape != target.shape:
        got = f"input of shape {input.shape}, target of {target.shape}"
        raise ShapeError(op, got, "one shape", "expand one of them explicitly")


# ---- classes ---------------------------------------------------------------------------------------------------------


@_composite()
def cross_entropy(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """-log softmax(input)[target], weighted by class: input (N, C, ...) or (C,) of logits.

    target: classes as integers of shape (N, ...), of which ignore_index does not count; or probabilities, input's shape
    and dtype. label_smoothing mixes the target with the uniform distribution. The mean divides by the sum of the
    targets' weights (by N for probabilities). ShapeError (also for classes outside: on GPUs a loss of NaN), DTypeError.
    """
    FLOAT_ONLY.apply("cross_entropy", input.dtype)
    if not 0 <= label_smoothing <= 1:
        raise ShapeError("cross_entropy", f"label_smoothing {label_smoothing}", "0 to 1", "choose it inside")
    dim = 0 if input.ndim == 1 else 1
    if target.dtype.kind == "f":
        return _soft_cross_entropy(input, target, weight, reduction, label_smoothing, dim)
    if input.device.type != "cpu" and input.dtype.name in loss_rows.FLOATS:
        return _rows_cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing, dim)
    logs = log_softmax(input, dim)
    if not label_smoothing:
        return _nll("cross_entropy", logs, target, weight, ignore_index, reduction)
    picked, weights, valid = _picked("cross_entropy", logs, target, weight, ignore_index)
    smooth = neg(reduce.sum(logs if weight is None else mul(logs, _class_weights(weight, input, dim)), dim))
    smooth = where(valid, smooth, 0.0)
    loss = add(mul(picked, 1 - label_smoothing), mul(smooth, label_smoothing / input.shape[dim]))
    return _mean_by(loss, weights, reduction, "cross_entropy")


def _rows_cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing, dim):
    """By the kernels of a GPU, which is not waited for: a class outside gives NaN."""
    _check_target("cross_entropy", input, target)
    rows = movement.reshape(movement.movedim(input, dim, -1), (-1, input.shape[dim]))
    chosen = movement.contiguous(movement.reshape(cast(target, "i64"), -1))
    if weight is not None:
        _class_weights(weight, input, dim)
        weight = movement.contiguous(cast(weight, "f64" if input.dtype.name == "f64" else "f32"))
    losses = loss_rows.cross_entropy_rows(rows, chosen, weight, ignore_index, label_smoothing)[0]
    loss = _reduced("cross_entropy", losses, "sum" if reduction == "mean" else reduction)
    if reduction == "mean":
        loss = div(loss, loss_rows.mean_weights(chosen, weight, ignore_index, loss.dtype))
    return cast(movement.reshape(loss, target.shape) if reduction == "none" else loss, input.dtype)


def _soft_cross_entropy(input, target, weight, reduction, label_smoothing, dim):
    _pair("cross_entropy", input, target)
    if label_smoothing:
        target = add(mul(target, 1 - label_smoothing), label_smoothing / input.shape[dim])
    logs = log_softmax(input, dim)
    if weight is not None:
        logs = mul(logs, _class_weights(weight, input, dim))
    return _reduced("cross_entropy", neg(reduce.sum(mul(logs, target), dim)), reduction)


def _class_weights(weight, input, dim):
    if weight.shape != (input.shape[dim],):
        got = f"weight of shape {weight.shape}"
        raise ShapeError("cross_entropy", got, f"({input.shape[dim]},)", "one weight per class")
    return movement.reshape(weight, (-1, *(1,) * (input.ndim - dim - 1)))


@_composite()
def nll_loss(input, target, weight=None, ignore_index=-100, reduction="mean"):
    """-input[target] for log-probabilities (N, C, ...) or (C,): see `cross_entropy`, which takes logits."""
    FLOAT_ONLY.apply("nll_loss", input.dtype)
    return _nll("nll_loss", input, target, weight, ignore_index, reduction)


def _nll(op, logs, target, weight, ignore_index, reduction):
    loss, weights, _ = _picked(op, logs, target, weight, ignore_index)
    return _mean_by(loss, weights, reduction, op)


def _check_target(op, logs, target):
    """The dim of the classes. ShapeError, DTypeError."""
    dim = 0 if logs.ndim == 1 else 1
    if target.dtype.kind not in "iu" or not logs.ndim:
        raise DTypeError(op, f"a target of {target.dtype}", "integers", "convert it with .to('i64')")
    if target.shape != logs.shape[:dim] + logs.shape[dim + 1 :]:
        got = f"input of shape {logs.shape}, target of {target.shape}"
        raise ShapeError(op, got, "(N, C, ...) and (N, ...), or (C,) and ()", "put the classes in dim 1")
    return dim


def _picked(op, logs, target, weight, ignore_index):
    """(-logs[target] * weight, weight of each target, whether it counts); 0 for those that do not."""
    dim = _check_target(op, logs, target)
    target = cast(target, "i64")
    valid = elementwise.ne(target, ignore_index)
    target = where(valid, target, 0)
    loss_rows.check_classes(op, target, logs.shape[dim], ignore_index)
    picked = neg(movement.squeeze(gather(logs, dim, movement.unsqueeze(target, dim)), dim))
    if weight is None:
        return where(valid, picked, 0.0), cast(valid, logs.dtype), valid
    _class_weights(weight, logs, dim)
    own = movement.reshape(index_select(weight, 0, movement.reshape(target, -1)), target.shape)
    own = where(valid, own, 0.0)
    return where(valid, mul(picked, own), 0.0), own, valid


def _mean_by(loss, weights, reduction, op):
    if reduction != "mean":
        return _reduced(op, loss, reduction)
    return div(reduce.sum(loss), reduce.sum(weights))


@_composite()
def binary_cross_entropy(input, target, weight=None, reduction="mean"):
    """-(target * log(input) + (1 - target) * log(1 - input)) for probabilities; logarithms are at least -100.

    ShapeError, DTypeError.
    """
    _pair("binary_cross_entropy", input, target)
    yes, no = (clamp(log(clamp(p, 3.65e-44)), -100) for p in (input, sub(1, input)))
    loss = neg(add(mul(target, yes), mul(sub(1, target), no)))
    return _reduced("binary_cross_entropy", loss if weight is None else mul(loss, weight), reduction)


@_composite()
def binary_cross_entropy_with_logits(input, target, weight=None, reduction="mean", pos_weight=None):
    """`binary_cross_entropy` of sigmoid(input), accurate for any logits; pos_weight scales the targets that are 1."""
    _pair("binary_cross_entropy_with_logits", input, target)
    behind = softplus(neg(input))
    if pos_weight is not None:
        behind = mul(add(mul(sub(pos_weight, 1), target), 1), behind)
    loss = add(mul(sub(1, target), input), behind)
    return _reduced("binary_cross_entropy_with_logits", loss if weight is None else mul(loss, weight), reduction)


@_composite()
def kl_div(input, target, reduction="mean", log_target=False):
    """target * (log target - input) for log-probabilities `input`; "batchmean" divides the sum by the first size."""
    _pair("kl_div", input, target)
    loss = mul(exp(target), sub(target, input)) if log_target else sub(xlogy(target, target), mul(target, input))
    if reduction == "batchmean":
        return div(reduce.sum(loss), input.shape[0] if input.ndim else 1)
    return _reduced("kl_div", loss, reduction)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@_composite(lambda np, x, y: np.mean((x - y) ** 2))
def mse_loss(input, target, reduction="mean"):
    """(input - target) ** 2. ShapeError, DTypeError."""
    _pair("mse_loss", input, target)
    return _reduced("mse_loss", square(sub(input, target)), reduction)


@_composite(lambda np, x, y: np.mean(np.abs(x - y)))
def l1_loss(input, target, reduction="mean"):
    """|input - target|. ShapeError, DTypeError."""
    _pair("l1_loss", input, target)
    return _reduced("l1_loss", abs(sub(input, target)), reduction)


@_composite()
def smooth_l1_loss(input, target, reduction="mean", beta=1.0):
    """|d| - beta / 2, or d ** 2 / (2 beta) for |d| < beta, where d = input - target; beta 0 is `l1_loss`."""
    if beta < 0:
        raise ShapeError("smooth_l1_loss", f"beta {beta}", "0 or more", "use its absolute value")
    if beta == 0:
        return l1_loss(input, target, reduction)
    return mul(huber_loss(input, target, reduction, beta), 1 / beta)


@_composite()
def huber_loss(input, target, reduction="mean", delta=1.0):
    """delta * (|d| - delta / 2), or d ** 2 / 2 for |d| <= delta, where d = input - target. ShapeError, DTypeError."""
    _pair("huber_loss", input, target)
    if delta <= 0:
        raise ShapeError("huber_loss", f"delta {delta}", "more than 0", "use l1_loss for the limit of 0")
    size = abs(sub(input, target))
    inside = clamp(size, max=delta)
    return _reduced("huber_loss", mul(inside, sub(size, mul(inside, 0.5))), reduction)


@_composite()
def poisson_nll_loss(input, target, log_input=True, full=False, eps=1e-8, reduction="mean"):
    """exp(input) - target * input, or input - target * log(input + eps); `full` adds Stirling's approximation."""
    _pair("poisson_nll_loss", input, target)
    if log_input:
        loss = sub(exp(input), mul(target, input))
    else:
        loss = sub(input, mul(target, log(add(input, eps))))
    if full:
        stirling = add(sub(xlogy(target, target), target), mul(log(mul(clamp(target, 1), 2 * pi)), 0.5))
        loss = add(loss, where(elementwise.gt(target, 1), stirling, 0.0))
    return _reduced("poisson_nll_loss", loss, reduction)


@_composite(None, 3)
def gaussian_nll_loss(input, target, var, full=False, eps=1e-6, reduction="mean"):
    """(log(var) + (input - target) ** 2 / var) / 2, var at least eps; `full` adds log(2 pi) / 2.

    var has input's shape, or that without its last dim (one variance per row), or broadcasts to it. ShapeError.
    """
    _pair("gaussian_nll_loss", input, target)
    if var.shape != input.shape and var.shape == input.shape[:-1]:
        var = movement.unsqueeze(var, -1)
    var = clamp(var, eps)
    loss = mul(add(log(var), div(square(sub(input, target)), var)), 0.5)
    return _reduced("gaussian_nll_loss", add(loss, 0.5 * _log(2 * pi)) if full else loss, reduction)


# ---- distances -------------------------------------------------------------------------------------------------------


@_composite()
def cosine_similarity(x1, x2, dim=1, eps=1e-8):
    """x1 . x2 / (max(|x1|, eps) max(|x2|, eps)) along a dim; the shapes broadcast. ShapeError, DTypeError."""
    shape = broadcast_shapes("cosine_similarity", x1.shape, x2.shape)
    x1, x2 = movement.broadcast_to(x1, shape), movement.broadcast_to(x2, shape)
    norms = [clamp(reduce.norm(x, 2, dim, True), eps) for x in (x1, x2)]
    product = mul(div(x1, norms[0]), div(x2, norms[1]))
    return reduce.sum(product, dim)


@_composite(None, 1)
def normalize(input, p=2.0, dim=1, eps=1e-12):
    """input / max(its p-norm along a dim, eps)."""
    return div(input, clamp(reduce.norm(input, p, dim, True), eps))


@_composite()
def pairwise_distance(x1, x2, p=2.0, eps=1e-6, keepdim=False):
    """The p-norm of x1 - x2 + eps along the last dim; the shapes broadcast."""
    return reduce.norm(add(sub(x1, x2), eps), p, -1, keepdim)


@_composite(None, 3)
def triplet_margin_loss(anchor, positive, negative, margin=1.0, p=2.0, eps=1e-6, reduction="mean"):
    """max(|anchor - positive| - |anchor - negative| + margin, 0), distances by `pairwise_distance`."""
    near, far = (pairwise_distance(anchor, x, p, eps) for x in (positive, negative))
    return _reduced("triplet_margin_loss", elementwise.relu(add(sub(near, far), margin)), reduction)


@_composite(None, 3)
def margin_ranking_loss(input1, input2, target, margin=0.0, reduction="mean"):
    """max(-target * (input1 - input2) + margin, 0), target 1 or -1."""
    loss = elementwise.relu(add(mul(neg(target), sub(input1, input2)), margin))
    return _reduced("margin_ranking_loss", loss, reduction)


@_composite()
def hinge_embedding_loss(input, target, margin=1.0, reduction="mean"):
    """input where target is 1, max(margin - input, 0) where it is -1."""
    near = where(elementwise.ne(target, -1), input, 0.0)
    loss = add(near, where(elementwise.ne(target, 1), elementwise.relu(sub(margin, input)), 0.0))
    return _reduced("hinge_embedding_loss", loss, reduction)


@_composite(None, 3)
def cosine_embedding_loss(input1, input2, target, margin=0.0, reduction="mean"):
    """1 - cos where target is 1, max(cos - margin, 0) where it is -1; cos along the last dim."""
    squares = [add(reduce.sum(square(x), -1), 1e-12) for x in (input1, input2)]  # PyTorch's other eps
    cos = div(reduce.sum(mul(input1, input2), -1), elementwise.sqrt(mul(*squares)))
    loss = where(elementwise.eq(target, 1), sub(1, cos), elementwise.relu(sub(cos, margin)))
    return _reduced("cosine_embedding_loss", loss, reduction)


@_composite()
def info_nce(query, positive_key, negative_keys=None, temperature=0.1, reduction="mean"):
    """-log of the share of exp(cos(query, its positive) / temperature) among that of all keys (arXiv:1807.03748).

    query and positive_key (N, D), row by row. negative_keys: (M, D) for all queries, (N, M, D) of their own, or None:
    the other rows' positives. cos along the last dim. Raises ShapeError, DTypeError.

    >>> import tensorlib
    >>> x = tensorlib.eye(2)
    >>> info_nce(x, x, temperature=1.0).item() == cross_entropy(x, tensorlib.arange(2)).item()
    True
    """
    _pair("info_nce", query, positive_key)
    negative = None if negative_keys is None else negative_keys.shape
    fits = query.ndim == 2 and (negative is None or negative[-1:] == query.shape[1:])
    if not fits or (negative is not None and negative[:-2] not in ((), query.shape[:1])) or len(negative or (1, 1)) < 2:
        got = f"query {query.shape}, negative_keys {negative}"
        raise ShapeError("info_nce", got, "(N, D); (M, D) or (N, M, D)", "flatten the other dims")
    query, positive = (normalize(x, dim=-1) for x in (query, positive_key))
    if negative_keys is None:
        logits, target = linear(query, positive), create.arange(type(query), query.shape[0], device=query.device)
    else:
        keys, own = normalize(negative_keys, dim=-1), reduce.sum(mul(query, positive), 1, True)
        if keys.ndim == 2:
            others = linear(query, keys)
        else:
            others = movement.squeeze(matmul(keys, movement.unsqueeze(query, -1)), -1)
        logits = movement.cat([own, others], 1)
        target = create.zeros(type(query), query.shape[:1], dtype="i64", device=query.device)
    return cross_entropy(div(logits, temperature), target, reduction=reduction)
