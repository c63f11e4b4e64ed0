"""`torch.nn.functional`'s names for the functions of tensorlib.

>>> import tensorlib
>>> import tensorlib.nn.functional as F
>>> F.relu(tensorlib.tensor([-1.0, 2.0]))
tensor([0., 2.])
"""

import importlib


def __getattr__(name):
    """The function of tensorlib; AttributeError for none."""
    return getattr(importlib.import_module("tensorlib"), name)
