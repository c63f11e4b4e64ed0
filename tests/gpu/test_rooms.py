"""The tests of every room of kernels, written for the interpreter, on the GPU: long rows, ties, the bits of the CPU.

Left out are those of matrix products that set another architecture than the device has.
"""

import importlib
import inspect

from tests.gpu.conftest import lacking
from tests.quant.conftest import samples  # noqa: F401 - a fixture
from tests.sim.interpreted.test_matmul import tf32  # noqa: F401 - a fixture

ROOMS = (
    "attention attention_vjp elementwise fuse index lapack loss matmul moe norm quant random reduce scan sort".split()
)

for _room in () if lacking() else ROOMS:
    for _name, _test in vars(importlib.import_module(f"tests.sim.interpreted.test_{_room}")).items():
        if _name.startswith("test_") and (
            _room != "matmul" or "monkeypatch" not in inspect.signature(_test).parameters
        ):
            globals()[f"test_{_room}_{_name[5:]}"] = _test
