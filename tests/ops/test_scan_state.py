"""Recurrences beyond what their rows draw: gradients of long sequences and wide heads, narrow dtypes, errors."""

import numpy as np
import pytest

import tensorlib
from tensorlib import tape
from tensorlib.errors import ShapeError
from tensorlib.ops import scan_state as room
from tensorlib.ops.scan_lines import causal_conv, linear_scan
from tensorlib.ops.scan_state import state_scan

KINDS = ["head", "row before", "row delta", "outer"]


def drawn(kind, dtype=np.float64, t=37, rows=3, width=70, groups=2, heads=4, batch=(2,)):
    """(args, kwargs) of NumPy arrays: more than two chunks of tokens, blocks of columns and heads of a group."""
    rng = np.random.default_rng(0)
    groups = groups if kind == "head" else heads
    lead = (*batch, t)
    wide = {"h": (*lead, heads), "r": (*lead, heads, rows), "o": (*lead, heads, width)}[kind[0]]
    q, k = (rng.standard_normal((*lead, groups, rows)) for _ in range(2))
    v, w = rng.standard_normal((*lead, heads, width)), -rng.random(wide)
    given = {"past": rng.standard_normal((*batch, heads, rows, width))}
    if kind == "outer":
        w, given["rates"] = -w, -rng.random((heads, rows, width))
    if kind.endswith("delta"):
        given |= {name: 0.5 * rng.standard_normal((*lead, heads, rows)) for name in "ab"}
    args = [x.astype(dtype) for x in (q, k, v, w)]
    return args, {name: x.astype(dtype) for name, x in given.items()}, kind.endswith("before")


def tensors(args, given):
    return [tensorlib.from_numpy(x) for x in args], {name: tensorlib.from_numpy(x) for name, x in given.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_kernels_are_those_of_ops(kind):
    """The kernel keeps a state in 16 tokens; the composition, which row tests hold to differences, keeps all."""
    args, given, before = drawn(kind)
    args, given = tensors(args, given)
    y, last = state_scan(*args, **given, before=before)
    whole = [*args, *(given.get(name) for name in ("past", "rates", "a", "b"))]
    assert not tape.used or not tape.mode.recording or all(x is None or not tape.live(x) for x in whole)
    with tensorlib.no_grad():
        g = y.sin(), last.cos()
        found = room._state_vjp(g, *whole, before, set())
        want = room._composed_vjp(*g, *whole, before)
    for f, w, x in zip(found, want, whole, strict=True):
        if x is not None:
            f, w = f.numpy(), w.numpy()
            assert f.shape == w.shape and np.abs(f - w).max() < 1e-11 * np.abs(w).max()


@pytest.mark.parametrize("kind", KINDS)
def test_parts(kind):
    """A sequence in parts, from state to state, is the same bits."""
    args, given, before = drawn(kind, np.float32)
    args, given = tensors(args, given)
    want, last = state_scan(*args, **given, before=before)
    found, state, at = [], given.pop("past"), 0
    for n in (1, 20, 0, 16):
        part, more = [x.narrow(1, at, n) for x in args], {k: x.narrow(1, at, n) for k, x in given.items() if k in "ab"}
        y, state = state_scan(*part, **{**given, **more}, past=state, before=before)
        at += n
        found.append(y.numpy())
    assert np.array_equal(np.concatenate(found, 1), want.numpy()) and np.array_equal(state.numpy(), last.numpy())


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_narrow_dtypes(dtype):
    """Operands as they are rounded; the recurrence in f32, its state too."""
    args, given, _ = drawn("head", np.float32, t=5, width=3)
    args, given = tensors(args, given)
    args = [x.to(dtype) for x in args]
    y, last = state_scan(*args, **given)
    want, state = state_scan(*(x.to("f32") for x in args), **given)
    assert y.dtype.name == dtype and last.dtype.name == "f32"
    assert np.array_equal(y.to("f32").numpy(), want.to(dtype).to("f32").numpy())
    assert np.array_equal(last.numpy(), state.numpy())
    half = linear_scan(args[3], args[3], 1)
    whole = linear_scan(args[3].to("f32"), args[3].to("f32"), 1).to(dtype)
    assert half.dtype.name == dtype and np.array_equal(half.to("f32").numpy(), whole.to("f32").numpy())
    x, weight = args[2][:, :, 0], args[2][0, 0, :3, :2].to("f32")
    half, state = causal_conv(x, weight)
    assert half.dtype.name == dtype and state.dtype.name == "f32"
    whole = causal_conv(x.to("f32"), weight)[0].to(dtype)
    assert np.array_equal(half.to("f32").numpy(), whole.to("f32").numpy())


def test_errors():
    args, given, _ = drawn("row delta", np.float32, t=2, width=3)
    args, given = tensors(args, given)
    for wrong in ({"past": given["past"][:, :1]}, {"a": given["a"][..., :1]}, {"b": None}, {"rates": args[2]}):
        with pytest.raises(ShapeError, match="state_scan"):
            state_scan(*args, **{**given, **wrong})
    with pytest.raises(ShapeError, match="state_scan"):
        state_scan(args[0][:, :, :3], args[1][:, :, :3], *args[2:])
    with pytest.raises(ShapeError, match="linear_scan"):
        linear_scan(args[2], args[2], 1, args[2])
    with pytest.raises(ShapeError, match="causal_conv"):
        causal_conv(args[2], args[2])
