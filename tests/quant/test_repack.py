"""Quantised checkpoints loaded as QTensors: weights bit for bit, products, and every part that does not fit."""

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.capture import Capture
from tensorlib.errors import DTypeError, GradError, NoKernel, ShapeError
from tensorlib.nn import Linear, VarBuilder
from tensorlib.quant.permuted import PermutedQTensor
from tensorlib.quant.repack import NUMPY, is_f16
from tensorlib.quant.tensor import QTensor
from tests.quant import checkpoints

# Parts that the libraries' own code made (`made_by` names it), and the SHA-256 of the f32 weights that it made of them.
GOLDEN = json.loads((Path(__file__).parent / "golden_checkpoints.json").read_text())


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
    config, *rest = checkpoints.awq(data.draw(seeds), n, k, group, version)
    config["version"] = data.draw(st.sampled_from({"gemm": ["gemm", "GEMM", "exllama"], "gemv": ["gemv"]}[version]))
    check(load, (config, *rest), "a4_32")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@given(st.data())
def test_bitsandbytes_4_bits(load, kind, data):
    n, k, size = data.draw(st.integers(2, 9)), data.draw(sizes), data.draw(st.sampled_from([32, 64, 128, 4096]))
    nested, storage = data.draw(st.booleans()), data.draw(st.sampled_from(["U8", "BF16"]))
    unit = 64 if size > 32 and k % 64 == 0 else 32
    check(load, checkpoints.bnb4(data.draw(seeds), n, k, kind, size, nested, storage=storage), f"{kind}_{unit}")


@given(seeds, st.integers(2, 9), sizes)
def test_bitsandbytes_8_bits(load, rng, n, k):
    check(load, checkpoints.bnb8(rng, n, k), "bnb8")


@pytest.mark.parametrize("method", ["fp8", "compressed-tensors", "fbgemm_fp8", "modelopt"])
@given(st.data())
def test_float8(load, method, data):
    n, k = data.draw(st.integers(1, 70)), data.draw(sizes | st.just(256))
    side = data.draw(st.sampled_from([32, 64, 128]))
    scales, kind = (
        data.draw(st.sampled_from(["tiles", "rows", "row", "all"])),
        data.draw(st.sampled_from(["F32", "BF16"])),
    )
    suffix = "weight_scale_inv" if method == "fp8" and data.draw(st.booleans()) else "weight_scale"
    unit = 128 if k % 128 == 0 and (scales != "tiles" or side == 128) else 32
    check(load, checkpoints.fp8(data.draw(seeds), n, k, scales, side, kind, method, suffix=suffix), f"f8_{unit}")


@given(st.data())
def test_compressed_integers(load, data):
    rng, bits, k = data.draw(seeds), data.draw(st.sampled_from([2, 3, 4, 8])), data.draw(sizes)
    whole, zeros = data.draw(st.booleans()), data.draw(st.booleans())
    group = data.draw(st.sampled_from([g for g in (0, 32, 64, k) if not g or k % g == 0]))
    bits, order = 8 if whole else bits, not whole and data.draw(st.booleans())
    kind, n = data.draw(st.sampled_from(["F16", "BF16"])), data.draw(st.integers(1, 40))
    built = checkpoints.compressed(rng, n, k, bits, group, kind, zeros, order, whole)
    weight = check(load, built, f"a{bits}_32")
    assert type(weight) is (
        PermutedQTensor if order and (np.diff(built[1]["q.weight_g_idx"][1]) < 0).any() else QTensor
    )


@given(st.data())
def test_hqq(load, data):
    bits, k, n = data.draw(st.sampled_from([8, 4, 3, 2, 1])), data.draw(sizes), 16 * data.draw(st.integers(1, 3))
    group, joined = data.draw(st.sampled_from([g for g in (32, 64, k) if k % g == 0])), data.draw(st.booleans())
    kind, as_float = data.draw(st.sampled_from(["F16", "BF16"])), data.draw(st.booleans())
    built = checkpoints.hqq(data.draw(seeds), n, k, bits, group, kind, joined, as_float)
    zeros = built[1].get("q.zero", built[1].get("q.zero_scale"))[1]
    wide = kind == "BF16" and not is_f16((zeros.astype(np.uint32) << 16).view(np.float32))
    check(load, built, f"a{bits}_32" + "w" * wide)


@pytest.mark.parametrize("name", GOLDEN)
def test_equal_to_the_libraries(load, name):
    case = GOLDEN[name]
    parts = {}
    for part, held in case["parts"].items():
        data = np.frombuffer(base64.b64decode(held["base64"]), np.uint8)
        parts[part] = held["dtype"], data.view(NUMPY[held["dtype"]]).reshape(held["shape"])
    with load((case["config"], parts)) as file:
        weight = file.tensor("q.weight").dequantize(cls=tensorlib.Tensor).numpy()
    assert list(weight.shape) == case["shape"] and hashlib.sha256(weight.tobytes()).hexdigest() == case["sha256"]


def test_var_builder_and_linear(load):
    """`x.weight` of a checkpoint with desc_act is all that a Linear needs; its columns lie in another order."""
    config, parts, weight = checkpoints.gptq(np.random.default_rng(3), 48, 128, order=True)
    parts["q.bias"] = "F32", np.arange(48, dtype=np.float32)
    parts["norm.weight"] = "F32", np.ones(4, np.float32)
    with load((config, parts)) as file:
        assert sorted(file.tensors) == ["norm.weight", "q.bias", "q.weight"] and file.tensor("norm.weight").shape == (
            4,
        )
        linear = VarBuilder(file).pp("q").load(Linear(128, 48))
    assert isinstance(linear.weight, PermutedQTensor)
    x = np.random.default_rng(4).standard_normal((2, 3, 128)).astype(np.float32)
    got = linear(tensorlib.tensor(x)).numpy()
    # activations are off by half a step of 1 / 127 of the largest of 32; sums of f32 by far less
    bound = np.abs(x).max() / 254 * np.abs(weight).sum(1) * 1.001
    assert (np.abs(got - (x @ weight.T + parts["q.bias"][1])) <= bound).all()


@pytest.fixture(scope="module")
def permuted(load):
    """(a PermutedQTensor, its weights)."""
    config, parts, weight = checkpoints.gptq(np.random.default_rng(5), 16, 96, order=True)
    with load((config, parts)) as file:
        return file.tensor("q.weight"), weight


def test_rows_embedding_and_product_of_permuted_columns(permuted):
    w, weight = permuted
    rows = w.embedding(tensorlib.tensor([3, 0, 16]))
    np.testing.assert_array_equal(rows.numpy()[:2], weight[[3, 0]])
    assert np.isnan(rows.numpy()[2]).all() and w.to("cpu") is w
    np.testing.assert_array_equal(w.rows(2, 5).dequantize(cls=tensorlib.Tensor).numpy(), weight[2:7])
    x = tensorlib.randn(3, 96).requires_grad_()
    w.linear(x).backward(tensorlib.ones(3, 16))
    np.testing.assert_allclose(x.grad.numpy(), np.tile(weight.sum(0), (3, 1)), rtol=1e-5, atol=1e-6)
    with pytest.raises(GradError):
        w.requires_grad_()
    with pytest.raises(ShapeError, match=r"x \(3, 95\)"):
        w.linear(tensorlib.randn(3, 95))


def test_shards(permuted, load):
    config, parts, weight = checkpoints.gptq(np.random.default_rng(6), 16, 128)
    with load((config, parts)) as file:
        found = VarBuilder(file).get("q.weight", shard=(1, 1, 2))
        np.testing.assert_array_equal(found.dequantize(cls=tensorlib.Tensor).numpy(), weight[:, 64:])
        found = VarBuilder(file, dtype="f16", dequantize=True).get("q.weight", shard=(0, 3, 4))
        np.testing.assert_array_equal(found.numpy(), weight[12:].astype(np.float16))
    config, parts, weight = checkpoints.gptq(np.random.default_rng(6), 16, 128, order=True)
    with load((config, parts)) as file:
        found = VarBuilder(file).get("q.weight", shard=(0, 1, 2))
        np.testing.assert_array_equal(found.dequantize(cls=tensorlib.Tensor).numpy(), weight[8:])
        with pytest.raises(ShapeError, match="in another order"):
            VarBuilder(file).get("q.weight", shard=(1, 1, 2))


def test_gguf_refuses_private_rows(permuted, tmp_path):
    with pytest.raises(DTypeError, match="blocks of a4_32"):
        tensorlib.save(tmp_path / "x.gguf", {"w": permuted[0]})
    assert not (tmp_path / "x.gguf").exists()


def test_a_recorded_product_of_permuted_columns_replays(permuted):
    x, other = tensorlib.randn(2, 96), tensorlib.randn(2, 96)
    with Capture("cpu") as graph:
        out = permuted[0].linear(x)
    x.copy_(other)
    graph.replay()
    np.testing.assert_array_equal(out.numpy(), permuted[0].linear(other).numpy())


@pytest.mark.parametrize("format", ["a4_32", "nf4_64"])
def test_nothing_is_quantised_to_private_rows(format):
    with pytest.raises(NoKernel):
        tensorlib.quantize(tensorlib.ones(2, 64), format)
