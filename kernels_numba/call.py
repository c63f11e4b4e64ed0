"""A launch whose words are known but for the addresses in them: Python hands over the addresses alone.

Words of `merged`: one address per slot. Its second argument is the address of the template: kernel, number of words,
number of patches, the patches (place in the words, slot, bytes to add), the words.
"""

from numba import types

from .pool import call_kernel
from .simd import _I64, _const, _make, arg, ld_i64, st_i64

WORDS = 96  # most words of a kernel that is launched so


def _stack(b, t):
    """Address of memory for `WORDS` words in the caller's frame."""
    with b.goto_entry_block():
        memory = b.alloca(_I64, _const(_I64, WORDS))
    return b.ptrtoint(memory, _I64)


stack = _make("stack", lambda: types.int64, _stack, 0)


def merged(a, template, nth):
    """Runs the template's kernel in this thread."""
    n, patches = ld_i64(template + 8), ld_i64(template + 16)
    places = template + 24
    words, memory = places + 24 * patches, stack()
    for i in range(n):
        st_i64(memory + 8 * i, ld_i64(words + 8 * i))
    for i in range(patches):
        p = places + 24 * i
        st_i64(memory + 8 * ld_i64(p), arg(a, ld_i64(p + 8)) + ld_i64(p + 16))
    call_kernel(ld_i64(template), memory, 0, 1)


def build(name, *params, source=None):
    """merged"""
    return merged if name == "merged" else None
