"""Connectionist temporal classification: the likelihood of a sequence of labels under all its alignments with time.

>>> import tensorlib
>>> logs = tensorlib.zeros(3, 1, 2).log_softmax(2)
>>> ctc_loss(logs, tensorlib.tensor([[1]]), [3], [1], reduction="sum")
tensor(0.2877)
"""

from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import create, elementwise, movement
from tensorlib.ops.elementwise import add, cast, clamp, div, eq, ge, logical_and, lt, mul, ne, neg, sub, where
from tensorlib.ops.exchange import flat_values
from tensorlib.ops.index import gather
from tensorlib.ops.loss import _reduced
from tensorlib.ops.special import logaddexp
from tensorlib.registry import FLOAT_ONLY, define

IMPOSSIBLE = -1e30  # the logarithm of 0, with which differences stay numbers


def _lengths(name, lengths, count, like, most):
    values = flat_values(lengths) if hasattr(lengths, "dtype") else [int(n) for n in lengths]
    if len(values) != count or any(not 0 <= n <= most for n in values):
        raise ShapeError("ctc_loss", f"{name} {values}", f"{count} numbers in [0, {most}]", "one length per sample")
    return values, create.tensor(type(like), values, dtype="i64", device=like.device)


def _padded(targets, lengths):
    """Targets as (N, longest), out of rows, or of one row that joins them."""
    if targets.ndim == 2:
        return targets
    if sum(lengths) != targets.numel() or targets.ndim != 1:
        got = f"targets of shape {targets.shape} for lengths {lengths}"
        raise ShapeError("ctc_loss", got, "(N, S), or all targets in one row", "check target_lengths")
    rows, start, longest = [], 0, max(lengths, default=0)
    for n in lengths:
        row = movement.narrow(targets, 0, start, n)
        blank = create.zeros(type(targets), longest - n, dtype=targets.dtype, device=targets.device)
        rows.append(movement.cat([row, blank]))
        start += n
    return movement.stack(rows)


def _shifted(x, n):
    """The states n before; the first have none."""
    blank = create.full(type(x), (x.shape[0], n), IMPOSSIBLE, dtype=x.dtype, device=x.device)
    return movement.cat([blank, movement.narrow(x, 1, 0, x.shape[1] - n)], 1)


@define("composite", FLOAT_ONLY, None, 2)
def ctc_loss(log_probs, targets, input_lengths, target_lengths, blank=0, reduction="mean", zero_infinity=False):
    """-log of the probability of targets, summed over all alignments (Graves et al., ICML 2006).

    log_probs (T, N, C), or (T, C) for one sample, of log_softmax; targets (N, S) or one row of all, without blanks;
    input_lengths and target_lengths: tensors or lists of N (a number for one sample). "mean" divides by the target's
    length first. zero_infinity: targets longer than their input give 0, and no gradient. ShapeError, DTypeError.
    """
    FLOAT_ONLY.apply("ctc_loss", log_probs.dtype)
    single = log_probs.ndim == 2
    if single:
        log_probs, targets = movement.unsqueeze(log_probs, 1), movement.reshape(targets, (1, -1))
        input_lengths, target_lengths = ([int(n)] for n in (input_lengths, target_lengths))
    if log_probs.ndim != 3 or not 0 <= blank < log_probs.shape[2]:
        got = f"log_probs of shape {log_probs.shape}, blank {blank}"
        raise ShapeError("ctc_loss", got, "(T, N, C), a blank below C", "permute the dims")
    if targets.dtype.kind not in "iu":
        raise DTypeError("ctc_loss", f"targets of {targets.dtype}", "integers", "convert them with .to('i64')")
    steps, count, _ = log_probs.shape
    sizes, ends = _lengths("target_lengths", target_lengths, count, log_probs, targets.shape[-1])
    labels = cast(_padded(targets, sizes), "i64")
    _, times = _lengths("input_lengths", input_lengths, count, log_probs, steps)
    alphas, width = _forward(log_probs, labels, blank)
    # the alignment ends in the last label, or in the blank behind it
    last = gather(
        alphas, 0, movement.broadcast_to(movement.reshape(clamp(sub(times, 1), 0), (1, count, 1)), (1, count, width))
    )
    last = movement.squeeze(last, 0)
    end = movement.unsqueeze(mul(ends, 2), 1)
    label = where(lt(0, end), gather(last, 1, clamp(sub(end, 1), 0)), IMPOSSIBLE)
    loss = neg(movement.squeeze(logaddexp(gather(last, 1, end), label), 1))
    loss = where(eq(times, 0), where(eq(ends, 0), 0.0, float("inf")), loss)
    lost = ge(loss, -IMPOSSIBLE / 2)
    loss = where(lost, 0.0 if zero_infinity else float("inf"), loss)
    if reduction == "mean":
        loss = div(loss, cast(clamp(ends, 1), loss.dtype))
    loss = _reduced("ctc_loss", loss, reduction)
    return movement.reshape(loss, ()) if single else loss


def _forward(log_probs, labels, blank):
    """(log-probabilities of all prefixes (T, N, 2 S + 1): blanks and labels in turn, 2 S + 1)"""
    steps, count, _ = log_probs.shape
    width = 2 * labels.shape[1] + 1
    blanks = create.full(type(labels), labels.shape, blank, dtype="i64", device=labels.device)
    pairs = movement.reshape(movement.stack([blanks, labels], 2), (count, width - 1))
    states = movement.cat([pairs, create.full(type(labels), (count, 1), blank, dtype="i64", device=labels.device)], 1)
    places = movement.broadcast_to(movement.unsqueeze(states, 0), (steps, count, width))
    logs = gather(log_probs, 2, places)
    before = _shifted(cast(states, "f64"), 2) if width > 2 else cast(states, "f64")
    skips = logical_and(ne(states, blank), ne(cast(states, "f64"), before))
    order = create.arange(type(labels), width, device=labels.device)
    now = where(lt(order, 2), movement.select(logs, 0, 0), IMPOSSIBLE)
    found = [now]
    for t in range(1, steps):
        arrived = logaddexp(now, _shifted(now, 1))
        if width > 2:
            arrived = logaddexp(arrived, where(skips, _shifted(now, 2), IMPOSSIBLE))
        now = add(arrived, movement.select(logs, 0, t))
        now = elementwise.maximum(now, IMPOSSIBLE)
        found.append(now)
    return movement.stack(found), width
