"""Averages of a model's weights over its training: better than the last ones for evaluation (arXiv:1803.05407)."""

from tensorlib.autograd import no_grad


class ExponentialMovingAverage:
    """average = decay * average + (1 - decay) * weights, from `update()` after each step; buffers are copied.

    The first updates count more: decay is at most (1 + n) / (10 + n) after n of them, unless `warmup` is False.

    >>> from tensorlib import nn, optim
    >>> model = nn.Linear(2, 2)
    >>> ema = optim.ExponentialMovingAverage(model, decay=0.9)
    >>> ema.update()
    >>> with ema.applied():
    ...     pass  # the model has the averages here
    """

    def __init__(self, model, decay=0.999, warmup=True):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ExponentialMovingAverage: got decay {decay}; expected 0 <= decay < 1")
        self.model, self.decay, self.warmup, self.updates = model, decay, warmup, 0
        model.parameters()  # makes those that have no values yet
        self.averages = {name: value.clone() for name, value in model.state_dict().items()}

    @no_grad()
    def update(self):
        """Takes in the weights as they are now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        self.updates += 1
        trained = {name for name, _ in self.model.named_parameters()}
        for name, value in self.model.state_dict().items():
            average = self.averages[name]
            if name in trained and value.dtype.kind == "f":
                average.add_((value - average) * (1.0 - decay))
            else:
                average.copy_(value)

    def applied(self):
        """Context manager: the model has the averages, and its own weights again afterwards."""
        return _Applied(self)

    def state_dict(self):
        """All there is to resume from."""
        return {"averages": self.averages, "updates": self.updates}

    @no_grad()
    def load_state_dict(self, state):
        """Goes on from what `state_dict` gave."""
        self.updates = int(state["updates"])
        for name, value in state["averages"].items():
            self.averages[name].copy_(value)


class _Applied:
    def __init__(self, ema):
        self.ema = ema

    def __enter__(self):
        self.own = {name: value.clone() for name, value in self.ema.model.state_dict().items()}
        self._copy(self.ema.averages)
        return self.ema.model

    def __exit__(self, *error):
        self._copy(self.own)

    @no_grad()
    def _copy(self, values):
        for name, value in self.ema.model.state_dict().items():
            value.copy_(values[name])
