"""What every reader is held to on files that are not sound: one FormatError, in 1 s and 200 MB, nothing left open."""

import contextlib
import gc
import itertools
import os
import sys
import time

import pytest
from hypothesis import strategies as st

from tensorlib.errors import FormatError

SECONDS, BYTES = 1.0, 200_000_000
MOST = 1000


def made(case):
    """The bytes of a case; large ones are functions, so that only the test that needs them makes them."""
    return case() if callable(case) else case


def read_all(file):
    """Uses all of an open file (of very many tensors the first): their bytes, and where they have a dtype, elements."""
    found = {}
    for name, info in itertools.islice(file.tensors.items(), MOST):
        raw = file.raw(name).numpy().tobytes()
        found[name] = raw if info.dtype is None else file.tensor(name).numpy().tobytes()
    return found, dict(file.metadata)


def opened(file_name):
    """How many descriptors and mappings of that file this process has."""
    if not sys.platform.startswith("linux"):
        return None
    with open("/proc/self/maps") as lines:
        return len(os.listdir("/proc/self/fd")), sum(file_name in line for line in lines)


def resident(field):
    """VmRSS or VmHWM (the most since `reset`) of this process in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@contextlib.contextmanager
def bounded():
    """Fails if the block takes too long or too much memory."""
    linux = sys.platform.startswith("linux")
    if linux:
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
    before = resident("VmRSS") if linux else 0
    gc.freeze()  # what the tests before it left is not gone through again and again: up to half of the time
    try:
        start = time.process_time()  # other processes may slow this one down
        yield
        taken, grown = time.process_time() - start, resident("VmHWM") - before if linux else 0
    finally:
        gc.unfreeze()
    assert taken < SECONDS, f"{taken:.2f} s"
    assert grown < BYTES, f"{grown / 1e6:.0f} MB"


def rejected(open_file, path, use=read_all):
    """Opens and uses a file, which must be one FormatError; returns its message."""
    before = opened(os.path.basename(path))
    with bounded(), pytest.raises(FormatError) as caught:
        use(open_file(path))
    error = caught.value
    text = str(error)
    assert error.file and error.where and error.got and error.expected and "got" in text and len(text) < 1000
    del caught, error
    gc.collect(1)  # what the exception held is young
    after = opened(os.path.basename(path))
    assert after is None or (after[0] <= before[0] and after[1] <= before[1])  # fewer: garbage of tests before
    return text


def sound_or_rejected(open_file, path):
    """Opens and uses a file; whatever is wrong with it must be a FormatError. Whether it was sound."""
    try:
        with open_file(path) as file:
            read_all(file)
    except FormatError:
        return False
    return True


@st.composite
def flips(draw, data, most=4, stop=None):
    """`data` with a few bits of its first `stop` bytes flipped."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        changed[draw(st.integers(0, (stop or len(data)) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)
