"""Calls seen before: an op that was one kernel launch (on GPUs: any number) is launched again without its Python.

The first call with operands of certain layouts and dtypes, and certain other arguments, runs the op and watches. If all
that happened was one launch that read the operands and wrote one fresh result, its words are kept as a template, with
the places of the addresses in them; the next such call allocates the result and hands the addresses over. On a 2.6 GHz
EPYC that takes 0.8 us, where the op's own Python takes 10.

An op may be `memoised` if what it launches depends on layouts, dtypes and plain arguments alone, never on values.
Buffers of each device are of a class of their own: the class, quick to read, is part of the key. What calls on GPUs
become is in gpu_plan.py.
"""

import functools
import itertools
from struct import pack
from types import FunctionType

from tensorlib import backend, gpu_plan, tape
from tensorlib.device import CPU, SMALL, Array, Buffer
from tensorlib.layout import Layout

LIMIT = 4096  # plans per op; numbers are part of the key, and may be new each time
VIEWS = 1024  # views per op: one takes 0.6 KB, and makes the next 1 us quicker
FAR = 1 << 40  # integers that might be mistaken for an address
WORDS = 96  # kernels_numba/call.py
NUMBERS = frozenset((bool, int, float, type(None)))
TRIES = 4  # calls on a GPU that copy something meanwhile: the first may fill a table, and others not
_kept = []  # all dicts of plans

# `quick` is made from this text, once per op: arguments by name cost less than *args, and loops less when unrolled.
_QUICK = """
def quick({signature}):
    if {out}(tape.used and (tape.mode.casting or tape.mode.recording and ({live}))) or backend.recorders{cpu}:
        return recorded({call}{out_too})
    try:
        room_, nbytes_, call_, pack_, class_, layout_, dtype_ = plans[{key}]{mixed_key}
    except (KeyError, TypeError, AttributeError):
        room_, call_ = None, watched  # not called here: what it raises would show this error, too
    if room_ is None:  # not seen yet, or a GPU's
        if call_ is watched:
            return watched(({call},))
        return recorded({call}) if call_ is None else call_({pointers}){mixed_addresses}
    owner_ = bytes(room_)
    pointer_ = id(owner_) + 95 & -64  # a bytes object's payload is 32 bytes in, a Buffer begins at a multiple of 64
    buffer_ = Buffer(pointer_, nbytes_, owner_)
    call_(pack_(pointer_, {pointers}){mixed_pointers})
    return class_(buffer_, layout_, dtype_)
"""


@functools.cache
def _code(names, optional, operands, gpu):
    """The code of `quick` for parameters `names`, the last `optional` with defaults, operands at places `operands`.

    `gpu`: calls on the CPU are not to be looked for.
    """
    call, arrays = [n for n in names if n != "out"], [names[i] for i in operands]
    live = " or ".join(f"tape.live({n})" for n in arrays)
    plain = [f"{n}.layout, {n}.dtype, {n}.buffer.__class__" for n in arrays]
    rest = [f"{n}, {n}.__class__" for n in call if n not in arrays]
    same_class = [f"{names[0]}.__class__"]  # the result's
    texts = {"key": ", ".join(plain + same_class + rest), "pointers": ", ".join(f"{n}.buffer.ptr" for n in arrays)}
    texts["mixed_key"] = texts["mixed_pointers"] = texts["mixed_addresses"] = ""
    texts["cpu"] = f" or getattr({names[0]}, 'buffer', None).__class__ is Buffer" if gpu else ""
    if len(operands) > 1:  # all of one class: Arrays; else some are numbers
        same = " is ".join(f"{n}.__class__" for n in arrays)
        parts = [
            f"({n}, {n}.__class__) if {n}.__class__ in NUMBERS else ({p}, {n}.__class__)" for n, p in zip(arrays, plain)
        ]
        texts["mixed_key"] = f" if {same} else plans[{', '.join(parts + rest)}]"
        pointers = ", ".join(f"0 if {n}.__class__ in NUMBERS else {n}.buffer.ptr" for n in arrays)
        packed = f"pack_(pointer_, {pointers})"
        texts["mixed_pointers"] = f" if {same} else {packed}"
        texts["mixed_addresses"] = f" if {same} else call_({pointers})"
    texts["out"], texts["out_too"] = ("out is not None or ", ", out") if "out" in names else ("", "")
    required = len(names) - optional
    signature = ", ".join([*names[:required], *(f"{n}=None" for n in names[required:])])  # each op sets its own values
    scope = {}
    exec(_QUICK.format(signature=signature, call=", ".join(call), live=live, **texts), scope)
    return scope["quick"].__code__


class Plan:
    """What a launch was: its words, the places of addresses in them, and the result's buffer, class, layout and dtype.

    `small`: what `quick` takes where the launch is small, else None.
    """

    __slots__ = ("cls", "dtype", "keep", "layout", "nbytes", "patches", "small", "words", "work")

    def run(self, args):
        """The launch again on other operands, with all that a large one needs."""
        buffer = Buffer.allocate(self.nbytes)
        pointers = [buffer.ptr] + [a.buffer.ptr if isinstance(a, Array) else 0 for a in args]
        words = self.words.copy()
        for place, slot, shift in self.patches:
            words[place + 1] = pointers[slot] + shift
        backend.play(backend.backend(), backend.packer(len(words))(*words), self.work)
        return self.cls(buffer, self.layout, self.dtype)


class _Watch:
    """Is told of the launches of one call."""

    def __init__(self):
        self.launches = []

    def add(self, kernel, block, work, reads, writes):
        self.launches.append((block, work, reads, writes))


def memoised(op, function, operands=1, gpu=False):
    """The op `function` of row `op`, recorded by the tape, and quick where a call repeats; op None: it records itself.

    Its first `operands` parameters (or those at places `operands`) are Arrays; a call with a number or None among them
    is kept under that. `gpu`: on GPUs only, for an op that is never one launch on the CPU.
    """
    names, operands = tape.parameters(function)[0], tuple(range(operands)) if type(operands) is int else operands
    plans, others, tries = {}, {}, {}  # the small ones; large ones, None for calls that cannot be repeated; see TRIES
    _kept.extend((plans, others, tries))
    scope = {"tape": tape, "backend": backend, "Buffer": Buffer, "NUMBERS": NUMBERS}
    recorded = tape.recorded(op, function, quick=lambda: scope["quick"]) if op else function

    def watched(args):
        arrays, rest = [args[i] for i in operands], [a for i, a in enumerate(args) if i not in operands]
        if any(isinstance(a, Array) for a in rest):  # a key would keep it alive
            return recorded(*args)
        key = _key(arrays, rest, args[0].__class__)
        try:
            plan = others.get(key)
        except TypeError:  # an argument without a hash
            return recorded(*args)
        if plan is not None:
            return plan.run(arrays)
        if key in others:
            return recorded(*args)
        for kept in (plans, others, tries):
            if len(kept) >= LIMIT:
                kept.clear()
        out, plan = _watched(recorded, args, arrays)
        if plan == "busy":
            tries[key] = tries.get(key, 0) + 1
            plan = "never" if tries[key] >= TRIES else "unknown"
        if type(plan) is FunctionType or plan == "never":  # a GPU's
            plans[key] = None, None, None if plan == "never" else plan, None, None, None, None
        elif plan is not None and plan != "unknown" and plan.small:
            plans[key] = plan.small
        elif plan != "unknown":
            others[key] = plan
        return out

    scope |= {"plans": plans, "recorded": recorded, "watched": watched}
    code = _code(names, len(function.__defaults__ or ()), operands, gpu)
    scope["quick"] = quick = FunctionType(code, scope, function.__name__)
    quick.__defaults__, quick.__wrapped__ = function.__defaults__, function
    quick.__doc__, quick.__module__ = function.__doc__, function.__module__
    return quick


def forget():
    """Forgets all calls: a setting that their launches depend on has changed."""
    for kept in _kept:
        kept.clear()


def _place(buffer):
    """What `quick` has for memory where it usually is, else the device."""
    return buffer.__class__ if buffer.__class__.device is buffer.device else buffer.device


def _key(arrays, rest, first):
    key = []
    mixed = any(a.__class__ is not arrays[0].__class__ for a in arrays)
    for a in arrays:
        part = (a.layout, a.dtype, _place(a.buffer)) if hasattr(a, "buffer") else (a,)
        key += ((*part, a.__class__),) if mixed else part
    key += () if mixed else (first,)
    for a in rest:
        key += (a, a.__class__)
    return tuple(key)


def _watched(function, args, operands):
    """(result, a plan, or None or, on a GPU, "never", or "unknown", or "busy": a copy kept it from being known)."""
    arrays, watch = [a for a in operands if hasattr(a, "buffer")], _Watch()
    spans = sorted((a.buffer.ptr, a.buffer.ptr + a.buffer.nbytes) for a in arrays)
    if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
        return function(*args), "unknown"  # operands that share memory say nothing about those that do not
    gpu = arrays[0].buffer.device.gpu if arrays else None
    before = backend.set_recorder(watch)
    try:
        if gpu is None:
            out, events = function(*args), ()
        else:
            out, events = gpu_plan.watched(gpu, function, args)
    finally:
        backend.set_recorder(before)
    if type(out) is Array or (gpu is not None and events is None):
        return out, "unknown" if events is not None else "busy"
    if gpu is not None:
        fine = isinstance(out, Array) and type(out) is type(arrays[0]) and out.device.gpu is gpu
        launches = [(reads, writes) for _, _, reads, writes in watch.launches]
        return out, (gpu_plan.plan(launches, events, operands, out) if fine else None) or "never"
    fine = _repeatable(watch.launches, arrays, args, out)
    return out, _plan(watch.launches, operands, out) if fine else None


def _repeatable(launches, arrays, args, out):
    """Whether one launch read the operands, wrote the fresh result, and touched nothing else."""
    if len(launches) != 1 or not arrays or type(out) is not type(arrays[0]) or out.device is not CPU:
        return False
    return not any(type(a) is int and abs(a) > FAR for a in args) and _pure(launches, arrays, out)


def _pure(launches, arrays, out):
    """Whether launches read the operands and the result, and wrote the result alone, which is fresh."""
    buffers = [a.buffer for a in arrays]
    for _, _, reads, writes in launches:
        if not all(r.buffer in buffers or r.buffer is out.buffer for r in reads):
            return False
        if not writes or not all(w.buffer is out.buffer for w in writes):
            return False
    return bool(launches) and out.buffer not in buffers


def _plan(launches, args, out):
    block, work, _, _ = launches[0]
    buffers = [(i, a.buffer) for i, a in enumerate((out, *args)) if isinstance(a, Array)]
    plan, cpu = Plan(), backend.backend()
    plan.words, plan.patches = backend.unpack(block), []
    for place, word in enumerate(plan.words[1:]):
        found = next(((i, b) for i, b in buffers if b.ptr <= word < b.ptr + b.nbytes), None)
        if found is not None:
            plan.patches.append((place, found[0], word - found[1].ptr))
        elif FAR < word < 1 << 48:  # an address of something else
            return None
    plan.cls, plan.layout, plan.dtype = type(out), out.layout, out.dtype
    plan.nbytes, plan.work = out.buffer.nbytes, work
    entry, *words = plan.words
    small = 0 < work < backend.SHORT_WORK and plan.nbytes <= SMALL and len(words) <= WORDS and cpu.direct is not None
    merged = backend.kernel("call", "merged").entry
    flat = [merged, entry, len(words), len(plan.patches), *(v for patch in plan.patches for v in patch), *words]
    plan.keep, plan.small = pack(f"{len(flat)}q", *flat), None
    if small:
        call, packer = cpu.direct.bound(plan.keep), backend.packer(1 + len(args))
        plan.small = plan.nbytes + 64, plan.nbytes, call, packer, plan.cls, plan.layout, plan.dtype
    return plan


# ---- views -----------------------------------------------------------------------------------------------------------

_PLAIN = frozenset((int, type(None), type(Ellipsis)))


def view_memoised(op, function):
    """The op `function(x, *arguments)` of row `op`, which gives views, quick where x's layout and arguments repeat."""
    layouts, recorded = {}, tape.recorded(op, function, quick=lambda: quick)

    def quick(x, *args):
        if tape.used and tape.mode.recording:
            return recorded(x, *args) if tape.live(x) else marked(x, args)
        try:
            return x.__class__(x.buffer, front(x.layout, *args), x.dtype)
        except (KeyError, TypeError):
            return watched(x, args)

    @functools.lru_cache(VIEWS, typed=True)  # builds its key in C; what raises is not kept
    def front(layout, *args):
        return layouts[layout, args, *map(type, args)]

    def named(x, *args, **kwargs):
        return recorded(x, *args, **kwargs) if kwargs else positional(x, *args)

    def marked(x, args):
        layout = layouts.get((x.layout, args, *map(type, args))) if _hashable(args) else None
        if layout is None:
            return watched(x, args)
        out = x.__class__(x.buffer, layout, x.dtype)
        tape.mark_view(out, x, op, args, {})
        return out

    def watched(x, args):
        out = recorded(x, *args)
        parts = args[0] if len(args) == 1 and type(args[0]) is tuple else args
        if (
            all(type(a) in _PLAIN or type(a) is Layout for a in parts)
            and out.buffer is x.buffer
            and out.dtype is x.dtype
        ):
            if len(layouts) >= VIEWS:
                layouts.clear()
            layouts[x.layout, args, *map(type, args)] = out.layout
        return out

    positional = quick
    if tape.parameters(function)[0] != ("x",):  # there are names to call it by
        quick = named
    quick.__wrapped__ = function
    for attribute in ("__name__", "__qualname__", "__doc__", "__module__"):
        setattr(quick, attribute, getattr(function, attribute))
    return quick


def getitem_memoised(op, function):
    """`view_memoised` for x[key], where keys hold slices, which have no hash."""
    layouts, recorded = {}, tape.recorded(op, function, quick=lambda: quick)

    def quick(x, key):
        recording = tape.used and tape.mode.recording
        known = None if recording and tape.live(x) else _known(key)
        if known is None:
            return recorded(x, key)
        layout = layouts.get((x.layout, known))
        if layout is not None:
            out = x.__class__(x.buffer, layout, x.dtype)
            if recording:
                tape.mark_view(out, x, op, (key,), {})
            return out
        out = recorded(x, key)
        if out.buffer is x.buffer:
            if len(layouts) >= VIEWS:
                layouts.clear()
            layouts[x.layout, known] = out.layout
        return out

    quick.__wrapped__, quick.__name__, quick.__doc__ = function, function.__name__, function.__doc__
    quick.__module__ = function.__module__
    return quick


def _hashable(args):
    return all(type(a) in _PLAIN or (type(a) is tuple and _hashable(a)) for a in args)


def _known(key):
    """A key of integers, slices of integers, None and ... as something that has a hash; None for other keys."""
    kind = key.__class__
    if kind is slice:
        start, stop, step = key.start, key.stop, key.step
        fine = start.__class__ in _PLAIN and stop.__class__ in _PLAIN and step.__class__ in _PLAIN
        return (slice, start, stop, step) if fine else None
    if kind is tuple:
        parts = tuple(map(_known, key))
        return None if None in parts else parts
    return (kind, key) if kind in _PLAIN else None
