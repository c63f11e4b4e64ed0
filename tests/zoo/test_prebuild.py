"""Kernels compiled ahead of time are all that generation needs: no compiler is imported after it."""

import sys

BUILD = """
import sys
from zoo import cli
sys.exit(cli.main(["kernels", "build", "-d", sys.argv[1]]))
"""
GENERATE = """
import sys
from kernels_numba import cache
cache.folders = lambda level, root: [f"{sys.argv[2]}/{level}", f"{sys.argv[2]}/none"]
from zoo.generate import load
model = load(sys.argv[1])
assert len(list(model.generate([1, 2, 3, 4, 5], 8))) == 8
assert len(list(model.generate(list(range(9)), 8, stop_ids=[300]))) == 8
print([name for name in ("numba", "llvmlite", "numpy", "torch", "triton") if name in sys.modules])
"""


def test_generation_needs_no_compiler_after_a_build(tmp_path, tiny_llama, run_python):
    from zoo.llama import TINY

    path = tiny_llama("q4_1", config=TINY._replace(head_dim=64))
    run_python(BUILD, str(tmp_path))
    assert list(tmp_path.rglob("*.krn"))
    assert run_python(GENERATE, str(path), str(tmp_path)).strip() == "[]", sys.platform
    assert not (tmp_path / "none").exists()
