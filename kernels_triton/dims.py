"""An index of any shape that picks along one dim of a strided tensor, as a few collapsed dims; and narrow dtypes."""

from itertools import product
from math import prod
from typing import NamedTuple

import triton
import triton.language as tl

from .convert import narrow_f32, width
from .float8 import KINDS, narrowed, widened
from .launch import TYPES

LIMIT = 1 << 30  # what 32-bit offsets are used below, so that a block more does not overflow
NARROW, WIDE = ("i32", tl.int32), ("i64", tl.int64)
ND = 4  # dims of one launch
WIDTH = {d: width(d) for d in TYPES}


def offset_type(extent):
    """(our name, Triton's type) of integers that hold offsets up to `extent`.

    >>> offset_type(100)[0], offset_type(1 << 40)[0]
    ('i32', 'i64')
    """
    return NARROW if extent < LIMIT else WIDE


@triton.jit
def offset_of(e, n0, n1, n2, n3, s0, s1, s2, s3, ND: tl.constexpr):
    """Offset of element e of up to 4 dims, innermost first: sizes n, strides s"""
    if ND == 1:
        return e * s0
    up = e // n0
    offset = (e - up * n0) * s0
    if ND == 2:
        return offset + up * s1
    e = up
    up = e // n1
    offset += (e - up * n1) * s1
    if ND == 3:
        return offset + up * s2
    e = up
    up = e // n2
    return offset + (e - up * n2) * s2 + up * s3


@triton.jit
def checked(ids_ptr, place, mask, size, flag_ptr, report):
    """(indices at `place` as i64 in [0, size), negative ones from the end; which of them are in use and inside).

    Those outside are 0; any of them, and 1 + size, are written to the two words at `flag_ptr`.
    """
    at = tl.load(ids_ptr + place, mask=mask, other=0).to(tl.int64)
    wrong = ((at < -size) | (at >= size)) & mask
    tl.store(flag_ptr + 0 * place, at, mask=wrong & report)
    tl.store(flag_ptr + 1 + 0 * place, at * 0 + size + 1, mask=wrong & report)
    at = tl.where(at < 0, at + size, at)
    return tl.where(wrong, 0, at), mask & (wrong == 0)


@triton.jit
def converted(value, DTYPE: tl.constexpr, KIND: tl.constexpr):
    """A number computed with, as memory of element type DTYPE holds it; KIND is `kind(dtype)`. Rounded once"""
    if KIND == 1:
        return (value != 0).to(DTYPE)
    elif KIND != 0:
        return narrowed(narrow_f32(value), KIND)
    elif DTYPE == tl.float16 or DTYPE == tl.bfloat16:
        return narrow_f32(value).to(DTYPE)
    else:
        return value.to(DTYPE)


@triton.jit
def loaded(value, DTYPE: tl.constexpr, KIND: tl.constexpr):
    """What was loaded from memory, in the dtype computed in; small floats to f64 by way of f32"""
    if KIND > 1:
        return widened(value, KIND).to(tl.float32).to(DTYPE)
    elif value.dtype == tl.float16 or value.dtype == tl.bfloat16:
        return value.to(tl.float32).to(DTYPE)
    else:
        return value.to(DTYPE)


def kind(dtype):
    """What `converted` and `loaded` must know of a dtype: 1 for bool, 4 and 5 for float8, 0 for others."""
    return 1 if dtype == "bool" else KINDS.get(dtype, 0)


class Launch(NamedTuple):
    """One launch over an index: addresses, sizes, dims (4 sizes, strides, dense strides), how many of them count, the
    type of offsets, how many destinations there are.
    """

    x: int
    ids: int
    y: int
    flag: int
    size: int
    picked: int
    n: int
    dims: tuple
    nd: int
    offset: tuple
    places: int


def collapsed(dims, size):
    """[(size, stride, dense stride)] of dims, innermost first, where those that run on are one; dense numbers of
    destinations start with the picked dim, which has stride 0.

    >>> collapsed([(4, 1), (3, 4), (5, 0)], 7)
    [(12, 1, 7), (5, 0, 0)]
    """
    found, dense = [], size
    for n, stride in dims:
        if n == 1:
            continue
        own = dense if stride else 0
        dense *= n if stride else 1
        if found and stride == found[-1][0] * found[-1][1] and own == found[-1][0] * found[-1][2]:
            found[-1] = (found[-1][0] * n, *found[-1][1:])
        else:
            found.append((n, stride, own))
    return found


def launches(words, width, index_width):
    """The Launches that the words of an index along a dim (kernels_numba/index.py: ALONG) stand for: one, unless there
    are more than 4 dims.
    """
    x, ids, y, flag, size, picked, n, step, _, nd = words[:10]
    dims = collapsed([(n, step), *((words[10 + 2 * d], words[11 + 2 * d]) for d in range(nd))], size)
    inner, outer = dims[:ND], dims[ND:]
    count = prod(d[0] for d in inner)
    extent = (size - 1) * abs(picked) + sum((d[0] - 1) * abs(d[1]) for d in inner)
    places = size * prod(d[0] for d in inner if d[1])
    padded = [*inner, *[(1, 0, 0)] * (ND - len(inner))]
    flat = tuple(d[i] for i in range(3) for d in padded)
    offset = offset_type(max(extent, count, places))
    for number, at in enumerate(product(*(range(d[0]) for d in reversed(outer)))):
        base = sum(i * d[1] for i, d in zip(reversed(at), outer, strict=True))
        first = number * count
        yield Launch(x + base * width, ids + first * index_width, y + first * width, flag, size, picked, count, flat,
                     max(1, len(inner)), offset, places)  # fmt: skip
