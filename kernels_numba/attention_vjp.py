"""Gradients of attention: the weights of 48 queries at a time, computed again from Q and K.

A thread owns a KV head. It widens K and V to f32 once, both as rows and (see attention.py) transposed, and then visits
48 queries of each of its heads: with S = Q K^T and P = softmax(S), and G the gradient of the result,

  dV += P^T G    dP = G V^T    dS = P (dP - sum(P dP))    dQ = dS K    dK += dS^T Q

so that nothing is kept of the forward pass but its operands. What a query does not see has weight 0.

args: the words of attention.py (no softcap), then
  13 Q (f32), strides of t, of heads   16 K, strides of heads, of rows   19 V, likewise   22 G (f32), of t, of heads
  25 dQ (f32, [T, heads, D])   26 dK, 27 dV ([KV heads, rows, D], of K's dtype)   28 scratch, 29 its bytes per thread,
  30 how many threads have scratch
"""

from . import levels, simd
from .attention import (
    KEYS,
    LOG2E,
    QUERIES,
    ROWS,
    _tile,
    _transposer,
    end_key,
    factor,
    first_key,
    keys_of,
    lowest,
    start_of,
    take_query,
)
from .lanes import MEMORY, all_max, all_sum, between, exp2, fma, greater, inline, shared
from .simd import arg, argf, ld_f32x16, splat_f32x16, st_f32x16, vadd, vdiv, vmul, vsub, zero_f32x16

_put = MEMORY["f32"].put
WIDE = levels.TARGET == "avx512vnni"  # 32 registers of 512 bits
DOWN, ACROSS = (8, 2) if WIDE else (4, 1)  # rows (keys) and vectors of the tile that adds to dK and dV


def _transposed_tile(vectors):
    """f(a, sa, b, sb, n, c, sc): C += A^T B for DOWN rows and so many vectors, n steps."""
    cells = [(i, j) for i in range(DOWN) for j in range(vectors)]
    lines = ["def tile(a, sa, b, sb, n, c, sc):"]
    lines += [f"    c{i}_{j} = ld_f32x16(c + {i} * sc + {64 * j})" for i, j in cells]
    lines.append("    for k in range(n):")
    lines += [f"        b{j} = ld_f32x16(b + {64 * j})" for j in range(vectors)]
    for i in range(DOWN):
        lines.append(f"        x = splat_f32x16(ld_f32(a + {4 * i}))")
        lines += [f"        c{i}_{j} = fma(b{j}, x, c{i}_{j})" for j in range(vectors)]
    lines += ["        a += sa", "        b += sb"]
    lines += [f"    st_f32x16(c + {i} * sc + {64 * j}, c{i}_{j})" for i, j in cells]
    scope = dict(vars(simd))
    exec("\n".join(lines), scope)
    return shared(scope["tile"])


@shared
def _clear(a, end):
    for at in range(a, end, 64):
        st_f32x16(at, zero_f32x16())


@shared
def soften(p, d, begin, end, low, high):
    """A row of scores at p becomes its weights, dP at d becomes dS: keys begin to end - 1, those outside of low to
    high - 1 have no weight.
    """
    if low >= high:
        _clear(p + 4 * begin, p + 4 * end)
        _clear(d + 4 * begin, d + 4 * end)
        return
    m, total, inner = lowest(), zero_f32x16(), zero_f32x16()
    for j in range(begin, end, 16):
        m = greater(between(ld_f32x16(p + 4 * j), low - j, high - j), m)
    m = all_max(m)
    for j in range(begin, end, 16):
        if j + 16 <= low or j >= high:
            st_f32x16(p + 4 * j, zero_f32x16())
            st_f32x16(d + 4 * j, zero_f32x16())
        else:
            e = exp2(vsub(between(ld_f32x16(p + 4 * j), low - j, high - j), m))
            st_f32x16(p + 4 * j, e)
            total, inner = vadd(total, e), fma(e, ld_f32x16(d + 4 * j), inner)
    total = all_sum(total)
    inner = vdiv(all_sum(inner), total)
    for j in range(begin, end, 16):
        w = vdiv(ld_f32x16(p + 4 * j), total)
        st_f32x16(p + 4 * j, w)
        st_f32x16(d + 4 * j, vmul(w, vsub(ld_f32x16(d + 4 * j), inner)))


def _widen(dtype):
    """f(k, step, keys, width, rows, columns): keys of a head as f32 rows, and transposed in blocks of 64 keys; up to
    the next multiple of 64 they are 0, as are the dims behind the last.
    """
    size, part, transpose = MEMORY[dtype].size, MEMORY[dtype].part, _transposer(MEMORY["f32"].ld)

    @shared
    def widen(k, step, keys, width, rows, columns):
        row, whole = (width + 15 & -16) * 4, (keys + KEYS - 1) // KEYS * KEYS
        _clear(rows + keys * row, rows + whole * row)
        for j in range(keys):
            for d in range(0, width, 16):
                st_f32x16(rows + j * row + 4 * d, part(k + j * step + d * size, width - d))
        for b in range(0, whole, KEYS):
            for g in range(0, KEYS, 16):
                for d in range(0, row // 4, 16):
                    transpose(rows + (b + g) * row + 4 * d, row, 15, columns + b * row + 256 * d + 4 * g)

    return widen


def _product(fresh_tiles):
    """f(a, sa, b, sb, n, c, sc, columns): C = A B for 6 rows; `columns` bytes of them."""
    four, two, one = fresh_tiles

    @shared
    def product(a, sa, b, sb, n, c, sc, columns):
        at = 0
        while at < columns:
            if WIDE and columns - at >= 256:
                four(a, sa, b + at, sb, n, c + at, sc, 0)
                at += 256
            elif WIDE and columns - at >= 128:
                two(a, sa, b + at, sb, n, c + at, sc, 0)
                at += 128
            else:
                one(a, sa, b + at, sb, n, c + at, sc, 0)
                at += 64

    return product


def _sum():
    """f(a, sa, b, row, n, c, keys): C[keys] += A^T B, of n queries."""
    down = _transposed_tile(ACROSS)
    narrow = _transposed_tile(1) if ACROSS > 1 else down

    @shared
    def add(a, sa, b, row, n, c, keys):
        for j in range(0, keys, DOWN):
            at = 0
            while at < row:
                if row - at >= 64 * ACROSS:
                    down(a + 4 * j, sa, b + at, row, n, c + j * row + at, row)
                    at += 64 * ACROSS
                else:
                    narrow(a + 4 * j, sa, b + at, row, n, c + j * row + at, row)
                    at += 64

    return add


def _queries():
    """f(...): 48 queries of a head meet all keys of their KV head."""
    one, add = _tile(1, True), _sum()
    product = _product((_tile(4, True), _tile(2, True), one) if WIDE else (one, one, one))

    @shared
    def queries(a, h, r0, keys, k_rows, k_columns, v_columns, dk, dv, q):
        """48 queries of head h; q: the scratch for them."""
        width, position, rows = arg(a, 3), start_of(a) + r0, min(QUERIES, arg(a, 0) - r0)
        row, line = (width + 15 & -16) * 4, (keys + KEYS - 1) // KEYS * KEYS * 4
        g, dq, p = q + QUERIES * row, q + 2 * QUERIES * row, q + 3 * QUERIES * row
        d = p + QUERIES * line
        begin = first_key(a, position) // KEYS * KEYS
        end = (end_key(a, position + rows - 1, keys) + KEYS - 1) // KEYS * KEYS
        for i in range((rows + ROWS - 1) // ROWS * ROWS):
            t = r0 + min(i, rows - 1)
            take_query(arg(a, 13) + t * arg(a, 14) + h * arg(a, 15), width, factor(a), q + i * row)
            take_query(arg(a, 22) + t * arg(a, 23) + h * arg(a, 24), width, 1.0, g + i * row)
        for i in range(0, rows, ROWS):
            for b in range(begin, end, KEYS):
                at = i * line + 4 * b
                product(q + i * row, row, k_columns + b * row, 256, width, p + at, line, 256)
                product(g + i * row, row, v_columns + b * row, 256, width, d + at, line, 256)
        for i in range(rows):
            low, high = first_key(a, position + i), end_key(a, position + i, keys)
            soften(p + i * line, d + i * line, begin, end, low, high)
        for i in range(0, rows, ROWS):
            for s in range(rows, i + ROWS):  # rows that only fill the tile
                _clear(d + s * line + 4 * begin, d + s * line + 4 * end)
            product(d + i * line + 4 * begin, line, k_rows + begin * row, row, end - begin, dq + i * row, row, row)
        for i in range(rows):
            to = arg(a, 25) + 4 * width * ((r0 + i) * arg(a, 1) + h)
            for c in range(0, width, 16):
                x = vmul(ld_f32x16(dq + i * row + 4 * c), splat_f32x16(argf(a, 11)))
                _put(to + 4 * c, x, width - c)
        add(p + 4 * begin, line, g, row, rows, dv + begin * row, end - begin)
        add(d + 4 * begin, line, q, row, rows, dk + begin * row, end - begin)

    return queries


def _vjp(dtype):
    size, put, widen, queries = MEMORY[dtype].size, MEMORY[dtype].put, _widen(dtype), _queries()

    @inline
    def give(source, to, keys, all_rows, width, scale):
        row = (width + 15 & -16) * 4
        for j in range(all_rows):
            for c in range(0, width, 16):
                x = vmul(ld_f32x16(source + j * row + 4 * c), splat_f32x16(scale)) if j < keys else zero_f32x16()
                put(to + size * (j * width + c), x, width - c)

    def vjp(a, tid, nth):
        team, groups, width, keys, all_rows = min(nth, arg(a, 30)), arg(a, 2), arg(a, 3), keys_of(a), arg(a, 8)
        if tid >= team:
            return
        row, per = (width + 15 & -16) * 4, arg(a, 1) // groups
        whole = (all_rows + KEYS - 1) // KEYS * KEYS * row
        k_rows = arg(a, 28) + tid * arg(a, 29)
        k_columns, v_columns, dk, dv = k_rows + whole, k_rows + 2 * whole, k_rows + 3 * whole, k_rows + 4 * whole
        q = k_rows + 5 * whole
        for group in range(groups * tid // team, groups * (tid + 1) // team):
            # rows of V are not needed: dV's place holds them until they are transposed
            widen(arg(a, 19) + group * arg(a, 20), arg(a, 21), keys, width, dv, v_columns)
            widen(arg(a, 16) + group * arg(a, 17), arg(a, 18), keys, width, k_rows, k_columns)
            _clear(dk, q)
            for h in range(group * per, (group + 1) * per):
                for r0 in range(0, arg(a, 0), QUERIES):
                    queries(a, h, r0, keys, k_rows, k_columns, v_columns, dk, dv, q)
            at = size * group * all_rows * width
            give(dk, arg(a, 26) + at, keys, all_rows, width, 1.0 / LOG2E)
            give(dv, arg(a, 27) + at, keys, all_rows, width, 1.0)

    return vjp


def build(name, *params, source=None):
    """vjp, of the dtype of the caches."""
    return _vjp(*params) if name == "vjp" and len(params) == 1 and params[0] in MEMORY else None
