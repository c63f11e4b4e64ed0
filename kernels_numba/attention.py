"""Attention over many queries: flash attention on register tiles of 6 queries by 64 keys.

Two kernels. `pack` widens a cache to f32 once: per KV head and block of 64 keys, K transposed (dim, key) and V
(key, dim padded to 16). `prefill` lets a thread take 48 queries of a head at a time; every packed block is used for all
of them while it is in the nearest cache, with an online softmax in base 2. Blocks that no query sees are skipped.

What lies outside a query's range never touches its result, not even as 0 * NaN: scores there are replaced, and V is
multiplied where all rows of a tile see the key, else row by row.

All of attention's kernels begin their argument block with these words:
  0 T   1 heads   2 KV heads   3 D   4 address of start or 0   5 start   6 address of length or 0   7 length (-1: start + T)
  8 rows of the caches   9 causal (0, 1)   10 window (0: none)   11 scale (f64)   12 softcap (f64; 0: none)
Strides are in bytes. What a room adds from word 13 on stands in each kernel's docstring.
"""

from . import attention_decode, simd
from .attention_range import (
    CAP,
    HEADS,
    KV_HEADS,
    LENGTH,
    LOG2E,
    ROWS_OF_CACHE,
    SCALE,
    WIDTH,
    T,
    end_key,
    first_key,
    keys_of,
    scaled_row,
    start_of,
)
