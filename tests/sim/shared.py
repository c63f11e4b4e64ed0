"""Shared memory of a batch of blocks, with a shadow that finds races, unwritten reads and copies used too early."""

import numpy as np

from tests.sim.errors import Misaligned, MissingFence, NotWaited, OutOfBounds, SharedRace, UnwrittenRead
from tests.sim.memory import SHIFTS, WORDS, comparable, differs, pattern

# Codes of the writers' shadow: 0 nobody, 1..32 that warp since the last barrier, and
ATOMIC, ARRIVED, IN_FLIGHT, SETTLED = 250, 251, 253, 255
SEVERAL = 254  # readers' shadow: more than one warp since the last barrier
FAULTS = (
    (0, UnwrittenRead, "shared memory that nobody wrote"),
    (IN_FLIGHT, NotWaited, "shared memory that an asynchronous copy is filling"),
    (ARRIVED, NotWaited, "shared memory of an asynchronous copy before waiting on its mbarrier"),
)


def all_of(code, n):
    return pattern(np.array([code], np.uint8), n)


class Shared:
    """`blocks` times `size` bytes; an address of a lane is relative to its block."""

    def __init__(self, blocks, size, threads):
        self.blocks, self.size, self.threads = blocks, size, threads
        self.stride = max((size + 1023) & ~1023, 1024)
        total = blocks * self.stride
        self.data, self.writer, self.reader = ({1: np.zeros(total, np.uint8)} for _ in range(3))
        for words in (self.data, self.writer, self.reader):
            words |= {n: words[1].view(dtype) for n, dtype in WORDS.items() if n > 1}
        lanes = np.arange(blocks * threads)
        self.unfenced, self.unfenced_any = np.zeros(total // 16, bool), False  # chunks that ordinary stores wrote
        self.base = lanes // threads * self.stride
        self.warp = (lanes % threads // 32 + 1).astype(np.uint8)
        self.patterns = {n: pattern(self.warp, n) for n in WORDS}
        self.constants = {(code, n): all_of(code, n) for code in (0, SEVERAL, SETTLED) for n in WORDS}
        self.in_use, self.touched = (), False  # in_use: groups of work that may still read what it was given

    def locate(self, address, n, act, where, align=None):
        """Flat addresses of the active lanes; `address` holds that of each lane (uint32)."""
        flat = address.astype(np.int64)
        base = self.base
        if act is not None:
            flat, base = flat[act], base[act]
        if len(flat) == 0:
            return flat
        if int(np.bitwise_or.reduce(flat)) & ((align or n) - 1):
            lane = np.flatnonzero(flat & ((align or n) - 1))[0]
            raise Misaligned(f"misaligned shared access of {n} bytes at {flat[lane]:#x} by {where(lane)}")
        if int(flat.max()) + n > self.size:
            lane = int(flat.argmax())
            raise OutOfBounds(f"shared access of {n} bytes at {flat[lane]} of {self.size} by {where(lane)}")
        return flat + base

    def lanes(self, n, act):
        """Warp patterns of the active lanes."""
        return self.patterns[n] if act is None else self.patterns[n][act]

    def read(self, flat, n, mine, where):
        """The words at flat addresses, read by warps whose pattern is `mine`."""
        at = flat >> SHIFTS[n]
        found = comparable(self.writer[n][at])
        own = comparable(mine)
        good = (found == own) | (found == comparable(self.constants[SETTLED, n]))
        if not good.all():
            self.explain(flat, n, mine, where, "reads", good)
        before = self.reader[n][at]
        simple = (comparable(before) == 0) | (comparable(before) == own)
        if simple.all():
            self.reader[n][at] = mine
            shared = differs(self.reader[n][at], mine)
            if shared.any():
                self.reader[n][at[shared]] = self.constants[SEVERAL, n]
        else:
            self.note_bytes(flat, n, mine)
        self.touched = True
        return self.data[n][at]

    def note_bytes(self, flat, n, mine):
        """Readers byte by byte, where words of different sizes overlap or several warps read."""
        at = (flat[:, None] + np.arange(n)).ravel()
        warp = mine.view(np.uint8)
        before = self.reader[1][at]
        code = np.where((before == 0) | (before == warp), warp, np.uint8(SEVERAL))
        self.reader[1][at] = code
        self.reader[1][at[self.reader[1][at] != code]] = SEVERAL

    def explain(self, flat, n, mine, where, verb, good):
        """Traps where a byte of the doubtful words really is in a state that forbids the access."""
        good = good.all(1) if good.ndim == 2 else good
        doubt = np.flatnonzero(~good)
        found = self.writer[1][flat[doubt][:, None] + np.arange(n)]
        warp = mine.view(np.uint8).reshape(-1, n)[doubt, :1]
        for code, kind, what in FAULTS:
            if code or verb == "reads":
                self.fault((found == code).any(1), doubt, flat, n, where, kind, f"{verb} {what}")
        fine = (found == SETTLED) | (found == warp) | ((found == 0) & (verb != "reads"))
        bad = (~fine).any(1)
        self.fault(bad, doubt, flat, n, where, SharedRace, f"{verb} what another warp wrote since the last barrier")

    def fault(self, bad, doubt, flat, n, where, kind, what):
        if bad.any():
            lane = doubt[np.flatnonzero(bad)[0]]
            raise kind(f"{where(lane)} {what}: {n} bytes at {flat[lane] % self.stride}")

    def write(self, flat, words, n, mine, where):
        at = flat >> SHIFTS[n]
        found, own = comparable(self.writer[n][at]), comparable(mine)
        good = (found == own) | (found == comparable(self.constants[SETTLED, n])) | (found == 0)
        if not good.all():
            same = comparable(self.data[n][at]) == comparable(words)
            self.explain(flat, n, mine, where, "overwrites", good | (same & ~self.flying(found, n)))
        self.check_readers(flat, n, mine, where)
        if any(groups.entries for groups in self.in_use):
            self.check_in_use(flat, n, where)
        self.writer[n][at] = mine
        self.data[n][at] = words
        self.note_store(flat)
        lost = differs(self.data[n][at], words)
        if lost.any():
            lane = np.flatnonzero(lost)[0]
            raise SharedRace(
                f"two threads write different values to shared byte {flat[lane] % self.stride}: {where(lane)}"
            )
        self.touched = True

    def flying(self, found, n):
        return np.isin(found, [all_of(IN_FLIGHT, min(n, 8))[0], all_of(ARRIVED, min(n, 8))[0]])

    def check_readers(self, flat, n, mine, where):
        """Traps where another warp read a byte since the last barrier that is overwritten now."""
        read = comparable(self.reader[n][flat >> SHIFTS[n]])
        good = (read == 0) | (read == comparable(mine))
        if not good.all():
            codes = self.reader[1][flat[:, None] + np.arange(n)]
            bad = ((codes != 0) & (codes != mine.view(np.uint8).reshape(-1, n))).any(1)
            what = "overwrites what another warp read since the last barrier"
            self.fault(bad, np.arange(len(flat)), flat, n, where, SharedRace, what)

    def check_in_use(self, flat, n, where):
        """Traps on chunks of 16 bytes that wgmma or a TMA store may still read."""
        busy = np.zeros(self.blocks * self.stride // 16, bool)
        for groups in self.in_use:
            for _, _, (chunks,) in groups.entries:
                busy[chunks >> 4] = True
        bad = busy[flat >> 4]
        what = "overwrites what a wgmma or TMA store reads that was not waited for"
        self.fault(bad, np.arange(len(flat)), flat, n, where, NotWaited, what)

    def start_copy(self, flat, n, mine, where):
        """Marks the target of an asynchronous copy as in flight."""
        at = flat >> SHIFTS[n]
        found = comparable(self.writer[n][at])
        good = (found == comparable(self.constants[SETTLED, n])) | (found == 0) | (found == comparable(mine))
        if not good.all():
            self.explain(flat, n, mine, where, "overwrites", good)
        self.check_readers(flat, n, mine, where)
        if any(groups.entries for groups in self.in_use):
            self.check_in_use(flat, n, where)
        self.writer[n][at] = all_of(IN_FLIGHT, n)
        self.touched = True

    def finish_copy(self, flat, words, n, code):
        """The bytes of a copy arrive; `code` is what the writers' shadow says of them from now on."""
        self.data[n][flat >> SHIFTS[n]] = words
        self.writer[n][flat >> SHIFTS[n]] = code
        self.touched = True

    def note_store(self, flat):
        self.unfenced[flat >> 4] = True
        self.unfenced_any = True

    def fence(self, act):
        """fence.proxy.async: what ordinary stores wrote may be used by wgmma and TMA after a barrier."""
        if act is None:
            self.unfenced[:] = False
            self.unfenced_any = False
        else:
            blocks = np.unique(np.flatnonzero(act) // self.threads)
            self.unfenced.reshape(self.blocks, -1)[blocks] = False

    def check_fence(self, chunks, who):
        """Traps where one of the 16-byte chunks at flat addresses was written by stores that no fence followed."""
        if self.unfenced_any and self.unfenced[chunks >> 4].any():
            at = int(chunks.ravel()[self.unfenced[chunks >> 4].ravel().argmax()]) % self.stride
            raise MissingFence(f"{who} uses shared memory at {at} that stores wrote, with no fence.proxy.async since")

    def atomic(self, flat, n, mine, where):
        """Checks the places of an atomic: other warps may touch them, if by atomics too."""
        found = self.writer[1][flat[:, None] + np.arange(n)]
        warp = mine.view(np.uint8).reshape(-1, n)
        fine = (found == SETTLED) | (found == ATOMIC) | (found == warp)
        every = np.arange(len(flat))
        for code, kind, what in FAULTS:
            self.fault((found == code).any(1), every, flat, n, where, kind, f"updates {what}")
        self.fault((~fine).any(1), every, flat, n, where, SharedRace, "updates what another warp wrote")
        self.check_readers(flat, n, mine, where)
        self.writer[n][flat >> SHIFTS[n]] = all_of(ATOMIC, n)
        self.touched = True

    def settle(self, blocks):
        """A barrier of some blocks (a bool each, or None for all): everybody sees what was written."""
        if not self.touched:
            return
        if blocks is None or blocks.all():
            rows = [slice(None)]
            self.touched = False
        else:
            rows = [slice(i * self.stride, (i + 1) * self.stride) for i in np.flatnonzero(blocks)]
        for row in rows:
            writer = self.writer[1][row]
            recent = (writer - np.uint8(1)) < ATOMIC  # 1..250
            np.bitwise_or(writer, recent.view(np.uint8) * np.uint8(255), out=writer)
            self.reader[1][row] = 0
