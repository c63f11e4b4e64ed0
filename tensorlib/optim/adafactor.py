"""Adafactor (arXiv:1804.04235): Adam's second moment as an outer product of rows and columns, so hardly any state."""

from math import sqrt

from tensorlib import dtype as _dtype
from tensorlib.optim.algorithms import checked
from tensorlib.optim.optimizer import Optimizer

EPS = {"f32": 2.0**-23, "f64": 2.0**-52, "f16": 2.0**-10, "bf16": 2.0**-7}


class Adafactor(Optimizer):
    """torch.optim's: relative steps, update clipped to a root mean square of `d`; `eps[0]` None is the dtype's own."""

    def __init__(
        self, params, lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0, maximize=False
    ):  # fmt: skip
        checked("Adafactor", lr=lr, weight_decay=weight_decay, eps1=eps[0] or 0.0, eps2=eps[1], d=d)
        options = {"lr": lr, "beta2_decay": beta2_decay, "eps": tuple(eps), "d": d, "weight_decay": weight_decay}
        super().__init__(params, options | {"maximize": maximize})

    def update(self, group, parameters, scale):
        """See `Optimizer.update`."""
        for p in parameters:
            self._one(group, p, p.grad if scale == 1.0 else p.grad * scale)

    def _one(self, group, p, g):
        state = self.state.setdefault(p, {"step": 0})
        state["step"] += 1
        step, (eps1, eps2) = state["step"], group["eps"]
        eps1 = EPS[_dtype.get(p.dtype).name] if eps1 is None else eps1
        new = step ** group["beta2_decay"]  # what of the new enters the averages
        root = sqrt(max(p.numel(), 1))
        rate = max(eps2, p.norm().item() / root) * min(group["lr"], 1 / sqrt(step))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        variance = self._variance(state, g, new, eps1)
        update = variance.clamp(min=eps1 * eps1).rsqrt() * g
        p.sub_(update * (rate / max(1.0, update.norm().item() / (root * group["d"]))))

    def _variance(self, state, g, new, eps1):
        """The estimated square of the gradient."""
        if g.ndim < 2:
            return self._blended(state, "variance", g * g, new)
        squares = g * g
        rows = self._blended(state, "row_var", squares.mean(-1, keepdim=True), new)
        columns = self._blended(state, "col_var", squares.mean(-2, keepdim=True), new)
        return rows @ columns / rows.mean(-2, keepdim=True).clamp(min=eps1)

    def _blended(self, state, name, value, new):
        before = state.get(name)
        state[name] = value * new if before is None else before.add_((value - before) * new)
        return state[name]
