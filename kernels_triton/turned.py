"""Operands of tf32 whose dim K is not in order in memory, put in order first: tensor cores of sm_90 read no others from
shared memory, and what turns them on their way there takes longer than a copy that reads and writes whole lines.
"""

import copy

from .launch import blocks
from .product import numbers
from .transpose import build_transpose

ARCHITECTURES = (90,)
LEAST = 256  # rows (of B: columns of C) that read an operand before turning it is worth while
WORTH = 1 << 27  # products


def plan(p, names, gpu, run_of):
    """What turns operands and launches `run_of(product)`: a function (gpu, a, b, c, bias, residual), or None."""
    own, order = p.own_names(names), p.units()
    if gpu.arch not in ARCHITECTURES or numbers(names, gpu.arch).family != "tf32" or (own.a, own.b) != ("f32", "f32"):
        return None
    first, second = order[0] == "m" and p.n >= LEAST, order[1] == "n" and p.m >= LEAST
    if not (first or second) or p.m * p.n * p.k * p.count < WORTH:
        return None
    q, width = copy.copy(p), blocks(p.k, 16) * 16  # rows that 16 divides
    copies = []
    for field, wanted, length in (("a", first, p.m), ("b", second, p.n)):
        if wanted:
            words, nbytes = _turn(q, field, length, width)
            copies.append((field == "b", words, nbytes))
    run, turn = run_of(q), build_transpose("u32")

    def launch(gpu, *pointers):
        pointers, owners = list(pointers), []
        for at, words, nbytes in copies:
            there, owner = gpu.allocate(nbytes)
            turn(gpu, (pointers[at], there, *words))
            pointers[at] = there
            owners.append(owner)
        run(gpu, *pointers)
        del owners  # what is launched next waits for these launches, as they are in one stream

    return launch


def _turn(q, field, length, width):
    """Makes operand `field` of q one of rows of `width` along K: (words of the copy but the addresses, its bytes)."""
    step, dims, size = getattr(q, field)[1], [], length * width
    batch = list(q.batch)
    for i in (1, 0):
        given = getattr(batch[i], field)
        there = batch[i].size > 1 and given != 0  # 0: all of that dim read the same
        if there:
            dims.append((batch[i].size, given, size))
        batch[i] = batch[i]._replace(**{field: size * there})
        size *= batch[i].size if there else 1
    q.batch = batch
    setattr(q, field, (width, 1))
    outer = size // (length * width)
    return (length, q.k, width, step, outer, len(dims), *(n for d in dims for n in d)), 4 * size
