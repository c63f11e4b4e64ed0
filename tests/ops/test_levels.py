"""Every CPU level compiles on any host, links without relocations, and uses the instructions it is there for."""

import pytest

from kernels_numba import levels

SHOW = """
import sys
from kernels_numba import build
level, *words = sys.argv[1:]
for name, *params in (w.split(":") for w in words):
    params = [int(p) if p.isdigit() else p for p in params]
    assert build.build_kernel("quant", name, params, level)
    print(build.assembly("quant", name, params, level))
for name in ("worker", "run", "run_alone"):
    assert build.build_kernel("pool", name, (), level)
assert build.build_kernel("panels", "panels", (0, "gelu"), level)
"""
DOT = {"avx512vnni": "vpdpbusd", "avx2": "vpmaddubsw", "neon": "sdot", "portable": "pmaddwd"}


@pytest.mark.parametrize("level", levels.LEVELS)
def test_compiles_for_any_level(level, run_python):
    tokens = levels.LEVELS[level].tokens
    text = run_python(SHOW, level, "matvec:q4_1", f"matmul:q4_1:{tokens}", f"kept:q4_1:{tokens}:gelu", "quantize")
    assert text.count(DOT[level]) >= 4 or level == "portable"
    for other in set(DOT.values()) - {DOT[level], "pmaddwd"}:
        assert other not in text


BF16 = """
import sys
from kernels_numba import build
for room, name, *params in (("bf16", "pack"), ("bf16", "gemm", "bf16"), ("bf16_rows", "matvec", "bf16")):
    if build.build_kernel(room, name, params, sys.argv[1]) is not None:
        print(name, build.assembly(room, name, params, sys.argv[1]).count("vdpbf16ps"))
"""


def test_products_of_bf16(run_python):
    found = dict(line.split() for line in run_python(BF16, "avx512vnni").splitlines())
    # tiles of 14, 8 and 4 rows by 2 vectors; of 5, 4, 3, 2 and 1 rows by 4
    assert found["pack"] == "0" and int(found["gemm"]) >= 52 and int(found["matvec"]) >= 60
    assert run_python(BF16, "avx2") == ""


def test_bf16_needs_its_instruction(monkeypatch):
    monkeypatch.setattr(levels, "cpu_flags", lambda: levels.LEVELS["avx512vnni"].flags)
    assert not levels.dots_bf16("avx512vnni")
    monkeypatch.setattr(levels, "cpu_flags", lambda: levels.LEVELS["avx512vnni"].flags | {"avx512_bf16"})
    assert levels.dots_bf16("avx512vnni") and not levels.dots_bf16("avx2")


def test_detects_the_best_level(monkeypatch):
    flags = levels.LEVELS["avx512vnni"].flags
    monkeypatch.setattr(levels.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(levels, "cpu_flags", lambda: flags)
    assert levels.detect() == "avx512vnni"
    monkeypatch.setattr(levels, "cpu_flags", lambda: flags - {"avx512_vnni"})
    assert levels.detect() == "avx2"
    monkeypatch.setattr(levels, "cpu_flags", lambda: levels.LEVELS["portable"].flags)
    assert levels.detect() == "portable"
    monkeypatch.setattr(levels.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(levels, "cpu_flags", lambda: frozenset(["asimddp", "fp"]))
    assert levels.detect() == "neon"
    monkeypatch.setattr(levels.platform, "machine", lambda: "riscv64")
    assert levels.detect() is None
