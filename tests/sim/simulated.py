"""The device "cuda:0" whose kernels are compiled by Triton for an architecture and run by the simulator."""

from triton.tools.tensor_descriptor import TensorDescriptor

from tests.sim.asynchronous import TensorMap
from tests.sim.host import HostGpu
from tests.sim.machine import Program
from tests.sim.memory import Global


class Simulated(HostGpu):
    """Kernels as Triton compiles them for `arch`: their PTX in the simulator, which traps what is wrong.

    `between_warps`: rooms whose warps are also watched in global memory (warps.py).
    """

    def __init__(self, arch=80, between_warps=()):
        super().__init__(arch)
        self.between_warps = between_warps
        self.global_memory = Global()

    def allocate(self, nbytes):
        """Poisoned memory that the simulator knows."""
        ptr, owner = super().allocate(nbytes)
        self.global_memory.add(ptr, nbytes, f"{nbytes} bytes")
        return ptr, owner

    def forget(self, ptr):
        """The simulator forgets it as well."""
        self.global_memory.remove(ptr)

    def executable(self, kernel, hints):
        """A function of the grid and raw arguments."""
        compiled = kernel.compile(self.target, hints)
        facts = compiled.metadata
        assert facts.shared <= self.shared, f"{compiled.name}: {facts.shared} bytes of shared memory for {self.arch}"
        program = Program(compiled.asm["ptx"], kernel.fn.__module__.rpartition(".")[2] in self.between_warps)
        options = {"num_warps": facts.num_warps, "shared": facts.shared, "arch": self.arch}

        def run(x, y, z, args):
            scratch, owner = [0, 0], None
            if facts.global_scratch_size:
                scratch[0], owner = self.allocate(facts.global_scratch_size * x * y * z)
            maps = iter(getattr(facts, "tensordesc_meta", None) or ())
            given = [word for value in args for word in parameters(value, maps)]
            program.run(self.global_memory, grid=(x, y, z), args=[*given, *scratch], **options)
            del owner

        return run


def parameters(value, maps):
    """The PTX parameters of an argument: of a descriptor the tensor map, its shape and its strides in elements."""
    if not isinstance(value, TensorDescriptor):
        return [value]
    wanted, size = next(maps), value.base.dtype.itemsize
    strides = tuple(s * size for s in value.strides)
    box, swizzle = tuple(wanted["block_size"]), wanted["swizzle"]
    tensor = TensorMap(value.base.data_ptr(), tuple(value.shape), strides, box, swizzle, size)
    return [tensor, *value.shape, *value.strides]
