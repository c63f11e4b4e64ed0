"""Quantised weights on a GPU, interpreted: every format bit for bit as on the CPU, products within derived bounds."""

import ctypes

import numpy as np
import pytest

import tensorlib
from kernels_triton import quant_layout
from tensorlib.capture import Capture
from tensorlib.device import Array
from tensorlib.errors import DeviceError, DTypeError
from tensorlib.quant import formats, gpu
from tensorlib.quant import tensor as quant
from tensorlib.tensor import from_numpy
from tests.quant.conftest import assert_same, samples  # noqa: F401 - fixtures
from tests.sim.quant_cases import activations, check_linear, values, weight

FORMATS = list(formats.BY_ID.values())
PLANES = list(quant_layout.ROWS)


def bytes_of(w):
    return ctypes.string_at(w.ptr, w.nbytes)


def same(got, want):
    """Bit for bit, but any NaN for a NaN."""
    got, want = (x.to("cpu").numpy() for x in (got, want))
    assert got.shape == want.shape and got.dtype == want.dtype
    nan = np.isnan(want)
    assert np.isnan(got[nan]).all()
    np.testing.assert_array_equal(got[~nan].view(np.uint8), want[~nan].view(np.uint8))


@pytest.mark.parametrize("row", FORMATS, ids=str)
def test_every_format_bit_for_bit_there_and_back(row, samples, device):  # noqa: F811
    k, n = max(row.elements, 3), 17
    data = samples(row, n * k // row.elements)
    w = quant.from_bytes(data.tobytes(), (n, k), row)
    there = w.to("cuda:0")
    assert (there.planes is not None) == (row.name in quant_layout.ROWS) and there.to("cuda:0") is there
    same(there.dequantize(cls=tensorlib.Tensor), w.dequantize(cls=tensorlib.Tensor))
    ids = from_numpy(np.array([[3, 16, 0], [3, -1, 17]], np.int64))
    same(there.embedding(ids.to("cuda:0")), w.embedding(ids))
    assert bytes_of(there.to("cpu")) == data.tobytes()
    some, those = there.rows(5, 3), w.rows(5, 3)
    same(some.dequantize(cls=tensorlib.Tensor), those.dequantize(cls=tensorlib.Tensor))
    assert bytes_of(some.to("cpu")) == bytes_of(those)
    device.check()


@pytest.mark.parametrize("name", ["q4_1", "iq1_m"])  # planes, and blocks as they are where a format has none
def test_rows_of_more_dims(name, samples, device):  # noqa: F811
    data = samples(formats.get(name), 4 * 3)
    w = quant.from_bytes(data.tobytes(), (4, 3, formats.get(name).elements), name)
    some, those = w.to("cuda:0").rows(1, 2), w.rows(1, 2)
    assert some.shape == those.shape == (2, 3, w.shape[-1]) and bytes_of(those) == data[3:9].tobytes()
    same(some.dequantize(cls=tensorlib.Tensor), those.dequantize(cls=tensorlib.Tensor))
    device.check()


@pytest.mark.parametrize("name", ["q4_1", "q6_k", "iq3_s"])
def test_half_outputs(name):
    w = weight(name, 5, 256)
    there, ids = w.to("cuda:0"), from_numpy(np.array([4, 0], np.int64))
    same(there.dequantize("f16", tensorlib.Tensor), w.dequantize("f16", tensorlib.Tensor))
    same(there.embedding(ids.to("cuda:0"), "f16"), w.embedding(ids, "f16"))
    same(there.dequantize("bf16", tensorlib.Tensor).to("f32"), w.dequantize("bf16", tensorlib.Tensor).to("f32"))


def test_planes_take_the_place_of_blocks():
    """No bit but padding is added, and few are: 16 bits of scales per 32 weights at most."""
    for name, row in quant_layout.ROWS.items():
        growth = sum(quant_layout.widths(name)) - row.nbytes
        assert 0 <= growth <= row.elements // 32 * 2, name
        *starts, size = quant_layout.places(name, 7)
        assert all(s % quant_layout.ALIGN == 0 for s in starts) and size >= 7 * sum(quant_layout.widths(name))


def test_activations_are_quantised_as_on_the_cpu():
    from tensorlib import backend

    x, there = activations(3, 256)
    q, d, sums = gpu._groups(there, 3, 256)
    packed = Array.empty((3 * backend.backend().quant.row_bytes(256),), "u8")
    kernel = backend.kernel("quant", "quantize")
    backend.launch(kernel, (x.ptr, 1024, 256, 3, packed.ptr), 1, (x,), (packed,))
    groups = np.frombuffer(ctypes.string_at(packed.ptr, packed.numel()), np.uint8).reshape(3, 2, 320)
    lo, hi = (groups[..., at : at + 64].view(np.int8).reshape(3, 8, 16) for at in (0, 64))
    want = np.stack([lo, hi], 2)
    read = lambda a, dtype: np.frombuffer(a.buffer.read(a.ptr, a.buffer.nbytes), dtype)  # noqa: E731
    np.testing.assert_array_equal(read(q, np.int8).reshape(want.shape), want)
    np.testing.assert_array_equal(read(sums, np.int32).reshape(3, 8, 2), want.sum(3))
    np.testing.assert_array_equal(
        read(d, np.float32).reshape(3, 8), groups[..., 128:192].copy().view(np.float32)[..., ::4].reshape(3, 8)
    )


@pytest.mark.parametrize("name", PLANES)
def test_few_rows(name):
    k = 512 if formats.get(name).elements == 256 else 96
    check_linear(name, 9, k, 1)
    check_linear(name, 5, k, 3, residual=True)


@pytest.mark.parametrize("name", PLANES)
def test_some_rows(name):
    check_linear(name, 21, 256 if formats.get(name).elements == 256 else 96, 9, residual=True)


@pytest.mark.parametrize("m", [1, 3, 8, 9, 40, 130])
@pytest.mark.parametrize("name", ["q4_0", "q4_k"])
def test_any_number_of_rows(name, m):
    check_linear(name, 13, 768, m)


@pytest.mark.parametrize("name", ["q6_k", "mxfp4"])
@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_many_rows_some_weights_at_a_time(name, dtype, monkeypatch):
    monkeypatch.setattr(gpu, "TILE", 16)
    monkeypatch.setattr(gpu, "DENSE_BYTES", 256 * 40)
    check_linear(name, 70, 256, 129, dtype, residual=True)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("m", [2, 10, 129])
def test_narrow_activations(m, dtype):
    check_linear("q4_1", 7, 64, m, dtype, residual=True)


@pytest.mark.parametrize("m", [1, 12])
def test_longer_than_a_tile_and_parts_of_k(m):
    check_linear("q8_0", 6, 4096 + 160, m, residual=True)


def test_formats_of_blocks_and_wide_scales():
    check_linear("iq3_s", 5, 256, 12, residual=True)
    check_linear("mxfp4", 5, 64, 12)


@pytest.mark.parametrize("m", [1, 9])
def test_large_small_and_bad_activations(m):
    w = weight("q8_0", 8, 64)
    x = np.ones((m, 64), np.float32)
    x[0] *= 1e30  # beyond f16
    dense = values(w.dequantize(cls=tensorlib.Tensor))
    got = values(w.to("cuda:0").linear(from_numpy(x).to("cuda:0")))
    np.testing.assert_allclose(got, x @ dense.T, rtol=0, atol=2e-3 * np.abs(dense).sum(1).max() * np.abs(x[0, 0]))
    np.testing.assert_allclose(got[1:], (x @ dense.T)[1:], rtol=0, atol=2e-3 * np.abs(dense).sum(1).max())
    for bad in (np.nan, np.inf):
        x[0, 40] = bad
        got = values(w.to("cuda:0").linear(from_numpy(x).to("cuda:0")))
        assert not np.isfinite(got[0]).any() and np.isfinite(got[1:]).all()


@pytest.mark.parametrize("m", [1, 12])
def test_a_graph_of_products_replays(m):
    w, (_, x) = weight("q4_0", 8, 256).to("cuda:0"), activations(m, 256)
    _, other = activations(m, 256, seed=5)
    with Capture("cuda:0") as graph:
        out = w.linear(x)
    x.device.gpu.copy(x.ptr, other.ptr, 4 * m * 256)
    graph.replay()
    np.testing.assert_array_equal(values(out), values(w.linear(other)))


def test_nothing_to_do():
    w = weight("q8_0", 2, 64).to("cuda:0")
    assert w.linear(tensorlib.zeros(0, 64).to("cuda:0")).shape == (0, 2)
    assert w.rows(0, 0).linear(tensorlib.zeros(3, 64).to("cuda:0")).shape == (3, 0)


@pytest.mark.parametrize("name", ["q4_0", "q4_k"])
def test_the_gradient_is_that_of_the_dense_weight(name, monkeypatch):
    monkeypatch.setattr(quant, "DENSE_BYTES", 4 * 256 * 7)  # more than one piece
    w, (g, there) = weight(name, 12, 256), activations(3, 12)
    x = tensorlib.zeros(3, 256).to("cuda:0").requires_grad_()
    w.to("cuda:0").linear(x).backward(there)
    want = values(g) @ values(w.dequantize(cls=tensorlib.Tensor))
    np.testing.assert_allclose(values(x.grad), want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_errors():
    w = weight("q8_0", 2, 64)
    with pytest.raises(DeviceError, match="one device"):
        w.to("cuda:0").linear(tensorlib.zeros(1, 64))
    with pytest.raises(DeviceError, match="one device"):
        w.embedding(from_numpy(np.zeros(1, np.int64)).to("cuda:0"))
    with pytest.raises(DTypeError, match="f32 with a quantised weight"):
        w.to("cuda:0").linear(tensorlib.zeros(1, 64, dtype="f64").to("cuda:0"))
