"""Recurrences along tokens: matrices of state with a decay (state spaces, RWKV), and their gradients in
`scan_state_vjp.py`; diagonal ones; short causal convolutions.

`state_scan` of one head, with a state S [K, V] of a dtype f32 or f64:

  S_t = W_t * S_(t-1) + b_t (S_(t-1)^T a_t)^T + k_t v_t^T    y_t = S_t^T q_t, or S_(t-1)^T q_t ("before")

with W_t = e^w_t, one number ("head"), one per row ("row"), or e^(w_t A) with w_t per column ("outer"); the term with a
and b only in "delta". A thread has BLOCK columns of a head at a time, its state in scratch memory near by.

args: 0 y [N, T, H, V]   1 last S, 2 first S (0: zeros) [N, H, K, V]   3 q, k, v, w, a, b: addresses
  9 strides in elements of the batch and of T of each of the six: what is behind T is dense
  21 N, T, H, groups of q and k, K, V   27 A [H, K, V], its strides
  31 scratch, bytes per thread, how many threads have some
"""

from . import functions, simd
from .lanes import F64, MEMORY, inline
from .scalar import loader, storer
from .simd import arg

VECTORS = 4  # of columns that a thread has at a time
LANES, SIZE = {"f32": 16, "f64": 8}, {"f32": 4, "f64": 8}
_V = range(VECTORS)


def columns(dtype):
    """Columns that a thread has at a time."""
    return VECTORS * LANES[dtype]


def scope(dtype):
    """What sources of kernels here are compiled with: vectors as LD, ST, PART, PUT, SPLAT and ZERO, numbers as N."""
    memory, key = (F64, "f64x8") if dtype == "f64" else (MEMORY["f32"], "f32x16")
    names = dict(vars(simd)) | {"arg": arg, "LD": memory.ld, "ST": memory.st, "PART": memory.part, "PUT": memory.put}
    names |= {"SPLAT": getattr(simd, f"splat_{key}"), "ZERO": getattr(simd, f"zero_{key}")}
    names |= {"N": getattr(simd, f"ldi_{dtype}"), "SET": getattr(simd, f"sti_{dtype}")}
    names |= {"load": loader(dtype), "store": storer(dtype), "exp": functions.scope(dtype)["exp"]}
    return names | {"SIZE": SIZE[dtype], "L": LANES[dtype], "COLUMNS": columns(dtype), "inline": inline}


def each(line, indent=0):
    """A line of source for every vector, {j} its number and {at} its bytes' place."""
    return "".join(" " * indent + line.format(j=j, at=f"{j} * L * SIZE") + "\n" for j in _V)


def block(text):
    """Source whose lines that begin with `|` stand once per vector, and those with `?name` only if `name` is asked
    for: a function of the names.
    """

    def made(*names):
        out = []
        for line in text.splitlines():
            body = line.lstrip()
            indent = len(line) - len(body)
            while body.startswith("?"):
                wanted, _, body = body[1:].partition(" ")
                if not (wanted in names if wanted[0] != "!" else wanted[1:] not in names):
                    break
            else:
                out.append(each(body[1:].lstrip(), indent) if body.startswith("|") else " " * indent + body + "\n")
        return "".join(out)

    return made


# ---- what both passes have -------------------------------------------------------------------------------------------

COMMON = """
def task_of(a, task, blocks):
    per = (arg(a, 26) + COLUMNS - 1) // COLUMNS
    return task // per // arg(a, 23), task // per % arg(a, 23), task % per * COLUMNS


def left(width, first, j):
    return min(max(width - first - j * L, 0), L)


def at_of(a, operand, n, t):
    return arg(a, 3 + operand) + (n * arg(a, 9 + 2 * operand) + t * arg(a, 10 + 2 * operand)) * SIZE


def rates(a, h, first, to):
    base, width = arg(a, 27) + (h * arg(a, 28) + first * arg(a, 30)) * SIZE, arg(a, 26)
    for i in range(arg(a, 25)):
        for j in range(COLUMNS):
            x = N(base, i * arg(a, 29) + j * arg(a, 30)) if first + j < width else N(base, 0)
            SET(to, i * COLUMNS + j, x)


def decays_row(w, count, to):
    for i in range(count):
        store(to, i, exp(load(w, i)))


def decays_outer(dt, table, rows, to):
    for i in range(rows):
        for j in range(COLUMNS):
            store(to, i * COLUMNS + j, exp(load(dt, j) * load(table, i * COLUMNS + j)))
"""


def common(names):
    """Adds the functions of COMMON to a scope."""
    exec(COMMON, names)
    for name in ("task_of", "left", "at_of", "rates", "decays_row", "decays_outer"):
        names[name] = inline(names[name])


# one token: the state at `state` goes on to `to`. WIDTH: bytes of a row. "y": adds up y; "dq": its q's gradient, of g
ADVANCE = block("""
?head ww = SPLAT(exp(N(w, h)))
?row decays_row(w + h * rows * SIZE, rows, decays)
?outer | ST(decays + rows * WIDTH + {at}, PART(w + (h * width + first) * SIZE + {at}, n{j}))
?outer decays_outer(decays + rows * WIDTH, table, rows, decays)
| v{j} = PART(v + (h * width + first) * SIZE + {at}, n{j})
?delta | m{j} = ZERO()
?delta for i in range(rows):
    ?delta x = SPLAT(N(sa, h * rows + i))
    ?delta | m{j} = fma(x, LD(state + i * WIDTH + {at}), m{j})
for i in range(rows):
    x = SPLAT(N(k, group * rows + i))
    ?y z = SPLAT(N(q, group * rows + i))
    ?row ww = SPLAT(N(decays, i))
    | s{j} = LD(state + i * WIDTH + {at})
    ?y ?before | y{j} = fma(z, s{j}, y{j})
    ?dq ?before ST(parts + i * L * SIZE, (s0 * g0 + s1 * g1) + (s2 * g2 + s3 * g3))
    ?!outer | s{j} = s{j} * ww
    ?outer | s{j} = s{j} * LD(decays + i * WIDTH + {at})
    ?delta bb = SPLAT(N(sb, h * rows + i))
    ?delta | s{j} = fma(bb, m{j}, s{j})
    | s{j} = fma(x, v{j}, s{j})
    | ST(to + i * WIDTH + {at}, s{j})
    ?y ?!before | y{j} = fma(z, s{j}, y{j})
    ?dq ?!before ST(parts + i * L * SIZE, (s0 * g0 + s1 * g1) + (s2 * g2 + s3 * g3))
""")

BEGIN = block("""
base = (n * heads + h) * rows
for i in range(rows):
    if past != 0:
        | ST(state + i * WIDTH + {at}, PART(past + ((base + i) * width + first) * SIZE + {at}, n{j}))
    else:
        | ST(state + i * WIDTH + {at}, ZERO())
?outer rates(a, h, first, table)
""")

OPERANDS = block("""
q, k, v, w = at_of(a, 0, n, t), at_of(a, 1, n, t), at_of(a, 2, n, t), at_of(a, 3, n, t)
?delta sa, sb = at_of(a, 4, n, t), at_of(a, 5, n, t)
""")

SIZES = """
    count, length, heads, groups, rows, width = arg(a, 21), arg(a, 22), arg(a, 23), arg(a, 24), arg(a, 25), arg(a, 26)
    threads = min(nth, arg(a, 33))
    WIDTH = COLUMNS * SIZE
    blocks = (width + COLUMNS - 1) // COLUMNS
    tasks = count * heads * blocks
    if tid >= threads:
        return
"""

FORWARD = block("""
n, h, first = task_of(a, task, blocks)
group = h // (heads // groups)
| n{j} = left(width, first, {j})
@BEGIN
for t in range(length):
    @OPERANDS
    | y{j} = ZERO()
    to = state
    @ADVANCE
    out = arg(a, 0) + (((n * length + t) * heads + h) * width + first) * SIZE
    | PUT(out + {at}, y{j}, n{j})
for i in range(rows):
    | PUT(last + ((base + i) * width + first) * SIZE + {at}, LD(state + i * WIDTH + {at}), n{j})
""")


def filled(text, **parts):
    """Source with lines `@NAME` replaced by a part, indented as they are."""
    out = []
    for line in text.splitlines():
        body = line.lstrip()
        if body.startswith("@"):
            indent = line[: len(line) - len(body)]
            out += [indent + each for each in parts[body[1:]].splitlines()]
        else:
            out.append(line)
    return "\n".join(out) + "\n"


def indented(text, by):
    """Source moved to the right."""
    return "".join(" " * by + line + "\n" for line in text.splitlines() if line.strip())


def _state_scan(dtype, kind, *features):
    names = scope(dtype)
    common(names)
    parts = {"BEGIN": BEGIN(kind), "OPERANDS": OPERANDS(*features), "ADVANCE": ADVANCE(kind, "y", *features)}
    source = "def kernel(a, tid, nth):\n" + SIZES
    source += "    last, past = arg(a, 1), arg(a, 2)\n"
    source += "    state = arg(a, 31) + tid * arg(a, 32)\n"
    source += "    decays = state + rows * WIDTH\n    table = decays + (rows + 1) * WIDTH\n"
    source += "    for task in range(tasks * tid // threads, tasks * (tid + 1) // threads):\n"
    exec(source + indented(filled(FORWARD(), **parts), 8), names)
    return names["kernel"]


# ---- diagonal recurrences --------------------------------------------------------------------------------------------

# args: 0 a, b, h [outer, n, inner]   3 first h (0: zeros) [outer, inner]   4 outer, n, inner   7 1 or -1 (backwards)
LINEAR = block("""
outer, n, inner, step = arg(a, 4), arg(a, 5), arg(a, 6), arg(a, 7)
blocks = (inner + COLUMNS - 1) // COLUMNS
for task in range(outer * blocks * tid // nth, outer * blocks * (tid + 1) // nth):
    row, first = task // blocks, task % blocks * COLUMNS
    | n{j} = left(inner, first, {j})
    if step > 0:
        at = (row * n * inner + first) * SIZE
    else:
        at = ((row * n + n - 1) * inner + first) * SIZE
    begin = 0
    if arg(a, 3) != 0:
        | h{j} = PART(arg(a, 3) + (row * inner + first) * SIZE + {at}, n{j})
    else:
        | h{j} = PART(arg(a, 1) + at + {at}, n{j})
        | PUT(arg(a, 2) + at + {at}, h{j}, n{j})
        begin = 1
        at += step * inner * SIZE
    for i in range(begin, n):
        | h{j} = fma(PART(arg(a, 0) + at + {at}, n{j}), h{j}, PART(arg(a, 1) + at + {at}, n{j}))
        | PUT(arg(a, 2) + at + {at}, h{j}, n{j})
        at += step * inner * SIZE
""")


# ---- short convolutions ----------------------------------------------------------------------------------------------

# args: 0 y [N, T, C], last rows, first rows [N, K - 1, C]   3 x, strides in elements of N and T   6 weight, its
# strides of C, K   9 bias (0: none)   10 N, T, C, K   14 scratch, bytes per thread, how many threads have some
CONV = block("""
count, length, width, taps = arg(a, 10), arg(a, 11), arg(a, 12), arg(a, 13)
threads = min(nth, arg(a, 16))
if tid >= threads:
    return
blocks, table = (width + COLUMNS - 1) // COLUMNS, arg(a, 14) + tid * arg(a, 15)
past, before, WIDTH = arg(a, 2), taps - 1, COLUMNS * SIZE
for task in range(count * blocks * tid // threads, count * blocks * (tid + 1) // threads):
    n, first = task // blocks, task % blocks * COLUMNS
    | n{j} = left(width, first, {j})
    for i in range(taps):
        for j in range(min(COLUMNS, width - first)):
            SET(table, i * COLUMNS + j, N(arg(a, 6), (first + j) * arg(a, 7) + i * arg(a, 8)))
    x, earlier = arg(a, 3) + (n * arg(a, 4) + first) * SIZE, past + (n * before * width + first) * SIZE
    | bias{j} = ZERO()
    if arg(a, 9) != 0:
        | bias{j} = PART(arg(a, 9) + first * SIZE + {at}, n{j})
    for t in range(length):
        | y{j} = bias{j}
        for i in range(taps):
            row = t + i - before
            at = x + row * arg(a, 5) * SIZE if row >= 0 else earlier + (row + before) * width * SIZE
            | y{j} = fma(LD(table + i * WIDTH + {at}), PART(at + {at}, n{j}), y{j})
        | PUT(arg(a, 0) + ((n * length + t) * width + first) * SIZE + {at}, y{j}, n{j})
    for i in range(before):
        row = length + i - before
        at = x + row * arg(a, 5) * SIZE if row >= 0 else earlier + (row + before) * width * SIZE
        | PUT(arg(a, 1) + ((n * before + i) * width + first) * SIZE + {at}, PART(at + {at}, n{j}), n{j})
""")


def _plain(dtype, text):
    names = scope(dtype)
    common(names)
    exec("def kernel(a, tid, nth):\n" + indented(text, 4), names)
    return names["kernel"]


def build(name, *params, source=None):
    """state_scan DTYPE head|row|outer [before] [delta], linear_scan DTYPE, causal_conv DTYPE; or None."""
    if params[0] not in LANES:
        return None
    if name == "state_scan":
        return _state_scan(*params)
    return _plain(params[0], {"linear_scan": LINEAR, "causal_conv": CONV}[name]())
