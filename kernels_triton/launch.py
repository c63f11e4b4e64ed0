"""From a Triton function to launches with raw integers: compiled once per device and alignment, then kept.

Triton's own `fn[grid](...)` finds the compiled kernel anew at every call, which takes 9 to 15 us; a `Kernel` knows the
types of its arguments, so that one dict look-up remains.
"""

import ctypes
import json
import os
import sys

import triton
from triton.compiler import ASTSource
from triton.runtime import JITFunction

# Our dtype names in Triton's. A bool is a byte of 0 or 1.
TYPES = {
    "bool": "u8", "u8": "u8", "i8": "i8", "u16": "u16", "i16": "i16", "u32": "u32", "i32": "i32", "u64": "u64",
    "i64": "i64", "f16": "fp16", "bf16": "bf16", "f32": "fp32", "f64": "fp64", "f8e4m3": "fp8e4nv", "f8e5m2": "fp8e5",
}  # fmt: skip
SHARED = {75: 65536, 80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376, "gfx942": 65536}
COUNTERS, SCRATCH, STREAMS = 4096, 1 << 20, 8  # of a workspace: i32 of 0, then bytes; workspaces of a GPU
ALIGNED, DIVISIBLE = 2, 1  # alignment classes: all pointers at multiples of 16 bytes; all marked integers divide by 16


def pointer(dtype):
    """The type of a pointer to elements of one of our dtypes.

    >>> pointer("f16")
    '*fp16'
    """
    return "*" + TYPES[dtype]


class Kernel:
    """A Triton function with the types of its arguments, its constants and its launch options.

    `types`: one per argument that is no constant, in order ("*fp32", "i32", "fp32"). `divisible` names integers which,
    if all of them divide by 16, let the compiler use wide loads. Constants come last in the function's signature, and
    are given by keyword. `loose` names pointers whose alignment says nothing about the others. `fuse` lets the compiler
    round x * y + z once; `registers`: how many a thread has at most. Call it with a Gpu, a grid and raw integers (and
    floats for "fp32", "fp64").

    `items`, for reports: elements (or weights) that one pass of its innermost loop treats, or the whole program if it
    has no loop; `straight`: if its loops are for ragged ends only.
    """

    items, straight = 0, False

    def __init__(self, fn, types, divisible=(), warps=4, stages=3, fuse=True, loose=(), registers=None, **consts):
        self.fn, self.consts, self.warps, self.stages, self.fuse = fn, consts, warps, stages, fuse
        self.registers = registers
        names = [n for n in fn.arg_names if n not in consts]
        if len(names) != len(types) or list(fn.arg_names[len(names) :]) != [n for n in fn.arg_names if n in consts]:
            raise TypeError(f"{fn.__name__}: got types {types} for {names}; expected one each, and constants last")
        self.types = dict(zip(names, types, strict=True))
        self.divisible, self.loose = tuple(divisible), tuple(loose)
        self.pointers = [i for i, t in enumerate(types) if t[0] == "*"]
        self._aligned = [i for i in self.pointers if names[i] not in loose]
        self._integers = [names.index(n) for n in self.divisible]

    def __call__(self, gpu, grid, *args):
        low = more = 0
        for i in self._aligned:
            low |= args[i]
        for i in self._integers:
            more |= args[i]
        key = (self, (not low & 15) * ALIGNED + (not more & 15))
        run = gpu.ready.get(key)
        if run is None:
            run = gpu.ready[key] = gpu.load(*key)
        run(*grid, args)
        if gpu.trace is not None:
            gpu.trace.append((self, run, grid, args))

    def source(self, hints):
        """What the compiler is given for an alignment class."""
        fn, names = self.fn, list(self.fn.arg_names)
        hinted = [n for n, t in self.types.items() if t[0] == "*" and n not in self.loose] if hints & ALIGNED else []
        hinted += self.divisible if hints & DIVISIBLE else []
        return ASTSource(
            fn,
            signature={n: "constexpr" if n in self.consts else self.types[n] for n in names},
            constexprs={(names.index(n),): v for n, v in self.consts.items()},
            attrs={(names.index(n),): [["tt.divisibility", 16]] for n in hinted},
        )

    def compile(self, target, hints=ALIGNED | DIVISIBLE):
        """The CompiledKernel for a GPUTarget and an alignment class: from Triton's cache, or from its compiler."""
        if not isinstance(self.fn, JITFunction):
            raise TypeError(f"{self.fn.__name__} was decorated for the interpreter, and cannot be compiled")
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": self.fuse}
        options |= {"maxnreg": self.registers} if self.registers else {}
        return triton.compile(self.source(hints), target=target, options=options)


def launcher(compiled, constants, stream):
    """What launches a CompiledKernel: a function of grid x, y, z and the arguments. `stream` gives the stream's number.

    `CompiledKernel.run` takes pointers as integers, and skips all that `fn[grid]` does before it. Where its own Python
    is known, and has nothing to allocate, what it calls is called in its place.
    """
    run, function, metadata, rest = compiled.run, compiled.function, compiled.packed_metadata, (None,) * constants
    known = _known(run)
    if known is None:

        def launch(x, y, z, args):
            run(x, y, z, stream(), function, metadata, None, None, None, *args, *rest)

    elif known == "flat":
        direct, cooperative, dependent = run.launch, run.launch_cooperative_grid, run.launch_pdl
        tail = (metadata, None, None, None)

        def launch(x, y, z, args):
            direct(x, y, z, stream(), function, cooperative, dependent, None, None, *tail, *args, *rest)

    else:
        direct, cooperative, dependent = run.launch, run.launch_cooperative_grid, run.launch_pdl
        notes, signature = run.arg_annotations, run.kernel_signature

        def launch(x, y, z, args):
            direct(
                x, y, z, stream(), function, cooperative, dependent, metadata, None, None, None, None, None, notes,
                signature, (*args, *rest),
            )  # fmt: skip

    return launch


def _known(run):
    """How the compiled launcher of a CudaLauncher wants its arguments: "flat" (Triton 3.6), "packed" (3.7), or None."""
    code, names = getattr(type(run).__call__, "__code__", None), ("global_scratch_size", "profile_scratch_size")
    if type(run).__name__ != "CudaLauncher" or code is None or any(getattr(run, n, 1) for n in names):
        return None
    form = _FORMS.get((code.co_varnames[5 : code.co_argcount], hasattr(run, "arg_annotations")))
    return form if hasattr(run, "launch_cooperative_grid") and hasattr(run, "launch_pdl") else None


# parameters of `__call__` after the stream, whether arguments are described
_FORMS = {
    (("function",), False): "flat",
    (("function", "kernel_metadata", "launch_metadata", "launch_enter_hook", "launch_exit_hook"), True): "packed",
}


def tuned_path(folder, name):
    """The file of what `bench.tune` found for GPUs of that name."""
    return os.path.join(folder, "tuned", f"{name.replace('/', '_')}.json")


def tuned(folder, name):
    """{room: {case: numbers}} of that file; {} if there is none, or if it is damaged, which standard error is told."""
    path = tuned_path(folder, name)
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        rows = [row for cases in found.values() for row in cases.values()]
        if not all(len(row) == 5 and all(type(n) is int and n > 0 for n in row) for row in rows):
            raise ValueError("expected lists of five positive integers")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as e:
        print(f"tensorlib: {path} is ignored: {e}; run bench.tune anew, or remove it", file=sys.stderr, flush=True)
        return {}
    return found


class Workspaces:
    """Memory of a Gpu that plans use one after the other, so that a call which needs some can be repeated as it was."""

    workspaces = None

    def workspace(self):
        """Address of COUNTERS i32 of 0, which kernels leave at 0, and SCRATCH bytes: the current stream's own.

        Made once, before anything is captured. Two graphs must not run at once.
        """
        size = 4 * COUNTERS + SCRATCH
        if self.workspaces is None:
            ptr, owner = self.allocate(STREAMS * size)
            zeros = ctypes.create_string_buffer(STREAMS * size)
            self.upload(ptr, ctypes.addressof(zeros), STREAMS * size)
            self.synchronize()  # other streams may use it at once
            self.workspaces = ptr, ptr + STREAMS * size, {}, owner
        ptr, _, streams, _ = self.workspaces
        return ptr + size * streams.setdefault(self.stream(), len(streams) % STREAMS)

    def within(self, address):
        """Whether an address is one of a workspace."""
        return self.workspaces is not None and self.workspaces[0] <= address < self.workspaces[1]


def scratch(gpu, nbytes):
    """(address, owner) of memory for the launches of one plan: of the workspace, unless that is too small."""
    return (gpu.workspace() + 4 * COUNTERS, None) if nbytes <= SCRATCH else gpu.allocate(nbytes)


def blocks(n, size):
    """How many blocks of `size` cover n elements."""
    return -(-n // size)


def power_of_2(n):
    """The least power of 2 that is n or more."""
    return 1 << max(0, n - 1).bit_length()


def pick(table, arch):
    """The row of a table by architecture (75, 80, 86 ... or "gfx942") for `arch`: its own, else the next lower one.

    >>> pick({80: "a", 90: "b"}, 89), pick({80: "a", 90: "b"}, 120)
    ('a', 'b')
    """
    if arch in table:
        return table[arch]
    if isinstance(arch, str):
        return table.get("gfx942", table[80])
    return table[max((a for a in table if isinstance(a, int) and a <= arch), default=80)]
