"""Quantised weights to floats: whole tensors, and rows picked by index (embeddings).

"dequantize" (format, out) and "dequantize_rows" (format, out), with `source` (tensorlib/quant/source.py): of the
file's blocks. The decode function's text is compiled as it is, on a tile of blocks by elements: `b` is a pair of
pointers, to each block's first byte and to the format's table, `j` the vector of elements, so that what depends on the
block alone is computed once per block. Words: src, dst, blocks; and src, ids i64, dst, ids' count, blocks per row,
rows.

"planes" (format, out) and "planes_rows" (format, out): of the planes of quant_layout.py. Words: addresses of the planes
low, high, scale, base, then dst, groups of 32; and ids, dst, ids' count, groups per row, rows.

Equal bit for bit to the NumPy reference: products and sums are never fused. Rows out of range become NaN.
"""

import ctypes
import functools
import linecache

import triton
import triton.language as tl

from .launch import Kernel, blocks, pointer
from .quant_layout import ROWS, SCALE_TYPES, codebook, look_up, scales

OUTPUTS = ("f32", "f16", "bf16")
ELEMENTS = 2048  # per program


# ---- what a decode function calls: b is (pointer to a block, pointer to the table) -----------------------------------


@triton.jit
def u8(b, offset):
    return tl.load(b[0] + offset).to(tl.int32)


@triton.jit
def i8(b, offset):
    return tl.load(b[0] + offset).to(tl.int8, bitcast=True).to(tl.int32)


@triton.jit
def u16(b, offset):
    return u8(b, offset) | u8(b, offset + 1) << 8


@triton.jit
def i16(b, offset):
    return u16(b, offset).to(tl.int16).to(tl.int32)


@triton.jit
def i32(b, offset):
    return u16(b, offset) | u16(b, offset + 2) << 16


@triton.jit
def bits64(b, offset):
    low = i32(b, offset).to(tl.uint32, bitcast=True).to(tl.int64)
    return low | i32(b, offset + 4).to(tl.int64) << 32


@triton.jit
def i64(b, offset):
    return bits64(b, offset).to(tl.float32)


@triton.jit
def f64(b, offset):
    return bits64(b, offset).to(tl.float64, bitcast=True).to(tl.float32)


@triton.jit
def as_f16(bits):
    return bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def as_f32(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def f16(b, offset):
    return as_f16(u16(b, offset))


@triton.jit
def f32(b, offset):
    return as_f32(i32(b, offset))


@triton.jit
def float32(x):
    return tl.cast(x, tl.float32)


@triton.jit
def where(condition, x, y):
    return tl.where(condition != 0, x, y)


@triton.jit
def table(b, i):
    return tl.load(b[1] + i).to(tl.int8, bitcast=True).to(tl.int32)


_KERNELS = '''
@triton.jit
def dequantize(src_ptr, table_ptr, dst_ptr, count, SIZE: tl.constexpr, BYTES: tl.constexpr, BLOCKS: tl.constexpr):
    """Blocks to floats. A block behind the last one reads the last one."""
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block, j = tl.arange(0, BLOCKS)[:, None], tl.arange(0, SIZE)[None, :]
    real = tl.minimum(block, count - 1 - first).to(tl.int64)
    value = decode((src_ptr + first * BYTES + real * BYTES, table_ptr), j)
    tl.store(dst_ptr + first * SIZE + block * SIZE + j, value.to(dst_ptr.dtype.element_ty), first + block < count)

@triton.jit
def dequantize_rows(
    src_ptr, table_ptr, ids_ptr, dst_ptr, per_row, rows, SIZE: tl.constexpr, BYTES: tl.constexpr, BLOCKS: tl.constexpr
):
    """Blocks of the rows that ids name, NaN for those outside of the tensor."""
    to, row = tl.program_id(0).to(tl.int64), tl.load(ids_ptr + tl.program_id(0))
    block, j = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)[:, None], tl.arange(0, SIZE)[None, :]
    there = (row >= 0) & (row < rows)
    start = src_ptr + tl.where(there, row, 0) * per_row * BYTES
    value = decode((start + tl.minimum(block, per_row - 1) * BYTES, table_ptr), j)
    value = tl.where(there, value, float("nan")).to(dst_ptr.dtype.element_ty)
    tl.store(dst_ptr + to * per_row * SIZE + block * SIZE + j, value, mask=block < per_row)
'''


@functools.cache
def _scope(source):
    """The names that a decode function's text defines, with kernels around it."""
    name = f"<dequantize {hash(source):x}>"
    functions = source.replace("\ndef ", "\n@triton.jit\ndef ")
    lines = [line for line in functions.splitlines() if not line.startswith("ELEMENTS")]
    text = "\n".join(lines) + "\n" + _KERNELS
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name  # where Triton looks for its text
    scope = dict(globals())
    exec(compile(text, name, "exec"), scope)
    sizes = {}
    exec(source.partition("\n")[0], sizes)
    return scope, sizes["ELEMENTS"], sizes["BYTES"]


@functools.cache
def _table(gpu, content):
    """(address, owner) of a look-up table on a GPU."""
    host = ctypes.create_string_buffer(content, len(content))
    address, owner = gpu.allocate(len(content))
    gpu.upload(address, ctypes.addressof(host), len(content))
    return address, owner


def _of_blocks(name, out, source):
    scope, size, nbytes = _scope(source)
    some, content = max(1, min(ELEMENTS // size, 1024)), scope["TABLE"]
    ids, extra = ((), ("i64",)) if name == "dequantize" else (("*i64",), ("i32", "i64"))
    types = ("*u8", "*u8", *ids, pointer(out), *extra)
    kernel = Kernel(scope[name], types, fuse=False, SIZE=size, BYTES=nbytes, BLOCKS=some)
    kernel.items = some * size

    def dequantize(gpu, words):
        src, dst, count = words
        if count:
            lines = _table(gpu, content)[0] if content else src
            kernel(gpu, (blocks(count, some), 1, 1), src, lines, dst, count)

    def dequantize_rows(gpu, words):
        src, ids, dst, count, per_row, rows = words
        if count and per_row:
            lines = _table(gpu, content)[0] if content else src
            kernel(gpu, (count, blocks(per_row, some), 1), src, lines, ids, dst, per_row, rows)

    return kernel, dequantize if name == "dequantize" else dequantize_rows


# ---- planes ----------------------------------------------------------------------------------------------------------


@triton.jit
def bits_of(ptr, group, j, BITS: tl.constexpr):
    """Bits of weights j of groups of 32, as quant_layout.py places them in a plane of BITS bits per weight."""
    half, t = j // 16, j % 16
    if BITS == 8:
        found = tl.load(ptr + group * 32 + j).to(tl.int32)
    elif BITS == 4:
        found = (tl.load(ptr + group * 16 + t).to(tl.int32) >> half * 4) & 15
    elif BITS == 2:
        found = (tl.load(ptr + group * 8 + 4 * half + t % 4).to(tl.int32) >> t // 4 * 2) & 3
    else:
        found = (tl.load(ptr + group * 4 + t % 4).to(tl.int32) >> half * 4 + t // 4) & 1
    return found


@triton.jit
def weights(
    low_ptr, high_ptr, scale_ptr, base_ptr, group, j, LOW: tl.constexpr, HIGH: tl.constexpr, KIND: tl.constexpr,
    BIAS: tl.constexpr, TABLE: tl.constexpr, MINIMUM: tl.constexpr,
):  # fmt: skip
    """Weights j of groups of 32, in f32."""
    code = bits_of(low_ptr, group, j, LOW)
    if HIGH:
        code |= bits_of(high_ptr, group, j, HIGH) << LOW
    if TABLE is not None:
        code = look_up(code, TABLE)
    elif LOW == 8:
        code = code.to(tl.int8).to(tl.int32)
    else:
        code -= BIAS
    first, second, low, high = scales(scale_ptr, base_ptr, group, group // 8, group >= 0, KIND)
    value = tl.where(j < 16, first, second) * code.to(tl.float32)
    if MINIMUM > 0:
        value += tl.where(j < 16, low, high)
    elif MINIMUM < 0:
        value -= tl.where(j < 16, low, high)
    return value


@triton.jit
def planes(
    low_ptr, high_ptr, scale_ptr, base_ptr, dst_ptr, count, GROUPS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    KIND: tl.constexpr, BIAS: tl.constexpr, TABLE: tl.constexpr, MINIMUM: tl.constexpr,
):  # fmt: skip
    """Groups of 32 weights to floats."""
    group, j = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)[:, None], tl.arange(0, 32)[None, :]
    at = tl.minimum(group, count - 1)
    value = weights(low_ptr, high_ptr, scale_ptr, base_ptr, at, j, LOW, HIGH, KIND, BIAS, TABLE, MINIMUM)
    tl.store(dst_ptr + group * 32 + j, value.to(dst_ptr.dtype.element_ty), mask=group < count)


@triton.jit
def planes_rows(
    low_ptr, high_ptr, scale_ptr, base_ptr, ids_ptr, dst_ptr, per_row, rows, GROUPS: tl.constexpr, LOW: tl.constexpr,
    HIGH: tl.constexpr, KIND: tl.constexpr, BIAS: tl.constexpr, TABLE: tl.constexpr, MINIMUM: tl.constexpr,
):  # fmt: skip
    """Weights of the rows that ids name, NaN for those outside of the tensor."""
    to, row = tl.program_id(0).to(tl.int64), tl.load(ids_ptr + tl.program_id(0))
    group, j = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)[:, None], tl.arange(0, 32)[None, :]
    there = (row >= 0) & (row < rows)
    at = tl.where(there, row, 0) * per_row + tl.minimum(group, per_row - 1)
    value = weights(low_ptr, high_ptr, scale_ptr, base_ptr, at, j, LOW, HIGH, KIND, BIAS, TABLE, MINIMUM)
    value = tl.where(there, value, float("nan")).to(dst_ptr.dtype.element_ty)
    tl.store(dst_ptr + (to * per_row + group) * 32 + j, value, mask=group < per_row)


def _of_planes(name, format, out):
    row, some = ROWS[format], ELEMENTS // 32
    scale, base = SCALE_TYPES[row.scale]
    rest = ("i64",) if name == "planes" else ("i32", "i64")
    types = ("*u8", "*u8", scale, base, *(() if name == "planes" else ("*i64",)), pointer(out), *rest)
    kernel = Kernel(
        planes if name == "planes" else planes_rows, types, fuse=False, GROUPS=some, LOW=row.low, HIGH=row.high,
        KIND=row.scale, BIAS=row.bias, TABLE=codebook(row), MINIMUM=row.minimum,
    )  # fmt: skip
    kernel.items = some * 32

    def whole(gpu, words):
        *where, dst, count = words
        if count:
            kernel(gpu, (blocks(count, some), 1, 1), *where, dst, count)

    def picked(gpu, words):
        *where, ids, dst, count, per_row, rows = words
        if count and per_row:
            grid = (count, blocks(per_row, some), 1)
            kernel(gpu, grid, *where, ids, dst, per_row, rows)

    return kernel, whole if name == "planes" else picked


def build(name, *params, source=None):
    """See kernels_triton/__init__.py."""
    if len(params) != 2 or params[1] not in OUTPUTS:
        return None
    if name in ("planes", "planes_rows"):
        return _of_planes(name, *params)[1] if params[0] in ROWS else None
    if name in ("dequantize", "dequantize_rows") and source is not None:
        return _of_blocks(name, params[1], source() if callable(source) else source)[1]
    return None


def variants(arch):
    """See kernels_triton/__init__.py. (Kernels of blocks need a format's text, which is not here.)"""
    formats = ("q4_0", "q8_0", "q4_k", "q6_k", "q3_k", "iq4_xs")
    kernels = {f"planes {f} f16": _of_planes("planes", f, "f16")[0] for f in formats}
    return kernels | {f"planes_rows {f} f32": _of_planes("planes_rows", f, "f32")[0] for f in ("q4_k", "q6_k")}
