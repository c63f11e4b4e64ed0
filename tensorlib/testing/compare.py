"""Whether a result is what its reference in float64 says, as far as rounding lets it be.

Two checks. Element by element: |found - want| <= ulps * 2 u |want| + what rounding inside may cost (see
`tensorlib.testing.noise`). As a whole: ||found - want|| <= (4 u_out + 16 u_acc) ||want|| + 2 ||what rounding may
cost||, which errors in one direction do not pass. NaN and infinities must be where the reference has them; what
nothing rounds, integers and bools must be equal.
"""

import numpy as np

from tensorlib import dtype as _dtype
from tensorlib.testing.noise import ROUNDED, SMALLEST, UNIT

# Units in the last place, measured against 36 digits when the functions were written (kernels_numba/exponentials.py),
# one added for the composition in the row; what is not named has DEFAULT_ULPS, a single rounding half of one.
ULPS = {"tanh": 3, "sinh": 3, "erfc": 5, "gelu": 8, "gelu_tanh": 4, "sigmoid": 3, "silu": 4, "mish": 6, "softplus": 3}
ULPS |= {"logsigmoid": 3, "elu": 3, "hardsigmoid": 3, "hardswish": 4, "rsqrt": 2, "pow": 2, "floor_divide": 1}
ULPS |= {"celu": 4, "lgamma": 8, "digamma": 8, "erfinv": 6, "xlogy": 3, "sinc": 3}
NEAR_ZERO = {"lgamma": 18, "digamma": 18}  # units of u: near their roots only the absolute error is small
DEFAULT_ULPS = 2
F64_MORE = 4  # functions of f64 are compared with NumPy's, whose error of up to 4 ulp adds to ours


def assert_close(found, want, dtype=None, ulps=DEFAULT_ULPS, absolute=0.0, decided=None, what="", compute=None):
    """AssertionError unless `found` (an Array or NumPy) is `want`, rounded to `dtype` (by default found's).

    ulps: units in the last place that the computation may be off, of what it computes in (f32 for narrow dtypes, which
    round once more), unless `compute` names that; 0: exact. absolute: what else it may be off, a number or an array.
    decided: where the two are compared at all.

    >>> import numpy as np
    >>> assert_close(np.float32([0.1, 3]), np.array([0.1, 3.0]), "f32", ulps=0.5)
    >>> assert_close(np.float32([1.000001]), np.array([1.0]), "f32")
    Traceback (most recent call last):
    AssertionError: 1 of 1 differ: got 1.0000009536743164, want 1.0 at (0,): 8 ulp of f32, 2 are allowed
    """
    found = found if isinstance(found, (np.ndarray, np.generic)) else found.numpy()
    dtype = _dtype.get(found.dtype if dtype is None else dtype).name
    want = np.asarray(want)
    assert found.shape == want.shape, f"{what}got shape {found.shape}, want {want.shape}"
    decided = np.ones(want.shape, bool) if decided is None else decided
    if _dtype.get(dtype).kind != "f":
        _assert_equal(found, want, decided, what)
        return
    found, want = found.astype(np.float64), want.astype(np.float64)
    compute = compute or ("f64" if dtype == "f64" else "f32")
    narrow = dtype not in ("f32", "f64")
    # a narrow dtype's one rounding to nearest, or that of an exact value, is half a unit: u |x|
    factor = 2 * ulps * UNIT[compute] + (UNIT[dtype] if narrow else 0)
    tiny = max(1, ulps) * SMALLEST[dtype] + ulps * SMALLEST["f64" if dtype == "f64" else "f32"]
    with np.errstate(all="ignore"):
        bound = factor * np.abs(want) + (tiny if factor else 0) + absolute
        top = _dtype.info(_dtype.get(dtype))[1]
        # where the bound reaches beyond the largest number, the result may be infinite (NaN in f8e4m3), or the largest
        overflow = (np.abs(want) + bound >= top) & ((np.abs(found) == top) | ~np.isfinite(found)) & ~np.isnan(want)
        fine = (np.abs(found - want) <= bound) | (np.isnan(found) & np.isnan(want)) | (found == want) | overflow
    fine |= ~decided
    if not np.all(fine):
        i = np.unravel_index(np.argmin(fine), fine.shape)
        error = abs(found[i] - want[i]) / max(2 * UNIT[dtype] * abs(want[i]), SMALLEST[dtype])
        allowed = np.broadcast_to(bound, want.shape)[i] / max(2 * UNIT[dtype] * abs(want[i]), SMALLEST[dtype])
        raise AssertionError(
            f"{what}{int((~fine).sum())} of {fine.size} differ: got {found[i]!s}, want {want[i]!s} at"
            f" {tuple(int(k) for k in i)}: {error:.3g} ulp of {dtype}, {allowed:.3g} are allowed"
        )
    _assert_norm(
        found,
        want,
        decided & np.isfinite(bound),
        max(4 * UNIT[dtype] + 16 * UNIT[compute], factor / 2),
        absolute,
        tiny,
        what,
    )


def _assert_norm(found, want, decided, unit, absolute, tiny, what):
    use = decided & np.isfinite(found) & np.isfinite(want)
    want, found = np.where(use, want, 0), np.where(use, found, 0)
    scale = np.max(np.abs(want), initial=0.0)
    if not scale or not np.isfinite(scale):
        return
    absolute = np.where(np.isfinite(absolute) & use, absolute, 0)
    norm = lambda x: float(np.sqrt(np.sum(np.square(np.broadcast_to(x, want.shape)[use] / scale))))  # noqa: E731
    with np.errstate(all="ignore"):
        error, limit = norm(found - want), unit * norm(want) + 2 * norm(absolute)
        limit += tiny * np.sqrt(want.size) / scale
    assert error <= limit, f"{what}||found - want|| is {error:.3g} of {norm(want):.3g}, {limit:.3g} are allowed"


def _assert_equal(found, want, decided, what):
    if found.dtype.kind == "b" and want.dtype.kind != "b":
        want = want != 0
    same = (found == want) | ~decided
    if found.dtype.kind in "iu" and want.dtype.kind in "iu":  # modulo 2 ** bits
        same = (found == want.astype(found.dtype)) | ~decided
    if not np.all(same):
        i = np.unravel_index(np.argmin(same), same.shape)
        at, count = tuple(int(k) for k in i), int((~same).sum())
        raise AssertionError(f"{what}{count} of {same.size} differ: got {found[i]}, want {want[i]} at {at}")


def ulps_of(name, operations, dtype):
    """How many units in the last place a row may be off that its reference computes with `operations`."""
    if not operations:
        return 0
    if name not in ULPS and len(operations) == 1 and operations[0] in ROUNDED:
        return 0.5
    library = set(operations) - ROUNDED - {"matmul", "add.reduce", "add.accumulate", "dot", "einsum"}
    return ULPS.get(name, DEFAULT_ULPS) + (F64_MORE if dtype == "f64" and library else 0)
