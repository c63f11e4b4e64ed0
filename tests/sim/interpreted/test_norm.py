"""Norms, gated activations and rows of a table on the GPU backend, interpreted: long rows, halves, repeated ids."""

import numpy as np
import pytest

import tensorlib
from tensorlib.ops import norm

EPS = 2.0**-24
RNG = np.random.default_rng(0)


def both(function, *arrays, grads=True):
    """[(on the GPU, on the CPU)] of the result of `function` on arrays, and of the gradients of floats."""
    found = []
    for device in ("cuda:0", "cpu"):
        given = [tensorlib.from_numpy(x).to(device) for x in arrays]
        floats = [x.requires_grad_() for x in given if grads and x.dtype.kind == "f"]
        out = function(*given)
        if grads:
            slopes = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)
            (out * tensorlib.from_numpy(slopes).to(device)).sum().backward()
        found.append([x.detach().to("cpu").numpy() for x in (out, *(x.grad for x in floats))])
    return list(zip(*found, strict=True))


def close(pairs, ulps):
    for found, want in pairs:
        assert found.shape == want.shape
        assert np.abs(found - want).max() <= ulps * EPS * max(1, np.abs(want).max())


@pytest.mark.parametrize("shape", [(3, 7), (37, 129), (9, 2048), (300, 16), (5, 9000), (2, 40_000)])
def test_norms_of_rows_of_any_length(shape, device):
    """Of the CPU's kernels they differ in the order of sums of n terms of about 1 alone: 2 sqrt(n) ulps."""
    x, w, b = (RNG.normal(size=s).astype(np.float32) for s in (shape, shape[1:], shape[1:]))
    ulps = 16 + 4 * shape[1] ** 0.5 + 4 * shape[0] ** 0.5
    close(both(lambda x, w: norm.rms_norm(x, w, 1e-5, offset=1.0), x, w), ulps)
    close(both(norm.layer_norm, x, w, b), ulps)
    close(both(lambda x: norm.rms_norm(x, None), x), ulps)
    device.check()


def test_norms_of_more_dims_than_a_table_has():
    x = RNG.normal(size=(2, 2, 2, 2, 2, 2, 6)).astype(np.float32)
    turned = lambda f: lambda x: f(x.permute(4, 2, 0, 5, 3, 1, 6))  # noqa: E731
    close(both(turned(lambda x: norm.layer_norm(x)), x, grads=False), 16)
    close(both(turned(lambda x: norm.swiglu(x, x)), x, grads=False), 16)


def test_a_constant_row_is_zero():
    x = tensorlib.from_numpy(np.full((2, 49), 1000.1, np.float32)).to("cuda:0")
    assert (norm.layer_norm(x, eps=1e-12).to("cpu").numpy() == 0).all()


@pytest.mark.parametrize("name", ["swiglu", "geglu"])
@pytest.mark.parametrize("shape", [(1, 5), (3, 1500), (70, 6)])
def test_gated_activations(name, shape):
    gate, up = (RNG.normal(size=shape).astype(np.float32) * 4 for _ in range(2))
    close(both(getattr(norm, name), gate, up), 16)
    halves = RNG.normal(size=(shape[0], 2 * shape[1])).astype(np.float32)
    close(both(lambda x: getattr(norm, name)(x[:, : shape[1]], x[:, shape[1] :]), halves), 16)


def test_rows_of_a_table():
    table = RNG.normal(size=(9, 1100)).astype(np.float32)
    ids = np.array([[3, 3, -1, 8], [0, 9, 3, 3]])
    (found, want), (dw, expected) = both(lambda i, w: tensorlib.nan_to_num(norm.embedding(i, w)), ids, table)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(dw, expected)  # added up in the same order


def test_gradient_of_a_table_of_narrow_rows():
    ids = np.concatenate([RNG.integers(-2, 40, 300), np.full(100, 7)])
    table = RNG.normal(size=(38, 3)).astype(np.float32)
    _, (dw, expected) = both(lambda i, w: tensorlib.nan_to_num(norm.embedding(i, w)), ids, table)
    most = np.bincount(ids[ids >= 0]).max()  # slopes of 4 at most are added up in another order where a run is cut
    np.testing.assert_allclose(dw, expected, rtol=0, atol=2 * most * EPS * most * 4)
