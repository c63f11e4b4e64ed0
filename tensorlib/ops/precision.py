"""How exactly GPUs multiply matrices of f32."""

from tensorlib import memo
from tensorlib.errors import DTypeError

PRECISIONS = ("highest", "high", "medium")
_setting = ["highest"]


def set_float32_matmul_precision(precision):
    """How GPUs multiply matrices of f32: "highest" (f32), "high" (three products of tf32), "medium" (one of tf32).

    tf32 rounds operands to 10 bits behind the point; "high" splits each in two of them, an error of about 2**-21. Sums
    are f32 always. Nothing changes on the CPU, nor for other dtypes. torch.set_float32_matmul_precision.

    >>> set_float32_matmul_precision("highest")
    """
    if precision not in PRECISIONS:
        fix = "use one of these names"
        raise DTypeError("set_float32_matmul_precision", repr(precision), ", ".join(PRECISIONS), fix)
    _setting[0] = precision
    memo.forget()


def get_float32_matmul_precision():
    """What `set_float32_matmul_precision` set: "highest" by default."""
    return _setting[0]
