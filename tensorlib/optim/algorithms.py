"""Optimisers of which a step is one fused kernel: torch.optim's names, defaults and formulas.

`maximize` turns the sign of the gradient round. Sources: SGD with Nesterov's momentum (Sutskever et al., ICML 2013),
Adagrad (Duchi et al., JMLR 2011), RMSprop (Hinton, 2012), Adam (arXiv:1412.6980), AMSGrad (Reddi et al., ICLR 2018),
AdamW (arXiv:1711.05101), Lion (arXiv:2302.06675).
"""

from math import sqrt

from tensorlib.optim.optimizer import Fused


def checked(op, **values):
    """ValueError for a negative number, or a beta that is not below 1."""
    for name, value in values.items():
        upper = 1.0 if name.startswith("beta") else float("inf")
        if not 0.0 <= value < upper:
            raise ValueError(f"{op}: got {name} {value}; expected 0 <= {name} < {upper}")


class SGD(Fused):
    """buf = momentum * buf + (1 - dampening) * g; p -= lr * buf, or lr * (g + momentum * buf) with Nesterov."""

    def __init__(
        self, params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False
    ):  # fmt: skip
        checked("SGD", lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("SGD: got nesterov without momentum or with dampening; expected momentum > 0, dampening 0")
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, options | {"nesterov": nesterov, "maximize": maximize})

    def row(self, group):
        """Its row."""
        return "nesterov" if group["nesterov"] else "momentum" if group["momentum"] else "sgd"

    def names(self, row):
        """Its states."""
        return [] if row == "sgd" else ["momentum_buffer"]

    def numbers(self, group, step):
        """Its numbers: the first step's buffer is the gradient itself."""
        first = step == 1
        keep, mix = group["momentum"], 1.0 if first else 1.0 - group["dampening"]
        return group["weight_decay"], 1.0, group["lr"], keep, mix


class Adagrad(Fused):
    """v += g^2; p -= lr / (1 + (step - 1) * lr_decay) * g / (sqrt(v) + eps)."""

    def __init__(
        self, params, lr=1e-2, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10, maximize=False
    ):
        checked("Adagrad", lr=lr, lr_decay=lr_decay, weight_decay=weight_decay, eps=eps)
        options = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps, "maximize": maximize}
        super().__init__(params, options | {"initial_accumulator_value": initial_accumulator_value})

    def row(self, group):
        """Its row."""
        return "adagrad"

    def names(self, row):
        """Its states."""
        return ["sum"]

    def numbers(self, group, step):
        """Its numbers."""
        rate = group["lr"] / (1 + (step - 1) * group["lr_decay"])
        return group["weight_decay"], 1.0, rate, group["eps"]

    def _state(self, p, name):
        new = name not in self.state[p]
        state = super()._state(p, name)
        return state.fill_(self.defaults["initial_accumulator_value"]) if new else state


class RMSprop(Fused):
    """v = alpha v + (1 - alpha) g^2; p -= lr * g / (sqrt(v) + eps), with momentum; `centered` takes mean(g)^2 off v."""

    def __init__(
        self, params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False, maximize=False
    ):
        checked("RMSprop", lr=lr, beta_alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum)
        options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, options | {"centered": centered, "maximize": maximize})

    def row(self, group):
        """Its row."""
        return "rmsprop_centred" if group["centered"] else "rmsprop"

    def names(self, row):
        """Its states."""
        return ["square_avg", "momentum_buffer", *(["grad_avg"] if row == "rmsprop_centred" else [])]

    def numbers(self, group, step):
        """Its numbers."""
        alpha = group["alpha"]
        return group["weight_decay"], 1.0, group["lr"], alpha, 1.0 - alpha, group["eps"], group["momentum"]


class Adam(Fused):
    """m, v = averages of g and g^2; p -= lr * m' / (sqrt(v') + eps), m' and v' unbiased. weight_decay is added to g."""

    decoupled = False

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False):
        checked(type(self).__name__, lr=lr, eps=eps, weight_decay=weight_decay, beta1=betas[0], beta2=betas[1])
        options = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options | {"amsgrad": amsgrad, "maximize": maximize})

    def row(self, group):
        """Its row."""
        return "amsgrad" if group["amsgrad"] else "adam"

    def names(self, row):
        """Its states."""
        return ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if row == "amsgrad" else [])]

    def numbers(self, group, step):
        """Its numbers."""
        (beta1, beta2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
        rate, unbias = lr / (1 - beta1**step), 1 / sqrt(1 - beta2**step)
        l2, kept = (0.0, 1.0 - lr * decay) if self.decoupled else (decay, 1.0)
        return l2, kept, rate, 1.0 - beta1, beta2, 1.0 - beta2, unbias, group["eps"]


class AdamW(Adam):
    """Adam, with p *= 1 - lr * weight_decay instead of a larger gradient."""

    decoupled = True

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, maximize=False):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize)


class Lion(Fused):
    """p *= 1 - lr * weight_decay; p -= lr * sign(beta1 m + (1 - beta1) g); m = beta2 m + (1 - beta2) g."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, maximize=False):
        checked("Lion", lr=lr, weight_decay=weight_decay, beta1=betas[0], beta2=betas[1])
        options = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, options)

    def row(self, group):
        """Its row."""
        return "lion"

    def names(self, row):
        """Its states."""
        return ["exp_avg"]

    def numbers(self, group, step):
        """Its numbers."""
        beta1, beta2 = group["betas"]
        return 0.0, 1.0 - group["lr"] * group["weight_decay"], group["lr"], 1.0 - beta1, 1.0 - beta2
