"""tensorlib: tensors and language models in plain Python, eager like PyTorch.

>>> import tensorlib
>>> x = tensorlib.tensor([[1.0, 2.0], [3.0, 4.0]])
>>> x @ x.T + 0.5
tensor([[ 5.5000, 11.5000],
        [11.5000, 25.5000]])
>>> tensorlib.softmax(x, dim=1).argmax(dim=1), (x > 2).sum()
(tensor([1, 1]), tensor(2))

Importing it imports no NumPy, Numba or PyTorch: each is loaded by what needs it. `tensorlib.nn`, `tensorlib.io`,
`tensorlib.quant` and the functions on tensors are found when first used.
"""

import importlib

__version__ = "0.1.0"

from tensorlib.autograd import enable_grad, is_grad_enabled, no_grad, set_grad_enabled
from tensorlib.device import Device
from tensorlib.dtype import (
    DType,
    bf16,
    f8e4m3,
    f8e5m2,
    f16,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)
from tensorlib.dtype import bool_ as bool
from tensorlib.dtype import (
    promote as promote_types,
)
from tensorlib.random import (
    Generator,
    bernoulli,
    dropout,
    get_rng_state,
    initial_seed,
    manual_seed,
    multinomial,
    seed,
    set_rng_state,
)
from tensorlib.tensor import (
    Tensor,
    arange,
    as_tensor,
    empty,
    empty_like,
    exponential,
    eye,
    from_dlpack,
    from_numpy,
    from_torch,
    full,
    full_like,
    linspace,
    normal,
    ones,
    ones_like,
    rand,
    rand_like,
    randint,
    randn,
    randn_like,
    randperm,
    tensor,
    uniform,
    zeros,
    zeros_like,
)

uint8, int8, uint16, int16, uint32, int32, uint64, int64 = u8, i8, u16, i16, u32, i32, u64, i64
float16, bfloat16, float32, float64 = f16, bf16, f32, f64
half, float, double, int, long, short = f16, f32, f64, i32, i64, i16
float8_e4m3fn, float8_e5m2 = f8e4m3, f8e5m2
inf, nan = 1e999, 1e999 - 1e999

__all__ = [
    "Tensor", "Device", "DType", "Generator", "arange", "as_tensor", "bernoulli", "bf16", "bfloat16", "bool",
    "double", "dropout", "empty", "empty_like", "enable_grad", "exponential", "eye", "f16", "f32", "f64", "f8e4m3",
    "f8e5m2",
    "float", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "from_dlpack", "from_numpy", "from_torch",
    "full", "full_like", "get_rng_state", "half", "i16", "i32", "i64", "i8", "inf", "initial_seed", "is_grad_enabled",
    "no_grad", "set_grad_enabled", "int",
    "int16", "int32", "int64", "int8", "linspace", "long", "manual_seed", "multinomial", "nan", "normal", "ones",
    "ones_like", "promote_types", "rand", "rand_like", "randint", "randn", "randn_like", "randperm", "seed",
    "set_rng_state", "short", "tensor",
    "u16", "u32", "u64", "u8", "uint16", "uint32", "uint64", "uint8", "uniform", "zeros",
    "zeros_like",
]  # fmt: skip

_MODULES = {"linalg": "lapack", "fft": "fft"}  # torch's modules, where tensorlib.ops has functions of their names


_SUBMODULES = frozenset("amp array_api autograd custom data fusion io names nn ops optim quant testing train".split())


def __getattr__(name):
    """Functions on tensors (`tensorlib.exp`) and submodules (`tensorlib.nn`), when first used."""
    if name == "fuse":
        return importlib.import_module("tensorlib.fusion").fuse
    if name in ("load", "save"):
        return getattr(importlib.import_module("tensorlib.io.files"), name)
    if name == "quantize":
        return importlib.import_module("tensorlib.quant.encode").quantize
    if name in _MODULES:
        return importlib.import_module(f"tensorlib.ops.{_MODULES[name]}")
    if name in _SUBMODULES:  # before the search below, which imports every op
        return importlib.import_module(f"tensorlib.{name}")
    if not name.startswith("_"):
        found = importlib.import_module("tensorlib.ops.search").find(name)
        if found is not None:
            globals()[name] = found
            return found
    raise AttributeError(f"module 'tensorlib' has no attribute {name!r}")
