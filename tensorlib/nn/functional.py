"""`torch.nn.functional`'s names for the functions of tensorlib.

>>> import tensorlib
>>> import tensorlib.nn.functional as F
>>> F.relu(tensorlib.tensor([-1.0, 2.0]))
tensor([0., 2.])
"""

from tensorlib.ops.search import find
from tensorlib.random import dropout

__all__ = ["dropout"]


def __getattr__(name):
    """The function of tensorlib.ops; AttributeError for none."""
    found = None if name.startswith("_") else find(name)
    if found is None:
        raise AttributeError(f"module 'tensorlib.nn.functional' has no attribute {name!r}")
    return found
