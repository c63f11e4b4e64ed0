"""GPU kernels in Triton, for NVIDIA and AMD. None is written yet: this release computes on the CPU only.

The package holds the place that the design gives it, so that `tensorlib/backend.py` can say honestly what is there.
"""

NAME = "cuda"
REASON = "kernels_triton has no kernels yet; use Device('cpu')"


def available() -> bool:
    """Whether this backend can run here: no, whatever the machine has (see `REASON`).

    >>> available()
    False
    """
    return False
