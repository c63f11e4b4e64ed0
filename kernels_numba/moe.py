"""Products of a few rows with the matrices that were chosen for them, whose numbers lie in memory: a step of a mixture
of experts can be recorded.

A step is two launches: gate and up of all choices with what comes of them, then down with the sum over a token's
choices. `EXPERTS` is the text of both; floats are here, weights in blocks in `quant.py`.
"""

from .matmul import compiled, kernel
from .matvec import FLOATS, sizes
from .vmath import vsilu

AHEAD = 8192  # bytes that weights are read ahead
TOKENS = 4  # that share a row of weights

EXPERTS = '''
def experts(a, tid, nth):
    """out[i] = x[i // per] . W[ids[i]], NaN for an id that is none. Threads share the rows of all.

    Choices of one expert that follow one another share what is read, if per is 1. With U: out[i] = silu(out[i]) * y[i],
    y[i] = x[i // per] . U[ids[i]]. With shares: y[t] = sum over j of shares[t, j] * out[places[top_k t + j]].

    Words: W, x (as `rows` reads it), out, N, K, ids (i64), how many of them, per, matrices, rows from one to the next,
    top_k, U (1: rows N to 2 N of W) or 0, y, shares or 0, places (i64) or 0 (i itself).
    """
    w, x, out, n, k, ids = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5)
    many, per, matrices, u, y, shares = arg(a, 6), arg(a, 7), arg(a, 8), arg(a, 11), arg(a, 12), arg(a, 13)
    blocks = k // {run}
    size = {size}
    stride = k // {elements} * {nbytes}
    apart = arg(a, 9) * stride
    if u == 1:
        u = w + n * stride
    r0 = n * tid // nth
    r1 = n * (tid + 1) // nth
    i = 0
    while i < many:
        e = ld_i64(ids + 8 * i)
        live = 1
        while per == 1 and live < {tokens} and i + live < many and ld_i64(ids + 8 * (i + live)) == e:
            live += 1
        for half in range(2 if u != 0 else 1):
            p = (u if half == 1 else w) + e * apart
            to = (y if half == 1 else out) + 4 * n * i
            if e < 0 or e >= matrices:
                for r in range(r0, r1):
                    for j in range(live):
                        st_f32(to + 4 * (n * j + r), nan)
            elif live == 1:
                one_token(p, x + i // per * size, to, 0, n, blocks, stride, size, r0, r1, live)
            else:
                many_tokens(p, x + i * size, to, 0, n, blocks, stride, size, r0, r1, live)
        if u != 0:
            gated(out + 4 * n * i, y + 4 * n * i, n, live, r0, r1)
        i += live
    if shares != 0:
        summed(shares, out, y, n, many, arg(a, 10), arg(a, 14), r0, r1)
'''
_GATED = """
def gated(out, y, n, live, r0, r1):
    for j in range(live):
        for r in range(r0, r1, 16):
            at = 4 * (n * j + r)
            stn_f32x16(out + at, vsilu(ldn_f32x16(out + at, r1 - r)) * ldn_f32x16(y + at, r1 - r), r1 - r)
"""
_SUMMED = """
def summed(shares, out, y, n, many, top_k, places, r0, r1):
    for t in range(many // top_k):
        for r in range(r0, r1, 16):
            s = zero_f32x16()
            for i in range(top_k * t, top_k * (t + 1)):
                at = i
                if places != 0:
                    at = ld_i64(places + 8 * i)
                s = fma(ldn_f32x16(out + 4 * (n * at + r), r1 - r), splat_f32x16(ld_f32(shares + 4 * i)), s)
            stn_f32x16(y + 4 * (n * t + r), s, r1 - r)
"""
_ROWS = """
def rows(w, x, out, none, n, k, stride, size, r0, r1, live):
    # Weight rows r0 to r1 times {tokens} tokens, of which `live` count. One row after the other: the weights are one
    # stream, which the CPU's own prefetch loses at the end of every short row if four are read at once (Zen 5, rows of
    # 4 KB, 38 MB: 355 us, so 252). Sums as in `matvec.dot4`.
    for r in range(r0, r1):
        p = w + r * stride
        {start}
        i = 0
        while i + 32 <= k:
            w0 = ld_{w_type}x16(p + {w} * i)
            w1 = ld_{w_type}x16(p + {w} * (i + 16))
            {two}
            i += 32
        if i + 16 <= k:
            w0 = ld_{w_type}x16(p + {w} * i)
            {one}
            i += 16
        {sums}
        while i < k:
            y = ld_{w_type}(p + {w} * i)
            {tail}
            i += 1
        {end}
"""


def _rows(words, tokens):
    many, w = range(tokens), words["w"]
    first = [f"a{t} = fma(w0, ld_f32x16(q{t} + 4 * i), a{t})" for t in many]
    second = [f"b{t} = fma(w1, ld_f32x16(q{t} + 4 * (i + 16)), b{t})" for t in many]
    starts = [f"q{t} = x + min({t}, live - 1) * size; a{t} = zero_f32x16(); b{t} = zero_f32x16()" for t in many]
    lines = {
        "start": starts,
        "one": first,
        "two": [f"prefetch(p + {w} * i + {AHEAD + at})" for at in range(0, 32 * w, 64)] + first + second,
        "sums": [f"s{t} = hsum(a{t} + b{t})" for t in many],
        "tail": [f"s{t} += ld_f32(q{t} + 4 * i) * y" for t in many],
    }
    lines = {k: "; ".join(v) for k, v in lines.items()}
    lines["end"] = "\n        ".join(f"if {t} < live:\n            st_f32(out + 4 * (n * {t} + r), s{t})" for t in many)
    return compiled(_ROWS.format(tokens=tokens, **words, **lines), "rows")


def experts(one_token, many_tokens, run=32, **words):
    """The kernel of `EXPERTS` whose products are those functions of `_ROWS`'s arguments, for K in runs. words: elements
    and nbytes of a block of weights, `size` of x's rows in bytes (of k, blocks), how many tokens many_tokens takes.
    """
    parts = {"one_token": one_token, "many_tokens": many_tokens, "nan": float("nan")}
    parts |= {"gated": compiled(_GATED, "gated", vsilu=vsilu), "summed": compiled(_SUMMED, "summed")}
    return kernel(EXPERTS.format(run=run, **words), "experts", **parts)


def build(name, *params, source=None):
    """experts: params is the dtype of W; x and the results are f32. None for others."""
    if name != "experts" or len(params) != 1 or params[0] not in FLOATS:
        return None
    words = sizes("f32", params[0], "f32")
    products = (_rows(words, tokens) for tokens in (1, TOKENS))
    return experts(*products, run=1, elements=1, nbytes=words["w"], size="4 * k", tokens=TOKENS)
