"""Blocks that try what a format can hold, and the comparison that every test here makes."""

from types import FunctionType

import numpy as np
import pytest

from tensorlib.quant import decode
from tensorlib.quant.source import helpers

# Bits of halves: zeros, denormals, the smallest normal, one, the largest, infinities, quiet and signalling NaNs.
HALVES = np.array(
    [0, 0x8000, 1, 0x8001, 0x03FF, 0x0400, 0x3C00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFE01, 0x7C01], np.uint16
)
FLOATS = np.array([0, 1 << 31, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000], np.uint32)
# scales of one byte (E8M0, UE4M3): zeros, denormals, the largest, NaN, what sets the unused bit; then all others
BYTES = np.array(list(dict.fromkeys([0, 1, 2, 7, 8, 126, 127, 128, 254, 255, *range(256)])), np.uint8)


def _loads(row):
    seen = []

    def watch(name):
        def loader(b, offset):
            seen.append((name, np.atleast_1d(offset)))
            return decode.RUNTIME[name](b, offset)

        return loader

    scope = {**decode.RUNTIME, **{n: watch(n) for n in decode.RUNTIME if n == "table" or n[1:].isdigit()}}
    for helper in helpers(row.decode):
        scope[helper.__name__] = FunctionType(helper.__code__, scope)
    table = np.frombuffer(decode.table_bytes(row), np.int8)
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (4096, row.nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        FunctionType(row.decode.__code__, scope)(decode._Blocks(data, table), np.arange(row.elements, dtype=np.int32))
    return seen


@pytest.fixture(scope="session")
def loads():
    """Function (row): every load that decoding 4096 random blocks makes, as (loader, its offsets or indices)."""
    return _loads


@pytest.fixture(scope="session")
def samples():
    """Function (row, n): n blocks of random bytes; as far as n reaches, the first have special values for scales."""

    def make(row, n):
        data = np.random.default_rng([row.ggml_id, n]).integers(0, 256, (n, row.nbytes), dtype=np.uint8)
        scales = {(name, int(o[0])) for name, o in _loads(row) if name in ("f16", "f32") and row.quantized}
        for name, offset in sorted(scales):
            special = (HALVES if name == "f16" else FLOATS)[:n].view(np.uint8).reshape(-1, 2 if name == "f16" else 4)
            data[: len(special), offset : offset + special.shape[1]] = special
        if row.name in ("mxfp4", "nvfp4"):  # their scales are bytes: all of them
            data[:256, 0] = BYTES[:n]
        if row.name == "iq1_m":  # its scale lies in the high nibbles of four words
            special = HALVES[:n]
            for i in range(4):
                low, high = data[: len(special), 49 + 2 * i] & 15, special >> 4 * i & 15
                data[: len(special), 49 + 2 * i] = low | high << 4
        return data

    return make


@pytest.fixture(scope="session")
def assert_same():
    """Function (got, want): equal bit for bit, but a NaN may have any sign and payload (x86 and NumPy differ there)."""

    def check(got, want):
        assert got.dtype == want.dtype and got.shape == want.shape
        nan, bits = np.isnan(want.astype(np.float32)), f"u{want.itemsize}"
        assert np.isnan(got[nan].astype(np.float32)).all()
        np.testing.assert_array_equal(got[~nan].view(bits), want[~nan].view(bits))

    return check
