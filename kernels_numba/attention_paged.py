"""Attention of one query per sequence (batched decoding) over caches in pages: a page is read once, as it lies.

As in `attention_decode.py`, with pages for ranges: a thread takes (sequence, page, KV head) triples, as many as any
other whatever the lengths are, and `merge` joins the pages of every (sequence, head). Table and lengths are read when
the kernels run.

The first 13 words are those of `attention.py`: 0 sequences, 8 rows of a page (a multiple of 16); 4 to 7 and 9 mean
nothing. Words 13 to 27 are those of `decode`: 23 is word 8 again, 24 how many pages a row of the table has. Then:
  28 table (i64 [sequences, pages])   29 lengths (i64)   30, 31 strides of the pages of K, of V   32 how many pages are
  33 out (f32)   34, 35 its strides of sequences and heads
A page that does not exist gives NaN.
"""

from .attention import first_key
from .attention_decode import grouped, join
from .lanes import inline, shared
from .simd import arg, ld_i64, splat_f32x16, st_f32x16


@inline
def _length(a, i):
    """Keys of sequence i; never more than its pages have."""
    return max(0, min(ld_i64(arg(a, 29) + 8 * i), arg(a, 24) * arg(a, 8)))


@inline
def _first(a, keys):
    """The first page that the query sees, the last of so many keys."""
    return first_key(a, keys - 1) // arg(a, 8)


@inline
def _end(a, keys):
    return (keys + arg(a, 8) - 1) // arg(a, 8)


def _decode(dtype, width, rows):
    """The records of every (sequence, head, page)."""
    heads_of_group, size = grouped(dtype, width, rows), ((width + 15) // 16 + 1) * 64

    @shared
    def spoil(a, to):
        for g in range(arg(a, 1) // arg(a, 2)):
            for d in range(0, size, 64):
                st_f32x16(to + g * arg(a, 24) * size + d, splat_f32x16(float("nan")))

    @shared
    def task(a, i, r, h, keys, scratch):
        page, base = ld_i64(arg(a, 28) + 8 * (i * arg(a, 24) + r)), r * arg(a, 8)
        to = arg(a, 22) + ((i * arg(a, 1) + h * (arg(a, 1) // arg(a, 2))) * arg(a, 24) + r) * size
        if 0 <= page < arg(a, 32):
            k, v = arg(a, 16) + page * arg(a, 30) + h * arg(a, 17), arg(a, 19) + page * arg(a, 31) + h * arg(a, 20)
            low, high = max(first_key(a, keys - 1) - base, 0), min(keys - base, arg(a, 8))
            heads_of_group(a, i, h, 0, low, high, k, v, to, scratch)
        else:
            spoil(a, to)

    def decode(a, tid, nth):
        team, groups, total = min(nth, arg(a, 27)), arg(a, 2), 0
        for i in range(arg(a, 0)):
            keys = _length(a, i)
            total += groups * (_end(a, keys) - _first(a, keys))
        begin, end, at = total * tid // team, total * (tid + 1) // team, 0
        for i in range(arg(a, 0) if tid < team else 0):
            keys = _length(a, i)
            first = _first(a, keys)
            n = groups * (_end(a, keys) - first)
            for j in range(max(begin, at), min(end, at + n)):
                r, h = first + (j - at) // groups, (j - at) % groups
                task(a, i, r, h, keys, arg(a, 25) + tid * arg(a, 26))
            at += n

    return decode


def _merge():
    """Joins the pages of every (sequence, head); one without keys gives 0."""

    def merge(a, tid, nth):
        heads, width, n = arg(a, 1), arg(a, 3), arg(a, 0) * arg(a, 1)
        step = (width + 15 & -16) * 4 + 64
        for i in range(n * tid // nth, n * (tid + 1) // nth):
            keys = _length(a, i // heads)
            to = arg(a, 33) + i // heads * arg(a, 34) + i % heads * arg(a, 35)
            join(arg(a, 22) + i * arg(a, 24) * step, step, _first(a, keys), _end(a, keys), width, to)

    return merge


def build(name, *params, source=None):
    """decode (dtype of the caches, D, heads taken together), merge."""
    if name == "merge" and not params:
        return _merge()
    fine = name == "decode" and len(params) == 3 and 0 < params[1] <= 256 and 0 < params[2] <= 4
    return _decode(*params) if fine else None
