"""Attention as Triton compiles it, its PTX in the simulator: tiles of 16 bits and of two terms, segments, pages, float8
read in assembly, gradients.
"""

import numpy as np
import pytest

import tensorlib
from kernels_triton import attention
from tensorlib.ops import fused
from tests.sim.host import install
from tests.sim.interpreted import test_attention as interpreted
from tests.sim.interpreted.test_attention import array, check, operands, read, reference, rounded
from tests.sim.simulated import Simulated

GPUS: dict = {}  # compiled programs are kept


@pytest.fixture(params=[80, 90, 120], ids=lambda arch: f"sm_{arch}")
def device(request):
    """A device "cuda:0" of the architecture."""
    gpu = GPUS.setdefault(request.param, Simulated(request.param))
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


CACHES = [("f16", 1), ("f16", 66), ("bf16", 1), ("f32", 1), ("f32", 33), ("f8e4m3", 1), ("f8e5m2", 1)]


@pytest.mark.parametrize("kv, t", CACHES)
def test_queries_in_f32(kv, t, device):
    q, k, v = operands(np.random.default_rng(t), t, 2, 1, 150, 64, kv, 70 + t)
    k[0, 3, 5], v[0, 2, 7] = 0.015625, -0.0078125  # subnormal in float8
    found = fused.attention(array(q), array(k, kv), array(v, kv), array(np.array([70])), window=60)
    check(read(found), *reference(q, k, v, 70, 70 + t, 59), 2.0**-22 if kv == "f32" else 2.0**-19)


def test_nan_in_float8(device):
    q, k, v = operands(np.random.default_rng(2), 1, 2, 2, 40, 16, "f8e4m3", 40)
    v[1, 5, 3] = np.nan
    found = read(fused.attention(array(q), array(k, "f8e4m3"), array(v, "f8e4m3"), 39))
    assert np.isnan(found[0, 1, 3]) and np.isnan(found).sum() == 1


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_narrow_queries(dtype, device):
    """At most twice the error of weights rounded to their dtype."""
    rng = np.random.default_rng(3)
    q, k, v = (rounded(rng.standard_normal((1, 1, n, 128)), dtype) for n in (80, 130, 130))
    some = (array(x, dtype) for x in (q, k, v))
    found = read(tensorlib.scaled_dot_product_attention(*some, is_causal=True))[0].transpose(1, 0, 2)
    want, bound = reference(q[0].transpose(1, 0, 2), k[0], v[0], 0, 130)
    narrow = {"f16": 2.0**-10, "bf16": 2.0**-7}[dtype]
    assert (abs(found - want) <= 2 * narrow * abs(v).max() + 2.0**-24 * bound).all()


def test_pages(device):
    rng = np.random.default_rng(4)
    pages = [rounded(rng.standard_normal((6, 2, 16, 64)), "f16") for _ in range(2)]
    table, lengths, counts = np.array([[4, 0], [2, 5]]), [25, 17], [1, 9]
    q = rng.standard_normal((10, 8, 64)).astype(np.float32)
    given = (array(table, "i32"), array(np.array(lengths)), array(np.array([0, 1, 10])))
    found = read(tensorlib.paged_attention(array(q), *(array(p, "f16") for p in pages), *given))
    for i, n in enumerate(lengths):
        rows = slice(sum(counts[:i]), sum(counts[: i + 1]))
        k, v = (np.concatenate(list(p[table[i]]), 1) for p in pages)
        check(found[rows], *reference(q[rows], k, v, n - counts[i], n), 2.0**-19)


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_gradients(dtype, device):
    rng = np.random.default_rng(5)
    t, start = 40, 13
    q, k, v, g = (rounded(rng.standard_normal(s), dtype) for s in ((t, 2, 64), (1, 60, 64), (1, 60, 64), (t, 2, 64)))
    wide = [tensorlib.from_numpy(x).requires_grad_() for x in (q, k, v)]
    fused.attention(*wide, start).backward(tensorlib.from_numpy(g))
    leaves = [array(x, dtype).requires_grad_() for x in (q, k, v)]
    fused.attention(*leaves, start).backward(array(g, dtype))
    unit = {"f32": 2.0**-18, "f16": 2.0**-9}[dtype]
    for x, y in zip(leaves, wide):
        got, want = read(x.grad), read(y.grad)
        assert (abs(got - want) <= unit * (abs(want) + abs(want).max())).all(), abs(got - want).max() / abs(want).max()


@pytest.mark.parametrize("device", [80], indirect=True)
def test_rope_and_caches(device):
    interpreted.test_ropes_and_appends_of_a_layer(device)
    interpreted.test_rounding_to_float8(device)


@pytest.mark.parametrize("device", [80, 90], indirect=True)
def test_heads_of_40_dims(device):
    """Strides that do not divide by 16 elements, but by 8, are read in 128 bits as well."""
    rng = np.random.default_rng(6)
    q, k, v = (rounded(rng.standard_normal(s), "f16") for s in ((20, 1, 40), (1, 70, 40), (1, 70, 40)))
    wide = [tensorlib.from_numpy(x).requires_grad_() for x in (q, k, v)]
    leaves = [array(x, "f16").requires_grad_() for x in (q, k, v)]
    for some in (wide, leaves):
        fused.attention(*some, 50).sum().backward()
    for x, y in zip(leaves, wide):
        got, want = read(x.grad), read(y.grad)
        assert (abs(got - want) <= 2.0**-8 * (abs(want) + abs(want).max())).all()
    made = [kernel.consts["C"] for kernel, _ in device.ready if "C" in kernel.consts]
    assert {c.STEP for c in made if not c.EVEN} == {8}


@pytest.mark.parametrize("device", [90], indirect=True)
@pytest.mark.parametrize("width, causal", [(64, True), (128, False)])
def test_copy_engine(width, causal, device, monkeypatch):
    """Many queries, whose tiles come through descriptors: four heads, pairs of which share keys; ragged rows."""
    monkeypatch.setattr(attention, "LARGE", 0)
    rng = np.random.default_rng(7)
    q, k, v = (rounded(rng.standard_normal((1, n, 150, width)), "f16") for n in (4, 2, 2))
    some = (array(x, "f16") for x in (q, k, v))
    found = read(tensorlib.scaled_dot_product_attention(*some, is_causal=causal, enable_gqa=True))[0]
    want, bound = reference(q[0].transpose(1, 0, 2), k[0], v[0], 0 if causal else 150, 150)
    assert (abs(found.transpose(1, 0, 2) - want) <= 2.0**-9 * abs(v).max() + 2.0**-24 * bound).all()
    assert [kernel.consts["C"].LOADS for kernel, _ in device.ready if "C" in kernel.consts][-1]


@pytest.mark.parametrize("device", [90], indirect=True)
@pytest.mark.parametrize("option", ["scale", "mask", "softcap"])
def test_what_the_copy_engine_is_not_for(option, device, monkeypatch):
    """Scores that are more than products: their kernel takes pointers, however many queries there are."""
    rng = np.random.default_rng(7)
    q, k, v = (array(rounded(rng.standard_normal((1, n, 150, 64)), "f16"), "f16") for n in (2, 2, 2))

    def run():
        if option == "softcap":
            heads = (x.squeeze(0).transpose(0, 1).contiguous() for x in (q, k, v))
            q1, k1, v1 = heads
            return read(tensorlib.attention(q1, k1.transpose(0, 1), v1.transpose(0, 1), softcap=5.0))
        mask = tensorlib.ones(150, 150, dtype="bool", device="cuda:0").tril() if option == "mask" else None
        return read(tensorlib.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None,
                                                           scale=0.0 if option == "scale" else None))  # fmt: skip

    want = run()
    monkeypatch.setattr(attention, "LARGE", 0)
    tensorlib.memo.forget()
    assert (run() == want).all()
