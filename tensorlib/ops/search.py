"""Functions on tensors by name: which file of this folder has one, each imported when a search reaches it."""

import importlib

FILES = (
    "elementwise reduce softmax movement index linalg fused attention sort scan contract lapack conv pooling "
    "special statistics scatter lookup arrange pixels loss gates normalise vision signal fft grids derived ctc "
    "windows varlen paged precision moe grouped scan_state scan_lines"
).split()


def find(name):
    """The function of that name, or None.

    >>> find("relu").__module__, find("nothing")
    ('tensorlib.ops.elementwise', None)
    """
    for file in FILES:
        found = getattr(importlib.import_module(f"tensorlib.ops.{file}"), name, None)
        if callable(found) and getattr(found, "__module__", "").startswith("tensorlib.ops."):
            return found
    return None
