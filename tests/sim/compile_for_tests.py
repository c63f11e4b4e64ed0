"""Compiles the kernels of these tests for a GPU that is not there."""

import functools

import numpy as np
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from tests.sim.machine import LIMIT, Program
from tests.sim.memory import Global
from tests.sim.tma import TensorMap

NAMES = {
    "float16": "fp16",
    "bfloat16": "bf16",
    "float32": "fp32",
    "float64": "fp64",
    "float8_e4m3fn": "fp8e4nv",
    "float8_e5m2": "fp8e5",
    "bool": "i1",
    **{f"{sign}int{bits}": f"{sign}{'' if sign else 'i'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def type_of(value):
    """Triton's name for the type of an argument: an array is a pointer."""
    if isinstance(value, np.ndarray):
        return "*" + NAMES[value.dtype.name]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def descriptor_type(array, block):
    return f"tensordesc<{NAMES[array.dtype.name]}{list(block)}>".replace(" ", "")


def is_divisible(value):
    return isinstance(value, np.ndarray) or (isinstance(value, int) and value % 16 == 0)


@functools.cache
def compile_kernel(kernel, arch, types, consts, divisible, options):
    """A compiled kernel: `types` of its run-time parameters in order, `consts` as (name, value) pairs."""
    names = kernel.arg_names
    consts, types = dict(consts), iter(types)
    signature = {name: "constexpr" if name in consts else next(types) for name in names}
    source = ASTSource(
        kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in consts.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    return compile(source, target=GPUTarget("cuda", arch, 32), options=dict(options))


def compiled_for(kernel, arch, args, consts, aligned=True, descriptors=(), **options):
    """`kernel` compiled for arguments as a launch would: pointers and ints that 16 divides are known to be so."""
    names = [name for name in kernel.arg_names if name not in consts]
    blocks = dict(descriptors)
    types = tuple(descriptor_type(a, blocks[n]) if n in blocks else type_of(a) for n, a in zip(names, args))
    divisible = [n for n, a in zip(names, args) if n not in blocks and aligned and is_divisible(a)]
    return compile_kernel(kernel, arch, types, tuple(consts.items()), tuple(divisible), tuple(options.items()))


@functools.cache
def program_of(ptx):
    return Program(ptx)


def memory_of(args, readonly=()):
    """The arrays among the arguments as the buffers of a device, and the arguments with addresses in their place."""
    memory = Global()
    for position, value in enumerate(args):
        while isinstance(value, np.ndarray) and isinstance(value.base, np.ndarray):
            value = value.base  # a view is a place in its buffer
        if isinstance(value, np.ndarray) and value.ctypes.data not in memory.buffers:
            memory.add(value.ctypes.data, value.nbytes, f"argument {position}", position in readonly)
    return memory, [value.ctypes.data if isinstance(value, np.ndarray) else value for value in args]


def scratch_of(metadata, grid, memory):
    """Memory of the programs for tensor maps that they make; its address. The caller keeps the array alive."""
    scratch = np.zeros(metadata.global_scratch_size * int(np.prod(grid)) + 128, np.uint8)
    at = scratch.ctypes.data + -scratch.ctypes.data % 128
    if metadata.global_scratch_size:
        memory.add(at, scratch.nbytes - 128, "scratch")
    return scratch, at


def launch(
    kernel, arch, args, consts, grid=(1,), edit=None, batch=None, limit=LIMIT, descriptors=None, readonly=(), **options
):
    """Compiles and runs a kernel on NumPy arrays in place and gives its memory back.

    edit: changes the PTX before it runs; descriptors: blocks of the arrays to pass as tensor maps, by parameter.
    """
    compiled = compiled_for(kernel, arch, args, consts, descriptors=tuple((descriptors or {}).items()), **options)
    ptx = compiled.asm["ptx"] if edit is None else edit(compiled.asm["ptx"])
    memory, given = memory_of(args, readonly)
    metadata = compiled.metadata
    if descriptors:
        given = [part for i, value in enumerate(args) for part in described(value, given[i], metadata, i)]
    scratch, at = scratch_of(metadata, grid, memory)
    program_of(ptx).run(
        memory, grid, metadata.num_warps, metadata.shared, [*given, at], arch=arch, batch=batch, limit=limit
    )
    del scratch
    return memory


def described(array, address, metadata, position):
    """The PTX parameters of one argument: of an array the tensor map, its shape and its strides in elements."""
    if not isinstance(array, np.ndarray):
        return [array]
    wanted = metadata.tensordesc_meta[position]
    box, swizzle = tuple(wanted["block_size"]), wanted["swizzle"]
    tensor = TensorMap(address, array.shape, array.strides, box, swizzle, array.itemsize)
    return [tensor, *array.shape, *(stride // array.itemsize for stride in array.strides)]
