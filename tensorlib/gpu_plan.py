"""Calls on GPUs seen before: what one allocated and launched, done again by a function made for it.

`Watch` sees the allocations and launches of a call. If everything that was launched has known addresses - operands,
memory that the call itself allocated, the stream's workspace - `plan` makes a function of the operands' addresses that
allocates the result and the scratch memory (one block) anew, launches the same kernels, and returns the result: no
Python of the op's is left. Its text depends on the kinds of arguments alone, and is compiled once per text.
"""

import functools
import threading
from types import FunctionType

GRAIN = 512  # bytes: what scratch memory is aligned to
SCRATCH = 64 << 20  # bytes at most: beyond, memory that an op gives back meanwhile matters more than its Python
_watching = threading.Lock()


class Watch:
    """Is told what this thread allocates and launches on a GPU: `events`, in order; `others`: copies happened, too.

    Within it, `gpu.trace` and the allocator are this one's; launches are handed on to the trace that was there.
    """

    def __init__(self, gpu):
        self._gpu, self._thread, self.events, self.others = gpu, threading.get_ident(), [], False

    def __enter__(self):
        gpu, self._kept = self._gpu, {name: vars(self._gpu).get(name) for name in ("trace", *self._WRAPPED)}
        self._before, allocate = gpu.trace, gpu.allocate

        def allocated(nbytes):
            ptr, owner = allocate(nbytes)
            if threading.get_ident() == self._thread:
                self.events.append((ptr, nbytes))
            return ptr, owner

        gpu.trace, gpu.allocate = self, allocated
        for name in self._WRAPPED[1:]:
            setattr(gpu, name, self._noticed(getattr(gpu, name)))
        return self

    def __exit__(self, *error):
        for name, value in self._kept.items():
            if value is None:
                vars(self._gpu).pop(name, None)
            else:
                setattr(self._gpu, name, value)

    _WRAPPED = ("allocate", "upload", "download", "copy", "synchronize")

    def _noticed(self, function):
        def noticed(*args):
            self.others |= threading.get_ident() == self._thread
            return function(*args)

        return noticed

    def append(self, launch):
        """Told of every launch."""
        if threading.get_ident() == self._thread:
            self.events.append(launch)
        if self._before is not None:
            self._before.append(launch)


def watched(gpu, function, args):
    """(result of the call, its events, or None if they say nothing)."""
    if not _watching.acquire(blocking=False):  # another thread's call: a GPU tells one at a time
        return function(*args), None
    try:
        with Watch(gpu) as watch:
            out = function(*args)
    finally:
        _watching.release()
    return out, None if watch.others else watch.events


class _Memory:
    """Where addresses of a call lie: operands, what it allocated, the workspace."""

    def __init__(self, args, out):
        self.gpu, self.allocated, self.scratch = out.device.gpu, [], 0
        self.operands = [(f"p{i}", a.buffer) for i, a in enumerate(args) if hasattr(a, "buffer")]
        self.lasting = getattr(out.device, "faults", None)

    def add(self, ptr, nbytes, result):
        """An allocation: the result's, or scratch."""
        if result:
            self.allocated.append((ptr, nbytes, "r", 0))
        else:
            self.allocated.append((ptr, nbytes, "s", self.scratch))
            self.scratch += -(-nbytes // GRAIN) * GRAIN

    def place(self, word):
        """(what an address is relative to, bytes from there); None if that is unknown."""
        for ptr, nbytes, name, start in reversed(self.allocated):  # memory may have been given back, and taken again
            if ptr <= word < ptr + nbytes:
                return name, word - ptr + start
        for name, buffer in self.operands:
            if buffer.ptr <= word < buffer.ptr + buffer.nbytes:
                return name, word - buffer.ptr
        if self.gpu.within(word):
            return "w", word - self.gpu.workspace()
        if not word or (self.lasting is not None and self.lasting.within(word)):
            return "", word
        return None


def plan(launches, events, args, out):
    """What does a call again, a function of the operands' addresses; None for what cannot be repeated.

    `launches`: (reads, writes) as `backend.launch` was told; `events`: of a `Watch`.
    """
    memory, fresh = _Memory(args, out), {e[0] for e in events if len(e) == 2}
    own = [a.buffer for a in args if hasattr(a, "buffer")]
    if out.buffer.ptr not in fresh or out.buffer in own or not launches:
        return None
    for reads, writes in launches:
        if not all(r.buffer in own or r.buffer.ptr in fresh for r in reads):
            return None
        if not writes or not all(w.buffer not in own and w.buffer.ptr in fresh for w in writes):
            return None
    kinds, scope = [], {}
    last = max(i for i, e in enumerate(events) if len(e) == 2 and e[0] == out.buffer.ptr)
    for i, event in enumerate(events):
        if len(event) == 2:
            memory.add(*event, i == last)
            continue
        kinds.append(_arguments(len(kinds), event, memory, scope))
        if kinds[-1] is None:
            return None
    if not kinds or memory.scratch > SCRATCH:
        return None
    device = out.device
    scope |= {"gpu": device.gpu, "buffers": out.buffer.__class__, "nbytes": out.buffer.nbytes, "cls": type(out)}
    scope |= {"size": max(1, out.buffer.nbytes), "scratch": memory.scratch, "layout": out.layout, "dtype": out.dtype}
    scope["allocate"], scope["workspace"] = device.gpu.allocate, device.gpu.workspace
    return FunctionType(_code(len(args), memory.scratch > 0, tuple(kinds)), scope, "again")


def _arguments(number, event, memory, scope):
    """The texts of a launch's arguments, whose constants go into `scope`; None for what cannot be repeated."""
    kernel, launch, grid, words = event
    scope[f"kernel{number}"], scope[f"launch{number}"], texts = kernel, launch, []
    for i, axis in enumerate("xyz"):
        scope[f"{axis}{number}"] = grid[i]
    for i, word in enumerate(words):
        name, constant = f"c{number}_{i}", word
        text = name
        if hasattr(word, "base"):  # a descriptor of memory
            found = memory.place(word.base.data_ptr())
            if not found or not found[0]:
                return None
            constant, text = _descriptor(word, found[1]), f"{name}({found[0]})"
        elif not isinstance(word, (int, float)):
            return None
        elif i in kernel.pointers:
            found = memory.place(word)
            if found is None:
                return None
            where, constant = found
            text = name if not where else f"{where} + {name}" if constant else where
        scope[name] = constant
        texts.append(text)
    return tuple(texts)


def _descriptor(like, shift):
    """A function of an address that describes the memory there as `like` does that of an operand."""
    base, cls = like.base, type(like)

    def described(address):
        return cls(type(base)(address + shift, base.dtype), like.shape, like.strides, like.block_shape)

    return described


@functools.cache
def _code(operands, scratch, kinds):
    """The code of a function that does as many launches, with arguments of these texts."""
    lines = [f"def again({', '.join(f'p{i}' for i in range(operands))}):", "    r, owner = allocate(size)"]
    lines += ["    s, kept = allocate(scratch)"] if scratch else []  # the order of the stream makes its end safe
    lines += ["    w = workspace()"] if any(t.startswith("w ") or t == "w" for texts in kinds for t in texts) else []
    for i, texts in enumerate(kinds):
        lines += [f"    a = ({', '.join(texts)},)", f"    launch{i}(x{i}, y{i}, z{i}, a)"]
        told = f"(kernel{i}, launch{i}, (x{i}, y{i}, z{i}), a)"
        lines += ["    if gpu.trace is not None:", f"        gpu.trace.append({told})"]
    lines += ["    return cls(buffers(r, nbytes, owner), layout, dtype)"]
    scope = {}
    exec("\n".join(lines), scope)
    return scope["again"].__code__
