"""Weights in panels: products equal to those of the weight itself, and what they refuse."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import DTypeError, GradError, ShapeError
from tensorlib.ops import panels
from tensorlib.quant.encode import quantize


def test_columns_are_the_kernels():
    from kernels_numba import matmul

    level = tensorlib.backend.backend().level
    assert panels.columns() == 16 * matmul.TILES[level][1]


# K beyond one block of 768, N that fills no panel, rows that are several tiles, and more than are packed at a time
@pytest.mark.parametrize("m, k, n", [(5, 3, 5), (16, 40, 33), (16, 1600, 70), (17, 1600, 64), (200, 800, 70)])
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


def test_heights_fill_up_the_fewest_rows():
    from kernels_numba import matmul

    if tensorlib.backend.backend().level != "avx512vnni":
        assert panels.tall(16) == 0
        return
    tallest, _, smaller = matmul.TILES["avx512vnni"]

    def filled(rows, most):
        last = min((h for h in (*smaller, most) if rows % most <= h <= most), default=0) if rows % most else 0
        return rows // most * most + last

    for rows in range(1, 200):
        assert (panels.tall(rows) == 8) == (filled(rows, 8) < filled(rows, tallest))


# f32's rounding of the result and of what is taken together, and 3 units of the fused form of GELU
ACTS = {"relu": 1.0, "silu": 8.0, "gelu": 8.0, "gelu_new": 8.0}


@pytest.mark.parametrize("act", [*ACTS, "tanh"])
@pytest.mark.parametrize("quantized", [False, True])
def test_what_follows_a_product(act, quantized):
    """Activation and residual in the product's launch: as one after the other in 64 bits; `tanh` has no kernel."""
    rng = np.random.default_rng(1)
    x, more = (tensorlib.tensor(rng.standard_normal(s).astype(np.float32)) for s in ((3, 6, 64), (3, 6, 41)))
    layer = nn.Linear(64, 41)
    with tensorlib.no_grad():
        layer.weight *= 20.0
        if quantized:
            layer.weight = quantize(layer.weight, "q8_0")
        plain = layer(x)
        nn.prepack(layer)
        found = nn.act_linear(x, layer, act), nn.add_linear(more, layer, x), layer(x)
    sums, size = plain.double(), np.abs(plain.numpy()).max()
    # the plain product's own sums are in another order: K + 1 roundings of at most 20 |x| w in total, w < 1 / 8
    order = 66 * 2.0**-24 * 20 / 8 * np.abs(x.numpy()).sum(-1).max()
    want = nn.activation(act)(sums).numpy(), (sums + more.double()).numpy(), sums.numpy()
    for got, exact, units in zip(found, want, (ACTS.get(act, 8.0), 4.0, 1.0)):
        assert got.shape == (3, 6, 41)
        # slopes of activations are below 1.13
        assert np.abs(got.double().numpy() - exact).max() <= 1.13 * order + units * 2.0**-24 * (size + 8)


def test_gelu_of_the_kernels():
    """From an identity: x itself comes to the activation, over all that f32 has of interest."""
    layer = nn.Linear(16, 16, bias=False)
    layer.weight = tensorlib.eye(16)
    x = np.concatenate([np.linspace(-15, 15, 4000), [0.0, 1e-30, -1e-30, 1e30, -1e30, 40, -40, 6, -6, 13, -13, 5.9]])
    x = np.pad(x, (0, -len(x) % 16)).astype(np.float32).reshape(-1, 16)
    with tensorlib.no_grad():
        got = nn.act_linear(tensorlib.tensor(x), nn.prepack(layer), "gelu").double().numpy()
    exact = tensorlib.gelu(tensorlib.tensor(x).double()).numpy()
    # Phi within 3 units (and 1 - Phi rounded once), the product rounded once
    assert (np.abs(got - exact) <= 5 * 2.0**-24 * np.abs(x) + 1e-36).all()
    tail = (x < -1) & (x > -6)
    assert (np.abs(got / np.where(exact == 0, 1, exact) - 1)[tail] <= 5e-6).all()


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
