"""GPU kernels in Triton, for NVIDIA and AMD: one file per family, the same names as in kernels_numba.

Each exports `build(name, *params, source=None)`: a function (gpu, words) that launches the kernel of that name on the
words which `tensorlib/ops` hands to every backend, or None. `driver.py` (torch: memory and streams) and `launch.py`
(compiled kernels) are what they stand on; nothing here is imported before a GPU is asked for.
"""

import importlib.util

NAME = "cuda"


def missing():
    """What keeps this backend from running here, or None.

    >>> missing() is None or isinstance(missing(), str)
    True
    """
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            return f"no package {package}"
    from . import driver

    return None if driver.count() else "no GPU that PyTorch can use"
