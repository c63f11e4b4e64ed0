"""Muon: momentum, orthogonalised (Jordan, 2024; arXiv:2502.16982): for the matrices of a model's hidden layers."""

from math import sqrt

from tensorlib.errors import ShapeError
from tensorlib.optim.algorithms import checked
from tensorlib.optim.optimizer import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
RATES = {  # what the learning rate is multiplied by for a matrix of A rows and B columns
    "original": lambda a, b: sqrt(max(1.0, a / b)),
    "match_rms_adamw": lambda a, b: 0.2 * sqrt(max(a, b)),
}


def newton_schulz(g, steps=5, coefficients=COEFFICIENTS, eps=1e-7):
    """A matrix [A, B] with singular values moved towards 1 (0.7 to 1.2), in bf16 as published.

    >>> import tensorlib
    >>> x = newton_schulz(tensorlib.tensor([[3.0, 0.0], [0.0, 0.5]]))
    >>> 0.6 < x[1, 1].item() < 1.3
    True
    """
    a, b, c = coefficients
    x = g.to("bf16")
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if tall else x


class Muon(Optimizer):
    """buf = momentum buf + (1 - momentum) g; p *= 1 - lr weight_decay; p -= lr' newton_schulz(g + (buf - g) momentum).

    Matrices only: give embeddings, heads and vectors to AdamW. `adjust_lr_fn`: "original" (None) or "match_rms_adamw",
    so that AdamW's rates suit. ShapeError for what is no matrix.
    """

    def __init__(
        self, params, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True, ns_coefficients=COEFFICIENTS, eps=1e-7,
        ns_steps=5, adjust_lr_fn=None,
    ):  # fmt: skip
        checked("Muon", lr=lr, weight_decay=weight_decay, momentum=momentum, eps=eps)
        if adjust_lr_fn not in (None, *RATES):
            raise ValueError(f"Muon: got adjust_lr_fn {adjust_lr_fn!r}; expected one of {', '.join(RATES)}")
        options = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov, "eps": eps}
        options |= {"ns_coefficients": ns_coefficients, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        super().__init__(params, options)

    def add_param_group(self, group):
        """See `Optimizer.add_param_group`."""
        super().add_param_group(group)
        for p in self.param_groups[-1]["params"]:
            if p.ndim != 2:
                raise ShapeError("Muon", f"a parameter of shape {p.shape}", "matrices", "give the others to AdamW")

    def update(self, group, parameters, scale):
        """See `Optimizer.update`."""
        lr, momentum = group["lr"], group["momentum"]
        rate = RATES[group["adjust_lr_fn"] or "original"]
        for p in parameters:
            g = p.grad if scale == 1.0 else p.grad * scale
            state = self.state.setdefault(p, {})
            buf = state.get("momentum_buffer")
            buf = g * (1 - momentum) if buf is None else buf.add_((g - buf) * (1 - momentum))
            state["momentum_buffer"] = buf
            direction = g + (buf - g) * momentum if group["nesterov"] else buf
            direction = newton_schulz(direction, group["ns_steps"], group["ns_coefficients"], group["eps"])
            p.mul_(1 - lr * group["weight_decay"])
            p.sub_(direction.to(p.dtype) * (lr * rate(*p.shape)))
