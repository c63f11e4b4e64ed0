"""CPU levels: what the kernels are compiled for, and which one this machine has. Standard library only."""

import platform
from typing import NamedTuple


class Level(NamedTuple):
    """A target: LLVM triple, CPU name, feature string, the /proc/cpuinfo flags it needs, and the matmul's tile
    width.
    """

    triple: str
    cpu: str
    features: str
    flags: frozenset
    tokens: int  # columns of the quantised matmul's register tile: 2 * tokens accumulators of 512 bits


TARGET = "portable"  # the level that this process compiles for: set by build.py before anything compiles
_X86, _ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
_AVX2 = "avx2 fma f16c bmi1 bmi2 movbe"
_AVX512 = f"{_AVX2} avx512f avx512bw avx512vl avx512dq avx512cd avx512_vnni"


LEVELS = {
    # -prefer-256-bit: auto-vectorised loops use zmm, measured 1.3 to 1.5 times faster on exp and silu
    "avx512vnni": Level(_X86, "x86-64-v4", "+avx512vnni,-prefer-256-bit", frozenset(_AVX512.split()), 12),
    "avx2": Level(_X86, "x86-64-v3", "", frozenset(_AVX2.split()), 4),
    "neon": Level(_ARM, "neoverse-n1", "+neon,+dotprod,+fullfp16", frozenset(["asimddp"]), 4),
    "portable": Level(_X86, "x86-64-v2", "", frozenset("ssse3 sse4_1 sse4_2 popcnt".split()), 2),
}
_BEST_FIRST = {"x86_64": ("avx512vnni", "avx2", "portable"), "aarch64": ("neon",)}


def cpu_flags():
    """Feature flags of the first CPU in /proc/cpuinfo, as the kernel names them (empty where there is no such file)."""
    try:
        with open("/proc/cpuinfo") as f:
            for line in f:
                if line.startswith(("flags", "Features")):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def dots_bf16(level):
    """Whether this CPU has the instruction of `bf16.py`, and kernels of `level` may use it."""
    return level == "avx512vnni" and "avx512_bf16" in cpu_flags()


def detect():
    """Name of the best level that this CPU has, or None on a machine that no level is for."""
    flags = cpu_flags()
    names = _BEST_FIRST.get(platform.machine(), ())
    return next((n for n in names if LEVELS[n].flags <= flags), None)
