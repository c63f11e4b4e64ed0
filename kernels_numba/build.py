"""Numba function -> LLVM IR -> machine code for one CPU level -> one flat, position-independent file.

Only this file and the kernel rooms import numba and llvmlite; a warm start loads what they made (`cache.py`).
The steps: Numba types the function and emits IR; the IR is retargeted and optimised by llvmlite; the ELF object is
linked flat in Python, refusing any undefined symbol and any absolute relocation.
"""

import importlib
import re
import struct

import llvmlite.binding as llvm
import numba
from numba import njit, types

from . import levels, simd

CompileError = numba.core.errors.NumbaError
_I64 = types.int64
_SIGNATURE = (_I64, _I64, _I64)


def build_kernel(room, name, params, level, source=None):
    """Machine code of kernel `name` of kernels_numba/`room`.py for `level`: (bytes, entry offset), or None if there is
    none.

    `params` are the strings (or ints) that the room's `build` takes, `source` the text of a decode function for rooms
    that compile one. All kernels of a process are built for one level. ValueError for a kernel that is not
    self-contained.
    """
    compiled = _compile(room, name, params, level, source)
    if compiled is None:
        return None
    module, machine = compiled
    code, entries = link_flat(machine.emit_object(module))
    return code, entries["kernel"]


def assembly(room, name, params, level, source=None):
    """The same kernel as assembly text, to read."""
    module, machine = _compile(room, name, params, level, source)
    return machine.emit_assembly(module)


def _compile(room, name, params, level, source):
    levels.TARGET = level
    module = importlib.import_module(f"{__package__}.{room}")
    function = module.build(name, *params, source=source)
    if function is None:
        return None
    text = _wrap(*_numba_ir(function), "kernel")
    if getattr(module, "SAME_ON_ALL_LEVELS", False):  # then no product may be fused with a sum
        text = text.replace(" contract ", " ")
    target = levels.LEVELS[level]
    return _optimise(text, target._replace(features=target.features + getattr(module, "FEATURES", "")))


def _numba_ir(function):
    old = numba.config.OPT
    try:
        # our own pass pipeline runs after retargeting: Numba's would only cost time
        numba.config.OPT = numba.core.config._OptLevel(0)
        kernel = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
        kernel.compile(_SIGNATURE)
    finally:
        numba.config.OPT = old
    result = kernel.overloads[_SIGNATURE]
    return result.library.get_llvm_str().replace(f"{simd.ALIAS}llvm.", "llvm."), result.fndesc.llvm_func_name


def _wrap(text, mangled, name):
    """Adds `void name(i64, i64, i64)` around Numba's calling convention (return slot, exception slot, arguments)."""
    return f"""{text}
define void @{name}(i64 %a, i64 %b, i64 %c) {{
  %ret = alloca ptr
  %exc = alloca ptr
  %r = call i32 @"{mangled}"(ptr %ret, ptr %exc, i64 %a, i64 %b, i64 %c)
  ret void
}}
"""


def _optimise(text, level):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(level.triple)
    machine = target.create_target_machine(
        cpu=level.cpu, features=level.features, opt=3, reloc="pic", codemodel="small"
    )
    text = re.sub(r'target triple = "[^"]*"', f'target triple = "{level.triple}"', text)
    text = re.sub(r'target datalayout = "[^"]*"', f'target datalayout = "{machine.target_data}"', text)
    # no loop may become a call of memset or memcpy: there is nothing to call
    text = re.sub(r"^(define .*)\{$", r'\1 "no-builtins" {', text, flags=re.M)
    # a function's own target attributes would override the machine's
    text = re.sub(r'"(?:target-cpu|target-features|tune-cpu)"="[^"]*"', "", text)
    module = llvm.parse_assembly(text)
    for function in module.functions:
        if not function.is_declaration:
            function.linkage = "external" if function.name == "kernel" else "internal"
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    options = llvm.create_pipeline_tuning_options(3)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = True
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module, machine


# ---- a linker for one object: lay the sections out, resolve what points inside, refuse the rest ----------------------

_X86_PC32 = (2, 4)  # R_X86_64_PC32, R_X86_64_PLT32
_X86_PC64 = 24
_ARM_ADR_PAGE = 275
_ARM_LO12 = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}  # ADD/LDST8/16/32/64/128_ABS_LO12_NC: access size shift
_ARM_BRANCH = (282, 283)


def link_flat(obj):
    """ELF64 little-endian object (bytes) -> (flat code, {symbol: offset}). ValueError on what cannot be
    position-independent.
    """
    sections, names = _sections(obj)
    wanted = [i for i, s in enumerate(sections) if s.flags & 2 and s.size and not names[i].startswith(".eh_frame")]
    out, at = bytearray(), {}
    for i in sorted(wanted, key=lambda i: not sections[i].flags & 4):  # code first
        s = sections[i]
        out += b"\xcc" * (-len(out) % max(64, s.align))
        at[i] = len(out)
        out += bytes(s.size) if s.kind == 8 else obj[s.offset : s.offset + s.size]
    symbols = _symbols(obj, sections)
    machine = struct.unpack_from("<H", obj, 18)[0]
    for s in sections:
        if s.kind == 4 and s.info in at:
            for k in range(s.size // 24):
                offset, info, addend = struct.unpack_from("<QQq", obj, s.offset + 24 * k)
                name, section, value = symbols[info >> 32]
                if section not in at:
                    raise ValueError(f"link: undefined symbol {name!r}: a kernel may call nothing outside itself")
                _relocate(out, machine, info & 0xFFFFFFFF, at[s.info] + offset, at[section] + value + addend, name)
    return bytes(out), {n: at[sec] + v for n, sec, v in symbols if sec in at and n}


class _Section:
    __slots__ = ("align", "flags", "info", "kind", "link", "name", "offset", "size")

    def __init__(self, obj, position):
        fields = struct.unpack_from("<IIQQQQIIQQ", obj, position)
        self.name, self.kind, self.flags, _, self.offset, self.size, self.link, self.info, self.align, _ = fields


def _string(obj, start):
    return obj[start : obj.index(b"\0", start)].decode()


def _sections(obj):
    table = struct.unpack_from("<Q", obj, 0x28)[0]
    size, count, names = struct.unpack_from("<HHH", obj, 0x3A)
    sections = [_Section(obj, table + i * size) for i in range(count)]
    return sections, [_string(obj, sections[names].offset + s.name) for s in sections]


def _symbols(obj, sections):
    table = next(s for s in sections if s.kind == 2)
    strings = sections[table.link].offset
    rows = [struct.unpack_from("<IBBHQQ", obj, table.offset + 24 * k) for k in range(table.size // 24)]
    return [(_string(obj, strings + name), section, value) for name, _, _, section, value, _ in rows]


def _relocate(out, machine, kind, place, target, name):
    def patch(bits):
        struct.pack_into("<I", out, place, struct.unpack_from("<I", out, place)[0] | bits)

    if machine == 62 and kind in _X86_PC32:
        struct.pack_into("<i", out, place, target - place)
    elif machine == 62 and kind == _X86_PC64:
        struct.pack_into("<q", out, place, target - place)
    elif machine == 183 and kind in _ARM_BRANCH:
        patch(((target - place) >> 2) & 0x3FFFFFF)
    elif machine == 183 and kind == _ARM_ADR_PAGE:
        pages = (target >> 12) - (place >> 12)
        patch(((pages & 3) << 29) | (((pages >> 2) & 0x7FFFF) << 5))
    elif machine == 183 and kind in _ARM_LO12:
        patch(((target & 0xFFF) >> _ARM_LO12[kind]) << 10)
    elif machine == 183 and kind == 261:  # R_AARCH64_PREL32
        struct.pack_into("<i", out, place, target - place)
    else:
        raise ValueError(f"link: relocation {kind} of machine {machine} against {name!r} is not position-independent")
