"""The thread pool's native side: a team of threads runs a command list, with barriers, without Python.

The layout of the control block and of a command is in `driver.py` (which starts the threads). Every thread of the
team runs every command with its own thread number, then meets the others where the command asks for it. Waiting spins
for a while, then gives the core away, then sleeps on a futex, so that an idle pool costs nothing.
"""

from llvmlite import ir
from numba import types
from numba.extending import register_jitable

from . import levels
from .control import ARRIVED, COUNT, FUTEX, GENERATION, LIST, SERIAL, SLEEPERS, SPIN, SYNC, SYSCALL, TEAM, YIELD
from .simd import _I32, _I64, _call, _const, _make, _pointer, ld_i64

_WAIT, _WAKE = 128, 129  # FUTEX_WAIT and FUTEX_WAKE, private
_VOID = types.void


def _word(b, address):
    return _pointer(b, address, _I64)


a_load = _make("a_load", lambda a: types.int64, lambda b, t, a: b.load_atomic(_word(b, a), "acquire", 8), 1)
a_add = _make("a_add", lambda a, v: types.int64, lambda b, t, a, v: b.atomic_rmw("add", _word(b, a), v, "seq_cst"), 2)


def _a_store(b, t, address, value):
    b.store_atomic(value, _word(b, address), "release", 8)


def _call_kernel(b, t, fn, a, tid, nth):
    kernel = ir.FunctionType(ir.VoidType(), [_I64, _I64, _I64])
    b.call(b.inttoptr(fn, kernel.as_pointer()), [a, tid, nth])


def _syscall(b, t, fn, *args):
    """libc's syscall(), reached through its address: a kernel has no undefined symbols"""
    long_ = ir.FunctionType(_I64, [_I64] * len(args))
    return b.call(b.inttoptr(fn, long_.as_pointer()), args)


def _pause(b, t):
    if levels.TARGET == "neon":
        _call(b, "llvm.aarch64.hint", ir.VoidType(), [_const(_I32, 1)])
    else:
        _call(b, "llvm.x86.sse2.pause", ir.VoidType(), [])


a_store = _make("a_store", lambda a, v: _VOID, _a_store, 2)
call_kernel = _make("call_kernel", lambda f, a, t, n: _VOID, _call_kernel, 4)
system = _make("syscall5", lambda f, n, a, b, c, d: types.int64, _syscall, 6)
pause = _make("pause", lambda: _VOID, _pause, 0)


@register_jitable
def _wait_for(ctl, target):
    """until ARRIVED >= target; spins, then yields its core: the thread waited for may need it"""
    n = 0
    limit = ld_i64(ctl + SPIN)
    while a_load(ctl + ARRIVED) < target:
        n += 1
        if n < limit:
            pause()
        else:
            system(ld_i64(ctl + SYSCALL), ld_i64(ctl + YIELD), 0, 0, 0, 0)


@register_jitable
def _play(ctl, commands, count, tid, nth):
    """All commands, as thread tid of nth; returns how many barriers were passed."""
    passed = 0
    for i in range(count):
        c = commands + 24 * i
        flags = ld_i64(c + 16)
        if flags & SERIAL:
            if tid == 0:
                call_kernel(ld_i64(c), ld_i64(c + 8), 0, 1)
        else:
            call_kernel(ld_i64(c), ld_i64(c + 8), tid, nth)
        if flags & SYNC and nth > 1:
            passed += 1
            a_add(ctl + ARRIVED, 1)
            _wait_for(ctl, passed * nth)
    return passed


def worker(ctl, tid, unused):
    """A pool thread's whole life: wait for a generation, play its list, report, again; a negative count ends it."""
    seen = 0
    while True:
        n = 0
        limit = ld_i64(ctl + SPIN)
        while a_load(ctl + GENERATION) == seen:
            n += 1
            if n < limit:
                pause()
            else:
                a_add(ctl + SLEEPERS, 1)
                system(ld_i64(ctl + SYSCALL), ld_i64(ctl + FUTEX), ctl + GENERATION, _WAIT, seen & 0xFFFFFFFF, 0)
                a_add(ctl + SLEEPERS, -1)
        seen = a_load(ctl + GENERATION)
        count = a_load(ctl + COUNT)
        if count < 0:
            return
        _play(ctl, a_load(ctl + LIST), count, tid, a_load(ctl + TEAM))
        a_add(ctl + ARRIVED, 1)


def run(ctl, commands, count):
    """Plays a list with the whole team (this thread is number 0) and returns when every thread is done with it."""
    nth = ld_i64(ctl + TEAM)
    a_store(ctl + LIST, commands)
    a_store(ctl + COUNT, count)
    a_store(ctl + ARRIVED, 0)
    a_add(ctl + GENERATION, 1)
    if a_load(ctl + SLEEPERS) > 0:
        system(ld_i64(ctl + SYSCALL), ld_i64(ctl + FUTEX), ctl + GENERATION, _WAKE, 1 << 20, 0)
    passed = _play(ctl, commands, count, 0, nth)
    # each of the others adds one more when it has left the list
    _wait_for(ctl, passed * nth + nth - 1)


def run_alone(ctl, commands, count):
    """Plays a list in this thread only: what a caller does whose pool is busy, or has one thread."""
    for i in range(count):
        c = commands + 24 * i
        call_kernel(ld_i64(c), ld_i64(c + 8), 0, 1)


def build(name, *params, source=None):
    """The room's kernels: worker, run, run_alone."""
    return {"worker": worker, "run": run, "run_alone": run_alone}.get(name)
