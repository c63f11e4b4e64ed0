"""Weights in panels: products equal to those of the weight itself, and what they refuse."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import DTypeError, GradError, ShapeError
from tensorlib.ops import panels


def test_columns_are_the_kernels():
    from kernels_numba import matmul

    level = tensorlib.backend.backend().level
    assert panels.columns() == 16 * matmul.TILES[level][1]


# K beyond one block of 768, N that fills no panel, rows that are several tiles, and more than are packed at a time
@pytest.mark.parametrize("m, k, n", [(5, 3, 5), (16, 40, 33), (17, 1600, 64), (200, 800, 70)])
def test_equal_to_linear(m, k, n, monkeypatch):
    monkeypatch.setattr("tensorlib.ops.linalg.PACKED_BYTES", 1 << 16)
    rng = np.random.default_rng(m)
    x, w, b = (tensorlib.tensor(rng.standard_normal(s).astype(np.float32)) for s in ((m, k), (n, k), (n,)))
    packed = panels.Panels(w)
    for bias in (b, None):
        want = x.numpy().astype(np.float64) @ w.numpy().T + (0 if bias is None else b.numpy())
        got = packed.linear(x, bias).numpy()
        # k products and sums, each off by 2^-24 of itself at most
        bound = (k + 1) * 2.0**-24 * (np.abs(x.numpy()) @ np.abs(w.numpy()).T + np.abs(b.numpy()))
        assert got.shape == (m, n) and (np.abs(got - want) <= bound).all()
    assert np.array_equal(packed.linear(x[:, None], b).numpy()[:, 0], packed.linear(x, b).numpy())


def test_prepack():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, dtype="f64"))
    x = tensorlib.randn(6, 3)
    with tensorlib.no_grad():
        want = model[0](x).numpy()
        nn.prepack(model)
        assert isinstance(model[0].weight, panels.Panels) and not isinstance(model[2].weight, panels.Panels)
        assert np.allclose(model[0](x).numpy(), want, rtol=1e-6, atol=1e-6)


def test_errors():
    packed = panels.Panels(tensorlib.randn(4, 3))
    with pytest.raises(ShapeError, match=r"linear: got x \(2, 4\)"):
        packed.linear(tensorlib.randn(2, 4))
    with pytest.raises(DTypeError, match="f32 on the CPU"):
        packed.linear(tensorlib.randn(2, 3).double())
    with pytest.raises(GradError, match="weights in panels"):
        packed.linear(tensorlib.randn(2, 3).requires_grad_())
