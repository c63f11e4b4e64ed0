"""Races in global memory between the warps of one program: what no barrier of the block orders.

For kernels that read what other threads of their program have written. Atomics order nothing here, and a value that a
warp loads for nothing (Triton gives all warps what one of them stores) counts as read.
"""

import numpy as np

from tests.sim.errors import GridRace
from tests.sim.memory import HOST, differs

SEVERAL = -1  # readers: more than one warp since the last barrier


class Warps:
    """Which warp wrote and read each byte since which barrier of its block; blocks do not share what is written."""

    def __init__(self, machine):
        self.warp, self.block = (machine.index // 32 + 1).astype(np.int32), machine.block_of
        self.epoch = np.ones(machine.blocks, np.int64)  # barriers that each block has passed
        self.shadows = {}

    def passed(self, blocks):
        """Blocks (a mask, or None for all) have passed a barrier."""
        self.epoch[slice(None) if blocks is None else blocks] += 1

    def shadow(self, buffer):
        """Of each byte of a buffer: writer, epoch of that, reader, epoch of that."""
        if buffer.address not in self.shadows:
            size = buffer.end - buffer.low
            self.shadows[buffer.address] = [np.zeros(size, kind) for kind in (np.int32, np.int64) * 2]
        return self.shadows[buffer.address]

    def note(self, memory, address, n, act, where, words=None):
        """One load of n bytes by each active lane, or store of `words`. GridRace if another warp's access is not
        ordered with it; the same value may be stored twice.
        """
        warp, epoch = self.warp, self.epoch[self.block]
        if act is not None:
            warp, epoch = warp[act], epoch[act]
        for buffer, chosen in memory.pieces(address, n, where):
            rows = np.arange(len(address)) if chosen is None else chosen
            at = ((address[rows] - buffer.low)[:, None] + np.arange(n)).ravel()
            who, when = np.repeat(warp[rows], n), np.repeat(epoch[rows], n)
            writer, written, reader, read = self.shadow(buffer)
            bad = (written[at] == when) & (writer[at] != who)
            if words is not None:
                bad &= np.repeat(differs(HOST.words[n][HOST.at(address[rows], n)], words[rows]), n)
                bad |= (read[at] == when) & (reader[at] != who)
                writer[at], written[at] = who, when
            else:
                fresh = (read[at] != when) | (reader[at] == who)
                reader[at], read[at] = np.where(fresh, who, SEVERAL), when
                reader[at[reader[at] != who]] = SEVERAL
            if bad.any():
                lane, verb = rows[np.flatnonzero(bad)[0] // n], "reads" if words is None else "writes"
                raise GridRace(f"{where(lane)} {verb} what another warp used since the last barrier: {buffer.name}")
