"""Products of bf16 with few rows by VDPBF16PS: C[m, n] = x[m] . w[n], W read once, in order, and not packed.

Four rows of W meet up to five of x: 20 sums of 16 lanes each, two elements of K a lane, added up at the end of a block
of K. Words are those of `matvec.matvec`. Subnormals as in `bf16.py`.
"""

from . import levels, simd
from .bf16 import FEATURES, SCOPE, dot2, dot2_plain, opaque  # noqa: F401 (FEATURES is for build.py)
from .matmul import bias_at, compiled, kernel
from .matvec import sizes
from .parts import memory
from .simd import _make, _shuffle
from .transpose import UNPACK_PAIRS, UNPACK_WORDS

TALL = 5  # rows of x of a tile: 5 * 4 sums, 4 of w and 5 of x are 29 of 32 registers
DEEP = 1024  # elements of K per block: four rows of W and 16 of x stay in the L1
MOST = 32  # rows of x

_TILE = """
def tile(w, step, last, x, x_step, k, sums):
    # sums[r, j] = x[r] . w[j] for {rows} rows of x and 4 of w (those beyond `last` repeat it), of k & -32 elements.
    # Returns whether w holds subnormals.
    {pointers}
    {zero}
    least = none()
    for i in range(0, 2 * (k & -32), 64):
        {steps}
    {store}
    return any_subnormal(least)
"""


def _tile(rows, dot):
    """Function of `_TILE`."""
    cells = [(r, j) for r in range(rows) for j in range(4)]
    pointers = [f"p{j} = opaque(w + min({j}, last) * step)" for j in range(4)]
    pointers += [f"q{r} = opaque(x + {r} * x_step)" for r in range(rows)]
    steps = [f"w{j} = ld_i32x16(p{j} + i)" for j in range(4)]
    steps += [f"least = least_of(least, as_i16(w{j}))" for j in range(4)]
    for r in range(rows):
        steps.append(f"v = ld_i32x16(q{r} + i)")
        steps += [f"s{r}_{j} = dot(s{r}_{j}, w{j}, v)" for j in range(4)]
    parts = {
        "pointers": pointers,
        "zero": [f"s{r}_{j} = zero_f32x16()" for r, j in cells],
        "steps": steps,
        "store": [f"st_f32x4(sums + {16 * r}, across(s{r}_0, s{r}_1, s{r}_2, s{r}_3))" for r in range(rows)],
    }
    text = {name: ("\n        " if name == "steps" else "\n    ").join(lines) for name, lines in parts.items()}
    scope = {**SCOPE, "dot": dot, "across": across, "opaque": opaque}
    return compiled(_TILE.format(rows=rows, **text), "tile", **scope)


def _lower_across(b, t, *sums):
    """<4 x float>: the sum of each of four vectors, which are added up side by side"""
    for low, high in (UNPACK_WORDS, UNPACK_PAIRS):
        halves = zip(sums[::2], sums[1::2])
        sums = [b.fadd(_shuffle(b, x, y, low), _shuffle(b, x, y, high)) for x, y in halves]
    x = sums[0]
    for n in (8, 4):
        x = b.fadd(_shuffle(b, x, x, range(n)), _shuffle(b, x, x, range(n, 2 * n)))
    return x


across = _make("across", lambda *a: simd.F32x4, _lower_across, 4)

_SCAN = """
def subnormal(x, step, m, k):
    # whether any of m rows holds one
    least = none()
    for r in range(m):
        p = x + r * step
        for i in range(0, k & -32, 32):
            least = least_of(least, ld_i16x32(p + 2 * i))
        least = least_of(least, ldn_i16x32(p + 2 * (k & -32), k & 31))
    return any_subnormal(least)
"""
_MATVEC = """
def matvec(a, tid, nth):
    m, k, x_m, dims, groups = arg(a, 3), arg(a, 5), 2 * arg(a, 6), arg(a, 15), (arg(a, 4) + 3) // 4
    units = groups
    for d in range(dims):
        units *= arg(a, 16 + 4 * d)
    known, odd = -1, 0
    for u in range(units * tid // nth, units * (tid + 1) // nth):
        rest = u // groups
        x, w, c = arg(a, 0), arg(a, 1), arg(a, 2)
        for d in range(dims - 1, -1, -1):
            size = arg(a, 16 + 4 * d)
            i = rest % size
            rest //= size
            x += i * arg(a, 17 + 4 * d) * 2
            w += i * arg(a, 18 + 4 * d) * 2
            c += i * arg(a, 19 + 4 * d) * {c}
        if known != u // groups:
            known, odd = u // groups, subnormal(x, x_m, m, k)
        group(a, x, w, c, u % groups * 4, odd)
"""
_GROUP = """
def group(a, x, w, c, row, odd_x):
    # all rows of x times four of w
    m, n, k, x_m, w_n = arg(a, 3), arg(a, 4), arg(a, 5), 2 * arg(a, 6), 2 * arg(a, 7)
    sums, last, tall = memory(), min(3, n - row - 1), (m + {tall} - 1) // {tall}
    fresh = sums + 16 * {most}
    x_rest = fresh + 16 * 8
    w_rest = x_rest + 64 * {tall}
    for k0 in range(0, max(1, k), {deep}):
        for half in range(2):
            # whole steps, then what is left of the last block, filled up with 0
            kk, p, step = min(k - k0, {deep}) & -32, w + (row * w_n + 2 * k0), w_n
            if half:
                kk, p, step = 32, w_rest, 64
                if k - k0 > {deep} or k % 32 == 0:
                    break
                ends(w + row * w_n, w_n, last + 1, k, w_rest)
            odd = odd_x
            for t in range(tall):
                r0 = m * t // tall
                rows, q, x_step = m * (t + 1) // tall - r0, x + r0 * x_m + 2 * k0, x_m
                if half:
                    q, x_step = x_rest, 64
                    ends(x + r0 * x_m, x_m, rows, k, x_rest)
                if not odd:
                    odd = tiles(rows, p, step, last, q, x_step, kk, fresh)
                if odd:
                    plain(rows, p, step, last, q, x_step, kk, fresh)
                gather(rows, fresh, sums + 16 * r0, k0 > 0 or half > 0)
    store(a, c, row, sums)
"""
_GATHER = """
def gather(rows, fresh, sums, add):
    for r in range(rows):
        y = ld_f32x4(fresh + 16 * r)
        if add:
            y = y + ld_f32x4(sums + 16 * r)
        st_f32x4(sums + 16 * r, y)
"""
_ENDS = """
def ends(x, step, rows, k, out):
    # what is behind the last whole 32 elements of some rows, filled up with 0
    for r in range(rows):
        st_i16x32(out + 64 * r, ldn_i16x32(x + r * step + 2 * (k & -32), k & 31))
"""
_STORE = """
def store(a, c, row, sums):
    # sums [m][4] to C, from column `row` on
    m, n, c_m, c_n, code, bias = arg(a, 3), arg(a, 4), arg(a, 8), arg(a, 9), arg(a, 10), arg(a, 11)
    bias_m, bias_n, add = arg(a, 12), arg(a, 13), arg(a, 14)
    to = c + {c} * row * c_n
    if c_n == 1 and code == 0 and add == 0 and row + 4 <= n:
        for r in range(0, m, 4):
            st_{c_type}x16(sums + {c} * 4 * r, ld_f32x16(sums + 16 * r))
        for r in range(m):
            for i in range(0, 4 * {c}, 8):
                st_i64(to + {c} * r * c_m + i, ld_i64(sums + {c} * 4 * r + i))
        return
    for r in range(m):
        for j in range(min(4, n - row)):
            y = ld_f32(sums + 16 * r + 4 * j) + bias_at(code, bias + r * bias_m + (row + j) * bias_n)
            p = to + {c} * (r * c_m + j * c_n)
            if add:
                y += ld_{c_type}(p)
            st_{c_type}(p, y)
"""


def _tiles():
    """tiles(rows, ...): `_tile` of that height; plain(rows, ...): one after the other, of any elements."""
    words = "w, step, last, x, x_step, k, sums"
    scope = {f"tile{rows}": _tile(rows, dot2) for rows in range(1, TALL + 1)}
    lines = [f"    if rows == {rows}:\n        return tile{rows}({words})" for rows in range(1, TALL + 1)]
    tiles = compiled("\n".join([f"def tiles(rows, {words}):", *lines, "    return 0"]), "tiles", **scope)
    lines = [f"def plain(rows, {words}):", "    for r in range(rows):"]
    lines += ["        tile(w, step, last, x + r * x_step, x_step, k, sums + 16 * r)"]
    return {"tiles": tiles, "plain": compiled("\n".join(lines), "plain", tile=_tile(1, dot2_plain))}


def build(name, *params, source=None):
    """matvec (dtype of C); None for others, and for levels without the instruction."""
    if levels.TARGET != "avx512vnni" or name != "matvec" or params not in (("f32",), ("bf16",)):
        return None
    words = {**sizes("bf16", "bf16", params[0]), "tall": TALL, "deep": DEEP, "most": MOST}
    parts = {name: compiled(text, name) for name, text in (("ends", _ENDS), ("gather", _GATHER))} | _tiles()
    parts["store"] = compiled(_STORE.format(**words), "store", bias_at=bias_at("f32"))
    scratch = memory(16 * (MOST + 8) + 64 * (TALL + 4))
    group = compiled(_GROUP.format(**words), "group", memory=scratch, **parts)
    scan = compiled(_SCAN, "subnormal", **SCOPE)
    return kernel(_MATVEC.format(**words), "matvec", group=group, subnormal=scan)
