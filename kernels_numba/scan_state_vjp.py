"""Gradients of `state_scan` (see scan_state.py), by going back through the tokens with the gradient of the state, G:

  G += q_t gy_t^T    dq_t = S_t gy_t    dk_t = G v_t    dv_t = G^T k_t    db_t = G m_t    da_t = S_(t-1) G^T b_t
  dW_t = G * S_(t-1)    G <- W_t * G + a_t (G^T b_t)^T,    with m_t = S_(t-1)^T a_t

States are not kept by the forward pass: a first pass keeps that before each CHUNK of tokens, from which those within
are made again when it is the chunk's turn, dq_t with them.

args: 0 gradients of y [N, T, H, V] and of the last S (0: none)   2 first S; from 3 on as there, but for scratch
  31 scratch, bytes per thread, how many threads have some
  34 dq, dk [blocks, N, T, H, K]   36 dv [N, T, H, V]   37 dw: "head" [blocks, N, T, H], "row" [blocks, N, T, H, K],
  "outer" [N, T, H, V]   38 dA [N, H, K, V]   39 da, db [blocks, N, T, H, K]   41 that of the first S
"""

from . import lanes
from .lanes import shared
from .scan_state import ADVANCE, BEGIN, LANES, OPERANDS, SIZES, block, common, filled, indented, scope
from .simd import hsum

CHUNK = 16  # tokens; tensorlib/ops/scan_state.py allocates for so many

MARK = block("""
for t in range(length):
    if t % CHUNK == 0:
        to = marks + t // CHUNK * rows * WIDTH
        for i in range(rows):
            | ST(to + i * WIDTH + {at}, LD(state + i * WIDTH + {at}))
    @OPERANDS
    to = state
    @ADVANCE
""")

AGAIN = block("""
for i in range(rows):
    | ST(states + i * WIDTH + {at}, LD(marks + (start // CHUNK * rows + i) * WIDTH + {at}))
for t in range(start, end):
    state = states + (t - start) * rows * WIDTH
    to = state + rows * WIDTH
    @OPERANDS
    here = ((n * length + t) * heads + h) * width + first
    | g{j} = PART(arg(a, 0) + here * SIZE + {at}, n{j})
    @AGAIN_ADVANCE
    there = (((first // COLUMNS * count + n) * length + t) * heads + h) * rows
    sums(parts, rows, arg(a, 34) + there * SIZE)
""")

FIRST = block("""
base = (n * heads + h) * rows
for i in range(rows):
    if arg(a, 1) != 0:
        | ST(G + i * WIDTH + {at}, PART(arg(a, 1) + ((base + i) * width + first) * SIZE + {at}, n{j}))
    else:
        | ST(G + i * WIDTH + {at}, ZERO())
    ?outer | ST(dA + i * WIDTH + {at}, ZERO())
""")

BACK = block("""
state = states + (t - start) * rows * WIDTH
@OPERANDS
here = ((n * length + t) * heads + h) * width + first
there = (((first // COLUMNS * count + n) * length + t) * heads + h) * rows
| v{j} = PART(v + (h * width + first) * SIZE + {at}, n{j})
| g{j} = PART(arg(a, 0) + here * SIZE + {at}, n{j})
| dv{j} = ZERO()
?head number = exp(N(w, h))
?head ww = SPLAT(number)
?head total = ZERO()
?row decays_row(w + h * rows * SIZE, rows, decays)
?outer | dt{j} = PART(w + (h * width + first) * SIZE + {at}, n{j})
?outer | ST(decays + rows * WIDTH + {at}, dt{j})
?outer | dw{j} = ZERO()
?outer decays_outer(decays + rows * WIDTH, table, rows, decays)
?delta | m{j} = ZERO()
?delta | dm{j} = ZERO()
?delta for i in range(rows):
    ?delta z, x = SPLAT(N(q, group * rows + i)), SPLAT(N(sa, h * rows + i))
    ?delta | s{j} = LD(G + i * WIDTH + {at})
    ?delta ?!before | s{j} = fma(z, g{j}, s{j})
    ?delta ?!before | ST(G + i * WIDTH + {at}, s{j})
    ?delta bb = SPLAT(N(sb, h * rows + i))
    ?delta | dm{j} = fma(bb, s{j}, dm{j})
    ?delta | m{j} = fma(x, LD(state + i * WIDTH + {at}), m{j})
for i in range(rows):
    z, x = SPLAT(N(q, group * rows + i)), SPLAT(N(k, group * rows + i))
    | s{j} = LD(G + i * WIDTH + {at})
    ?!delta ?!before | s{j} = fma(z, g{j}, s{j})
    | p{j} = LD(state + i * WIDTH + {at})
    ST(parts + (table_rows + i) * L * SIZE, (s0 * v0 + s1 * v1) + (s2 * v2 + s3 * v3))
    | dv{j} = fma(x, s{j}, dv{j})
    ?delta ST(parts + (3 * table_rows + i) * L * SIZE, (p0 * dm0 + p1 * dm1) + (p2 * dm2 + p3 * dm3))
    ?delta ST(parts + (4 * table_rows + i) * L * SIZE, (s0 * m0 + s1 * m1) + (s2 * m2 + s3 * m3))
    ?head total = total + ((s0 * p0 + s1 * p1) + (s2 * p2 + s3 * p3))
    ?row ww = SPLAT(N(decays, i))
    ?row ST(parts + (2 * table_rows + i) * L * SIZE, ww * ((s0 * p0 + s1 * p1) + (s2 * p2 + s3 * p3)))
    ?!outer | s{j} = s{j} * ww
    ?outer | s{j} = s{j} * LD(decays + i * WIDTH + {at})
    ?outer | p{j} = p{j} * s{j}
    ?outer | dw{j} = fma(p{j}, LD(table + i * WIDTH + {at}), dw{j})
    ?outer | ST(dA + i * WIDTH + {at}, fma(p{j}, dt{j}, LD(dA + i * WIDTH + {at})))
    ?delta x = SPLAT(N(sa, h * rows + i))
    ?delta | s{j} = fma(x, dm{j}, s{j})
    ?before | s{j} = fma(z, g{j}, s{j})
    | ST(G + i * WIDTH + {at}, s{j})
sums(parts + table_rows * L * SIZE, rows, arg(a, 35) + there * SIZE)
?row sums(parts + 2 * table_rows * L * SIZE, rows, arg(a, 37) + there * SIZE)
?delta sums(parts + 3 * table_rows * L * SIZE, rows, arg(a, 39) + there * SIZE)
?delta sums(parts + 4 * table_rows * L * SIZE, rows, arg(a, 40) + there * SIZE)
| PUT(arg(a, 36) + here * SIZE + {at}, dv{j}, n{j})
?head SET(arg(a, 37), there // rows, number * hsum(total))
?outer | PUT(arg(a, 37) + here * SIZE + {at}, dw{j}, n{j})
""")

WHOLE = block("""
n, h, first = task_of(a, task, blocks)
group = h // (heads // groups)
| n{j} = left(width, first, {j})
state = scratch
@BEGIN
@MARK
@FIRST
for chunk in range(chunks - 1, -1, -1):
    start = chunk * CHUNK
    end = min(start + CHUNK, length)
    @AGAIN
    for t in range(end - 1, start - 1, -1):
        @BACK
for i in range(rows):
    at = ((base + i) * width + first) * SIZE
    if arg(a, 41) != 0:
        | PUT(arg(a, 41) + at + {at}, LD(G + i * WIDTH + {at}), n{j})
    ?outer | PUT(arg(a, 38) + at + {at}, LD(dA + i * WIDTH + {at}), n{j})
""")


def _sums(names):
    """f(parts, rows, to): the sum over the lanes of each of `rows` vectors. Those behind, up to 16, are read too."""
    lines = ["def sums(parts, rows, to):"]
    if names["L"] != 16:
        lines += ["    for i in range(rows):", "        SET(to, i, hsum(LD(parts + i * L * SIZE)))"]
    else:
        lines.append("    for i in range(0, rows, 16):")
        for r in range(16):  # a binary counter of folds: every sixteenth completes a vector of sums
            lines.append(f"        y = LD(parts + (i + {r}) * L * SIZE)")
            for level in range(4):
                if not r >> level & 1:
                    lines.append(f"        y{level} = y")
                    break
                lines.append(f"        y = fold{1 << level}(y{level}, y)")
        lines.append("        PUT(to + i * SIZE, y, rows - i)")
    exec("\n".join(lines), names)
    return shared(names["sums"])


def build(name, *params, source=None):
    """state_scan DTYPE head|row|outer [before] [delta], or None."""
    dtype, kind, *features = params
    if dtype not in LANES or name != "state_scan":
        return None
    names = scope(dtype) | {
        "CHUNK": CHUNK,
        "hsum": hsum,
        **{f"fold{i}": getattr(lanes, f"fold{i}") for i in (1, 2, 4, 8)},
    }
    common(names)
    names["sums"] = _sums(names)
    parts = {"OPERANDS": OPERANDS(*features), "ADVANCE": ADVANCE(kind, *features)}
    parts["AGAIN_ADVANCE"] = ADVANCE(kind, "dq", *features)
    parts = {
        "BEGIN": BEGIN(kind),
        "MARK": filled(MARK(), **parts),
        "FIRST": FIRST(kind),
        "AGAIN": filled(AGAIN(), **parts),
        "BACK": filled(BACK(kind, *features), **parts),
    }
    text = "def kernel(a, tid, nth):\n" + SIZES
    text += "    past, scratch = arg(a, 2), arg(a, 31) + tid * arg(a, 32)\n    chunks = (length + CHUNK - 1) // CHUNK\n"
    text += "    decays = scratch + rows * WIDTH\n    table = decays + (rows + 1) * WIDTH\n"
    text += "    G = table + rows * WIDTH\n    dA = G + rows * WIDTH\n    states = dA + rows * WIDTH\n"
    text += "    marks = states + (CHUNK + 1) * rows * WIDTH\n    parts = marks + chunks * rows * WIDTH\n"
    text += "    table_rows = (rows + 15) // 16 * 16\n"
    text += "    for task in range(tasks * tid // threads, tasks * (tid + 1) // threads):\n"
    exec(text + indented(filled(WHOLE(kind), **parts), 8), names)
    return names["kernel"]
