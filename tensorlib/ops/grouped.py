"""Products of groups of rows, each with a matrix of its own: what a mixture of experts computes."""

from tensorlib.device import Array
from tensorlib.errors import ShapeError
from tensorlib.ops import linalg, movement
from tensorlib.ops._launch import fill
from tensorlib.registry import FLOAT_ONLY, define


def _ref(np, mat_a, mat_b, offs):
    parts = [slice(low, high) for low, high in zip([0, *offs[:-1]], offs, strict=True)]
    if mat_b.ndim == 3:
        return np.concatenate([mat_a[at] @ b for at, b in zip(parts, mat_b, strict=True)])
    return np.stack([mat_a[:, at] @ mat_b[at] for at in parts])


def _domain(s, dtype):
    counts = [s.integer(0, 3) for _ in range(s.integer(1, 4))]
    offs, m, n = [sum(counts[: i + 1]) for i in range(len(counts))], s.integer(1, 4), s.integer(1, 4)
    if s.boolean():
        return (s.array((offs[-1], m)), s.array((len(counts), m, n)), offs), {}
    return (s.array((m, offs[-1])), s.array((offs[-1], n)), offs), {}


def _vjp_a(g, mat_b, offs):
    if mat_b.ndim == 3:
        return grouped_mm(g, movement.transpose(mat_b, 1, 2), offs)
    return movement.transpose(grouped_mm(mat_b, movement.transpose(g, 1, 2), offs), 0, 1)


def _vjp_b(g, mat_a, offs):
    return grouped_mm(movement.transpose(mat_a, 0, 1), g, offs)


@define("linalg", FLOAT_ONLY, _ref, arity=2, domain=_domain, vjp={"mat_a": _vjp_a, "mat_b": _vjp_b})
def grouped_mm(mat_a, mat_b, offs):
    """Rows of mat_a [S, K] in groups times a matrix each, mat_b [G, K, N]: [S, N]; or sums over groups, see below.

    offs: where the groups end, ascending, the last at S: [G] integers (a tensor is read, which waits for a GPU). With
    mat_b [S, N] instead, the groups are of the columns of mat_a [M, S] and the rows of mat_b: their products, [G, M, N]
    (zeros of a group without any). ShapeError, DTypeError.

    >>> import tensorlib
    >>> a = tensorlib.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> grouped_mm(a, tensorlib.tensor([[[1.0], [0.0]], [[0.0], [1.0]]]), [1, 3])
    tensor([[1.],
            [4.],
            [6.]])
    """
    linalg._check("grouped_mm", mat_a, mat_b)
    wide, parts = mat_b.ndim == 3, _parts(mat_a, mat_b, offs)
    rows, columns = mat_a.shape[0], mat_b.shape[-1]
    dtype = linalg.promote(mat_a.dtype, mat_b.dtype)
    out = type(mat_a).empty((rows, columns) if wide else (len(parts), rows, columns), dtype, mat_a.device)
    for i, (start, length) in enumerate(parts):
        if wide and length:
            some = (movement.narrow(x, 0, start, length) for x in (out, mat_a))
            linalg._product(*some, movement.select(mat_b, 0, i))
        elif not wide and not length:
            fill(movement.select(out, 0, i), 0)
        elif not wide:
            some = movement.narrow(mat_a, 1, start, length), movement.narrow(mat_b, 0, start, length)
            linalg._product(movement.select(out, 0, i), *some)
    return out


def _parts(a, b, offs):
    """(first, how many) of the groups."""
    ends = [int(end) for end in (offs.tolist() if isinstance(offs, Array) else offs)]
    rows = a.shape[0 if b.ndim == 3 else 1] if a.ndim == 2 else -1
    fits = a.ndim == 2 and (b.shape[:2] == (len(ends), a.shape[1]) if b.ndim == 3 else b.shape[:1] == (rows,))
    if not fits or b.ndim not in (2, 3):
        got, expected = f"{a.shape}, {b.shape} and {len(ends)} groups", "[S, K], [G, K, N] or [M, S], [S, N]"
        raise ShapeError("grouped_mm", got, expected, "transpose or reshape them")
    starts = [0, *ends[:-1]]
    if not ends or ends[-1] != rows or any(low > high for low, high in zip(starts, ends, strict=True)):
        raise ShapeError("grouped_mm", f"offs {ends}", f"ends that ascend from 0 to {rows}", "use the counts' cumsum")
    return [(low, high - low) for low, high in zip(starts, ends, strict=True)]
