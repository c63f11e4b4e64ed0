"""Quantised checkpoints loaded as QTensors: weights bit for bit, products, and every part that does not fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import DTypeError, FormatError, GradError, ShapeError
from tensorlib.nn import Linear, VarBuilder
from tensorlib.quant.permuted import PermutedQTensor
from tensorlib.quant.repack import is_f16
from tensorlib.quant.tensor import QTensor
from tests.quant import checkpoints


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Function (built): the checkpoint of a builder's result, opened."""
    folder = tmp_path_factory.mktemp("checkpoint")

    def opened(built):
        return tensorlib.load(checkpoints.write(folder, *built[:2]))

    return opened


def check(load, built, format):
    with load(built) as file:
        info = file.tensors["q.weight"]
        assert list(file.tensors) == ["q.weight"] and info.shape == built[2].shape
        weight = file.tensor("q.weight")
        assert isinstance(weight, QTensor) and weight.shape == info.shape and weight.format.name == format
        got = weight.dequantize(cls=tensorlib.Tensor).numpy()
        np.testing.assert_array_equal(got.view(np.uint32), built[2].view(np.uint32))
        rows = file.slice("q.weight", slice(1, None)).dequantize(cls=tensorlib.Tensor).numpy()
        np.testing.assert_array_equal(rows, built[2][1:])
    return weight


sizes = st.integers(1, 5).map(lambda n: 32 * n)
seeds = st.integers(0, 1000).map(np.random.default_rng)


@given(st.data())
def test_gptq(load, data):
    rng, bits, k = data.draw(seeds), data.draw(st.sampled_from([2, 3, 4, 8])), data.draw(sizes)
    n = data.draw(st.integers(1, 3)) * (32 if bits == 3 else 16)
    group, order = data.draw(st.sampled_from([32, 64, 128, k])), data.draw(st.booleans())
    version, index = data.draw(st.sampled_from(["gptq", "gptq_v2"])), order or data.draw(st.booleans())
    order = order and k % group == 0  # else the last group's columns fill no block
    built = checkpoints.gptq(rng, n, k, bits, min(group, k), order, version, index=index)
    weight = check(load, built, f"a{bits}_32")
    assert type(weight) is (PermutedQTensor if (np.diff(built[1].get("q.g_idx", (0, [0]))[1]) < 0).any() else QTensor)


@pytest.mark.parametrize("kind,size,format", [("F16", 1, "a4_32"), ("BF16", 1, "a4_32"), ("BF16", 2.0**-20, "a4_32w"),
                                              ("BF16", 2.0**60, "a4_32w"), ("F32", 1, "a4_32w")])  # fmt: skip
def test_scales_are_halves_where_nothing_is_lost(load, kind, size, format):
    rng = np.random.default_rng(0)
    check(load, checkpoints.gptq(rng, 8, 64, kind=kind, size=size), format)


@pytest.mark.parametrize("version", ["gemm", "gemv"])
@given(st.data())
def test_awq(load, version, data):
    k, n = data.draw(sizes), 8 * data.draw(st.integers(1, 5))
    group = data.draw(st.sampled_from([g for g in (32, 64, 128, k) if k % g == 0]))
    check(load, checkpoints.awq(data.draw(seeds), n, k, group, version), "a4_32")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@given(st.data())
def test_bitsandbytes_4_bits(load, kind, data):
    n, k, size = data.draw(st.integers(2, 9)), data.draw(sizes), data.draw(st.sampled_from([32, 64, 128, 4096]))
    nested, storage = data.draw(st.booleans()), data.draw(st.sampled_from(["U8", "BF16"]))
    check(load, checkpoints.bnb4(data.draw(seeds), n, k, kind, size, nested, storage=storage), kind)


@given(seeds, st.integers(2, 9), sizes)
def test_bitsandbytes_8_bits(load, rng, n, k):
    check(load, checkpoints.bnb8(rng, n, k), "bnb8")


@given(st.data())
def test_hqq(load, data):
    bits, k, n = data.draw(st.sampled_from([8, 4, 3, 2, 1])), data.draw(sizes), 16 * data.draw(st.integers(1, 3))
    group, joined = data.draw(st.sampled_from([g for g in (32, 64, k) if k % g == 0])), data.draw(st.booleans())
    kind, as_float = data.draw(st.sampled_from(["F16", "BF16"])), data.draw(st.booleans())
    built = checkpoints.hqq(data.draw(seeds), n, k, bits, group, kind, joined, as_float)
    zeros = built[1].get("q.zero", built[1].get("q.zero_scale"))[1]
    wide = kind == "BF16" and not is_f16((zeros.astype(np.uint32) << 16).view(np.float32))
    check(load, built, f"a{bits}_32" + "w" * wide)
