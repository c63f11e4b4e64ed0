"""Schedules of learning rates: torch.optim.lr_scheduler's names and arguments, and those of language models' training.

A schedule says what a rate is multiplied by after t steps, in closed form: nothing adds up, and a resumed run goes on
exactly. `scheduler.step()` after each `optimizer.step()` (or after each epoch).

>>> import tensorlib
>>> from tensorlib import nn, optim
>>> optimizer = optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
>>> schedule = WarmupCosine(optimizer, warmup=2, total=6)
>>> rates = []
>>> for _ in range(7):
...     rates.append(round(optimizer.param_groups[0]["lr"], 3)), optimizer.step(), schedule.step()  # doctest: +ELLIPSIS
(...)
>>> rates
[0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
"""

from bisect import bisect_right
from math import cos, inf, pi


class LRScheduler:
    """Base: `multiplier(t)`, what the initial rate is multiplied by, or `rate(initial, t, group)`."""

    def __init__(self, optimizer, last_epoch=-1):
        self.optimizer, self.last_epoch = optimizer, last_epoch
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.step()

    def multiplier(self, t):
        """What the initial rate is multiplied by after t steps."""
        raise NotImplementedError(f"{type(self).__name__}.multiplier: not written")

    def rate(self, initial, t, group):
        """The rate after t steps of group number `group`."""
        return initial * self.multiplier(t)

    def get_last_lr(self):
        """The rates of the groups now."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self):
        """One step on: sets the groups' rates."""
        self.last_epoch += 1
        for i, (group, initial) in enumerate(zip(self.optimizer.param_groups, self.base_lrs)):
            group["lr"] = self.rate(initial, self.last_epoch, i)

    def state_dict(self):
        """All there is to resume from, but functions."""
        kept = (bool, int, float, str, list, tuple, dict, type(None))
        return {name: value for name, value in vars(self).items() if isinstance(value, kept)}

    def load_state_dict(self, state):
        """Goes on from what `state_dict` gave."""
        vars(self).update(state)
        for i, (group, initial) in enumerate(zip(self.optimizer.param_groups, self.base_lrs)):
            group["lr"] = self.rate(initial, self.last_epoch, i)


class LambdaLR(LRScheduler):
    """Times `lr_lambda(t)`: a function, or one per group."""

    def __init__(self, optimizer, lr_lambda, last_epoch=-1):
        count = len(optimizer.param_groups)
        self._lambdas = list(lr_lambda) if isinstance(lr_lambda, (list, tuple)) else [lr_lambda] * count
        if len(self._lambdas) != count:
            raise ValueError(f"LambdaLR: got {len(self._lambdas)} functions; expected one per group, {count}")
        super().__init__(optimizer, last_epoch)

    def rate(self, initial, t, group):
        """See `LRScheduler.rate`."""
        return initial * self._lambdas[group](t)

    def state_dict(self):
        """See `LRScheduler.state_dict`."""
        return {name: value for name, value in super().state_dict().items() if name != "_lambdas"}


def _schedule(name, doc, names, multiplier, **defaults):
    """A class whose multiplier is `multiplier(t, *arguments)`, arguments kept under `names`."""

    def begin(self, optimizer, *args, last_epoch=-1, **kwargs):
        given = dict(zip(names, args)) | kwargs
        if len(args) > len(names) or not given.keys() <= set(names):
            raise TypeError(f"{name}: got {(*args, *kwargs)}; expected {', '.join(names)}")
        missing = [n for n in names if n not in given and n not in defaults]
        if missing:
            raise TypeError(f"{name}: got no {', '.join(missing)}; expected it as an argument")
        vars(self).update(defaults | given)
        LRScheduler.__init__(self, optimizer, last_epoch)

    def value(self, t):
        return multiplier(t, *(vars(self)[n] for n in names))

    return type(name, (LRScheduler,), {"__init__": begin, "multiplier": value, "__doc__": doc, "__module__": __name__})


def _warm(t, warmup, total):
    """(factor of the warm-up, how much of the rest has gone by: 0 to 1)."""
    done = min(max(t - warmup, 0) / max(total - warmup, 1), 1.0)
    return min((t + 1) / warmup, 1.0) if warmup else 1.0, done


StepLR = _schedule(
    "StepLR", "Times gamma every step_size steps.", ("step_size", "gamma"), lambda t, n, g: g ** (t // n), gamma=0.1
)
MultiStepLR = _schedule(
    "MultiStepLR",
    "Times gamma at each of the milestones.",
    ("milestones", "gamma"),
    lambda t, milestones, g: g ** bisect_right(sorted(milestones), t),
    gamma=0.1,
)
ConstantLR = _schedule(
    "ConstantLR",
    "Times factor for total_iters steps.",
    ("factor", "total_iters"),
    lambda t, f, n: f if t < n else 1.0,
    factor=1 / 3,
    total_iters=5,
)
LinearLR = _schedule(
    "LinearLR",
    "From start_factor to end_factor in total_iters steps.",
    ("start_factor", "end_factor", "total_iters"),
    lambda t, a, b, n: a + (b - a) * min(t, n) / n,
    start_factor=1 / 3,
    end_factor=1.0,
    total_iters=5,
)
ExponentialLR = _schedule("ExponentialLR", "Times gamma at each step.", ("gamma",), lambda t, g: g**t)
PolynomialLR = _schedule(
    "PolynomialLR",
    "(1 - t / total_iters) ** power, then 0.",
    ("total_iters", "power"),
    lambda t, n, p: (1 - min(t, n) / n) ** p,
    total_iters=5,
    power=1.0,
)
WarmupCosine = _schedule(
    "WarmupCosine",
    "From 1 / warmup up to 1 in `warmup` steps, then half a cosine down to `floor` at step `total`.",
    ("warmup", "total", "floor"),
    lambda t, w, n, f: (lambda up, done: up * (f + (1 - f) * (1 + cos(pi * done)) / 2))(*_warm(t, w, n)),
    floor=0.0,
)
WarmupLinear = _schedule(
    "WarmupLinear",
    "From 1 / warmup up to 1 in `warmup` steps, then straight down to `floor` at step `total`.",
    ("warmup", "total", "floor"),
    lambda t, w, n, f: (lambda up, done: up * (f + (1 - f) * (1 - done)))(*_warm(t, w, n)),
    floor=0.0,
)
WarmupStableDecay = _schedule(
    "WarmupStableDecay",
    "Up in `warmup` steps, 1 until the last `decay` of `total` steps, then down to `floor` (arXiv:2404.06395).",
    ("warmup", "total", "decay", "floor"),
    lambda t, w, n, d, f: _warm(t, w, n)[0] * (1.0 if t < n - d else f + (1 - f) * max(n - t, 0) / d),
    floor=0.0,
)


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the initial rate to eta_min in T_max steps (and back) (arXiv:1608.03983)."""

    def __init__(self, optimizer, T_max, eta_min=0.0, last_epoch=-1):
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, last_epoch)

    def rate(self, initial, t, group):
        """See `LRScheduler.rate`."""
        return self.eta_min + (initial - self.eta_min) * (1 + cos(pi * t / self.T_max)) / 2


class CosineAnnealingWarmRestarts(LRScheduler):
    """Half cosines of T_0, T_0 T_mult, T_0 T_mult^2 ... steps, each from the initial rate (arXiv:1608.03983)."""

    def __init__(self, optimizer, T_0, T_mult=1, eta_min=0.0, last_epoch=-1):
        self.T_0, self.T_mult, self.eta_min = T_0, T_mult, eta_min
        super().__init__(optimizer, last_epoch)

    def rate(self, initial, t, group):
        """See `LRScheduler.rate`."""
        length = self.T_0
        if self.T_mult == 1:
            t %= length
        else:
            while t >= length:
                t, length = t - length, length * self.T_mult
        return self.eta_min + (initial - self.eta_min) * (1 + cos(pi * t / length)) / 2


class OneCycleLR(LRScheduler):
    """Up from max_lr / div_factor to max_lr in pct_start of the steps, then down to the start / final_div_factor
    (arXiv:1708.07120), along cosines or lines. Momentum stays as it is.
    """

    def __init__(
        self, optimizer, max_lr, total_steps, pct_start=0.3, anneal_strategy="cos", div_factor=25.0,
        final_div_factor=1e4, last_epoch=-1,
    ):  # fmt: skip
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"OneCycleLR: got anneal_strategy {anneal_strategy!r}; expected cos or linear")
        self.max_lr = list(max_lr) if isinstance(max_lr, (list, tuple)) else [max_lr] * len(optimizer.param_groups)
        self.total_steps, self.pct_start, self.anneal_strategy = total_steps, pct_start, anneal_strategy
        self.div_factor, self.final_div_factor = div_factor, final_div_factor
        super().__init__(optimizer, last_epoch)

    def rate(self, initial, t, group):
        """See `LRScheduler.rate`. ValueError after the last step."""
        if t >= self.total_steps:
            raise ValueError(f"OneCycleLR: got step {t + 1}; expected at most {self.total_steps}, its total_steps")
        top = self.max_lr[group]
        start, peak = top / self.div_factor, self.pct_start * self.total_steps - 1
        if t <= peak:
            return self._between(start, top, t / peak)
        return self._between(top, start / self.final_div_factor, (t - peak) / (self.total_steps - 1 - peak))

    def _between(self, a, b, done):
        return b + (a - b) * (1 + cos(pi * done)) / 2 if self.anneal_strategy == "cos" else a + (b - a) * done


class SequentialLR:
    """One schedule after the other: `milestones` are the steps at which the next begins, from its own step 0."""

    def __init__(self, optimizer, schedulers, milestones):
        if len(schedulers) != len(milestones) + 1:
            got = f"{len(schedulers)} schedules and {len(milestones)} milestones"
            raise ValueError(f"SequentialLR: got {got}; expected one milestone less than schedules")
        self.optimizer, self.schedulers, self.milestones = optimizer, list(schedulers), list(milestones)
        self.last_epoch = -1
        self.step()

    def step(self):
        """One step on."""
        self.last_epoch += 1
        self._set()

    def _set(self):
        i = bisect_right(self.milestones, self.last_epoch)
        now = self.schedulers[i]
        now.last_epoch = self.last_epoch - (self.milestones[i - 1] if i else 0) - 1
        now.step()

    def get_last_lr(self):
        """The rates of the groups now."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self):
        """All there is to resume from."""
        return {"last_epoch": self.last_epoch, "schedulers": [s.state_dict() for s in self.schedulers]}

    def load_state_dict(self, state):
        """Goes on from what `state_dict` gave."""
        self.last_epoch = state["last_epoch"]
        for scheduler, its in zip(self.schedulers, state["schedulers"]):
            scheduler.load_state_dict(its)
        self._set()


class ReduceLROnPlateau:
    """Times `factor` when `step(metric)` has seen no better metric for more than `patience` steps."""

    def __init__(
        self, optimizer, mode="min", factor=0.1, patience=10, threshold=1e-4, threshold_mode="rel", cooldown=0,
        min_lr=0.0, eps=1e-8,
    ):  # fmt: skip
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs") or not 0 < factor < 1:
            got = f"mode {mode!r}, threshold_mode {threshold_mode!r}, factor {factor}"
            raise ValueError(f"ReduceLROnPlateau: got {got}; expected min or max, rel or abs, 0 < factor < 1")
        self.optimizer, self.mode, self.factor, self.patience = optimizer, mode, factor, patience
        self.threshold, self.threshold_mode, self.cooldown = threshold, threshold_mode, cooldown
        self.min_lr, self.eps = min_lr, eps
        self.best, self.num_bad_epochs, self.cooldown_counter = inf if mode == "min" else -inf, 0, 0

    def step(self, metrics):
        """One step on, with what it gave."""
        metric = float(metrics)
        if self._better(metric):
            self.best, self.num_bad_epochs = metric, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown_counter - 1, 0
        if self.num_bad_epochs > self.patience:
            for group in self.optimizer.param_groups:
                new = max(group["lr"] * self.factor, self.min_lr)
                group["lr"] = new if group["lr"] - new > self.eps else group["lr"]
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def _better(self, metric):
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "abs":
            return sign * metric > sign * self.best + self.threshold
        if abs(self.best) == inf:
            return metric == metric
        return metric > self.best * (1 + self.threshold) if sign > 0 else metric < self.best * (1 - self.threshold)

    def get_last_lr(self):
        """The rates of the groups now."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self):
        """All there is to resume from."""
        return {name: value for name, value in vars(self).items() if name != "optimizer"}

    def load_state_dict(self, state):
        """Goes on from what `state_dict` gave."""
        vars(self).update(state)
