"""One i64 in memory, set or advanced by the device itself, so that a replayed step knows where it is."""

from .simd import arg, ld_i64, st_i64


def store(a, tid, nth):
    """Words: address, value."""
    if tid == 0:
        st_i64(arg(a, 0), arg(a, 1))


def add(a, tid, nth):
    """Words: address, value."""
    if tid == 0:
        st_i64(arg(a, 0), ld_i64(arg(a, 0)) + arg(a, 1))


def build(name, *params, source=None):
    """store, add"""
    return {"store": store, "add": add}.get(name)
