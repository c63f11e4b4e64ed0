"""Gradients: `backward`, `grad`, modes, checkpoints, and ops of one's own (`Function`), in PyTorch's names."""

from tensorlib.autograd.engine import backward, enable_grad, grad, is_grad_enabled, no_grad, set_grad_enabled
from tensorlib.autograd.function import Context, Function, checkpoint

__all__ = [
    "Context", "Function", "backward", "checkpoint", "detect_anomaly", "enable_grad", "grad", "is_grad_enabled",
    "no_grad", "set_grad_enabled",
]  # fmt: skip


def __getattr__(name):
    """`detect_anomaly`, when first used: generation starts without it."""
    if name != "detect_anomaly":
        raise AttributeError(f"module 'tensorlib.autograd' has no attribute {name!r}")
    from tensorlib.autograd.anomaly import detect_anomaly

    return detect_anomaly
