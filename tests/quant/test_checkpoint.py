"""Checkpoints whose parts do not fit each other or their description: one FormatError that names file and tensor."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import FormatError
from tests.quant import checkpoints
from tests.quant.checkpoints import awq, bnb4, bnb8, compressed, fp8, gptq, hqq
from zoo.verify import finite

I32, U8 = np.int32, np.uint8


def change(build, sizes, part=None, to=None, config=None, **options):
    """A builder's checkpoint with a part changed (`to`: None removes it, a function changes its array), a key of the
    config changed.
    """
    described, parts, _ = build(np.random.default_rng(0), *sizes, **options)
    name = f"q.{part}"
    if part is not None and to is None:
        del parts[name]
    elif callable(to):
        parts[name] = parts[name][0], to(parts[name][1])
    elif part is not None:
        parts[name] = to
    return {**described, **(config or {})}, parts


def state(**changes):
    def edit(blob):
        found = {**json.loads(bytes(blob)), **changes}
        return np.frombuffer(json.dumps({k: v for k, v in found.items() if v is not None}).encode(), U8)

    return edit


G, H, Q = (16, 64), (16, 64), "weight.quant_state.bitsandbytes__nf4"
CASES = {  # what is wrong -> (the checkpoint, what the message says)
    "gptq without zeros": (change(gptq, G, "qzeros"), "q.qzeros: got no such tensor"),
    "gptq without scales": (change(gptq, G, "scales"), "q.scales: got no such tensor"),
    "gptq floats as codes": (change(gptq, G, "qweight", ("F32", np.zeros((8, 16), "f4"))), "q.qweight: got F32"),
    "gptq integers as scales": (change(gptq, G, "scales", ("I32", np.zeros((2, 16), I32))), "q.scales: got I32"),
    "gptq codes of three dims": (change(gptq, G, "qweight", lambda a: a[None]), "with 2 dims"),
    "gptq too few codes": (change(gptq, G, "qweight", lambda a: a[:-1]), "8 words for 64 columns, 4 bits"),
    "gptq scales for fewer rows": (
        change(gptq, G, "scales", lambda a: a[:, :-1]),
        r"shape \(2, 15\); expected \(2, 16\)",
    ),
    "gptq too many groups": (
        change(gptq, G, "scales", lambda a: np.repeat(a, 4, 0)),
        r"q.qzeros: got shape \(2, 2\); expected \(8, 2\)",
    ),
    "gptq no groups": (change(gptq, G, "scales", lambda a: a[:0]), "0 groups"),
    "gptq zeros of fewer groups": (change(gptq, G, "qzeros", lambda a: a[:1]), r"q.qzeros: got shape \(1, 2\)"),
    "gptq zeros of no width": (change(gptq, G, "qzeros", lambda a: a[:, :0]), "zeros of 2, 3, 4 or 8 bits"),
    "gptq a group that is not there": (change(gptq, G, "g_idx", lambda a: a + 1), "1 to 2; expected groups 0 to 1"),
    "gptq a negative group": (change(gptq, G, "g_idx", lambda a: a - 1), "-1 to 0"),
    "gptq groups of 31 and 33": (change(gptq, G, "g_idx", lambda a: np.r_[a[:31], I32(1), a[32:]]), "divide a block"),
    "gptq g_idx for other columns": (change(gptq, G, "g_idx", lambda a: a[:-1]), "columns of 63"),
    "gptq groups of 16": (change(gptq, G, group=16), "divide a block"),
    "gptq columns of half a block": (change(gptq, (16, 48), group=16), "columns of 48; expected a multiple of 32"),
    "gptq marlin": (change(gptq, G, config={"checkpoint_format": "marlin"}), "checkpoint_format 'marlin'"),
    "gptq empty": (change(gptq, G, "qweight", lambda a: a[:, :0]), "q.qzeros: got shape"),
    "gptq beside a plain weight": (
        change(gptq, G, "weight", ("F32", np.ones(1, "f4"))),
        "it beside its quantised parts",
    ),
    "awq without zeros": (change(awq, G, "qzeros"), "q.qzeros: got no such tensor"),
    "awq of 3 bits": (change(awq, G, config={"bits": 3}), "version gemm or gemv, 4 bits"),
    "awq gemv_fast": (change(awq, G, config={"version": "gemv_fast"}), "version 'gemv_fast'"),
    "awq without zero points": (change(awq, G, config={"zero_point": False}), "zero_point false"),
    "awq scales of 3 groups": (
        change(awq, G, "scales", lambda a: np.repeat(a, 3, 0)[:3]),
        r"scales of shape \(3, 16\)",
    ),
    "awq zeros of one group": (change(awq, G, "qzeros", lambda a: a[:1]), r"shape \(1, 2\); expected \(2, 2\)"),
    "awq gemv of too few scales": (
        change(awq, (16, 320), "scales", lambda a: a[:, :9], version="gemv"),
        "got scales of",
    ),
    "nf4 without absmax": (change(bnb4, H, "weight.absmax"), "q.weight.absmax: got no such tensor"),
    "nf4 without a table": (change(bnb4, H, "weight.quant_map"), "quant_map: got no such tensor"),
    "nf4 another table": (change(bnb4, H, "weight.quant_map", lambda a: a[::-1]), "another table"),
    "nf4 too few codes": (change(bnb4, H, "weight", lambda a: a[:-1]), "511 bytes; expected 1024 codes"),
    "nf4 another shape": (change(bnb4, H, Q, state(shape=[16, 96])), "expected 1536 codes"),
    "nf4 a huge shape": (change(bnb4, H, Q, state(shape=[2**39, 2**39])), "512 bytes"),
    "nf4 a shape of one": (change(bnb4, H, Q, state(shape=[1024])), r"shape \[1024\]"),
    "nf4 a shape of text": (change(bnb4, H, Q, state(shape=["16", 64])), "expected two sizes"),
    "nf4 no shape": (change(bnb4, H, Q, state(shape=None)), "shape None"),
    "nf4 a blocksize of 0": (change(bnb4, H, Q, state(blocksize=0)), "blocksize 0"),
    "nf4 a blocksize of 48": (change(bnb4, H, Q, state(blocksize=48)), "blocksize 48"),
    "nf4 half the blocksize": (change(bnb4, H, Q, state(blocksize=32)), r"absmax: got shape \(16,\); expected \(32,\)"),
    "nf4 that says fp4": (change(bnb4, H, Q, state(quant_type="fp4")), "quant_type 'fp4'"),
    "nf4 no JSON": (change(bnb4, H, Q, lambda a: a[:-1]), "no JSON"),
    "nf4 a list": (change(bnb4, H, Q, ("U8", np.frombuffer(b"[1]", U8))), "a list; expected a JSON object"),
    "nf4 deep JSON": (change(bnb4, H, Q, ("U8", np.frombuffer(b"[" * 60000, U8))), "no JSON"),
    "nf4 long JSON": (change(bnb4, H, Q, ("U8", np.full(1 << 17, 32, U8))), "131072 bytes"),
    "nf4 an offset of text": (change(bnb4, H, Q, state(nested_offset="0")), "nested_offset '0'"),
    "nf4 nested of 1": (change(bnb4, H, Q, state(nested_blocksize=1)), "nested_absmax: got shape"),
    "nf4 half a nested table": (change(bnb4, H, "weight.nested_quant_map", lambda a: a[:128]), r"shape \(128,\)"),
    "nf4 columns of half a block": (change(bnb4, (16, 48)), "columns of 48"),
    "int8 scales of fewer rows": (change(bnb8, H, "SCB", lambda a: a[1:]), r"q.SCB: got shape \(15,\)"),
    "int8 without codes": (change(bnb8, H, "weight"), "q.weight: got no such tensor"),
    "int8 in col32": (change(bnb8, H, "weight_format", ("U8", np.array(1, U8))), r"weight_format: got \[1\]"),
    "int8 of floats": (change(bnb8, H, "weight", ("F32", np.ones(H, "f4"))), "q.weight: got F32"),
    "fp8 of halves": (change(fp8, H, "weight", ("F16", np.ones(H, "f2"))), "q.weight: got F16"),
    "fp8 without codes": (change(fp8, H, "weight"), "q.weight: got no such tensor"),
    "fp8 scales of other tiles": (
        change(fp8, (200, 256), "weight_scale_inv", lambda a: a[:1]),
        r"shape \(1, 2\); expected \(2, 2\)",
    ),
    "fp8 tiles of half a block": (
        change(fp8, H, config={"weight_block_size": [16, 16]}, side=16),
        "tiles of 16 columns",
    ),
    "fp8 tiles of text": (change(fp8, H, config={"weight_block_size": "128"}), "weight_block_size '128'"),
    "fp8 tiles of nothing": (change(fp8, H, config={"weight_block_size": [128, 0]}), "two sizes"),
    "fp8 columns of half a block": (change(fp8, (16, 48)), "columns of 48"),
    "packed without a shape": (change(compressed, H, "weight_shape"), "q.weight_shape: got no such tensor"),
    "packed of a negative size": (
        change(compressed, H, "weight_shape", ("I64", np.array([-16, 64]))),
        "expected two siz",
    ),
    "packed of other columns": (
        change(compressed, H, "weight_shape", ("I64", np.array([16, 80]))),
        "codes of 4 bits for",
    ),
    "packed of floats": (
        change(compressed, H, "weight_packed", ("U8", np.zeros((16, 32), U8))),
        "q.weight_packed: got U8",
    ),
    "packed columns of half a block": (change(compressed, (16, 48), group=16), "columns of 48"),
    "packed groups of 16": (change(compressed, H, group=16), "divide a block"),
    "packed scales of 3 groups": (change(compressed, H, "weight_scale", lambda a: a[:, [0, 1, 1]]), "3 groups"),
    "packed scales of fewer rows": (change(compressed, H, "weight_scale", lambda a: a[1:]), r"got shape \(15, 2\)"),
    "packed zeros of one group": (
        change(compressed, H, "weight_zero_point", lambda a: a[:, 1:], zeros=True),
        "zero_point",
    ),
    "packed a group that is not there": (
        change(compressed, H, "weight_g_idx", lambda a: a + 1, order=True),
        "groups 0 to 1",
    ),
    "w8a8 groups of 16": (change(compressed, H, bits=8, group=16, whole=True), "4 groups of 64 columns"),
    "w8a8 zeros of one group": (
        change(compressed, H, "weight_zero_point", lambda a: a[:, 1:], bits=8, whole=True, zeros=True),
        "zero_point",
    ),
    "hqq without scales": (change(hqq, H, "scale"), "q.scale: got no such tensor"),
    "hqq axis 0": (change(hqq, H, "axis", ("I32", I32(0))), "axis 0"),
    "hqq of 5 bits packed": (change(hqq, H, "packing", ("U8", np.frombuffer(b"5bit_u8", U8))), "'5bit_u8'"),
    "hqq too few codes": (change(hqq, H, "W_q", lambda a: a[:-1]), "expected 512 bytes"),
    "hqq a huge shape": (change(hqq, H, "shape", ("I64", np.array([2**39, 2**39]))), "expected .* bytes for"),
    "hqq a negative shape": (change(hqq, H, "shape", ("I64", np.array([-16, -64]))), "expected two sizes"),
    "hqq a shape of three": (change(hqq, H, "shape", ("I64", np.array([16, 8, 8]))), "3 numbers"),
    "hqq groups of 0": (change(hqq, H, "group_size", ("I32", I32(0))), "groups of 0"),
    "hqq groups of 48": (change(hqq, H, "group_size", ("I32", I32(48))), "groups of 48"),
    "hqq scales of other groups": (change(hqq, H, "scale", lambda a: a[1:]), r"q.scale: got shape \(15, 1\)"),
    "hqq quantised scales": (change(hqq, H, "quant_scale", ("U8", U8(1))), "quantised scales or zeros"),
    "hqq columns of half a block": (change(hqq, (16, 48), group=48), "columns of 48"),
    "hqq odd groups": (change(hqq, (3, 64), bits=8, part="packing", to=("U8", np.frombuffer(b"4bit_u8", U8))), "q.W_q"),
}


@pytest.mark.parametrize("what", CASES)
def test_what_does_not_fit(what, tmp_path):
    built, message = CASES[what]
    folder = checkpoints.write(tmp_path / "m", *built)
    with pytest.raises(FormatError, match=message) as caught, tensorlib.load(folder) as file:
        file.tensor("q.weight")
    assert caught.value.file == str(folder / "model.safetensors") and str(caught.value.where).startswith("tensor ")


CONFIGS = {
    "no JSON": "{",
    "a list": "[]",
    "no object": '{"quantization_config": 7}',
    "no method": '{"quantization_config": {}}',
    "another method": '{"quantization_config": {"quant_method": "quanto"}}',
    "a method that is no text": '{"quantization_config": {"quant_method": ["gptq"]}}',
    "deep": "[" * 100000,
}


@pytest.mark.parametrize("what", CONFIGS)
def test_configurations(what, tmp_path):
    folder = checkpoints.write(tmp_path, *gptq(np.random.default_rng(0), *G)[:2])
    (folder / "config.json").write_text(CONFIGS[what])
    with pytest.raises(FormatError) as caught:
        tensorlib.load(folder)
    assert caught.value.file == str(folder / "config.json")
    assert "q.qweight" in tensorlib.load(folder / "model.safetensors").tensors  # the file itself is sound


def test_descriptions_beside_the_config(tmp_path):
    """AutoGPTQ's and AutoAWQ's own files, and old bitsandbytes configs, do not name the method."""
    for build, name in ((gptq, "quantize_config.json"), (awq, "quant_config.json")):
        config, parts, weight = build(np.random.default_rng(0), *G)
        folder = checkpoints.write(tmp_path, {}, parts)
        (folder / "config.json").write_text("{}")
        (folder / name).write_text(json.dumps({k: v for k, v in config.items() if k != "quant_method"}))
        with tensorlib.load(folder) as file:
            np.testing.assert_array_equal(file.tensor("q.weight").dequantize(cls=tensorlib.Tensor).numpy(), weight)
        (folder / name).unlink()
    config, parts, weight = bnb8(np.random.default_rng(0), *H)
    with tensorlib.load(checkpoints.write(tmp_path, {"load_in_8bit": True}, parts)) as file:
        np.testing.assert_array_equal(file.tensor("q.weight").dequantize(cls=tensorlib.Tensor).numpy(), weight)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with tensorlib.load(tmp_path) as file:
        assert file.tensor("q.weight").dtype.name == "i8"


def test_what_a_checkpoint_says(tmp_path):
    config, parts, _ = gptq(np.random.default_rng(0), *G)
    parts["norm.weight"] = "F32", np.arange(6, dtype="f4").reshape(2, 3)
    with tensorlib.load(checkpoints.write(tmp_path, config, parts)) as file:
        info = file.tensors["q.weight"]
        assert (info.format, info.dtype, info.nbytes) == ("gptq", None, 512 + 16 + 64 + 256)
        assert file.slice("norm.weight", ..., 1).tolist() == [1.0, 4.0] and file.rows("norm.weight", 1, 2).shape == (
            1,
            3,
        )
        assert file.raw("norm.weight").shape == (24,) and file.stored("norm.weight").shape == (2, 3)
        for refused in (file.raw, file.stored, file.file.tensor, lambda name: file.slice(name, 3)):
            with pytest.raises(FormatError):
                refused("q.weight")
        with pytest.raises(FormatError, match="rows 3 to 17"):
            file.rows("q.weight", 3, 17)
        with pytest.raises(FormatError, match="no such tensor"):
            file.tensor("q.qweight")


def test_verify(tmp_path):
    config, parts, _ = gptq(np.random.default_rng(0), *G)
    with tensorlib.load(checkpoints.write(tmp_path, config, parts)) as file:
        finite(file, file.tensors["q.weight"])
    parts["q.scales"][1][1, 3] = np.inf
    with (
        tensorlib.load(checkpoints.write(tmp_path, config, parts)) as file,
        pytest.raises(FormatError, match="32 numbers"),
    ):
        finite(file, file.tensors["q.weight"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.sampled_from(["gptq", "gemm", "nf4", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=1),
    max_leaves=3,
)
KEYS = ("bits", "w_bit", "group_size", "q_group_size", "checkpoint_format", "format", "version", "zero_point")
KEYS += ("weight_block_size", "config_groups")
DTYPES = {"U8": 1, "I8": 1, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8, "BOOL": 1}


def damaged(data, array):
    """(dtype, array): other bytes, another dtype or another shape."""
    raw = np.ascontiguousarray(array).reshape(-1).view(U8)
    raw = raw[: data.draw(st.integers(0, len(raw))) if data.draw(st.booleans()) else None].copy()
    for _ in range(data.draw(st.integers(0, 3)) if len(raw) else 0):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    dtype = data.draw(st.sampled_from(sorted(DTYPES)))
    count = len(raw) // DTYPES[dtype]
    wide = data.draw(st.sampled_from([d for d in range(1, count + 1) if count % d == 0] or [1]))
    shape = data.draw(st.sampled_from([(count,), (count // wide, wide), (1, count // wide, wide)]))
    return dtype, raw[: count * DTYPES[dtype]].reshape(*shape, DTYPES[dtype]), shape


@pytest.mark.parametrize("build", [gptq, awq, bnb4, bnb8, hqq, fp8, compressed], ids=lambda build: build.__name__)
@given(st.data())
def test_damage(build, tmp_path_factory, data):
    """Whatever is wrong with some parts and the description: a FormatError, or a weight of the shape that was said."""
    config, parts, _ = build(np.random.default_rng(0), *G)
    for name in data.draw(st.lists(st.sampled_from(sorted(parts)), min_size=1, max_size=2, unique=True)):
        kept = parts.pop(name)
        if data.draw(st.integers(0, 4)):
            parts[name] = damaged(data, kept[1])
    config |= data.draw(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=2))
    folder = checkpoints.write(tmp_path_factory.getbasetemp() / f"damage {build.__name__}", config, parts)
    try:
        with tensorlib.load(folder) as file:
            for name, info in file.tensors.items():
                if info.format == file.method:
                    assert file.tensor(name).shape == info.shape
    except FormatError as error:
        assert error.file.startswith(str(folder))
