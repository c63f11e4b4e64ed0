"""Distinct words in order: Batcher's bitonic network, and sorted runs that become one.

A stage of the network compares words whose places differ in one bit. Which bit it is decides what a stage costs: the
last ones of a place name the thread, the next ones the warp, the first ones the word of a thread. So places are turned
before, to make the bits that most stages are about those of one thread. Levels are a loop, since its stages written out
(`tl.sort`) are many times the code and take seconds to compile.

Two runs: Green, McColl, Bader, "GPU merge path: a GPU merging algorithm" (2012), section 3.
"""

import triton
import triton.language as tl


@triton.jit
def turned(place, ROT: tl.constexpr, ALL: tl.constexpr):
    """A number of ALL bits turned left by ROT"""
    return (place << ROT & (1 << ALL) - 1) | place >> ALL - ROT


@triton.jit
def exchanged(x, up, first, BIT: tl.constexpr, ALL: tl.constexpr):
    """Of two words whose places differ in a bit, the `first` becomes the smaller one where `up`"""
    pairs = tl.reshape(x, [1 << ALL - BIT - 1, 2, 1 << BIT])
    other = tl.reshape(tl.sum(pairs, 1, keep_dims=True) - pairs, [1 << ALL])
    return tl.where((x < other) == (up == first), x, other)


@triton.jit
def halves(x, BIT: tl.constexpr, ALL: tl.constexpr):
    """The words whose places have a bit of 0, and those of 1"""
    return tl.split(tl.permute(tl.reshape(x, [1 << ALL - BIT - 1, 2, 1 << BIT]), (0, 2, 1)))


@triton.jit
def exchanged_within(x, up, BIT: tl.constexpr, ALL: tl.constexpr):
    """`exchanged` of words that are in one thread, where the first has the bit 0"""
    a, b = halves(x, BIT, ALL)
    up, _ = halves(up, BIT, ALL)
    swap = (b < a) == up
    both = tl.join(tl.where(swap, b, a), tl.where(swap, a, b))
    return tl.reshape(tl.permute(both, (0, 2, 1)), [1 << ALL])


@triton.jit
def sorted_words(x, LOG: tl.constexpr, ALL: tl.constexpr, ROT: tl.constexpr):
    """Rows of 2 ** LOG distinct words, one after the other, 2 ** ALL in all, in order.

    Word `turned(i)` of the rows is given at place i: what differs in its last ROT bits is in one thread, where those
    are the last bits of places.
    """
    place = turned(tl.arange(0, 1 << ALL), ROT, ALL)
    for level in range(1, LOG + 1):
        up = (place & (1 << LOG) - 1) >> level & 1 == 0
        for down in tl.static_range(LOG):
            if level >= LOG - down:
                first = place >> LOG - 1 - down & 1 == 0
                if LOG - 1 - down < ROT:
                    x = exchanged_within(x, up, LOG - 1 - down + ALL - ROT, ALL)
                else:
                    x = exchanged(x, up, first, LOG - 1 - down - ROT, ALL)
    return tl.gather(x, turned(tl.arange(0, 1 << ALL), ALL - ROT, ALL), 0) if ROT else x


@triton.jit
def met(words_ptr, left, middle, end, want, PROBES: tl.constexpr, STEPS: tl.constexpr):
    """How many of the first `want` words (two numbers) of two sorted runs, merged, are of the left one.

    Each step asks at PROBES places at once, since every answer is awaited.
    """
    low = tl.maximum(want - (end - middle), 0)
    high = tl.minimum(want, middle - left)
    probe = tl.arange(0, PROBES)[None, :]
    for _ in range(STEPS):
        step = (high - low) // PROBES + 1
        at = low[:, None] + probe * step[:, None]
        open_ = at < high[:, None]
        one = tl.load(words_ptr + left + at, mask=open_, other=0)
        other = tl.load(words_ptr + middle + want[:, None] - 1 - at, mask=open_, other=0)
        count = tl.sum((open_ & (one < other)).to(tl.int32), 1).to(low.dtype)
        high = tl.minimum(low + count * step, high)
        low = tl.maximum(low, low + (count - 1) * step + 1)
    return low


@triton.jit
def merge_runs(
    words_ptr, out_ptr, n, run, tiles, LOG: tl.constexpr, PROBES: tl.constexpr, STEPS: tl.constexpr,
    OFFSET: tl.constexpr,
):  # fmt: skip
    """2 ** LOG words of rows in which pairs of sorted runs of distinct words become one: where both runs are cut is
    found first; the part of the left run and the reversed one of the right are a bitonic sequence, which is sorted.
    """
    pid = tl.program_id(0).to(OFFSET)
    row, begin = pid // tiles, pid % tiles << LOG
    words_ptr += row * n
    left = begin // (2 * run) * (2 * run)
    middle, end = tl.minimum(left + run, n), tl.minimum(left + 2 * run, n)
    stop = tl.minimum(begin + (1 << LOG), n)
    want = tl.where(tl.arange(0, 2) == 0, begin, stop) - left
    cut = met(words_ptr, left, middle, end, want, PROBES, STEPS)
    first, last = tl.min(cut, 0), tl.max(cut, 0)
    lane = tl.arange(0, 1 << LOG)
    ours, theirs = lane < last - first, (1 << LOG) - 1 - lane
    at = tl.where(ours, left + first + lane, middle + begin - left - first + theirs)
    known = ours | (theirs < stop - begin - (last - first))
    word = tl.load(words_ptr + at, mask=known, other=0x7FFFFFFFFFFFFFFF)
    for down in tl.static_range(LOG):
        word = exchanged(word, lane >= 0, lane >> LOG - 1 - down & 1 == 0, LOG - 1 - down, LOG)
    tl.store(out_ptr + row * n + begin + lane, word, mask=begin + lane < stop)
