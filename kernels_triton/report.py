"""What the compiler made of a kernel, read off its machine code: no GPU needed.

    python -m kernels_triton.report matmul attention --arch 80 90      a table on standard output

Columns: registers per thread, bytes of stack (spills), bytes of shared memory; global loads and stores by width in bits
(asynchronous copies and TMA among the loads); the hottest loop's instructions, matrix instructions, and how many of the
former per one of the latter; conversions from integers (I2F) and compares (SETP) in that loop; and, where the kernel
says how many items one pass of that loop (or the kernel, if it has none) treats, the instructions per item: of a kernel
without a loop, or with one for ragged ends only, those on the way that whole blocks take.
"""

import argparse
import hashlib
import importlib
import pkgutil
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

from .launch import ALIGNED, DIVISIBLE

ARCHITECTURES = (80, 90, 120, 100, 89, 75, "gfx942")
COLUMNS = (
    "room", "kernel", "arch", "hash", "registers", "stack", "shared", "warps", "instructions", "loads", "stores",
    "loop", "mma", "per_mma", "i2f", "compares", "per_item",
)  # fmt: skip
MMA = re.compile(r"^(HMMA|IMMA|QMMA|DMMA|HGMMA|IGMMA|QGMMA|UTC\w*MMA)\b")
_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(@!?\w+\s+)?([A-Z][\w.]*)([^;]*);")
_BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def target(arch):
    """Triton's GPUTarget of 75, 80, ... or "gfx942"."""
    return GPUTarget("hip", arch, 64) if isinstance(arch, str) else GPUTarget("cuda", arch, 32)


def rooms():
    """Names of the files here that export `variants`."""
    names = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)])]
    skipped = ("driver", "launch", "report")
    return [n for n in names if n not in skipped and hasattr(importlib.import_module(f"{__package__}.{n}"), "variants")]


def variants(room, arch):
    """{label: Kernel} of a room for an architecture."""
    return importlib.import_module(f"{__package__}.{room}").variants(arch)


def digest(kernel, arch):
    """What the compiled code depends on, in 12 digits: source, types, constants, options, Triton's version."""
    options = (kernel.warps, kernel.stages, kernel.fuse, triton.__version__, str(arch)) + (
        kernel.registers or 0,
    ) * bool(kernel.registers)
    text = kernel.source(ALIGNED | DIVISIBLE).hash() + repr(options)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _tool(name, *arguments, binary):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        done = subprocess.run([_BINARIES / name, *arguments, file.name], capture_output=True, text=True, check=True)
    return done.stdout


def _instructions(sass):
    """([opcode with its modifiers], {label: place}, [(place, label) of a branch], places of what may not be executed)
    of a disassembly.
    """
    opcodes, labels, branches, optional = [], {}, [], set()
    for line in sass.splitlines():
        label = re.match(r"\s*(\.L_\w+):", line)
        if label:
            labels[label[1]] = len(opcodes)
        found = _LINE.search(line)
        if found:
            aim = re.search(r"(\w*)\W*`\((\.L_\w+)\)", found[3])
            if found[2].startswith("BRA") and aim:
                branches.append((len(opcodes), aim[2]))
            if found[1] or (found[2].startswith("BRA") and aim and aim[1]):
                optional.add(len(opcodes))
            opcodes.append(found[2])
    return opcodes, labels, branches, optional


def _wide_path(opcodes, labels, branches, optional):
    """How many instructions the shortest way to the end takes, outside of loops, that stores most, wide stores first:
    what whole blocks run, where another branch does the ragged end.
    """
    aims = {at: labels.get(label, at + 1) for at, label in branches}
    looped = {at for last, aim in aims.items() if aim < last for at in range(aim, last + 1)}
    best = [(0, 0)] * (len(opcodes) + 1)
    for at in reversed(range(len(opcodes))):
        ends = opcodes[at].startswith(("EXIT", "RET"))
        ways = [best[at + 1]] if at in optional or not (ends or opcodes[at].startswith("BRA")) else []
        ways += [best[aims[at]]] if aims.get(at, 0) > at else [(0, 0)] if ends else []
        stored, length = (1, 0) if at in looped else min(ways, default=(1, 0))  # 1: no way
        stored -= int(_width(opcodes[at])) ** 4 if opcodes[at].startswith("STG") and stored <= 0 else 0
        best[at] = stored, length + (opcodes[at] != "NOP")
    return best[0][1]


def _hot_loop(opcodes, labels, branches):
    """Opcodes of the innermost loop with most matrix instructions (of equal ones the shortest: others mask), else the
    longest.
    """
    loops = [(labels[aim], at + 1) for at, aim in branches if labels.get(aim, at + 1) <= at]
    loops = [(a, b) for a, b in loops if b - a > 1]
    inner = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    bodies = [opcodes[a:b] for a, b in inner]
    count = lambda body: sum(bool(MMA.match(o)) for o in body)  # noqa: E731
    return max(bodies, key=lambda body: (count(body), -len(body) if count(body) else len(body)), default=[])


def _width(opcode):
    bits = re.search(r"\.(128|64|U8|S8|U16|S16)\b", opcode)
    return {None: "32", "U8": "8", "S8": "8", "U16": "16", "S16": "16"}.get(bits and bits[1], bits and bits[1])


def _widths(opcodes, *kinds):
    found = Counter(_width(o) if o.split(".")[0] != "UTMALDG" else "tma" for o in opcodes if o.split(".")[0] in kinds)
    return " ".join(f"{n}x{w}" for w, n in sorted(found.items(), key=lambda item: -item[1]))


def _nvidia(compiled, straight):
    binary = compiled.asm["cubin"]
    usage = _tool("cuobjdump", "-res-usage", binary=binary)
    number = lambda key: int(next(iter(re.findall(rf"{key}:(\d+)", usage)), 0))  # noqa: E731
    opcodes, labels, branches, optional = _instructions(_tool("nvdisasm", "-c", binary=binary))
    loop, path = [], _wide_path(opcodes, labels, branches, optional)
    if not straight:
        loop = _hot_loop(opcodes, labels, branches)
    opcodes = [o for o in opcodes if o != "NOP"]
    mma = Counter(o.split(".")[0] for o in loop if MMA.match(o)) or Counter(
        o.split(".")[0] for o in opcodes if MMA.match(o)
    )
    count = sum(mma.values())
    return {
        "registers": number("REG"), "stack": number("STACK"), "instructions": len(opcodes), "path": path,
        "loads": _widths(opcodes, "LDG", "LDGSTS", "UTMALDG"), "stores": _widths(opcodes, "STG"), "loop": len(loop),
        "mma": " ".join(f"{n}x{k}" for k, n in mma.items()),
        "per_mma": f"{len(loop or opcodes) / count:.1f}" if count else "",
        "i2f": sum(o.startswith("I2F") for o in loop), "compares": sum("SETP" in o for o in loop),
    }  # fmt: skip


def _amd(compiled):
    text = compiled.asm["amdgcn"]
    number = lambda key: int(next(iter(re.findall(rf"\.{key}:\s+(\d+)", text)), 0))  # noqa: E731
    mma = Counter(re.findall(r"^\s+(v_mfma|v_wmma)", text, re.M))
    opcodes = re.findall(r"^\s+((?:global|buffer|flat)_(?:load|store)_\w+)", text, re.M)
    widths = lambda kind: " ".join(  # noqa: E731
        f"{n}x{w}" for w, n in Counter(o.rpartition("_")[2] for o in opcodes if kind in o).most_common()
    )
    return {
        "registers": number("vgpr_count"), "stack": number("private_segment_fixed_size"),
        "instructions": len(re.findall(r"^\s+[svb]\w*_\w+ ", text, re.M)), "loads": widths("_load_"),
        "stores": widths("_store_"), "loop": "", "mma": " ".join(f"{n}x{k}" for k, n in mma.items()), "per_mma": "",
        "i2f": "", "compares": "",
    }  # fmt: skip


def facts(kernel, arch):
    """The columns of one kernel for one architecture; compiles it."""
    compiled = kernel.compile(target(arch))
    found = _amd(compiled) if isinstance(arch, str) else _nvidia(compiled, kernel.straight)
    executed = found["loop"] or found.pop("path", found["instructions"])
    each = f"{executed * 32 * kernel.warps / kernel.items:.2f}" if kernel.items else ""
    found.pop("path", None)
    return {"shared": compiled.metadata.shared, "warps": kernel.warps, **found, "per_item": each}


def table(names, architectures):
    """Rows of the table, one dict each, for rooms and architectures."""
    for room in names:
        for arch in architectures:
            for label, kernel in variants(room, arch).items():
                known = {"room": room, "kernel": label, "arch": arch, "hash": digest(kernel, arch)}
                try:
                    yield known | facts(kernel, arch)
                except Exception as e:
                    raise RuntimeError(f"{room}: {label} does not compile for {arch}") from e


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rooms", nargs="*", help="files of kernels_triton; default: all")
    parser.add_argument("--arch", nargs="*", default=["80", "90", "120"])
    given = parser.parse_args()
    architectures = [int(a) if a.isdigit() else a for a in given.arch]
    shown = [c for c in COLUMNS if c not in ("room", "hash")]
    print("  ".join(shown))
    for row in table(given.rooms or rooms(), architectures):
        print("  ".join(str(row[c]) or "-" for c in shown), flush=True)


if __name__ == "__main__":
    main()
