"""The rows of formats.py against the gguf package, against llama.cpp, and against the rules they are written by."""

import ast
import hashlib
import pickle

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from tensorlib.errors import DTypeError, ShapeError
from tensorlib.quant import formats
from tensorlib.quant.decode import RUNTIME, _Blocks, _bound, dequantize, table_bytes
from tensorlib.quant.source import key, source

ROWS = list(formats.BY_ID.values())
PLAIN = {"i8": "<i1", "i16": "<i2", "i32": "<i4", "i64": "<i8", "f64": "<f8"}
NOT_IN_GGUF = {*PLAIN, "q1_0", "q2_0", "q8_1", "q8_k"}  # gguf 0.19 cannot dequantise these
each_row = pytest.mark.parametrize("row", ROWS, ids=str)


def test_rows_are_those_of_gguf():
    assert formats.FORMATS == {row.name: row for row in ROWS}
    for row in ROWS:
        if row.name == "q2_0":
            continue  # newer than gguf 0.19
        kind = GGMLQuantizationType(row.ggml_id)
        assert kind.name.lower() == row.name
        # gguf still has the two f32 of the q8_1 of 2023; ggml's block_q8_1 has two halves
        assert gguf.GGML_QUANT_SIZES[kind] == (row.elements, 40 if row.name == "q8_1" else row.nbytes)
    assert {kind.value for kind in GGMLQuantizationType} <= set(formats.BY_ID)


@pytest.mark.parametrize("row", [r for r in ROWS if r.name not in NOT_IN_GGUF], ids=str)
def test_equal_to_gguf(row, samples, assert_same):
    data = samples(row, 3001)
    with np.errstate(all="ignore"):
        want = gguf.dequantize(data, GGMLQuantizationType(row.ggml_id))
    assert_same(dequantize(data, row), want)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_numbers(name, samples, assert_same):
    row = formats.get(name)
    data = samples(row, 3001)
    with np.errstate(all="ignore"):
        assert_same(dequantize(data, row), data.view(PLAIN[name]).astype(np.float32))


@pytest.mark.parametrize(("name", "scale", "at"), [("q8_1", "<f2", 4), ("q8_k", "<f4", 4)])
def test_dot_product_formats(name, scale, at, samples, assert_same):
    row = formats.get(name)
    data = samples(row, 500)
    d = np.ascontiguousarray(data[:, : np.dtype(scale).itemsize]).view(scale).astype(np.float32)
    with np.errstate(all="ignore"):
        want = d * data[:, at : at + row.elements].view(np.int8).astype(np.float32)
    assert_same(dequantize(data, row), want)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("q1_0", "684af49e11df53ee"),
        ("q2_0", "756cca3c70ba302a"),
        ("q8_k", "821fbda497b8cac2"),
        ("nvfp4", "33b61ead343ef5c7"),
    ],
)
def test_equal_to_llama_cpp(name, digest):
    """SHA-256 of what dequantize_row_* of libggml 0.25.3 (llama-cpp-python 0.3.36) makes of 64 such blocks."""
    row = formats.get(name)
    data = np.frombuffer(hashlib.shake_128(name.encode()).digest(64 * row.nbytes), np.uint8).reshape(64, -1).copy()
    data[:, 3 if name == "q8_k" else 1] &= 0xBF  # finite scales
    assert hashlib.sha256(dequantize(data, row).tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("q1_0", "54779f98569d5d0b"),
        ("q2_0", "f694845ffb935bad"),
        ("q8_k", "c6af51b7fa2f4cb4"),
    ],
)
def test_special_scales_as_llama_cpp(name, digest, samples):
    """The same of zeros, denormals, infinities and NaN for scales; every NaN counts as one."""
    values = dequantize(samples(formats.get(name), 64), name)
    values[np.isnan(values)] = np.nan
    assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == digest


@each_row
def test_stays_inside_its_block_and_table(row, loads):
    sizes = {"8": 1, "16": 2, "32": 4, "64": 8}
    for name, offsets in loads(row):
        end = len(table_bytes(row)) if name == "table" else row.nbytes - sizes[name[1:]] + 1
        assert offsets.min() >= 0 and offsets.max() < end, (name, offsets.min(), offsets.max())


@each_row
def test_computes_in_float32_and_32_bits(row, samples):
    decode, table = _bound(row)
    with np.errstate(all="ignore"):
        value = decode(_Blocks(samples(row, 300), table), np.arange(row.elements, dtype=np.int32))
    assert value.dtype == np.float32 and value.shape == (300, row.elements)


SUBSET = (
    ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.Return, ast.Expr, ast.Tuple, ast.Call, ast.Name,
    ast.Load, ast.Store, ast.Constant, ast.BinOp, ast.UnaryOp, ast.USub, ast.Compare, ast.Lt, ast.Eq, ast.Add, ast.Sub,
    ast.Mult, ast.FloorDiv, ast.Mod, ast.LShift, ast.RShift, ast.BitAnd, ast.BitOr, ast.BitXor,
)  # fmt: skip


@each_row
def test_is_written_in_the_subset(row):
    functions = [n for n in ast.parse(source(row)).body if isinstance(n, ast.FunctionDef)]
    known = {*RUNTIME, *(f.name for f in functions)}
    for function in functions:
        for node in ast.walk(function):
            assert isinstance(node, SUBSET), ast.unparse(node)
            if isinstance(node, ast.Call):
                assert node.func.id in known and not node.keywords, ast.unparse(node)
            if isinstance(node, ast.BinOp):  # a float literal would make Numba compute in float64
                for side in (node.left, node.right):
                    assert not isinstance(side, ast.Constant) or type(side.value) is int, ast.unparse(node)


def test_tables():
    assert formats.KVALUES == gguf.quants.IQ4_NL.kvalues and formats.E2M1 == gguf.quants.MXFP4.kvalues
    for row in ROWS:
        if isinstance(row.table, str):
            rows, columns = getattr(gguf.quants, row.table).grid_shape
            assert len(table_bytes(row)) == rows * columns
    assert table_bytes("q4_0") == b"" and np.frombuffer(table_bytes("iq4_nl"), np.int8).tolist() == [*formats.KVALUES]


@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (2, 5), (0, 4), (2, 0), (3, 1, 7)])
def test_shapes(shape):
    row = formats.get("q4_1")
    data = np.random.default_rng(1).integers(0, 100, (*shape[:-1], shape[-1] * row.nbytes), dtype=np.uint8)
    out = dequantize(data, row)
    assert out.shape == (*shape[:-1], shape[-1] * 32) and out.dtype == np.float32
    np.testing.assert_array_equal(out.ravel(), dequantize(data.reshape(-1), row))


def test_many_blocks_are_decoded_in_chunks(monkeypatch):
    data = np.random.default_rng(2).integers(0, 100, (1000, 210), dtype=np.uint8)
    whole = dequantize(data, "q6_k")
    monkeypatch.setattr("tensorlib.quant.decode.CHUNK", 7 * 256)
    np.testing.assert_array_equal(dequantize(data, "q6_k"), whole)


def test_strided_bytes():
    data = np.random.default_rng(3).integers(0, 100, (6, 68), dtype=np.uint8)
    np.testing.assert_array_equal(dequantize(data[::2, :34], "q8_0"), dequantize(data[::2, :34].copy(), "q8_0"))


@pytest.mark.parametrize("data", [np.zeros(17, np.uint8), np.zeros((), np.uint8), np.zeros(18, np.int8), np.zeros(18)])
def test_what_is_not_blocks_is_refused(data):
    with pytest.raises(ShapeError, match=r"dequantize q4_0: got .* a multiple of 18 bytes"):
        dequantize(data, "q4_0")


def test_lookup():
    row = formats.get("Q4_K")
    assert formats.get(12) is row and formats.get(row) is row and pickle.loads(pickle.dumps(row)) is row
    assert row.quantized and not formats.get("bf16").quantized
    assert row.row_bytes(512) == 288 and row.row_bytes(0) == 0
    for bad in ("q4_2", 4, None, 1.5):
        with pytest.raises(DTypeError, match="format: got"):
            formats.get(bad)
    for elements in (100, -256):
        with pytest.raises(ShapeError, match="a multiple of 256"):
            row.row_bytes(elements)


def test_keys_differ():
    assert len({key(row) for row in ROWS}) == len(ROWS)


def test_formats_import_no_numpy(run_python):
    script = (
        "import sys; before = set(sys.modules)\n"
        "from tensorlib.quant import formats, source\n"
        "source.source('q4_k'), source.key('iq2_s'), formats.get('iq4_nl').table_bytes()\n"
        "print(*{'numpy', 'numba', 'gguf', 'inspect', 're', 'typing'} & (set(sys.modules) - before))"
    )
    assert run_python(script).split() == []
