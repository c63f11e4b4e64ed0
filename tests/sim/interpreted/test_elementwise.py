"""Elementwise kernels on the GPU backend where rows do not reach: dtypes, layouts, tiles; bit for bit the CPU's."""

import numpy as np
import pytest

import kernels_numba.elementwise as cpu
import kernels_triton.elementwise as gpu
import kernels_triton.expressions as expressions
import tensorlib
from tensorlib import dtype as _dtype

DTYPES = [d.name for d in _dtype.ALL]


def test_the_tables_are_the_same():
    assert expressions.EXPRESSIONS == cpu.EXPRESSIONS
    assert (expressions.OPERANDS, expressions.LETTERS) == (cpu.OPERANDS, cpu.LETTERS)


def bits(x):
    """A tensor's bytes."""
    x = x.cpu().contiguous()
    return x.buffer.read(x.ptr, x.nbytes)


def everything(dtype):
    """What conversions from a dtype may stumble over."""
    d = _dtype.get(dtype)
    if d.kind == "b":
        return tensorlib.tensor([True, False])
    if d.kind in "ui":
        low, high = _dtype.info(d)
        return tensorlib.tensor(
            sorted(
                {low, low + 1, 0, 1, 127, 128, high - 1, high} & set(range(low, high + 1))
                if d.itemsize < 4
                else {low, low + 1, 0, 1, 65537, 2**24 + 1, high - 1, high}
            ),
            dtype=dtype,
        )
    rng = np.random.default_rng(1)
    powers = np.ldexp(rng.uniform(-2, 2, 400), rng.integers(-30, 70, 400))
    ties = (np.arange(0, 512) + 0.5) * 2.0**-9
    edges = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        448,
        464,
        465,
        57344,
        61440,
        65504,
        65520,
        2.0**31,
        2.0**63,
        1e-45,
        2.0**-17,
    ]
    return tensorlib.from_numpy(np.concatenate([powers, ties, ties * 2.0**-6, edges])).to(dtype)


CASTS = {"f32": DTYPES, "f64": ["f16", "bf16", "f8e4m3", "f8e5m2", "i64", "u8"], "i64": ["f16", "bf16", "f8e4m3"]}
CASTS |= {"u64": ["bf16", "f64"], "bool": ["f8e5m2", "i16"], "f8e5m2": ["bool", "i8"], "bf16": ["u64"], "i8": ["u16"]}


@pytest.mark.parametrize("source", DTYPES)
def test_conversions(source, device):
    x = everything(source)
    there = x.to("cuda:0")
    for dtype in {"f32", *CASTS.get(source, ())}:
        want, found = x.to(dtype), there.to(dtype).cpu()
        if want.dtype.kind == "f":  # a NaN has many spellings
            nan = want.isnan()
            assert bits(nan) == bits(found.isnan()), dtype
            want, found = want.masked_fill(nan, 1), found.masked_fill(nan, 1)
        assert bits(found) == bits(want), dtype


LAYOUTS = {
    "flat, more than a block": lambda x, y: (x[:5, :50], y[:5, :50]),
    "whole": lambda x, y: (x, y),
    "columns that fill no tile": lambda x, y: (x[:, 1:], y[:, 1:]),
    "row": lambda x, y: (x, y[3]),
    "column": lambda x, y: (x, y[:, 5:6]),
    "element": lambda x, y: (x[:, :40], y[2, 2]),
    "steps": lambda x, y: (x[::2, ::3], y[::2, ::3]),
    "backwards": lambda x, y: (x.flip(1)[:, :300], y[:, :300].flip(0)),
    "transposed": lambda x, y: (x[:41, :41], y[:41, :41].T),
    "both transposed": lambda x, y: (x.T, y.T),
    "dims": lambda x, y: (x.reshape(41, 5, 7, 11)[:, :, 1:, :9], y.reshape(41, 5, 7, 11)[:, :, :6, 2:]),
    "dims permuted": lambda x, y: (
        x.reshape(41, 5, 7, 11).permute(2, 0, 3, 1),
        y.reshape(41, 5, 7, 11).permute(2, 0, 3, 1)[:, :, :1],
    ),
    "outer rows adjacent": lambda x, y: (x.reshape(41, 5, 77), y.reshape(77, 5, 41).permute(2, 1, 0)),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f32", "u8"])
def test_layouts(name, dtype, device):
    x = tensorlib.arange(41 * 385, dtype="i32").to(dtype).reshape(41, 385)
    y = (x * 3 + 1).to(dtype)
    a, b = LAYOUTS[name](x, y)
    c, d = LAYOUTS[name](x.to("cuda:0"), y.to("cuda:0"))
    assert bits(c - d) == bits(a - b)
    device.check()


def test_offsets_that_need_64_bits_are_told_apart():
    row = gpu.Row("add", "f32", "f32", ["f32", "f32"], "x + y")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            gpu, "tiled", lambda row, c, dims, wide, axes, shape, arch: seen.append((wide, axes)) or (lambda *_: None)
        )

        class Gpu:
            arch = 80

        operand = [16, 1, 4, 0, 0]
        for down, outer, far in ((1024, 1, 1), (2**28, 1, 1), (1024, 2, 2**31), (1024, 70000, 1)):
            words = [64, 64, outer, 1, *operand, 16, 1, 4, 4 * down, 0, *operand, outer, 4, 4 * far, 4]
            gpu.strided(row)(Gpu, words)
    assert seen == [(False, (0, 1, 2)), (True, (0, 1, 2)), (True, (0, 1, 2)), (False, (2, 1, 0))]
