"""Contractions: products summed over dims, all of them built of `matmul`, and tensors made of diagonals.

>>> import tensorlib
>>> x = tensorlib.arange(6, dtype="f32").reshape(2, 3)
>>> einsum("ij,kj->ik", x, x), trace(x)
(tensor([[ 5., 14.],
        [14., 50.]]), tensor(4.))
"""

from math import prod

from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import axes, axis, broadcast_shapes
from tensorlib.ops import create, elementwise, movement, reduce
from tensorlib.ops.elementwise import add, mul, sub, where
from tensorlib.ops.linalg import matmul
from tensorlib.registry import NUMBER, SAME, define


def _composite(ref, arity=2, rule=NUMBER):
    return define("composite", rule, ref, arity)


# ---- einsum ----------------------------------------------------------------------------------------------------------


@_composite(lambda np, equation, *xs: np.einsum(equation, *xs))
def einsum(equation, *operands):
    """Products of operands summed over what the equation leaves out: "bij,bjk->bik" is a batched matrix product.

    Letters name dims, "..." stands for dims that broadcast; a letter twice in one operand takes its diagonal. Without
    "->", the result has the letters that occur once, in alphabetical order, after the dims of "...". Sizes of one
    letter are equal, or 1. Operands are Tensors, or one list of them; more than two are contracted in pairs, those
    first whose product shrinks memory most. ShapeError for an equation that does not fit the operands.

    >>> import tensorlib
    >>> x = tensorlib.arange(4).reshape(2, 2)
    >>> einsum("ii", x), einsum("i,j->ji", x[0], x[1])
    (tensor(3), tensor([[0, 2],
            [0, 3]]))
    """
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    terms, output = _parse(equation, operands)
    terms = [_without_repeats(x, labels) for x, labels in zip(operands, terms, strict=True)]
    while len(terms) > 1:
        i, j = _cheapest(terms, output)
        (x, a), (y, b) = terms[i], terms[j]
        rest = [t for k, t in enumerate(terms) if k not in (i, j)]
        wanted = set(output).union(*(labels for _, labels in rest))
        terms = [_contract(x, a, y, b, wanted), *rest]
    x, labels = terms[0]
    x, labels = _summed(x, labels, set(output))
    return movement.permute(x, [labels.index(c) for c in output]) if list(labels) != output else x


def _parse(equation, operands):
    """(labels of each operand, labels of the result): letters, and numbers from the right for the dims of "..."."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    if len(parts) != len(operands):
        got = f"{len(operands)} operands for {equation!r}"
        raise ShapeError("einsum", got, f"{len(parts)} operands", "separate the letters of operands by commas")
    terms = [_labels(equation, part, x.ndim) for part, x in zip(parts, operands, strict=True)]
    dots = sorted({c for labels in terms for c in labels if isinstance(c, int)})
    if arrow:
        output = _labels(equation, right, len(right.replace("...", "")) + len(dots))
    else:
        letters = [c for labels in terms for c in labels if isinstance(c, str)]
        output = dots + sorted(c for c in set(letters) if letters.count(c) == 1)
    known = {c for labels in terms for c in labels}
    if len(set(output)) != len(output) or not known.issuperset(output):
        expected = "each letter of the result once, and in an operand"
        raise ShapeError("einsum", f"the equation {equation!r}", expected, "change what follows ->")
    return terms, output


def _labels(equation, part, ndim):
    before, dots, after = part.partition("...")
    letters = before + after
    if not all(c.isalpha() and c.isascii() for c in letters):
        raise ShapeError("einsum", f"the equation {equation!r}", "letters, commas, ... and one ->", "use a to z")
    extra = ndim - len(letters)
    if extra < 0 or (extra and not dots):
        got = f"{part!r} for an operand of {ndim} dims in {equation!r}"
        raise ShapeError("einsum", got, "a letter for every dim", "add letters, or ... for the rest")
    return [*before, *range(-extra, 0), *after]


def _without_repeats(x, labels):
    """(x, labels) with the diagonal of dims of one label in place of them."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            a = labels.index(label)
            b = labels.index(label, a + 1)
            if x.shape[a] != x.shape[b]:
                got = f"sizes {x.shape[a]} and {x.shape[b]} of {label!r} in one operand"
                raise ShapeError("einsum", got, "equal sizes", "use two letters")
            x = movement.diagonal(x, 0, a, b)
            labels = [c for d, c in enumerate(labels) if d not in (a, b)] + [label]
    return x, labels


def _cheapest(terms, output):
    """The two operands whose contraction leaves least (result less operands, in elements), of equals the cheapest."""
    if len(terms) == 2:
        return 0, 1
    best = None
    for i in range(len(terms)):
        for j in range(i + 1, len(terms)):
            (x, a), (y, b) = terms[i], terms[j]
            sizes = dict(zip(a, x.shape))
            for c, n in zip(b, y.shape):
                sizes[c] = max(n, sizes.get(c, 1))
            wanted = set(output).union(*(t[1] for k, t in enumerate(terms) if k not in (i, j)))
            left = prod(n for c, n in sizes.items() if c in wanted)
            cost = left - x.numel() - y.numel(), prod(sizes.values())
            if best is None or cost < best[0]:
                best = cost, i, j
    return best[1:]


def _summed(x, labels, wanted):
    gone = tuple(d for d, c in enumerate(labels) if c not in wanted)
    if not gone:
        return x, labels
    return reduce.sum(x, gone, dtype=x.dtype), [c for c in labels if c in wanted]


def _contract(x, a, y, b, wanted):
    """(product, its labels): the labels of both that nobody wants are summed by one batched matmul."""
    x, a = _summed(x, a, wanted | set(b))
    y, b = _summed(y, b, wanted | set(a))
    x, a, y, b = _broadcast(x, a, y, b)
    x, a = _summed(x, a, wanted | set(b))
    y, b = _summed(y, b, wanted | set(a))
    shared = [c for c in a if c in b and c in wanted]
    inner = [c for c in a if c in b and c not in wanted]
    rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]
    sizes = dict(zip(b, y.shape)) | dict(zip(a, x.shape))
    x = movement.permute(x, [a.index(c) for c in (*shared, *rows, *inner)])
    y = movement.permute(y, [b.index(c) for c in (*shared, *inner, *columns)])
    batch, m, n, k = (tuple(sizes[c] for c in group) for group in (shared, rows, columns, inner))
    if inner:
        x = movement.reshape(x, (*batch, prod(m), prod(k)))
        out = matmul(x, movement.reshape(y, (*batch, prod(k), prod(n))))
    else:
        out = mul(movement.reshape(x, (*batch, *m, *(1,) * len(n))), movement.reshape(y, (*batch, *(1,) * len(m), *n)))
    return movement.reshape(out, (*batch, *m, *n)), [*shared, *rows, *columns]


def _broadcast(x, a, y, b):
    """Dims of size 1 that the other operand has at another size go: the product has the other's size."""
    sizes = dict(zip(a, x.shape)), dict(zip(b, y.shape))
    for label in set(a) & set(b):
        m, n = (s[label] for s in sizes)
        if m == n:
            continue
        if 1 not in (m, n):
            got = f"sizes {m} and {n} of {label!r}"
            raise ShapeError("einsum", got, "equal sizes, or one of them 1", "reshape one of them")
        if m == 1:
            x, a = movement.squeeze(x, a.index(label)), [c for c in a if c != label]
        else:
            y, b = movement.squeeze(y, b.index(label)), [c for c in b if c != label]
    return x, a, y, b


# ---- products of two -------------------------------------------------------------------------------------------------


@_composite(lambda np, x, y, dims=2: np.tensordot(x, y, dims))
def tensordot(x, y, dims=2):
    """Sum of products over the last `dims` dims of x and the first of y, or over the pairs of dims in two lists.

    >>> import tensorlib
    >>> tensordot(tensorlib.ones(2, 3, 4), tensorlib.ones(4, 3), dims=([1, 2], [1, 0])).tolist()
    [12.0, 12.0]
    """
    if isinstance(dims, int):
        if not 0 <= dims <= min(x.ndim, y.ndim):
            raise ShapeError("tensordot", f"dims {dims}", f"0 to {min(x.ndim, y.ndim)}", "sum over fewer dims")
        dims = range(x.ndim - dims, x.ndim), range(dims)
    a, b = axes("tensordot", tuple(dims[0]), x.ndim), axes("tensordot", tuple(dims[1]), y.ndim)
    inner = [x.shape[d] for d in a]
    if inner != [y.shape[d] for d in b]:
        got = f"sizes {inner} and {[y.shape[d] for d in b]} to sum over"
        raise ShapeError("tensordot", got, "equal sizes", "pair up other dims")
    rows, columns = [d for d in range(x.ndim) if d not in a], [d for d in range(y.ndim) if d not in b]
    left = movement.reshape(movement.permute(x, [*rows, *a]), (prod(x.shape[d] for d in rows), prod(inner)))
    right = movement.reshape(movement.permute(y, [*b, *columns]), (prod(inner), prod(y.shape[d] for d in columns)))
    return movement.reshape(matmul(left, right), [*(x.shape[d] for d in rows), *(y.shape[d] for d in columns)])


def _need(op, names, dims, *arrays):
    """ShapeError unless the operands have these numbers of dims."""
    if any(x.ndim != n for x, n in zip(arrays, dims, strict=True)):
        got = " and ".join(str(x.shape) for x in arrays)
        raise ShapeError(op, f"shapes {got}", names, "reshape them, or use matmul, which broadcasts")


@_composite(lambda np, x, y: np.outer(x, y), rule=SAME)
def outer(x, y):
    """x[i] * y[j] for two 1-d operands: (M, N). ShapeError for other dims."""
    _need("outer", "two 1-d operands", (1, 1), x, y)
    return mul(movement.unsqueeze(x, 1), y)


@_composite(lambda np, x, y: np.inner(x, y))
def inner(x, y):
    """Sum of products over the last dims: x.shape[:-1] + y.shape[:-1]; a 0-d operand multiplies."""
    return tensordot(x, y, ([-1], [-1])) if x.ndim and y.ndim else mul(x, y)


@_composite(lambda np, x, y: np.kron(x, y), rule=SAME)
def kron(x, y):
    """Kronecker product: every element of x times all of y; the operand of fewer dims gets dims of size 1 in front."""
    n = max(x.ndim, y.ndim)
    a, b = ((1,) * (n - v.ndim) + v.shape for v in (x, y))
    x = movement.reshape(x, [s for size in a for s in (size, 1)])
    y = movement.reshape(y, [s for size in b for s in (1, size)])
    return movement.reshape(mul(x, y), [i * j for i, j in zip(a, b, strict=True)])


@_composite(lambda np, x, y, dim=-1: np.cross(x, y, axis=dim))
def cross(x, y, dim=None):
    """Cross product of vectors of 3 along `dim`, by default the first dim of size 3; the others broadcast. ShapeError.

    >>> import tensorlib
    >>> cross(tensorlib.tensor([1, 0, 0]), tensorlib.tensor([0, 1, 0]))
    tensor([0, 0, 1])
    """
    shape = broadcast_shapes("cross", x.shape, y.shape)
    if dim is None:
        dim = next((d for d, n in enumerate(shape) if n == 3), None)
    if dim is None or shape[axis("cross", dim, len(shape))] != 3:
        raise ShapeError("cross", f"shapes {x.shape} and {y.shape}, dim {dim}", "a dim of size 3", "name another dim")
    dim = axis("cross", dim, len(shape))
    x, y = (movement.unbind(movement.broadcast_to(v, shape), dim) for v in (x, y))
    parts = [sub(mul(x[i - 2], y[i - 1]), mul(x[i - 1], y[i - 2])) for i in range(3)]
    return movement.stack(parts, dim)


@_composite(lambda np, x, y, dim=-1: np.sum(x * y, dim))
def vecdot(x, y, dim=-1):
    """Sum of x * y along a dim; the shapes broadcast."""
    shape = broadcast_shapes("vecdot", x.shape, y.shape)
    product = mul(x, y)
    return reduce.sum(product, axis("vecdot", dim, len(shape)), dtype=product.dtype)


# ---- matrix products by their BLAS names -----------------------------------------------------------------------------


def dot(x, y):
    """Sum of products of two 1-d operands of one size: a 0-d result. ShapeError for other shapes."""
    _need("dot", "two 1-d operands", (1, 1), x, y)
    return matmul(x, y)


def mv(x, vec):
    """Matrix (M, N) times vector (N,). ShapeError for other dims."""
    _need("mv", "a matrix and a vector", (2, 1), x, vec)
    return matmul(x, vec)


def mm(x, y):
    """Matrix product of two matrices; no broadcasting. ShapeError for other dims."""
    _need("mm", "two matrices", (2, 2), x, y)
    return matmul(x, y)


def bmm(x, y):
    """Matrix products of two batches (B, M, K) and (B, K, N); no broadcasting. ShapeError for other shapes."""
    _need("bmm", "two batches of matrices", (3, 3), x, y)
    if x.shape[0] != y.shape[0]:
        raise ShapeError("bmm", f"shapes {x.shape} and {y.shape}", "equal batch sizes", "use matmul, which broadcasts")
    return matmul(x, y)


def _combined(op, x, product, beta, alpha):
    """beta * x + alpha * product; x is ignored (NaN too) for beta = 0."""
    if product.dtype.kind != "f" and (isinstance(beta, float) or isinstance(alpha, float)):
        raise DTypeError(op, f"factors {beta} and {alpha} for {product.dtype}", "integers", "convert to floats first")
    product = product if alpha == 1 else mul(product, alpha)
    if beta == 0:
        return product
    total = add(x if beta == 1 else mul(x, beta), product)
    if total.shape != product.shape:
        raise ShapeError(op, f"shape {x.shape} added to {product.shape}", "a shape that expands to it", "reshape it")
    return total


@_composite(None, 3)
def addmm(x, mat1, mat2, *, beta=1, alpha=1):
    """beta * x + alpha * (mat1 @ mat2); x broadcasts to the product, and is ignored for beta = 0."""
    return _combined("addmm", x, mm(mat1, mat2), beta, alpha)


@_composite(None, 3)
def addmv(x, mat, vec, *, beta=1, alpha=1):
    """beta * x + alpha * (mat @ vec)."""
    return _combined("addmv", x, mv(mat, vec), beta, alpha)


@_composite(None, 3)
def addr(x, vec1, vec2, *, beta=1, alpha=1):
    """beta * x + alpha * outer(vec1, vec2)."""
    return _combined("addr", x, outer(vec1, vec2), beta, alpha)


@_composite(None, 3)
def baddbmm(x, batch1, batch2, *, beta=1, alpha=1):
    """beta * x + alpha * (batch1 @ batch2), batch by batch."""
    return _combined("baddbmm", x, bmm(batch1, batch2), beta, alpha)


@_composite(None, 3)
def addbmm(x, batch1, batch2, *, beta=1, alpha=1):
    """beta * x + alpha * the sum over the batch of batch1 @ batch2."""
    product = bmm(batch1, batch2)
    return _combined("addbmm", x, reduce.sum(product, 0, dtype=product.dtype), beta, alpha)


@_composite(None, 3)
def bilinear(input1, input2, weight, bias=None):
    """y[..., o] = input1 @ weight[o] @ input2 + bias[o]: (..., I), (..., J), weight (O, I, J) -> (..., O)."""
    out = einsum("...i,oij,...j->...o", input1, weight, input2)
    return out if bias is None else add(out, bias)


# ---- diagonals -------------------------------------------------------------------------------------------------------


@_composite(lambda np, x: np.trace(x), 1)
def trace(x):
    """Sum of the diagonal of a matrix; integers and bool give i64. ShapeError for other dims."""
    _need("trace", "a matrix", (2,), x)
    return reduce.sum(movement.diagonal(x))


@_composite(lambda np, x, diagonal=0: np.diag(x, diagonal), 1, SAME)
def diag(x, diagonal=0):
    """The diagonal of a matrix as a copy, or the matrix with a 1-d x on its diagonal. ShapeError for other dims."""
    if x.ndim not in (1, 2):
        raise ShapeError("diag", f"shape {x.shape}", "1 or 2 dims", "use diagonal or diag_embed")
    return diag_embed(x, diagonal) if x.ndim == 1 else movement.clone(movement.diagonal(x, diagonal))


@_composite(None, 1, SAME)
def diag_embed(x, offset=0, dim1=-2, dim2=-1):
    """Matrices with the last dim of x on a diagonal and 0 elsewhere; they are dims dim1 and dim2 of the result.

    >>> import tensorlib
    >>> diag_embed(tensorlib.tensor([1, 2]), offset=1)
    tensor([[0, 1, 0],
            [0, 0, 2],
            [0, 0, 0]])
    """
    if not x.ndim:
        raise ShapeError("diag_embed", "a 0-d tensor", "at least one dim", "add one with unsqueeze(0)")
    rows, columns = axes("diag_embed", (dim1, dim2), x.ndim + 1)
    size = x.shape[-1] + abs(offset)
    blank = create.zeros(type(x), (*x.shape[:-1], abs(offset)), dtype=x.dtype, device=x.device)
    wide = movement.cat([x, blank] if offset >= 0 else [blank, x], -1) if offset else x
    steps = create.arange(type(x), size, device=x.device)
    on = elementwise.eq(add(movement.unsqueeze(steps, 1), offset), steps)
    zero = create.zeros(type(x), (), dtype=x.dtype, device=x.device)
    return movement.movedim(where(on, movement.unsqueeze(wide, -1), zero), (-2, -1), (rows, columns))
