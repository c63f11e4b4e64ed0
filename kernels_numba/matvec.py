"""Products with few rows: C[m, n] = x[m] . w[n], bound by reading W, so that W is read once, in order, and not packed.

`matvec` takes W as rows along k (a Linear's weight), four rows at once; `vecmat` takes one x and W as rows along n, and
walks down blocks of columns. f32, f16 and bf16, computed in f32. Every result is one fixed chain of sums.
"""

from . import scalar
from .matmul import BIAS, SIZES, bias_at, compiled, kernel, load16
from .simd import LEVEL as _  # noqa: F401  (a change of simd is a change of these kernels)

HALVES = ("f32", "f16", "bf16")
