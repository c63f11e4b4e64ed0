"""Blocks of host memory: reused when released, never more of them than were needed at once."""

import pytest

from kernels_numba import memory


@pytest.mark.parametrize("nbytes", [1, 1000, 1 << 20, memory.LARGE, 3 * memory.LARGE + 5])
def test_released_blocks_are_reused(nbytes):
    arena = memory.Arena()
    address, owner = arena.allocate(nbytes)
    assert address % 64 == 0
    memory.ctypes.memset(address, 7, nbytes)
    del owner
    again, _owner = arena.allocate(nbytes)
    assert again == address


def test_large_blocks_are_never_more_than_were_in_use_at_once():
    large = memory.Arena()._large
    sizes = [memory.LARGE * n for n in (1, 2, 3)]
    _, first = large.allocate(sizes[0])
    _, second = large.allocate(sizes[1])
    assert large._used == large._most == sizes[0] + sizes[1]
    del first, second
    assert large._kept == large._most
    _, third = large.allocate(sizes[2])  # as large as both, which go
    assert (large._kept, large._used, large._most) == (0, sizes[2], sizes[2])
    _, fourth = large.allocate(sizes[0])
    assert large._most == large._used == sizes[0] + sizes[2]
    del third, fourth
    assert large._kept == large._most


def test_large_blocks_not_in_use_are_bounded_and_the_oldest_go():
    large = memory.Arena()._large
    large._limit = 2 * memory.LARGE
    leases = [large.allocate(memory.LARGE) for _ in range(4)]
    addresses = [address for address, _ in leases]
    while leases:
        leases.pop(0)
    assert [block.address for block in large._idle] == addresses[2:]


def test_no_memory_is_a_memory_error():
    arena = memory.Arena()
    for nbytes in (1 << 55, 1 << 62):
        with pytest.raises(MemoryError, match="of host memory"):
            arena.allocate(nbytes)
    assert arena._large._used == arena._large._most == 0
