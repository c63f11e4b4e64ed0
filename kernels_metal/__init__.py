"""GPU kernels in Metal, for Apple silicon. None is written yet: this release computes on the CPU only.

The package holds the place that the design gives it, so that `tensorlib/backend.py` can say honestly what is there.
"""

NAME = "metal"
REASON = "kernels_metal has no kernels yet; use Device('cpu')"


def available() -> bool:
    """Whether this backend can run here: no, whatever the machine has (see `REASON`).

    >>> available()
    False
    """
    return False
