"""What stand-ins have no time for: the largest tiles, rows of a vocabulary, more elements than 32 bits count."""

import numpy as np
import pytest

import tensorlib
from tensorlib.dtype import get
from tests.sim.quant_cases import check_linear

U = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24}
# units of a product's terms that a precision of f32 loses, as in tests/sim/test_matmul.py
LOST = {"highest": 0.0, "high": 2.0**-19, "medium": 2.0**-9}


def on_gpu(x, dtype="f32"):
    return tensorlib.from_numpy(np.ascontiguousarray(x)).to("cuda:0").to(dtype)


@pytest.fixture
def precision(request):
    """How products of f32 are computed."""
    tensorlib.set_float32_matmul_precision(request.param)
    yield request.param
    tensorlib.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("precision", ["highest", "high", "medium"], indirect=True)
@pytest.mark.parametrize("turned", ["", "b", "a"])
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("m, n, k", [(2048, 2304, 1024), (1032, 1544, 520), (257, 999, 1001), (3, 4096, 2048)])
def test_products(real, dtype, turned, precision, m, n, k):
    """Within the bound of f32 sums and of one rounding."""
    if dtype != "f32" and precision != "highest":
        pytest.skip("a precision is of f32")
    rng, kind = np.random.default_rng(m), get(dtype).numpy_dtype()
    x, y = (rng.standard_normal(s, np.float32).astype(kind).astype(np.float32) for s in ((m, k), (k, n)))
    a = on_gpu(x.T, dtype).T if turned == "a" else on_gpu(x, dtype)
    b = on_gpu(y.T, dtype).T if turned == "b" else on_gpu(y, dtype)
    found = (a @ b).cpu().to("f64").numpy()
    x, y = x.astype(np.float64), y.astype(np.float64)
    exact, most = x @ y, np.abs(x) @ np.abs(y)
    assert (
        np.abs(found - exact) <= most * (k * U["f32"] + LOST[precision]) + U[dtype] * np.abs(exact) + 2.0**-24
    ).all()


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_prompts_of_quantised_weights(real, dtype):
    """Enough tiles for persistent programs, with factors of rows where activations are f32."""
    check_linear("q4_k", 14_336, 512, 512, dtype, residual=True)
    check_linear("q6_k", 1024, 512, 100, dtype)


def test_rows_of_a_vocabulary(real):
    x = np.random.default_rng(0).standard_normal((16, 128_256), np.float32) * 4
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    found = tensorlib.softmax(on_gpu(x), -1).cpu().numpy()
    np.testing.assert_allclose(found, e / e.sum(1, keepdims=True), rtol=2.0**-16)
    assert (tensorlib.argmax(on_gpu(x), -1).cpu().numpy() == x.argmax(1)).all()
    values, places = tensorlib.sort(on_gpu(x), -1, stable=True)
    assert (values.cpu().numpy() == np.sort(x, 1)).all()
    assert (places.cpu().numpy() == np.argsort(x, 1, kind="stable")).all()


def test_more_elements_than_32_bits_count(real):
    n = (1 << 31) + 17
    if real.memory < 24 << 30:
        pytest.skip(f"{real.memory >> 30} GiB of memory")
    x = tensorlib.zeros(n, dtype="u8", device="cuda:0")
    x[5] = 1
    x[n - 1] = 7
    assert (x + 1)[n - 3 :].tolist() == [1, 1, 8]
    assert x.sum().tolist() == 8 and x.argmax().tolist() == n - 1
    assert tensorlib.index_select(x, 0, on_gpu(np.array([n - 1, 5, 4]), "i64")).tolist() == [7, 1, 0]
