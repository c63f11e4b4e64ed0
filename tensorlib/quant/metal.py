"""A format's decode function as Metal's text: what .metal kernels of quantised weights include.

`PRELUDE` once, then `text(format)` per format gives `float decode_NAME(device const uchar *b, int j)`, element j of the
block b, and `ELEMENTS_NAME`, `BYTES_NAME`. The functions are those of formats.py, operator for operator. Products and
sums must not be fused: the prelude begins with `#pragma METAL fp contract(off)`.

>>> print(text("q8_0"))
constant constexpr int ELEMENTS_q8_0 = 32, BYTES_q8_0 = 34;
inline float decode_q8_0(device const uchar *b, int j) {
    return (f16(b, 0) * float(i8(b, (2 + j))));
}
"""

import ast

from tensorlib.quant import formats, source

PRELUDE = """#pragma METAL fp contract(off)
inline int u8(device const uchar *b, int o) { return int(b[o]); }
inline int i8(device const uchar *b, int o) { return (int(b[o]) ^ 0x80) - 0x80; }
inline int u16(device const uchar *b, int o) { return int(b[o]) | int(b[o + 1]) << 8; }
inline int i16(device const uchar *b, int o) { return (u16(b, o) ^ 0x8000) - 0x8000; }
inline int i32(device const uchar *b, int o) { return int(uint(u16(b, o)) | uint(u16(b, o + 2)) << 16); }
inline float as_f16(int bits) { return float(as_type<half>(ushort(bits))); }
inline float as_f32(int bits) { return as_type<float>(bits); }
inline float f16(device const uchar *b, int o) { return as_f16(u16(b, o)); }
inline float f32(device const uchar *b, int o) { return as_f32(i32(b, o)); }
inline ulong u64(device const uchar *b, int o) { return ulong(uint(i32(b, o))) | ulong(uint(i32(b, o + 4))) << 32; }
inline float i64(device const uchar *b, int o) { return float(long(u64(b, o))); }
inline float f64(device const uchar *b, int o) {
    ulong bits = u64(b, o), m = bits & 0xFFFFFFFFFFFFFul;
    int e = int(bits >> 52 & 0x7FF) - 1023;
    uint sign = uint(bits >> 63) << 31;
    if (e == 1024) return as_type<float>(sign | 0x7F800000u | (m ? 0x400000u : 0u));
    int drop = e < -126 ? min(29 - 126 - e, 63) : 29;
    m |= e == -1023 ? 0ul : 1ul << 52;
    ulong kept = m >> drop, rest = m & ((1ul << drop) - 1), half_way = 1ul << (drop - 1);
    kept += rest > half_way || (rest == half_way && (kept & 1)) ? 1 : 0;
    uint out = uint(kept) + (e < -126 ? 0u : uint(e + 126) << 23);
    return as_type<float>(sign | (e > 127 || out > 0x7F800000u ? 0x7F800000u : out));
}
"""
BINARY = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "/", ast.Mod: "%", ast.BitAnd: "&", ast.BitOr: "|",
    ast.BitXor: "^", ast.RShift: ">>",
}  # fmt: skip
COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
UNARY = {ast.USub: "-", ast.Invert: "~"}


class _Printer:
    """Expressions and statements of the subset of Python that decode functions are written in."""

    def __init__(self, row):
        self.row, self.names = row, {}

    def expression(self, node):
        if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
            return f"({self.expression(node.left)} {BINARY[type(node.op)]} {self.expression(node.right)})"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift):
            return f"int(uint({self.expression(node.left)}) << {self.expression(node.right)})"
        if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
            return f"({UNARY[type(node.op)]}{self.expression(node.operand)})"
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            right = self.expression(node.comparators[0])
            return f"({self.expression(node.left)} {COMPARE[type(node.ops[0])]} {right})"
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.Constant) and type(node.value) is float:
            return f"{node.value!r}f"
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return repr(node.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self.call(node.func.id, [self.expression(a) for a in node.args])
        raise NotImplementedError(f"Metal text of {ast.unparse(node)!r} in {self.row.name}: not in the subset")

    def call(self, name, given):
        if name == "float32":
            return f"float({given[0]})"
        if name == "where":
            return "({} ? {} : {})".format(*given)
        if name == "table":
            return f"int(TABLE_{self.row.name}[{given[1]}])"
        return f"{self.names.get(name, name)}({', '.join(given)})"

    def function(self, text, name, result):
        """A function's text, under another name."""
        (tree,) = ast.parse(text).body
        self.names[tree.name] = name
        kinds = {"b": "device const uchar *b"}
        given = ", ".join(kinds.get(a.arg, f"int {a.arg}") for a in tree.args.args)
        lines, known = [], {a.arg for a in tree.args.args}
        for node in tree.body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue  # its docstring
            if isinstance(node, ast.Return):
                lines.append(f"    return {self.expression(node.value)};")
            else:
                (target,) = node.targets
                several = isinstance(target, ast.Tuple)
                pairs = zip(target.elts, node.value.elts) if several else [(target, node.value)]
                for one, value in pairs:
                    kind = "" if one.id in known else "auto "
                    known.add(one.id)
                    lines.append(f"    {kind}{one.id} = {self.expression(value)};")
        return f"inline {result} {name}({given}) {{\n" + "\n".join(lines) + "\n}"


def text(spec):
    """The Metal text of a GGML format: its sizes, its table, its helpers, `decode_NAME`.

    Helpers have the format's name behind theirs, so that the texts of several formats may stand in one file.
    """
    row = formats.get(spec)
    printer, parts = _Printer(row), [f"ELEMENTS_{row.name} = {row.elements}, BYTES_{row.name} = {row.nbytes}"]
    parts = [f"constant constexpr int {parts[0]};"]
    table = row.table_bytes()
    if table:
        values = ", ".join(str(v - 256 if v > 127 else v) for v in table)
        parts.append(f"constant constexpr char TABLE_{row.name}[{len(table)}] = {{{values}}};")
    *helping, _ = functions = source.functions(row)
    for helper in helping:
        name = helper[len("def ") : helper.index("(")]
        parts.append(printer.function(helper, f"{name}_{row.name}", "float" if name == "signed" else "int"))
    parts.append(printer.function(functions[-1], f"decode_{row.name}", "float"))
    return "\n".join(parts)
