"""Global memory: live buffers at real host addresses, each access checked, each store remembered by program."""

import bisect
import ctypes

import numpy as np

from tests.sim.errors import GridRace, Misaligned, OutOfBounds, ReadOnly

# An access of n bytes is a gather of n-byte words. 16 bytes travel as complex128, which numpy only copies.
WORDS = {n: np.dtype(code) for n, code in ((1, "u1"), (2, "u2"), (4, "u4"), (8, "u8"), (16, "c16"))}
SHIFTS = {n: n.bit_length() - 1 for n in WORDS}
START = 16  # the flat view begins here, since numpy refuses the null address

ATOMIC = 251  # owner code of bytes that atomics wrote; plain writers have 1 + program % PROGRAM_CODES
PROGRAM_CODES = 250
SEVERAL = 254  # readers' code of bytes that more than one program read
READ_LOG = 64 << 20  # bytes of addresses kept before they are noted in the readers' shadow


class HostMemory:
    """The address space of this process as flat arrays; whoever indexes them has checked the bounds before."""

    def __init__(self):
        self.words = {}
        for n, dtype in WORDS.items():
            self.__array_interface__ = {
                "data": (START, False),
                "typestr": dtype.str,
                "shape": (2**47 // n - START // n,),
                "version": 3,
            }
            self.words[n] = np.asarray(self)

    def at(self, address, n):
        """Indices of n-byte words into `words[n]`."""
        return (address >> SHIFTS[n]) - (START >> SHIFTS[n])


HOST = HostMemory()


def comparable(words):
    """Words as integers, 16-byte words as pairs in a last axis."""
    return words.view(np.uint64).reshape(-1, 2) if words.dtype.itemsize == 16 else words


def differs(a, b):
    """Per word, whether its bits differ; both of one dtype."""
    found = comparable(a) != comparable(b)
    return found.any(1) if found.ndim == 2 else found


class Buffer:
    """A live range of addresses, and who wrote it in this launch (`owner`) and ever (`written`), a byte a byte."""

    def __init__(self, address, nbytes, name, readonly):
        self.address, self.nbytes, self.name, self.readonly = address, nbytes, name, readonly
        self.end, self.low = address + nbytes, address & ~15
        self.owner = self.written = self.readers = self.epochs = None

    def note_readers(self, address, n, codes):
        """Which program read each byte, or that several did."""
        if self.readers is None:
            self.readers = np.zeros((self.end - self.low + 31) & ~15, np.uint8)
        at = ((address - self.low)[:, None] + np.arange(n)).ravel()
        mine = np.repeat(codes, n)
        before = self.readers[at]
        code = np.where((before == 0) | (before == mine), mine, np.uint8(SEVERAL))
        self.readers[at] = code
        self.readers[at[self.readers[at] != code]] = SEVERAL

    def shadow(self):
        """Words of the owners' shadow by size; made at the first store of a launch."""
        if self.owner is None:
            bytes_of = np.zeros((self.end - self.low + 31) & ~15, np.uint8)
            self.owner = {n: bytes_of.view(dtype) for n, dtype in WORDS.items()}
        return self.owner

    def note_epoch(self, address, n, epochs):
        """How many atomics that release its program had made when it stored each byte; 0 unless it is noted."""
        if self.epochs is None and epochs.any():
            self.epochs = np.zeros((self.end - self.low + 31) & ~15, np.uint8)
        if self.epochs is not None:
            self.epochs[(address - self.low)[:, None] + np.arange(n)] = epochs[:, None]

    def epochs_at(self, address, n):
        """These numbers of the n bytes at each address."""
        if self.epochs is None:
            return np.zeros((len(address), n), np.uint8)
        return self.epochs[(address - self.low)[:, None] + np.arange(n)]

    def settle(self):
        """Ends a launch: what it wrote is written, and nobody's."""
        if self.owner is not None:
            touched = self.owner[1] != 0
            self.written = touched if self.written is None else self.written | touched
            self.owner = None
        self.readers = self.epochs = None


class Global:
    """The buffers that kernels may touch."""

    def __init__(self):
        self.buffers, self.starts, self.last = {}, [], None

    def add(self, address, nbytes, name="", readonly=False):
        """Makes `nbytes` bytes at a host address known; `name` is for reports."""
        if address not in self.buffers:
            bisect.insort(self.starts, address)
        self.buffers[address] = Buffer(address, nbytes, name or f"{address:#x}", readonly)
        self.last = None

    def remove(self, address):
        del self.buffers[address]
        del self.starts[bisect.bisect_left(self.starts, address)]
        self.last = None

    def poison(self, address, value=0xA5):
        """Fills a buffer with a pattern and forgets who wrote it: before `unwritten`."""
        buffer = self.buffers[address]
        ctypes.memset(address, value, buffer.nbytes)
        buffer.written = buffer.owner = None

    def unwritten(self, address, itemsize):
        """Indices of the elements of a buffer that hold a byte which no kernel has written since it was added."""
        buffer = self.buffers[address]
        if buffer.written is None:
            return np.arange(buffer.nbytes // itemsize)
        written = buffer.written[address - buffer.low :][: buffer.nbytes // itemsize * itemsize]
        return np.flatnonzero(~written.reshape(-1, itemsize).all(1))

    def holding(self, address):
        """The last buffer that starts at or before an address, or None."""
        at = bisect.bisect_right(self.starts, address) - 1
        return self.buffers[self.starts[at]] if at >= 0 else None

    def check(self, address, n, where):
        """The buffer of all addresses, or None where several are touched; traps on what is in no buffer."""
        if int(np.bitwise_or.reduce(address)) & (n - 1):
            lane = np.flatnonzero(address & (n - 1))[0]
            raise Misaligned(f"misaligned access of {n} bytes at {address[lane]:#x} by {where(lane)}")
        low, high = int(address.min()), int(address.max())
        buffer = self.last
        if buffer is None or low < buffer.address or high + n > buffer.end:
            buffer = self.last = self.holding(low)
        if buffer is not None and high + n <= buffer.end:
            return buffer
        self.check_each(address, n, where)
        return None

    def check_each(self, address, n, where):
        for lane, one in enumerate(address.tolist()):
            buffer = self.holding(one)
            if buffer is None or one + n > buffer.end:
                near = f"{one - buffer.end} bytes past the end of buffer {buffer.name}" if buffer else "in no buffer"
                if buffer and one < buffer.end:
                    near = f"across the end of buffer {buffer.name}"
                raise OutOfBounds(f"out-of-bounds access of {n} bytes at {one:#x}, {near}, by {where(lane)}")

    def pieces(self, address, n, where):
        """(buffer, selection) pairs that cover all addresses; the selection is None for all of them."""
        buffer = self.check(address, n, where)
        if buffer is not None:
            return [(buffer, None)]
        starts = np.array(self.starts, np.int64)
        index = np.searchsorted(starts, address, side="right") - 1
        return [(self.buffers[self.starts[i]], np.flatnonzero(index == i)) for i in np.unique(index)]


def pick(array, selection):
    return array if selection is None else array[selection]


class GridAccess:
    """Global memory as one launch sees it: loads, stores and atomics with checks for races between programs.

    What orders programs are atomics that acquire and release: `releases` counts those of each program, `seen[a, b]` is
    how many of those of b program a has acquired, through the places in `published`. What b stored is a's to read if b
    released after it, and a has acquired that.
    """

    def __init__(self, memory, programs):
        self.memory, self.shared_grid = memory, programs > 1
        self.reads, self.logged = [], 0
        self.releases, self.seen, self.published = np.zeros(256, np.uint8), np.zeros((256, 256), np.uint8), {}

    def load(self, address, n, codes, where):
        """The n-byte words at addresses (int64); `codes` are the owner codes of the reading lanes."""
        for buffer, chosen in self.memory.pieces(address, n, where):
            if self.shared_grid and not buffer.readonly:
                here, code = pick(address, chosen), pick(codes, chosen)
                if buffer.owner is not None:
                    ordered = self.check_owner(buffer, here, n, code, where, chosen, "reads")
                    if ordered.any():  # after what was stored; `finish` looks for stores that come later
                        here, code = here[~ordered], code[~ordered]
                self.note_read(buffer, here, n, code)
        return HOST.words[n][HOST.at(address, n)]

    def note_read(self, buffer, address, n, codes):
        """Keeps a read for `finish`; of large launches in the buffers' shadows."""
        self.reads.append((buffer, address, n, codes))
        self.logged += address.nbytes
        if self.logged > READ_LOG:
            for entry in self.reads:
                entry[0].note_readers(*entry[1:])
            self.reads, self.logged = [], 0

    def store(self, address, words, n, codes, where):
        for buffer, chosen in self.memory.pieces(address, n, where):
            if buffer.readonly:
                raise ReadOnly(
                    f"store to read-only buffer {buffer.name} by {where(0 if chosen is None else chosen[0])}"
                )
            here, value, code = pick(address, chosen), pick(words, chosen), pick(codes, chosen)
            fresh = buffer.owner is None
            owner = buffer.shadow()[n]
            if self.shared_grid and not fresh:
                same = ~differs(HOST.words[n][HOST.at(here, n)], value)
                self.check_owner(buffer, here, n, code, where, chosen, "overwrites", same)
            owner[(here - buffer.low) >> SHIFTS[n]] = pattern(code, n)
            if self.published:
                buffer.note_epoch(here, n, np.minimum(self.releases[code], 254))
            HOST.words[n][HOST.at(here, n)] = value
            lost = differs(HOST.words[n][HOST.at(here, n)], value)
            if lost.any():
                lane = np.flatnonzero(lost)[0]
                who = where(lane if chosen is None else chosen[lane])
                at = here[lane] - buffer.address
                raise GridRace(f"{who} and another thread write different values, {at} bytes into buffer {buffer.name}")

    def check_owner(self, buffer, address, n, codes, where, chosen, verb, excused=None):
        found = buffer.owner[n][(address - buffer.low) >> SHIFTS[n]]
        odd = (comparable(found) != 0) & (comparable(found) != comparable(pattern(codes, n)))
        odd = odd.any(1) if odd.ndim == 2 else odd
        if excused is not None:
            odd &= ~excused
        for lane in np.flatnonzero(odd):
            owners, epochs = found[lane : lane + 1].view(np.uint8), buffer.epochs_at(address[lane : lane + 1], n)[0]
            bad = (owners != 0) & (owners != codes[lane]) & (self.seen[codes[lane], owners] <= epochs)
            if verb == "reads":
                bad &= owners != ATOMIC
            if bad.any():
                raise GridRace(
                    f"{where(lane if chosen is None else chosen[lane])} {verb} what another program of the same launch "
                    f"wrote, {address[lane] - buffer.address} bytes into buffer {buffer.name}"
                )
        return odd

    def atomic(self, address, n, codes, where, acquire_release):
        """Checks the places of an atomic and marks them; the caller does the arithmetic."""
        for buffer, chosen in self.memory.pieces(address, n, where):
            if buffer.readonly:
                raise ReadOnly(f"atomic on read-only buffer {buffer.name} by {where(0)}")
            here, code = pick(address, chosen), pick(codes, chosen)
            at = (here - buffer.low) >> SHIFTS[n]
            owner = buffer.shadow()[n]
            if self.shared_grid:
                found = owner[at].view(np.uint8).reshape(-1, n)
                bad = (found != 0) & (found != ATOMIC) & (found != code[:, None])
                bad &= self.seen[code[:, None], found] <= buffer.epochs_at(here, n)
                if bad.any():
                    lane = np.flatnonzero(bad.any(1))[0]
                    raise GridRace(f"atomic by {where(lane)} on what another program wrote, buffer {buffer.name}")
            owner[at] = pattern(np.full(len(here), ATOMIC, np.uint8), n)
        if acquire_release and self.shared_grid:
            self.synchronise(address, codes)

    def synchronise(self, address, codes):
        """One after the other acquires what others released at its place, and releases that with its own stores."""
        for place, code in zip(address.tolist(), codes.tolist()):
            before = self.published.get(place)
            if before is not None:
                np.maximum(self.seen[code], before, out=self.seen[code])
            self.releases[code] = min(self.releases[code] + 1, 255)
            self.published[place] = after = self.seen[code].copy()
            after[code] = self.releases[code]

    def finish(self):
        """Reads that another program overwrote later are races too; then all stores are settled."""
        for buffer, address, n, codes in self.reads:
            if buffer.owner is None:
                continue
            found = buffer.owner[n][(address - buffer.low) >> SHIFTS[n]].view(np.uint8).reshape(-1, n)
            bad = (found != 0) & (found != ATOMIC) & (found != codes[:, None])
            bad &= self.seen[found, codes[:, None]] == 0
            if bad.any():
                at = address[np.flatnonzero(bad.any(1))[0]] - buffer.address
                raise GridRace(f"one program reads what another one writes, {at} bytes into buffer {buffer.name}")
        for buffer in self.memory.buffers.values():
            if buffer.readers is not None and buffer.owner is not None:
                self.compare_shadows(buffer)

    def compare_shadows(self, buffer):
        """The same for the reads that are noted in a shadow."""
        owner, reader = buffer.owner[1], buffer.readers
        bad = (owner != 0) & (owner != ATOMIC) & (reader != 0) & (reader != owner)
        bad &= ~((self.seen[owner, reader] > 0) | ((reader == SEVERAL) & self.seen[owner].any(1)))
        if bad.any():
            at = buffer.low + int(np.flatnonzero(bad)[0]) - buffer.address
            raise GridRace(f"one program reads what another one writes, {at} bytes into buffer {buffer.name}")


def pattern(codes, n):
    """A code (uint8) repeated over the n bytes of a word."""
    if n == 1:
        return codes
    half = codes.astype(WORDS[min(n, 8)]) * int.from_bytes(b"\x01" * min(n, 8), "little")
    return half if n <= 8 else np.repeat(half, 2).view(WORDS[16])
