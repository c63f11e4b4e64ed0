"""Recurrences on the GPU backend, interpreted: several chunks of tokens, blocks of columns, heads of a group; gradients
are those of the CPU.
"""

import numpy as np
import pytest

import tensorlib
from tensorlib.ops.scan_lines import causal_conv, linear_scan
from tensorlib.ops.scan_state import state_scan

KINDS = ["head", "row before", "row delta", "outer"]
T, ROWS, WIDTH, HEADS = 19, 5, 70, 4


def drawn(kind):
    """(operands by name, before): of one sequence."""
    rng = np.random.default_rng(0)
    groups = 2 if kind == "head" else HEADS
    wide = {"h": (T, HEADS), "r": (T, HEADS, ROWS), "o": (T, HEADS, WIDTH)}[kind[0]]
    given = {"q": rng.standard_normal((T, groups, ROWS)), "k": rng.standard_normal((T, groups, ROWS))}
    given |= {"v": rng.standard_normal((T, HEADS, WIDTH)), "log_w": -rng.random(wide)}
    given["past"] = rng.standard_normal((HEADS, ROWS, WIDTH))
    if kind == "outer":
        given |= {"log_w": -given["log_w"], "rates": -rng.random((HEADS, ROWS, WIDTH))}
    if kind.endswith("delta"):
        given |= {name: 0.5 * rng.standard_normal((T, HEADS, ROWS)) for name in "ab"}
    return {name: x.astype(np.float32) for name, x in given.items()}, kind.endswith("before")


def results(function, given, device, **options):
    """Results, and gradients of the operands."""
    given = {name: tensorlib.from_numpy(x).to(device).requires_grad_() for name, x in given.items()}
    out = function(**given, **options)
    out = out if isinstance(out, tuple) else (out,)
    sum(x.sin().sum() for x in out).backward()
    return [x.detach().cpu().numpy() for x in out] + [x.grad.cpu().numpy() for x in given.values()]


def check(function, given, **options):
    """On both devices the same, as far as some hundred roundings of the largest element go."""
    pairs = zip(*(results(function, given, device, **options) for device in ("cuda:0", "cpu")), strict=True)
    for found, want in pairs:
        assert found.shape == want.shape and np.abs(found - want).max() < 2.0**-17 * np.abs(want).max()


@pytest.mark.parametrize("kind", KINDS)
def test_state_scan(kind, device):
    given, before = drawn(kind)
    check(state_scan, given, before=before)
    device.check()


def test_lines(device):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((3, 20, 50)).astype(np.float32) for _ in range(2))
    for reverse in (False, True):
        check(linear_scan, {"a": np.tanh(a), "b": b, "past": b[:, 0]}, dim=1, reverse=reverse)
    weight, bias = (rng.standard_normal(n).astype(np.float32) for n in ((50, 4), 50))
    check(causal_conv, {"x": a, "weight": weight, "bias": bias, "past": b[:, :3]})
    device.check()
