"""What the simulator reports: each trap is a mistake in a kernel, or an instruction that is not modelled."""


class SimTrap(Exception):
    """A fault of the simulated kernel. `program` and `instruction` are filled in where it is caught."""

    def __init__(self, message):
        super().__init__(message)
        self.message, self.program, self.instruction = message, "", ""

    def at(self, program, instruction):
        """This trap with the place in the code that it happened at."""
        if not self.instruction:
            self.program, self.instruction = program, instruction
            self.args = (f"{self.message}; in {program}: {instruction}",)
        return self


class OutOfBounds(SimTrap):
    """An access outside every live buffer, or outside the shared memory of the block."""


class Misaligned(SimTrap):
    """An address that is no multiple of the access's size."""


class ReadOnly(SimTrap):
    """A store to a buffer that was added as read-only."""


class UnwrittenRead(SimTrap):
    """A read of shared memory that nobody wrote."""


class NotWaited(SimTrap):
    """A touch of shared memory which an asynchronous copy may not have filled yet."""


class MissingFence(SimTrap):
    """wgmma or TMA touches what ordinary stores wrote with no fence.proxy.async in between."""


class SharedRace(SimTrap):
    """Two warps use one byte of shared memory, one of them to write, with no barrier in between."""


class GridRace(SimTrap):
    """One program reads or overwrites what another program of the same launch wrote, without atomics."""


class Divergence(SimTrap):
    """A part of a block or warp reaches an instruction that needs all of it."""


class EndlessLoop(SimTrap):
    """More instructions than the limit of the launch."""


class Deadlock(SimTrap):
    """A wait on a barrier that nobody can complete."""


class DeviceAssert(SimTrap):
    """A device_assert that failed."""


class Unsupported(SimTrap):
    """An instruction that the simulator does not model."""
