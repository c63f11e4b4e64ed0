"""The Python array API standard, 2024.12, on tensorlib: for libraries that are written against it.

https://data-apis.org/array-api/2024.12. Arrays are Tensors with the standard's promotion, indexing, names and errors
where they differ from PyTorch's; a Tensor becomes one with `asarray`, which shares its memory. The default float dtype
is float32. Complex numbers are not implemented: `complex64` and `complex128` are names that raise when they are used,
and there is no `fft` extension. `linalg` is there.

>>> from tensorlib import array_api as xp
>>> x = xp.asarray([[1.0, 2.0], [3.0, 4.0]])
>>> xp.sum(x * 2, axis=1), x.__array_namespace__() is xp
(tensor([ 6., 14.]), True)
"""

import math as _math

from tensorlib.array_api import linalg
from tensorlib.array_api._array import VERSION as __array_api_version__
from tensorlib.array_api._array import NDArray
from tensorlib.array_api._creation import (
    arange,
    asarray,
    empty,
    empty_like,
    eye,
    from_dlpack,
    full,
    full_like,
    linspace,
    meshgrid,
    ones,
    ones_like,
    tril,
    triu,
    zeros,
    zeros_like,
)
from tensorlib.array_api._dtypes import (
    DTYPES,
    astype,
    can_cast,
    complex64,
    complex128,
    finfo,
    iinfo,
    isdtype,
    result_type,
)
from tensorlib.array_api._elementwise import FUNCTIONS, clip, where
from tensorlib.array_api._info import __array_namespace_info__
from tensorlib.array_api._manipulation import (
    broadcast_arrays,
    broadcast_to,
    concat,
    expand_dims,
    flip,
    matrix_transpose,
    moveaxis,
    nonzero,
    permute_dims,
    repeat,
    reshape,
    roll,
    squeeze,
    stack,
    take,
    take_along_axis,
    tile,
    unstack,
)
from tensorlib.array_api._searching import (
    argmax,
    argmin,
    argsort,
    count_nonzero,
    searchsorted,
    sort,
    unique_all,
    unique_counts,
    unique_inverse,
    unique_values,
)
from tensorlib.array_api._statistics import (
    all,
    any,
    cumulative_prod,
    cumulative_sum,
    diff,
    max,
    mean,
    min,
    prod,
    std,
    sum,
    var,
)
from tensorlib.array_api.linalg import matmul, tensordot, vecdot

e, pi, inf, nan, newaxis = _math.e, _math.pi, _math.inf, _math.nan, None
globals().update(DTYPES)
globals().update(FUNCTIONS)

__all__ = [
    "NDArray", "__array_api_version__", "__array_namespace_info__", "all", "any", "arange",
    "argmax", "argmin", "argsort", "asarray", "astype", "broadcast_arrays", "broadcast_to", "can_cast", "clip",
    "complex128", "complex64", "concat", "count_nonzero", "cumulative_prod", "cumulative_sum", "diff", "e", "empty",
    "empty_like", "expand_dims", "eye", "finfo", "flip", "from_dlpack", "full", "full_like", "iinfo", "inf", "isdtype",
    "linalg", "linspace", "matmul", "matrix_transpose", "max", "mean", "meshgrid", "min", "moveaxis", "nan",
    "newaxis", "nonzero", "ones", "ones_like", "permute_dims", "pi", "prod", "repeat", "reshape", "result_type",
    "roll", "searchsorted", "sort", "squeeze", "stack", "std", "sum", "take", "take_along_axis", "tensordot", "tile",
    "tril", "triu", "unique_all", "unique_counts", "unique_inverse", "unique_values", "unstack", "var", "vecdot",
    "where", "zeros", "zeros_like",
]  # fmt: skip
__all__.extend((*DTYPES, *FUNCTIONS))
