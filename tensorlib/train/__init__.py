"""Around a training loop: checkpoints to go on from exactly, progress lines and curves.

>>> import tempfile, tensorlib
>>> from tensorlib import nn, optim, train
>>> model = nn.Linear(2, 1)
>>> optimizer = optim.AdamW(model.parameters())
>>> checkpoints = train.Checkpoints(tempfile.mkdtemp(), keep=2)
>>> checkpoints.save(10, model=model, optimizer=optimizer)
>>> checkpoints.load(model=model, optimizer=optimizer)
10
"""

from tensorlib.train.checkpoints import Checkpoints
from tensorlib.train.progress import Progress

__all__ = ["Checkpoints", "Progress"]
