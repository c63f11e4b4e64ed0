"""CPU kernels in Numba: one file per family; each exports `build(name, *params, source=None)`, a kernel function or
None.

`driver.py` (memory, threads), `cache.py` (machine code on disk) and `levels.py` (CPU features) need the standard
library only; the others import numba and are imported when a kernel is not cached yet.
"""
