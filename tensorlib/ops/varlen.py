"""Attention over sequences of several lengths that lie one after the other in memory, without padding.

>>> import tensorlib
>>> q = tensorlib.randn(5, 2, 8)  # two sequences, of 2 and 3 tokens
>>> ends = tensorlib.tensor([0, 2, 5])
>>> varlen_attn(q, q, q, ends, ends, is_causal=True).shape
(5, 2, 8)
"""

import itertools

from tensorlib import tape
from tensorlib.errors import ShapeError
from tensorlib.ops import create, elementwise, flash, fused, movement
from tensorlib.ops.attention import scaled_dot_product_attention
from tensorlib.ops.exchange import tolist
from tensorlib.registry import FLOAT_ONLY, define


def _ref(np, query, key, value, cu_seq_q, cu_seq_k, scale=None, is_causal=False, window_size=(-1, -1), alibi=None):
    out = np.zeros((*query.shape[:-1], value.shape[-1]))
    for i, (q0, q1) in enumerate(itertools.pairwise(cu_seq_q)):
        k0, k1 = cu_seq_k[i : i + 2]
        keep, distance = _visible(np, q1 - q0, k1 - k0, is_causal, window_size)
        for h in range(query.shape[1]):
            g = h * key.shape[1] // query.shape[1]
            scores = query[q0:q1, h] @ key[k0:k1, g].T * (query.shape[-1] ** -0.5 if scale is None else scale)
            scores = scores - (0 if alibi is None else alibi[h] * np.abs(distance))
            scores = np.where(keep, scores, -np.inf)
            e = np.exp(scores - np.max(scores, -1, keepdims=True, initial=-1e300))
            total = e.sum(-1, keepdims=True)
            out[q0:q1, h] = (e / np.where(total == 0, 1, total)) @ value[k0:k1, g]
    return out


def _visible(np, n, m, causal, window):
    """(whether query i sees key j, j minus i's own place) for n queries that end with the last of m keys."""
    distance = np.arange(m)[None, :] - (np.arange(n)[:, None] + m - n)
    keep = distance <= 0 if causal else distance == distance
    left, right = window
    keep = keep & (distance >= -left) if left >= 0 else keep
    return (keep & (distance <= right) if right >= 0 else keep), distance


def _domain(s, dtype):
    lengths = [(s.integer(0, 4), s.integer(1, 5)) for _ in range(s.integer(1, 3))]
    q, k = ([sum(x[i] for x in lengths[:n]) for n in range(len(lengths) + 1)] for i in (0, 1))
    heads, groups, width = *s.pick([(1, 1), (2, 1), (4, 2)]), s.integer(1, 5)
    arrays = [s.array((n[-1], h, width), None, -9, 9) for n, h in ((q, heads), (k, groups), (k, groups))]
    window = s.pick([(-1, -1), (1, 0), (0, -1), (2, 1)])
    return (*arrays, q, k), {"is_causal": s.boolean(), "window_size": window}


@define("composite", FLOAT_ONLY, _ref, 3, _domain)
def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, scale=None, is_causal=False, window_size=(-1, -1), alibi=None):
    """Attention of each sequence to itself: query (total, H, D), key and value (total, G, D) -> (total, H, D).

    cu_seq_q, cu_seq_k: where sequences begin, and the total at the end (lists or integer tensors of one length). The
    queries of a sequence end with its last key. window_size (left, right): how many keys before and after its own place
    a query sees, -1 for all. alibi (H): slopes m of a bias -m |i - j| (Press et al., arXiv:2108.12409). The result has
    the operands' dtype. Raises ShapeError, DTypeError. On GPUs tensors of starts are not checked.
    """
    if _on_gpu(query, key, value, cu_seq_q, cu_seq_k):
        right = [r for r in (0 if is_causal else -1, window_size[1]) if r >= 0]
        sides = max(window_size[0], -1), min(right, default=-1)
        return flash.varlen(query, key, value, cu_seq_q, cu_seq_k, scale, sides, alibi)
    starts = [tolist(c) if hasattr(c, "dtype") else list(c) for c in (cu_seq_q, cu_seq_k)]
    _check(query, key, value, *starts)
    parts = []
    for q0, q1, k0, k1 in zip(starts[0], starts[0][1:], starts[1], starts[1][1:]):
        q, k, v = (
            movement.transpose(movement.narrow(x, 0, a, b - a), 0, 1)
            for x, a, b in ((query, q0, q1), (key, k0, k1), (value, k0, k1))
        )
        mask = _mask(q, q1 - q0, k1 - k0, is_causal, window_size, alibi)
        found = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
        parts.append(movement.transpose(found, 0, 1))
    return movement.cat(parts, 0)


def _on_gpu(query, key, value, q, k):
    """Whether one kernel does it all; tensors of starts are read by it alone, so that no one waits for it."""
    operands = (query, key, value)
    if query.device.type == "cpu" or query.dtype.name not in fused.FLOATS or query.shape[-1] > 256:
        return False
    if not all(hasattr(c, "dtype") and c.device is query.device for c in (q, k)):
        _check(*operands, *(tolist(c) if hasattr(c, "dtype") else list(c) for c in (q, k)))
    elif len(q.shape) != 1 or q.shape != k.shape or key.shape != value.shape or query.ndim != 3:
        _check(*operands, [], [])
    return not (tape.used and tape.mode.recording and any(map(tape.live, operands)))


def _check(query, key, value, q, k):
    fine = len(q) == len(k) > 1 and q[0] == k[0] == 0 and q == sorted(q) and k == sorted(k)
    if not fine or query.ndim != 3 or (q[-1], k[-1]) != (query.shape[0], key.shape[0]) or key.shape != value.shape:
        got = f"query {query.shape}, key {key.shape}, value {value.shape}, sequences {q} and {k}"
        expected = "(total, heads, D) and rising starts from 0 to the totals"
        raise ShapeError("varlen_attn", got, expected, "give cumulative lengths, of as many sequences for both")


def _mask(q, n, m, causal, window, alibi):
    """The additive or bool mask of one sequence, or None."""
    if not causal and window == (-1, -1) and alibi is None:
        return None
    keys, queries = create.arange(type(q), m, device=q.device), create.arange(type(q), m - n, m, device=q.device)
    distance = elementwise.sub(keys, movement.unsqueeze(queries, 1))
    right = min(r for r in (0 if causal else m, window[1] if window[1] >= 0 else m))
    keep = elementwise.le(distance, right)
    if window[0] >= 0:
        keep = elementwise.logical_and(keep, elementwise.ge(distance, -window[0]))
    if alibi is None:
        return keep
    bias = movement.reshape(alibi, (-1, 1, 1)) * elementwise.neg(elementwise.abs(distance))
    return elementwise.where(keep, bias, -float("inf"))
