"""Optimisers, schedules and averages of weights: torch.optim's names, arguments and states.

>>> import tensorlib
>>> from tensorlib import nn, optim
>>> model = nn.Linear(2, 1)
>>> optimizer = optim.AdamW(model.parameters(), lr=0.1)
>>> x, y = tensorlib.tensor([[1.0, 2.0], [3.0, 4.0]]), tensorlib.tensor([[1.0], [2.0]])
>>> for _ in range(200):
...     optimizer.zero_grad()
...     loss = tensorlib.mse_loss(model(x), y)
...     loss.backward()
...     optimizer.step()
>>> loss.item() < 1e-2
True
"""

from tensorlib.optim import lr_scheduler
from tensorlib.optim.adafactor import Adafactor
from tensorlib.optim.algorithms import SGD, Adagrad, Adam, AdamW, Lion, RMSprop
from tensorlib.optim.averages import ExponentialMovingAverage
from tensorlib.optim.muon import Muon
from tensorlib.optim.optimizer import Optimizer

__all__ = [
    "SGD", "Adafactor", "Adagrad", "Adam", "AdamW", "ExponentialMovingAverage", "Lion", "Muon", "Optimizer", "RMSprop",
    "lr_scheduler",
]  # fmt: skip
