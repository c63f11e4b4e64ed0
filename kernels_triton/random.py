"""Random words from a counter (Philox 4x32-10), and the choice of the next token; words as in kernels_numba/random.py.

How a token is chosen is told in sampling.py.
"""

import triton
import triton.language as tl

from .launch import Kernel, blocks
from .philox import interleaved, philox_block

BLOCK = 256


@triton.jit
def philox_words(out_ptr, n, key, low, high, BLOCK: tl.constexpr):
    """Blocks of the counters (low, high), (low + 1, high), ..."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    c0, c1, c2, c3 = philox_block(low.to(tl.int64) + first + tl.arange(0, BLOCK), high, key)
    words = interleaved(interleaved(c0, c2, 2 * BLOCK), interleaved(c1, c3, 2 * BLOCK), 4 * BLOCK)
    i = 4 * first + tl.arange(0, 4 * BLOCK)
    tl.store(out_ptr + i, words, mask=i < 4 * n)


KERNEL = Kernel(philox_words, ("*u32", *("i64",) * 4), BLOCK=BLOCK)
KERNEL.items = 4 * BLOCK


def _philox(gpu, words):
    KERNEL(gpu, (blocks(words[1], BLOCK), 1, 1), *words)


def build(name, *params, source=None):
    """See kernels_triton/__init__.py: philox, sample."""
    from .sampling import sample

    return {"philox": _philox, "sample": sample}.get(name) if not params else None


def variants(arch):
    """Kernels of every kind, for the committed table of what the compiler makes of them."""
    from . import sampling

    return {"philox": KERNEL, "sample": sampling.KERNEL}
