"""What a product is, as its plan sees it: the decoded words, which of its dims are in order, what it is computed in."""

import functools
from collections import namedtuple

import triton.language as tl

from .epilogue import sum_parts
from .float8 import KINDS, reading
from .launch import TYPES, Kernel, blocks, power_of_2, scratch

WHOLE = ("bool", "u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")
FLOATS = {"f16": tl.float16, "bf16": tl.bfloat16, "f32": tl.float32, "f64": tl.float64}
FLOATS8 = {"f8e4m3": tl.float8e4nv, "f8e5m2": tl.float8e5}
SHORT = {"f16": 11, "bf16": 8, "f8e4m3": 4, "f8e5m2": 3, "i8": 7, "u8": 8, "bool": 1}  # significant bits
SIZES = {name: 1 if "8" in name or name == "bool" else int(name[-2:]) // 8 for name in TYPES} | {"none": 0}
PRECISIONS = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}  # of a product of f32

Names = namedtuple("Names", "a b c bias residual act precision")
Numbers = namedtuple("Numbers", "family dot sum precision")
Batch = namedtuple("Batch", "size a b c r")
ONE = Batch(1, 0, 0, 0, 0)


def tensor_cores(arch):
    """Whether Triton multiplies matrices with them."""
    return isinstance(arch, str) or arch >= 80


def _dot(a, b, arch):
    """What two float operands (or one and an integer) are multiplied in without a rounding; f32 if nothing shorter."""
    if not tensor_cores(arch):
        return "f32"
    if a == b and a in FLOATS8 and not isinstance(arch, str) and arch >= 89:
        return a
    for dtype in ("f16", "bf16"):
        if all(d == dtype or (d not in FLOATS and SHORT.get(d, 99) <= SHORT[dtype]) for d in (a, b)):
            return dtype
    return "f32"


def eight(dtype):
    """EIGHT of float8.py for writing: 4 or 5, 0 if it is no float8."""
    return KINDS.get(dtype, 0)


def reads(names, dot, arch, interpreted):
    """[(EIGHT, type of the pointer)] of A and B, which are multiplied in `dot` (None: in something long)."""
    if dot is not None and dot.is_fp8():
        return [(0, "*" + dot.name)] * 2
    found = [reading(d, arch, interpreted) for d in (names.a, names.b)]
    return [(how, "*" + TYPES[dtype]) for how, dtype in found]


def memory(dtype):
    """The type of a pointer to elements that are written, or to nothing: float8 is bytes."""
    return "*u8" if dtype in KINDS else "*" + TYPES.get(dtype, "fp32")


def numbers(names, arch):
    """The family of tiles, the dtypes that are multiplied and summed in, and the precision of f32 operands."""
    a, b, c = names[:3]
    if c in WHOLE:
        if a == b == c and c in ("i8", "u8") and tensor_cores(arch):
            return Numbers("byte", tl.int8, tl.int32, "ieee")
        return Numbers("whole", None, tl.int64 if c in ("i64", "u64") else tl.int32, "ieee")
    if c == "f64":
        return Numbers("double", tl.float64, tl.float64, "ieee")
    dot = _dot(a, b, arch)
    if dot in FLOATS8:
        return Numbers("float8", FLOATS8[dot], tl.float32, "ieee")
    if dot != "f32":
        return Numbers("half", FLOATS[dot], tl.float32, "ieee")
    precision = "tf32" if {a, b} <= set(SHORT) else PRECISIONS[names.precision]
    precision = "ieee" if isinstance(arch, str) or arch < 80 else precision
    return Numbers(precision, tl.float32, tl.float32, precision)


class Product:
    """The words but the addresses; `outer`: batch dims that take a launch each, `batch`: the two inner ones."""

    def __init__(self, words):
        self.m, self.n, self.k = words[:3]
        self.a, self.b, self.c, self.r = words[3:5], words[5:7][::-1], words[7:9], words[10:12]
        self.bias, self.flipped = words[9], False
        dims = [Batch(*words[i : i + 5]) for i in range(13, 13 + 5 * words[12], 5)]
        self.outer, self.batch = dims[:-2], ([ONE, ONE] + dims)[-2:] if len(dims) < 2 else dims[-2:]
        self.count = self.batch[0].size * self.batch[1].size
        if self.m == 1:  # strides of a dim of one element mean nothing
            self.a, self.c, self.r = (0, self.a[1]), (0, self.c[1]), (0, self.r[1])
        if self.n == 1:
            self.b, self.c = (0, self.b[1]), (self.c[0], 1) if self.c[0] != 1 else self.c
        if self.k == 1:
            self.a, self.b = (self.a[0], 1), (self.b[0], 1)

    def flip(self):
        """The same product transposed."""
        self.m, self.n, self.a, self.b = self.n, self.m, self.b, self.a
        self.c, self.r, self.flipped = self.c[::-1], self.r[::-1], not self.flipped
        swap = lambda d: Batch(d.size, d.b, d.a, d.c, d.r)  # noqa: E731
        self.outer, self.batch = [*map(swap, self.outer)], [*map(swap, self.batch)]
        return self

    def units(self):
        """Which dim of A (m, k), of B (k, n), of C (m, n) has stride 1; "" if none."""
        return (
            "k" if self.a[1] == 1 else "m" if self.a[0] == 1 else "",
            "k" if self.b[1] == 1 else "n" if self.b[0] == 1 else "",
            "n" if self.c[1] == 1 else "m" if self.c[0] == 1 else "",
        )

    def own_names(self, names):
        """The names of the operands as they stand here."""
        return names._replace(a=names.b, b=names.a) if self.flipped else names

    def offsets(self, names):
        """Of every product of the outer dims, the offsets in bytes of A, B, C and the residual, before a flip."""
        found, sizes = [(0, 0, 0, 0)], [SIZES[n] for n in (names.a, names.b, names.c, names.residual)]
        for d in self.outer:
            steps = [x * s for x, s in zip((d.b, d.a, d.c, d.r) if self.flipped else d[1:], sizes, strict=True)]
            found = [tuple(x + i * s for x, s in zip(at, steps)) for at in found for i in range(d.size)]
        return found

    def along(self, names):
        """The dim that the bias runs along ("n any": not of unit stride), "" without one."""
        step = "" if self.bias == 1 else " any"
        return "" if names.bias == "none" else ("m" if self.flipped != (names.act == "scaled") else "n") + step

    def arguments(self, depth, part, parts):
        """What follows the addresses; of C as it is, or where it is in `parts` contiguous parts of `part` elements."""
        (o, i), plain = self.batch, parts > 1
        c, c_0, c_1 = ((self.n, 1), i.size * self.m * self.n, self.m * self.n) if plain else (self.c, o.c, i.c)
        return (
            self.m, self.n, self.k, *self.a, *self.b[::-1], *c, self.bias, *self.r,
            i.size, o.a, i.a, o.b, i.b, c_0, c_1, o.r, i.r, depth, part,
        )  # fmt: skip


SUMS = {"fp32": "f32", "fp64": "f64", "int32": "i32", "int64": "i64"}
ARGUMENTS = "M N K a_m a_k b_k b_n c_m c_n bias_step r_m r_n inner a_0 a_1 b_0 b_1 c_0 c_1 r_0 r_1 depth part".split()
_AT = {name: i for i, name in enumerate(ARGUMENTS)}
INTEGERS = ("i32",) * 3 + ("i64",) * 9 + ("i32",) + ("i64",) * 8 + ("i32", "i64")


def by_16(groups, arguments):
    """The names of those groups of arguments that 16 divides."""
    return tuple(n for group in groups if all(arguments[_AT[n]] % 16 == 0 for n in group) for n in group)


def residual(product, names):
    """How the residual lies: "" (none), "rows" (unit stride along n), "any"."""
    return "" if names.residual == "none" else "rows" if product.r[1] == 1 else "any"


def scratch_then(first, rest, nbytes):
    """`first` into scratch memory instead of C, and `rest` from there."""

    def run(gpu, a, b, c, bias, r):
        sums, owner = scratch(gpu, nbytes)
        first(gpu, a, b, sums, bias, r)
        rest(gpu, sums, c, bias, r)
        del owner  # what is launched next waits for these launches, as they are in one stream

    return run


def summing(product, names, numbers, parts):
    """What adds `parts` sums and finishes: a function (gpu, address of the sums, C, bias, residual)."""
    rows, (o, i) = product.count * product.m, product.batch
    block = min(1024, max(128, power_of_2(product.n)))
    kernel = _sum_kernel(
        names, SUMS[numbers.sum.name], by_16([("N", "c_m", "c_0", "c_1")], product.arguments(0, 0, 1)), block,
        product.units()[2], product.along(names), residual(product, names),
    )  # fmt: skip
    tail = (
        parts, rows * product.n, product.m, product.n, *product.c, product.bias, *product.r,
        i.size, o.c, i.c, o.r, i.r,
    )  # fmt: skip
    grid = (rows * blocks(product.n, block), 1, 1)
    return lambda gpu, sums, c, bias, r: kernel(gpu, grid, sums, c, bias, r, *tail)


@functools.cache
def _sum_kernel(names, dtype, divisible, block, unit, bias, lies):
    types = [memory(d) for d in (dtype, names.c, names.bias, names.residual)]
    integers = ("i32", "i64", "i32", "i32", *("i64",) * 5, "i32", *("i64",) * 4)
    consts = {
        "C_UNIT": unit,
        "C_EIGHT": eight(names.c),
        "BIAS": bias,
        "ACT": names.act,
        "RESIDUAL": lies,
        "BLOCK": block,
    }
    return Kernel(sum_parts, (*types, *integers), divisible, **consts)
