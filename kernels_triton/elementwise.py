"""Elementwise operations: an expression of expressions.py put into one of two templates, as a generated function.

Words as in kernels_numba/elementwise.py. What all operands walk evenly is `flat`: programs of BLOCK elements, all but
the last of them without a mask, so that every load is 16 bytes wide whatever n is. Anything else is `tiled`: rows and
columns of the two innermost dims, outer dims from the grid. Only what a program adds to an address once is 64 bits
wide; offsets inside a tile have 32, unless strides are so large that they do not fit. A stride of 0 or 1 is part of the
source, so that broadcast operands are loaded once, rows by 16 bytes, and a transposed operand along its own rows.

A kernel's arguments: per operand (the output first) its address, or the bits of a number; then the template's integers.
The text depends on the expression, the dtypes and the strides' classes alone, and is kept in Python's line cache, where
Triton looks it up: nothing is written to disk but Triton's own cache.
"""

import hashlib
import linecache
import struct

import triton
import triton.language as tl
from triton.language.extra import libdevice

from . import convert, float8, functions, library
from .expressions import LETTERS, OPERANDS, composed, expression, translated
from .launch import Kernel, blocks, pick, power_of_2

BYTES = {
    80: 4096,
    "gfx942": 8192,
}  # of the widest operand, per program of 128 (256) threads; tiles have twice as many elements
COLUMNS = (1024, 256, 64)  # of a tile, the widest first: whole cache lines of any row
SIDE = {8: 32, 4: 64, 2: 128, 1: 64}  # of a square tile with a transposed operand, by the widest itemsize
FEW = 3  # arrays of which a thread holds 16 elements of 4 bytes in 48 registers
LIMIT = 65535  # programs along all axes of a grid but the first
KEPT = 1024  # layouts that a row remembers
ANY = frozenset((0, 1, "n"))
SCOPE = {"tl": tl, "libdevice": libdevice, "library": library, "__name__": __name__}
SCOPE |= {k: v for m in (convert, float8, functions) for k, v in vars(m).items() if hasattr(v, "fn")}


def compiled(name, text):
    """The Triton function of that name that `text` defines."""
    file = f"<{name} {hashlib.sha256(text.encode()).hexdigest()[:12]}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope = dict(SCOPE)
    exec(compile(text, file, "exec"), scope)
    return triton.jit(scope[name])


class Row:
    """An expression with its dtypes: what both templates are filled with."""

    def __init__(self, name, compute, out, operands, source):
        self.names = OPERANDS.get(name, LETTERS[: len(operands)])
        self.compute, self.dtypes = compute, dict(zip("o" + self.names, (out, *operands), strict=True))
        steps, value = composed(source) if name == "fused" else ([], source)
        self.steps = [
            f"{step} = {translated(text, compute)}" for step, text in (line.split(" = ", 1) for line in steps)
        ]
        self.name, self.value = f"{name}_elements", translated(value, compute)

    def type_of(self, name, is_number):
        """The type of an operand's argument."""
        return ("i32" if self.compute == "f32" else "i64") if is_number else convert.memory(self.dtypes[name])

    def argument(self, word):
        """A number's word as that argument: an f32's or f64's bits, or the integer itself."""
        if self.compute == "f32":
            return (word ^ 1 << 31) - (1 << 31)
        return struct.unpack("<q", struct.pack("<d", word))[0] if self.compute == "f64" else word

    def number(self, name):
        """Text of a number's argument as a value."""
        if self.compute in ("f32", "f64"):
            bits = self.compute[1:]
            value = f"{name}.to(tl.int{bits}).to(tl.float{bits}, bitcast=True)"
        else:
            value = f"({name} != 0)" if self.compute == "bool" else f"{name}.to({convert.register(self.compute)})"
        return convert.converted(value, "bool") if name == "c" else value

    def loaded(self, name):
        """Text of what was loaded under a name as a value of the dtype that is computed in."""
        dtype, target = self.dtypes[name], "bool" if name == "c" else self.compute
        value = convert.loaded(name, dtype)
        return value if convert.register(dtype) == convert.register(target) else convert.converted(value, target)

    def width(self, numbers):
        """Bytes of the widest element, in memory or between."""
        wide = any(f"{name}(" in text for name in functions.IN_F64 for text in (*self.steps, self.value))
        return 8 if wide else max(convert.width(d) for k, d in self.dtypes.items() if k not in numbers)

    def function(self, numbers, places, whole, part, parameters, head, arch):
        """The Triton function: `places` are two (address, mask) by operand, for programs where `whole` holds and for
        others, which do it in parts if `part` begins a loop. A pointer has an underscore behind its operand's name.
        """
        value = convert.converted(self.value, self.dtypes["o"], arch)
        lines = [*head, *(f"{k} = {self.number(k)}" for k in numbers)]
        lines += [f"{k} = {self.loaded(k)}" for k in self.names if k not in numbers and k not in places]
        for which, words in ((0, [f"if {whole}:"]), (1, ["else:", *part])):
            given = {k: (p[which][0], p[which][1] and f", mask={p[which][1]}") for k, p in places.items()}
            body = [f"{k} = tl.load({at}{mask})" for k, (at, mask) in given.items() if k != "o"]
            body += [f"{k} = {self.loaded(k)}" for k in given if k != "o"]
            body += [*self.steps, f"value = {value}", f"tl.store({given['o'][0]}, value{given['o'][1]})"]
            lines += ["    " * n + word for n, word in enumerate(words)]
            lines += ["    " * len(words) + line for line in body]
        names = [k if k in numbers else f"{k}_" for k in "o" + self.names]
        text = f"def {self.name}({', '.join([*names, *parameters])}):\n    " + "\n    ".join(lines) + "\n"
        return compiled(self.name, text)


# ---- all operands walk evenly ----------------------------------------------------------------------------------------


def flat(row, classes, arch):
    """The kernel of rank 1 for operands whose stride is "1" or "0", or that are numbers, "n": one letter each.

    Its integers: how many blocks are full, and how many elements the last one has.
    """
    letters = dict(zip("o" + row.names, classes, strict=True))
    numbers = [k for k, c in letters.items() if c == "n"]
    alone = [k for k, c in letters.items() if c == "0"]
    width = row.width(numbers)
    places = {k: ((f"{k}_ + first + at", ""), (f"{k}_ + first + (start + some)", "start + some < rest"))
              for k, c in letters.items() if c == "1"}  # fmt: skip
    block = pick(BYTES, arch) // max(2, width) // (2 if len(places) > 2 * FEW else 1)
    piece = min(block, 1024, 2048 // width)
    # the widest decides how many adjacent elements a thread has of any: no exchange in shared memory
    run = "tl.max_contiguous(tl.arange(0, {}), " + f"{16 // width})"
    head = ["pid = tl.program_id(0)", f"at = {run.format('BLOCK')}", f"some = {run.format('PIECE')}"]
    head += ["first = pid.to(tl.int64) * BLOCK"]
    head += [f"{k} = tl.broadcast_to(tl.load({k}_), [1])" for k in alone]
    part = ["for start in tl.range(0, rest, PIECE):"]
    parameters = ["full", "rest", "BLOCK: tl.constexpr", "PIECE: tl.constexpr"]
    fn = row.function(numbers, places, "pid < full", part, parameters, head, arch)
    types = [row.type_of(k, k in numbers) for k in letters]
    kernel = Kernel(fn, (*types, "i32", "i32"), BLOCK=block, PIECE=piece)
    kernel.items, kernel.straight = block, True
    return kernel


# ---- tiles of rows and columns ---------------------------------------------------------------------------------------


def _place(k, inner, outer, single, turned):
    """Two (address, mask) of an operand's elements, in whole tiles and in others, by the classes of its strides;
    `single`: tiles of a row; `turned`: whole ones have all of their rows.
    """
    places = []
    for i, whole in (("i", True), ("(start + some)", False)):
        down, along = {"0": "", "1": " + I", "s": f" + I * {k}_i"}, {"0": "", "1": " + j", "s": f" + j * {k}_j"}
        masks = ["I < left_i"] if outer != "0" and not single and not (whole and turned) else []
        masks += ["j < left_j"] if inner != "0" and not whole else []
        at, mask = f"{k}_{down[outer]}{along[inner]}", " & ".join(f"({m})" for m in masks)
        places.append((at.replace("I", i), mask.replace("I", i)))
    return places


def tiled(row, classes, dims, wide, axes, shape, arch):
    """The kernel of tiles for operands of two letters each: classes "0", "1" or "s" of the inner and of the row stride.

    Its integers: rows, columns, the sizes of all outer dims but the last; then per operand the row stride and the inner
    stride that are "s", and a stride for each outer dim. `axes`: those of the grid that rows, columns and outer dims
    take; `wide`: integers have 64 bits, and so have offsets in a tile. Ragged tiles are done in halves, since masks by
    element take registers.
    """
    letters = dict(zip("o" + row.names, classes, strict=True))
    arrays = {k: c for k, c in letters.items() if c != "n"}
    numbers = [k for k in letters if k not in arrays]
    run = min(shape[1], 16 // row.width(numbers))
    ranges = {"i": "tl.arange(0, I)", "j": f"tl.max_contiguous(tl.arange(0, J), {run})"}
    integer, large = ("tl.int64", ".to(tl.int64)") if wide else ("tl.int32", "")
    head = [
        f"{a}0 = tl.program_id({axes[n]}){large} * {a.upper()}\n"
        f"    left_{a} = tl.minimum({size} - {a}0, {a.upper()}).to(tl.int32)\n"
        f"    {a} = {ranges[a]}{cut}{large}"
        for n, (a, size, cut) in enumerate((("i", "rows", "[:, None]"), ("j", "columns", "[None, :]")))
    ]
    head += [f"left = tl.program_id({axes[2]}).to(tl.uint32)"] if dims else []
    for d in range(dims - 1):
        head += [f"up = left // size{d}.to(tl.uint32)", f"e{d} = (left - up * size{d}).to({integer})", "left = up"]
    head += [f"e{dims - 1} = left.to({integer})"] if dims else []
    strides, divisible = [], []
    for k, (inner, outer) in arrays.items():
        along = {"i": outer, "j": inner}
        own = [f"{k}_{a}" for a, c in along.items() if c == "s"] + [f"{k}_{d}" for d in range(dims)]
        terms = [(f"{a}0", c == "s" and f"{k}_{a}") for a, c in along.items() if c != "0"]
        terms += [(f"e{d}", f"{k}_{d}") for d in range(dims)]
        text = " + ".join(f"{at}.to(tl.int64)" + (f" * {stride}" if stride else "") for at, stride in terms)
        head += [f"{k}_ += {text}"] if terms else []
        head += [f"{k} = tl.broadcast_to(tl.load({k}_), [1, 1])"] if (inner, outer) == ("0", "0") else []
        strides += own
        divisible += own if "1" in (inner, outer) else []
    sizes = [f"size{d}" for d in range(dims - 1)]
    turned, part = "s1" in arrays.values(), max(1, shape[0] // 2)  # turned: a lane walks along rows
    places = {k: _place(k, *c, shape[0] == 1, turned) for k, c in arrays.items() if c != "00"}
    whole = "(left_i == I) & (left_j == J)" if turned else "left_j == J"
    head += [f"some = tl.arange(0, PART)[:, None]{large}"]
    parameters = ["rows", "columns", *sizes, *strides, *(f"{c}: tl.constexpr" for c in ("I", "J", "PART"))]
    loop = ["for start in tl.range(0, left_i, PART):"]
    fn = row.function(numbers, places, whole, loop, parameters, head, arch)
    kind = "i64" if wide else "i32"
    types = [*(row.type_of(k, k in numbers) for k in letters), kind, kind, *["i32"] * len(sizes)]
    types += [kind] * len(strides)
    warps = 8 if shape[0] * shape[1] > 2048 else 4
    kernel = Kernel(fn, types, divisible, warps=warps, I=shape[0], J=shape[1], PART=part)
    kernel.items, kernel.straight = shape[0] * shape[1], True
    return kernel


def tile(rows, columns, turned, width, arrays, arch):
    """(rows, columns) of a tile: what leaves few lanes idle, and few columns to tiles that are not full.

    >>> tile(4096, 4096, False, 4, 3, 80), tile(4096, 1000, False, 4, 3, 80), tile(4096, 4096, True, 4, 3, 80)
    ((2, 1024), (32, 64), (64, 64))
    """
    most = (2 if arrays <= FEW else 1) * pick(BYTES, arch) // max(2, width)
    if turned:
        i = min(SIDE[width], power_of_2(rows))
        return i, max(16, min(SIDE[width] if i >= 16 else most // i, power_of_2(columns)))
    sizes = [c for c in COLUMNS if c <= min(most, power_of_2(columns))] or [power_of_2(columns)]
    j = min(sizes, key=lambda c: blocks(columns, c) * c + 3 * (columns % c and c))
    return min(most // j, power_of_2(rows)), j


def _letter(stride):
    return "01"[stride] if stride in (0, 1) else "s"


def strided(row):
    """What launches a row on words that `flat` does not fit: a function (gpu, words)."""
    names, kernels, layouts = "o" + row.names, {}, {}
    sizes, count = [convert.width(row.dtypes[k]) for k in names], len(names)
    first = 4 + 5 * count

    def arranged(arch, words):
        """(kernel, grid, its integers) for words: all that does not depend on addresses and numbers."""
        columns, rows, outer, dims = words[:4]
        strides, classes, steps, lengths = [], [], [], words[first :: count + 1]
        for k, size in enumerate(sizes):
            address, inner, _, down, _ = words[4 + 5 * k : 9 + 5 * k]
            if not address:
                classes.append("n")
                continue
            down //= size
            classes.append(_letter(inner) + _letter(down))
            strides += [down] * (classes[-1][1] == "s") + [inner] * (classes[-1][0] == "s")
            strides += [step // size for step in words[first + k + 1 :: count + 1]]
            steps.append((abs(down), abs(inner)))
        width = row.width([n for n, c in zip(names, classes) if c == "n"])
        shape = tile(rows, columns, "s1" in classes, width, len(steps), arch)
        far = max(rows + shape[0], columns + shape[1], *map(abs, strides))
        wide = max(far, *(shape[0] * down + shape[1] * inner for down, inner in steps)) >= 1 << 31
        grid = blocks(rows, shape[0]), blocks(columns, shape[1]), outer
        axes = (1, 0, 2) if grid[1] > LIMIT else (2, 1, 0) if grid[2] > LIMIT else (0, 1, 2)
        key = (*classes, dims, wide, axes, shape)
        kernel = kernels.get(key)
        if kernel is None:
            kernel = kernels[key] = tiled(row, classes, dims, wide, axes, shape, arch)
        return kernel, [grid[a] for a in axes], (rows, columns, *lengths[: max(0, dims - 1)], *strides)

    def launch(gpu, words):
        addresses, values = words[4:first:5], words[8:first:5]
        layout = list(words)
        layout[4:first:5], layout[8:first:5] = map(bool, addresses), (0,) * count
        layout = (gpu.arch, *layout)
        found = layouts.get(layout)
        if found is None:
            if len(layouts) >= KEPT:
                layouts.clear()
            found = layouts[layout] = arranged(gpu.arch, words)
        kernel, grid, integers = found
        kernel(gpu, grid, *(a or row.argument(v) for a, v in zip(addresses, values)), *integers)

    return launch


def build(name, *params, source=None):
    """Kernel `name` for (computed in, output, *operands); words as in kernels_numba/elementwise.py.

    None if there is no such row. `source`: an expression in place of the row's.
    """
    compute, out, *operands = params
    text = source() if callable(source) else source or expression(name, compute)
    if text is None:
        return None
    try:
        row = Row(name, compute, out, operands, text)
    except KeyError:  # a function that there is no row of
        return None
    launch, kernels, most = strided(row), {}, 5 * len(params) - 1  # where the operands' words end

    def plan(gpu, words):
        n, rows, outer = words[:3]
        classes = [inner if address else "n" for address, inner in zip(words[4:most:5], words[5:most:5])]
        if rows != 1 or outer != 1 or classes[0] != 1 or not ANY.issuperset(classes):
            launch(gpu, words)
            return
        classes = tuple(classes)
        kernel = kernels.get(classes)
        if kernel is None:
            kernel = kernels[classes] = flat(row, "".join(map(str, classes)), gpu.arch)
        block = kernel.consts["BLOCK"]
        starts = [a or row.argument(value) for a, value in zip(words[4:most:5], words[8:most:5])]
        kernel(gpu, (blocks(n, block), 1, 1), *starts, n // block, n % block)

    return plan


def variants(arch):
    """Representative kernels of both templates, for the committed table of what the compiler makes of them."""

    def row(name, compute, *dtypes):
        return Row(name, compute, dtypes[0], dtypes[1:], expression(name, compute))

    def tiles(found, classes, dims, shape):
        return tiled(found, classes, dims, False, (0, 1, 2), shape, arch)

    add, half = row("add", "f32", "f32", "f32", "f32"), row("add", "f32", "bf16", "bf16", "bf16")
    found = {
        "add f32": flat(add, "111", arch), "add bf16": flat(half, "111", arch),
        "add f32, a number": flat(add, "11n", arch),
        "add f32, rows": tiles(add, ["1s", "1s", "1s"], 0, (2, 1024)),
        "add bf16, rows": tiles(half, ["1s", "1s", "1s"], 0, (4, 1024)),
        "add f32, bias": tiles(add, ["1s", "1s", "10"], 0, (2, 1024)),
        "add f32, bias, short rows": tiles(add, ["1s", "1s", "10"], 0, (32, 64)),
        "add f32, column": tiles(add, ["1s", "1s", "0s"], 0, (8, 256)),
        "add f32, 4 dims": tiles(add, ["1s", "1s", "1s"], 2, (8, 256)),
        "add f32, transposed": tiles(add, ["1s", "1s", "s1"], 0, (64, 64)),
        "add bf16, transposed": tiles(half, ["1s", "1s", "s1"], 0, (64, 64)),
        "where f32 bool, rows": tiles(row("where", "f32", "f32", "bool", "f32", "f32"), ["1s"] * 4, 0, (1, 1024)),
        "add f32, any strides": tiles(add, ["ss", "ss", "ss"], 1, (8, 256)),
    }  # fmt: skip
    for name, compute, *dtypes in (
        ("silu", "f32", "bf16", "bf16"), ("gelu", "f32", "f32", "f32"), ("exp", "f32", "f32", "f32"),
        ("where", "f32", "f32", "bool", "f32", "f32"), ("copy", "f32", "f16", "f32"), ("copy", "f32", "f32", "bf16"),
        ("copy", "f32", "f8e4m3", "f32"), ("copy", "f32", "f32", "f8e5m2"), ("lt", "f32", "bool", "f32", "f32"),
        ("floor_divide", "i64", "i64", "i64", "i64"), ("tanh", "f64", "f64", "f64"), ("copy", "u8", "u8", "u8"),
    ):  # fmt: skip
        found[f"{name} {' '.join(dtypes)}"] = flat(row(name, compute, *dtypes), "1" * len(dtypes), arch)
    return found
