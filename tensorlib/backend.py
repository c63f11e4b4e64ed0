"""Kernels by name: found on disk or compiled once, launched with raw integers, recorded for replay.

The only file that names a `kernels_*` package. It never falls back to another device: what a backend lacks raises
NoKernel.

Environment, read here once: `TENSORLIB_CACHE` (folder of the kernel cache), `TENSORLIB_THREADS`, and
`TENSORLIB_CPU_LEVEL` (a name of `kernels_numba.levels.LEVELS`, for testing a lower one than this CPU has).
"""

import ctypes
import functools
import importlib
import os
import struct
import sys
import threading

from tensorlib import tape
from tensorlib.bar import Line
from tensorlib.errors import DeviceError, NoKernel

SHORT_WORK = 1 << 14  # elementary operations, some 4 us, below which giving the GIL away costs more than it helps
PARALLEL_WORK = 1 << 16  # elementary operations below which waking the team costs more than it saves (some 10 us)
recorders = 0  # how many threads have somebody told of their launches
_state, _lock = threading.local(), threading.Lock()


def cache_root() -> str:
    """Folder of this user's caches: `TENSORLIB_CACHE`, else `tensorlib` under `XDG_CACHE_HOME` or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.environ.get("TENSORLIB_CACHE") or os.path.join(base, "tensorlib")


class Kernel:
    """A compiled kernel: its name, the address of its machine code, and what keeps that code in memory."""

    __slots__ = ("code", "entry", "name")
    plan = None

    def __init__(self, name, code):
        self.name, self.code, self.entry = name, code, code.entry


class Program:
    """What a GPU does for a kernel: `plan(gpu, words)` launches it."""

    __slots__ = ("name", "plan")

    def __init__(self, name, plan):
        self.name, self.plan = name, plan


class CpuBackend:
    """kernels_numba: machine code from the cache, or from Numba on a miss; one thread pool per process."""

    def __init__(self):
        from kernels_numba import cache, driver, levels, quant_layout

        self.driver, self._cache, self.quant = driver, cache, quant_layout
        self.level = os.environ.get("TENSORLIB_CPU_LEVEL") or levels.detect()
        if self.level not in levels.LEVELS:
            known = ", ".join(levels.LEVELS)
            raise DeviceError("cpu", f"level {self.level!r}", f"one of {known}", "see kernels_numba/levels.py")
        self.tokens, self.dots_bf16 = levels.LEVELS[self.level].tokens, levels.dots_bf16(self.level)
        self._kernels, self._retired, self._unwritable = {}, [], False
        self.direct = driver.direct_calls(cache.from_memory)
        self._folders = cache.folders(self.level, cache_root())
        threads = os.environ.get("TENSORLIB_THREADS")
        self.reset(int(threads) if threads else None)
        driver.on_fork(self.reset)

    def reset(self, threads=None):
        """A new pool (the workers of the old one are gone after a fork)."""
        self.pool = self.driver.Pool(lambda name: self.kernel("pool", name).entry, threads)

    @property
    def folder(self):
        """Where compiled kernels are written."""
        return self._folders[-1]

    def files(self):
        """Names of the kernel files in `folder`."""
        try:
            return sorted(name for name in os.listdir(self.folder) if name.endswith(".krn"))
        except FileNotFoundError:
            return []

    def store_under(self, destination):
        """Writes kernels to `destination`/<level> from now on, and looks nowhere else."""
        self._retired.append(self._kernels)  # their code may be in use
        self._folders, self._kernels = [os.path.join(destination, self.level)], {}
        self.reset(self.pool.threads)  # the pool has kernels of its own

    def kernel(self, room, name, *params, source=None, source_key=""):
        """See `tensorlib.backend.kernel`."""
        key = (room, name, params, source_key)
        found = self._kernels.get(key)
        if found is None:
            file = self._cache.file_name(room, name, params, source_key)
            paths = [os.path.join(f, file) for f in self._folders]
            code = next(filter(None, map(self._cache.load, paths)), None)
            if code is None:
                compiling(f"{room}: {' '.join([name, *map(str, params)])}")
                try:
                    code = self._compile(paths[-1], room, name, params, source)
                finally:
                    compiling.end()
            found = self._kernels[key] = Kernel(f"{room}.{name}", code)
        return found

    def _compile(self, path, room, name, params, source):
        words = " ".join([name, *map(str, params)])
        try:
            from kernels_numba import build
        except ImportError as e:
            fix = "pip install numba, or install a wheel of tensorlib that carries the kernels"
            raise NoKernel(words, f"no cached kernel and no compiler ({e})", "numba", fix) from e
        source = source() if callable(source) else source
        try:
            built = build.build_kernel(room, name, params, self.level, source)
        except build.CompileError as e:
            if source is None:
                raise
            why = [line for line in str(e).splitlines() if "Error" in line][-1:] or [str(e)]
            raise NoKernel(words, f"{source!r}: {why[0].strip()}", "source that compiles", "mend it") from e
        if built is None:
            where = f"kernels_numba/{room}.py"
            raise NoKernel(words, "no kernel for it on the CPU", "one of its rows", f"add it to the tables of {where}")
        try:
            self._cache.store(path, *built)
            return self._cache.load(path) or self._cache.from_memory(*built)
        except OSError as e:
            if not self._unwritable:
                self._unwritable = True
                folder = os.path.dirname(path)
                log(f"the kernel cache {folder} cannot be written ({e.strerror or e}): kernels compile at every start")
            return self._cache.from_memory(*built)


class GpuBackend:
    """kernels_triton: plans of launches, compiled by Triton. `driver` gives GPUs: kernels_triton.driver by default."""

    threads = 1  # scratch memory per thread of a CPU kernel means nothing here

    def __init__(self, driver=None):
        import kernels_triton

        why = None if driver else kernels_triton.missing()
        if why:
            fix = "pip install 'tensorlib[cuda]' on a machine with a GPU, or use Device('cpu')"
            raise DeviceError("device 'cuda'", why, "PyTorch, Triton and a GPU", fix)
        if driver is None:
            from kernels_triton import driver
        self._driver, self._programs, self.pool = driver, {}, self

    @functools.cached_property
    def quant(self):
        """What callers of the quantised kernels must know."""
        from kernels_triton import quant_layout

        return quant_layout

    def gpu(self, index):
        """The GPU of that number. DeviceError if there is none."""
        count = self._driver.count()
        if index >= count:
            raise DeviceError(f"device 'cuda:{index}'", f"{count} GPUs", f"a number below {count}", "use another GPU")
        found = self._driver.gpu(index)
        found.folder = cache_root()
        return found

    def kernel(self, room, name, *params, source=None, source_key=""):
        """See `tensorlib.backend.kernel`."""
        key = (room, name, params, source_key)
        found = self._programs.get(key)
        if found is None:
            try:
                built = importlib.import_module(f"kernels_triton.{room}").build
            except ModuleNotFoundError as e:
                if e.name != f"kernels_triton.{room}":
                    raise
                built = lambda *_, **__: None  # noqa: E731
            plan = built(name, *params, **({"source": source} if source else {}))
            if plan is None:
                where, words = f"kernels_triton/{room}.py", " ".join([name, *map(str, params)])
                raise NoKernel(words, "no kernel for it on GPUs", "one of its rows", f"add it to the tables of {where}")
            found = self._programs[key] = Program(f"{room}.{name}", plan)
        return found


_backends = {}
_KINDS = {"cpu": CpuBackend, "cuda": GpuBackend}


def backend(kind="cpu"):
    """The backend of a device kind. DeviceError if this installation or machine has none."""
    found = _backends.get(kind)
    if found is None:
        if kind not in _KINDS:
            raise DeviceError(f"device {kind!r}", "no kernels for it yet", "cpu or cuda", "use Device('cpu')")
        found = _backends[kind] = _KINDS[kind]()
    return found


def install(kind, made):
    """Makes `made` the backend of a device kind (None: the usual one, at its next use); returns the one before."""
    before = _backends.pop(kind, None)
    if made is not None:
        _backends[kind] = made
    return before


def log(message):
    """One line on standard error."""
    print(f"tensorlib: {message}", file=sys.stderr, flush=True)


class Progress:
    """Says on standard error that kernels compile, once; where somebody looks on also which one does, meanwhile."""

    def __init__(self):
        self.count, self._line = 0, Line()

    def __call__(self, name):
        self.count += 1
        if self.count == 1:
            log("compiling kernels for this CPU, once; they are cached for the next start")
        self._line.show(f"tensorlib: kernel {self.count}: {name}")

    def end(self):
        """It is done."""
        self._line.clear()


compiling = Progress()


def kernel(room, name, *params, device="cpu", source=None, source_key=""):
    """Kernel `name` of the room (file) `room`, specialised by `params` (strings or ints).

    `source` is the text of a decode function (or a callable giving it) that the room compiles in, `source_key` its
    hash. Raises NoKernel, which names the file to add it to.
    """
    return backend(device).kernel(room, name, *params, source=source, source_key=source_key)


def threads(device="cpu"):
    """How many threads a kernel may be run by: scratch memory is allocated for so many."""
    return backend(device).pool.threads


def set_num_threads(n):
    """Uses `n` threads (this one included) for kernels from now on; None: one per usable core."""
    backend().pool.close()
    backend().reset(n)


def words(args):
    """ints as they are, floats as the bits of a float64: the words of an argument block."""
    return [struct.unpack("q", struct.pack("d", a))[0] if type(a) is float else a for a in args]


def launch(kernel, args, work=0, reads=(), writes=()):
    """Runs a kernel, and records it if a capture is active in this thread.

    `args` are ints and floats; `work`, about how many elementary operations it is, decides whether threads pay.
    `reads` and `writes` are the Arrays (anything with `.buffer`) that the command touches: a replay puts barriers by
    them.
    """
    if tape.used and tape.mode.recording:
        tape.guard(kernel.name, reads)
    if kernel.plan is not None:
        _launch_plan(kernel, args, work, reads, writes)
        return
    try:
        block = packer(len(args) + 1)(kernel.entry, *args)
    except struct.error:  # there are floats among them
        block = packer(len(args) + 1)(kernel.entry, *words(args))
    recorder = getattr(_state, "recorder", None)
    if recorder is not None:
        recorder.add(kernel, block, work, reads, writes)
    for array in writes:
        array.buffer.version += 1
    play(backend(), block, work)


def _launch_plan(kernel, args, work, reads, writes):
    recorder = getattr(_state, "recorder", None)
    if recorder is not None:
        recorder.add(kernel, None, work, reads, writes)
    for array in writes:
        array.buffer.version += 1
    kernel.plan(writes[0].buffer.device.gpu, args)


@functools.lru_cache(None)
def packer(count):
    """The function that packs `count` i64 into bytes."""
    return struct.Struct(f"{count}q").pack


def unpack(block):
    """The words of a block, as a list."""
    return list(struct.unpack(f"{len(block) // 8}q", block))


def payload(block):
    """Address of the first byte of a `bytes` object (CPython's layout)."""
    return id(block) + 32


def play(cpu, block, work):
    """Runs one kernel: `block` is the bytes of its address and arguments. What is short keeps the GIL."""
    if 0 < work < SHORT_WORK and cpu.direct is not None:
        cpu.direct.call(block)
        return
    command = (ctypes.c_int64 * 3)(int.from_bytes(block[:8], "little"), payload(block) + 8, 0)
    cpu.pool.play(ctypes.addressof(command), 1, work >= PARALLEL_WORK)


def recorder():
    """Who is told of every launch in this thread, or None."""
    return getattr(_state, "recorder", None)


def set_recorder(recorder):
    """Makes `recorder` (None: nobody) be told of every launch in this thread; returns the one before."""
    global recorders
    before = getattr(_state, "recorder", None)
    with _lock:
        recorders += (recorder is not None) - (before is not None)
    _state.recorder = recorder
    return before
