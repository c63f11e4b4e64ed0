"""tensorlib convert, dequantize, quantize and diff."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time

import gguf as reference
import numpy as np
import pytest
import safetensors.torch
import torch

import tensorlib
from tensorlib.io import gguf
from tensorlib.io.gguf_values import Typed
from tensorlib.quant import formats
from tensorlib.quant.encode import encode
from tests.conftest import ROOT
from tests.io.test_imatrix import binary, entry
from tests.io.test_tools import run
from tests.quant import checkpoints
from zoo import cli, mixes

METADATA = {
    "general.architecture": "llama", "llama.attention.head_count": 8, "llama.attention.head_count_kv": 2,
    "llama.rope.freq_base": 0.1, "words": ["a", "b,c", "é"], "ids": Typed("i32", [1, 2]), "yes": True,
    "nested": Typed("array", [Typed("u8", [1, 2]), Typed("u8", [3])]), "big": Typed("u64", 2**63), "general.name": "x",
}  # fmt: skip


def weights(seed=0, layers=2, width=256):
    """A small model's tensors under GGUF's names."""
    rng, found = np.random.default_rng(seed), {}
    shapes = {"attn_v": (64, width), "ffn_down": (width, 512), "attn_q": (width, width), "attn_norm": (width,)}
    for layer in range(layers):
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in shapes.items()}
    found |= {"token_embd.weight": (96, width), "output.weight": (96, width), "output_norm.weight": (width,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in found.items()}


@pytest.fixture
def model(tmp_path):
    """A model as a GGUF file of f32, and its tensors."""
    path, tensors = tmp_path / "m.gguf", weights()
    gguf.write(path, METADATA, tensors)
    return path, tensors


# ---- convert ---------------------------------------------------------------------------------------------------------

LOSSES = {".npz": "left out", ".pth": "left out"}


@pytest.mark.parametrize("ending", [".safetensors", ".gguf", ".npz", ".pth"])
def test_there_and_back(model, tmp_path, capsys, ending):
    path, tensors = model
    there, back = tmp_path / f"there{ending}", tmp_path / "back.gguf"
    assert cli.main(["convert", str(path), str(there)]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(there) and ("left out" in err) == (ending in LOSSES)
    run(capsys, "diff", path, there, "--values")
    for name, x in tensors.items():
        assert tensorlib.load(there).tensor(name).tolist() == x.tolist()
    run(capsys, "convert", there, back)
    file, first = tensorlib.load(back), tensorlib.load(path)
    assert list(file.tensors) == list(first.tensors) or ending == ".safetensors"
    if ending not in LOSSES:
        assert [*file.metadata] == sorted(METADATA) or ending == ".gguf"
        for key in METADATA:
            assert file.metadata.encoded(key) == first.metadata.encoded(key), key
        assert (
            run(capsys, "diff", path, back) == f"{len(tensors)} of {len(tensors)} tensors in both have equal values\n"
        )


def test_dtypes_names_and_shards(model, tmp_path, capsys):
    path, tensors = model
    out = tmp_path / "x.safetensors"
    rename = ["--rename", r"^blk\.(\d+)\.=layers.\1.", "--rename", "_norm=_n"]
    names = run(capsys, "convert", path, out, "--dtype", "bf16", "--shard-size", "400K", *rename, "-j", "1").split()
    assert len(names) > 2 and names[-1] == f"{out}.index.json" and not out.exists()
    file = tensorlib.load(names[-1])
    assert {str(info.dtype) for info in file.tensors.values()} == {"bf16"} and "layers.1.attn_n.weight" in file.tensors
    x = torch.from_numpy(tensors["blk.1.attn_q.weight"]).bfloat16().float()
    assert file.tensor("layers.1.attn_q.weight").to("f32").tolist() == x.tolist()
    assert "two of that name" in run(capsys, "convert", path, out, "--rename", r"blk\.\d=a", status=2)
    assert "--shard-size" in run(capsys, "convert", path, tmp_path / "y.gguf", "--shard-size", "1M", status=2)
    assert ".safetensors" in run(capsys, "convert", path, tmp_path / "y.bin", status=2)
    assert "--force" in run(capsys, "convert", path, path, status=2)
    gguf.write(tmp_path / "large.gguf", {}, {"w": np.array([1.0, 70000.0, np.inf], np.float32)})
    message = run(capsys, "convert", tmp_path / "large.gguf", tmp_path / "y.npz", "--dtype", "f16", status=2)
    assert "1 finite numbers" in message and not (tmp_path / "y.npz").exists()


def test_checkpoints_of_pytorch(tmp_path, capsys):
    x = torch.randn(3, 4, dtype=torch.complex64)
    torch.save({"model": {"w": torch.randn(2, 3).T, "c": x}, "epoch": 3}, tmp_path / "a.pt")
    run(capsys, "convert", tmp_path / "a.pt", tmp_path / "b.pth")
    found = torch.load(tmp_path / "b.pth")
    assert found.pop("epoch") == 3 and torch.equal(found["model.c"], x) and list(found) == ["model.w", "model.c"]
    run(capsys, "convert", tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert torch.equal(safetensors.torch.load_file(tmp_path / "b.safetensors")["model.c"], x)
    assert cli.main(["convert", str(tmp_path / "b.safetensors"), str(tmp_path / "c.pt")]) == 0
    assert "metadata epoch" in capsys.readouterr().err
    assert torch.equal(torch.load(tmp_path / "c.pt")["model.c"], x)
    run(capsys, "diff", tmp_path / "a.pt", tmp_path / "b.pth")
    assert "complex64" in run(capsys, "convert", tmp_path / "a.pt", tmp_path / "d.gguf", status=2)


def test_dtypes_without_arithmetic(tmp_path, capsys):
    """Elements of four and six bits are copied as they are, and refused where no such dtype is."""
    header = {"q": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}}
    header |= {"s": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [4, 7]}}
    header |= {"e": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [7, 8]}}
    text = json.dumps(header).encode()
    path, out = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(8)))
    run(capsys, "convert", path, out)
    file = tensorlib.load(out)
    assert [file.raw(name).tolist() for name in "qse"] == [[0, 1, 2, 3], [4, 5, 6], [7]]
    assert [file.tensors[name].format for name in "qse"] == ["F4", "F6_E2M3", "F8_E8M0"]
    run(capsys, "diff", path, out)
    for ending in (".pth", ".gguf", ".npz"):
        assert "'q'" in run(capsys, "convert", path, tmp_path / f"z{ending}", status=2)
    path.write_bytes(path.read_bytes()[:-1] + b"\x09")
    assert cli.main(["diff", str(path), str(out)]) == 1


def test_dequantize(tmp_path, capsys):
    x = np.random.default_rng(0).standard_normal((2, 3, 256)).astype(np.float32)
    blocks = tensorlib.quantize(tensorlib.from_numpy(x), "q4_k")
    tensors = {"w": blocks, "b": tensorlib.ones(3, dtype="f16"), "i": tensorlib.arange(3)}
    gguf.write(tmp_path / "q.gguf", {"general.file_type": 14}, tensors)
    for ending, dtype in ((".gguf", "f16"), (".safetensors", "bf16"), (".npz", "f32"), (".pth", "f16")):
        out = tmp_path / f"x{ending}"
        assert cli.main(["dequantize", str(tmp_path / "q.gguf"), str(out), "--dtype", dtype]) == 0
        file = tensorlib.load(out)
        assert {n: str(info.dtype) for n, info in file.tensors.items()} == {"w": dtype, "b": "f16", "i": "i64"}
        assert file.tensor("w").to("f32").tolist() == blocks.dequantize(dtype).to("f32").tolist()
        assert file.tensor("i").tolist() == [0, 1, 2]
    assert gguf.open(tmp_path / "x.gguf").metadata["general.file_type"] == 1
    capsys.readouterr()
    assert "--dtype" in run(capsys, "convert", tmp_path / "q.gguf", tmp_path / "y.npz", status=2)
    run(capsys, "convert", tmp_path / "q.gguf", tmp_path / "y.gguf")
    run(capsys, "diff", tmp_path / "q.gguf", tmp_path / "y.gguf")


# ---- quantize --------------------------------------------------------------------------------------------------------


def quantized(capsys, *arguments):
    """(types by name, values, what was said) of a run of quantize that writes its second argument."""
    assert cli.main(["quantize", *map(str, arguments)]) == 0
    file = gguf.open(arguments[1])
    return {name: info.format.name for name, info in file.tensors.items()}, file, capsys.readouterr().err


def test_quantize_pure(model, tmp_path, capsys):
    path, tensors = model
    types, file, said = quantized(capsys, path, tmp_path / "q.gguf", "--type", "q4_k")
    assert types == {name: "q4_k" if x.ndim == 2 else "f32" for name, x in tensors.items()} and said == ""
    assert file.metadata["general.file_type"] == 14 and file.metadata["general.quantization_version"] == 2
    for name, x in tensors.items():
        expected = encode("q4_k", x).tobytes() if x.ndim == 2 else x.tobytes()
        assert bytes(file.bytes(name)) == expected
    with pytest.raises(SystemExit):
        cli.main(["quantize", str(path), "x.gguf", "--type", "q9"])
    assert ".gguf" in run(capsys, "quantize", path, tmp_path / "q.npz", "--type", "q8_0", status=2)


def test_quantize_mix_and_exceptions(model, tmp_path, capsys):
    path, _ = model
    options = ["--tensor-type", "attn_q=q8_0", "--keep", r"blk\.1\.ffn", "--embedding-type", "q5_0"]
    types, _, _ = quantized(capsys, path, tmp_path / "q.gguf", "--type", "Q4_K_M", *options)
    assert types["output.weight"] == "q6_k" and types["token_embd.weight"] == "q5_0"
    assert types["blk.0.attn_v.weight"] == types["blk.0.ffn_down.weight"] == "q4_k"
    assert types["blk.1.attn_v.weight"] == "q6_k"
    assert types["blk.1.ffn_down.weight"] == "f32" and types["blk.1.attn_q.weight"] == "q8_0"


def test_rows_that_are_not_whole_blocks(tmp_path, capsys):
    tensors = {"a.weight": np.ones((4, 96), np.float32), "b.weight": np.ones((2, 40), np.float32)}
    tensorlib.save(tmp_path / "m.safetensors", tensors)
    types, _, said = quantized(capsys, tmp_path / "m.safetensors", tmp_path / "q.gguf", "-t", "q4_k")
    assert types == {"a.weight": "q5_0", "b.weight": "f16"}
    assert "rows of 96 weights" in said and "q5_0 for 1, as a.weight" in said and "f16 for 1, as b.weight" in said


@pytest.mark.parametrize("type", sorted(mixes.FALLBACK))
def test_fallbacks_hold_rows_of_32(type):
    assert formats.get(mixes.fitting(type, 32, formats)).elements == 32 and mixes.fitting(type, 33, formats) == "f16"


def test_imatrix(tmp_path, capsys):
    rng = np.random.default_rng(1)
    tensors = {"a.weight": rng.standard_normal((4, 256)), "e.weight": rng.standard_normal((2, 3, 256))}
    tensors = {name: x.astype(np.float32) for name, x in tensors.items()} | {"z.weight": np.ones((1, 256), np.float32)}
    gguf.write(tmp_path / "m.gguf", {}, tensors)
    sums = {"a.weight": rng.random((1, 256)) + 0.1, "e.weight": rng.random((2, 256)) + 0.1}
    parts = {f"{name}.in_sum2": x.astype(np.float32) for name, x in sums.items()}
    parts |= {f"{name}.counts": np.ones((len(x), 1), np.float32) for name, x in sums.items()}
    about = {"general.type": "imatrix", "imatrix.datasets": ["text"], "imatrix.chunk_count": 9}
    gguf.write(tmp_path / "i.gguf", about, parts)
    command = [tmp_path / "m.gguf", tmp_path / "q.gguf", "-t", "q4_k", "--imatrix", tmp_path / "i.gguf", "--force"]
    _, file, said = quantized(capsys, *command)
    assert "1 weights are not in the imatrix, as z.weight" in said
    for name, x in sums.items():
        importance = x.astype(np.float32) if len(x) > 1 else x[0].astype(np.float32)
        assert bytes(file.bytes(name)) == encode("q4_k", tensors[name], importance).tobytes()
        assert bytes(file.bytes(name)) != encode("q4_k", tensors[name]).tobytes()
    facts = {k.rpartition(".")[2]: v for k, v in file.metadata.items() if k.startswith("quantize.imatrix.")}
    assert facts == {"file": "i.gguf", "entries_count": 2, "chunks_count": 9, "dataset": "text"}
    (tmp_path / "i.dat").write_bytes(binary(entry("a.weight", 1, [1.0] * 32)))
    message = run(capsys, "quantize", *command[:-3], "--imatrix", tmp_path / "i.dat", "--force", status=2)
    assert "importances (32,) for (4, 256)" in message and "'a.weight'" in message
    assert "32" in run(capsys, "info", tmp_path / "i.dat") and "a.weight" in run(capsys, "info", tmp_path / "i.dat")


def test_weights_that_cannot_be_held(tmp_path, capsys):
    x = np.ones((4, 32), np.float32)
    x[2, 1] = np.nan
    gguf.write(tmp_path / "m.gguf", {}, {"bad.weight": x})
    message = run(capsys, "quantize", tmp_path / "m.gguf", tmp_path / "q.gguf", "-t", "q4_0", status=2)
    assert "'bad.weight'" in message and "nan in row 2" in message and os.listdir(tmp_path) == ["m.gguf"]


def test_blocks_again(model, tmp_path, capsys):
    quantized(capsys, model[0], tmp_path / "q.gguf", "-t", "q8_0")
    types, file, said = quantized(capsys, tmp_path / "q.gguf", tmp_path / "r.gguf", "-t", "q4_0", "--keep", "output")
    assert (
        "in blocks before (q8_0)" in said and types["output.weight"] == "q8_0" and types["token_embd.weight"] == "q4_0"
    )
    twice = tensorlib.load(tmp_path / "q.gguf").tensor("token_embd.weight").dequantize().numpy()
    assert bytes(file.bytes("token_embd.weight")) == encode("q4_0", twice).tobytes()
    _, _, said = quantized(capsys, tmp_path / "q.gguf", tmp_path / "s.gguf", "-t", "q8_0")
    assert said == "" and run(capsys, "diff", tmp_path / "q.gguf", tmp_path / "s.gguf")


def test_types_are_those_of_the_gguf_package():
    known = {
        each.name.removeprefix("MOSTLY_").removeprefix("ALL_").lower(): int(each) for each in reference.LlamaFileType
    }
    assert {name: mixes.file_type(name) for name in mixes.MIXES} == {name: known[name] for name in mixes.MIXES}
    pure = {name: number for name, number in mixes.FILE_TYPES.items() if name in known and name not in mixes.MIXES}
    assert pure == {name: known[name] for name in pure} and len(pure) > 15


# ---- diff ------------------------------------------------------------------------------------------------------------


def test_diff(model, tmp_path, capsys):
    path, tensors = model
    other = {name: x.copy() for name, x in tensors.items()}
    other["output.weight"][3, 5] += 0.5
    other["only.b"] = other.pop("output_norm.weight")
    other["token_embd.weight"] = other["token_embd.weight"].reshape(48, 512)
    other["blk.0.attn_q.weight"] = other["blk.0.attn_q.weight"].astype(np.float16)
    metadata = {**METADATA, "general.name": "y", "more": 1}
    del metadata["yes"]
    gguf.write(tmp_path / "o.gguf", metadata, other)
    assert cli.main(["diff", str(path), str(tmp_path / "o.gguf")]) == 1
    out = capsys.readouterr().out
    for line in (
        "- tensor output_norm.weight: f32 (256,)", "+ tensor only.b: f32 (256,)",
        "! tensor token_embd.weight: shape (96, 256), (48, 512)", "! tensor blk.0.attn_q.weight: f32, f16",
        "- metadata yes: True", "+ metadata more: 1", "! metadata general.name: 'x', 'y'",
        "7 of 9 tensors in both have equal values",
    ):  # fmt: skip
        assert line in out.splitlines(), line
    row = next(line.split() for line in out.splitlines() if line.startswith("output.weight"))
    a, b = tensors["output.weight"].astype(np.float64), other["output.weight"].astype(np.float64)
    rmse, cosine = np.sqrt(np.square(a - b).mean()), (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    expected = [1, np.abs(a - b).max(), np.abs((a - b) / a).max(), rmse, rmse / np.sqrt((a * a).mean()), cosine]
    np.testing.assert_allclose([float(x) for x in row[1:]], expected, rtol=6e-3)
    assert cli.main(["diff", str(path), str(tmp_path / "o.gguf"), "-n", "0"]) == 1
    assert "output.weight" not in capsys.readouterr().out


def test_tolerances_and_numbers_that_are_none(tmp_path, capsys):
    a = np.array([1.0, np.nan, np.inf, -np.inf, 0.0, 2.0], np.float32)
    b = a.copy()
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    tensorlib.save(paths[0], {"w": a, "big": np.array([2**62], np.int64), "none": a[:0]})
    for change, arguments, status in (
        ({}, [], 0),
        ({4: -0.0}, [], 0),
        ({5: 2.1}, [], 1),
        ({5: 2.1}, ["--rtol", "0.1"], 0),
        ({5: 2.1}, ["--atol", "0.05"], 1),
        ({0: np.nan}, ["--atol", "9"], 1),
        ({2: -np.inf}, ["--atol", "9"], 1),
        ({1: 0.0}, ["--rtol", "9"], 1),
    ):
        b = a.copy()
        b[list(change)] = list(change.values())
        tensorlib.save(paths[1], {"w": b, "big": np.array([2**62], np.int64), "none": a[:0]})
        assert cli.main(["diff", *map(str, paths), *arguments]) == status, (change, arguments)
    tensorlib.save(paths[1], {"w": a, "big": np.array([2**62 + 1], np.int64), "none": a[:0]})
    assert cli.main(["diff", *map(str, paths)]) == 1  # also where float64 cannot tell
    with pytest.raises(SystemExit):
        cli.main(["diff", *map(str, paths), "--rtol", "-1"])


# ---- interrupted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, status", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGKILL", -9)])
def test_an_interrupted_conversion(tmp_path, number, status):
    """Nothing under the final name, nothing half at all unless the process is killed; and it says so."""
    path, out = tmp_path / "m.npy", tmp_path / "x.safetensors"
    np.lib.format.open_memmap(path, "w+", np.float32, (1 << 14, 1 << 15)).flush()  # 2 GB, sparse
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "zoo.cli", "convert", str(path), str(out)]
    running = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not any(p.stat().st_size > 1 << 20 for p in tmp_path.glob(".*")) and running.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    running.send_signal(getattr(signal, number))
    _, err = running.communicate(timeout=60)
    assert running.returncode == status, err
    left = [name for name in os.listdir(tmp_path) if name != "m.npy"]
    if number == "SIGKILL":
        assert len(left) == 1 and left[0].startswith(".x.safetensors") and left[0].endswith(".tmp")
    else:
        assert left == [] and f"interrupted: {out} was not written" in err and "Traceback" not in err


@pytest.mark.parametrize("ending", [".gguf", ".safetensors", ".npz", ".pth"])
def test_a_full_disk(model, tmp_path, ending):
    out = tmp_path / f"x{ending}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "zoo.cli", "convert", str(model[0]), str(out)], env=env, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert done.returncode == 2 and "nothing was left behind" in done.stderr and str(out) in done.stderr
    assert os.listdir(tmp_path) == ["m.gguf"]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
@pytest.mark.parametrize("command", ["quantize -t q8_0 --rename ^$=w.weight", "convert --dtype f16", "convert"])
def test_memory_is_bounded(run_python, tmp_path, command):
    """A tensor of 256 MB takes no more memory than its parts do: 16 MB of f32, and what is made of them."""
    for name, side in (("small.npy", 1 << 8), ("large.npy", 1 << 13)):
        np.lib.format.open_memmap(tmp_path / name, "w+", np.float32, (side, side)).flush()
    source = """
import contextlib, sys
from zoo import cli, convert, quantize
seen = []
def count(amount):
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    seen.append(int(fields["RssAnon"].split()[0]) / 1e3)
convert.progress = quantize.progress = lambda total, what: contextlib.nullcontext(count)
command, *options = sys.argv[2].split()
for name in ("small", "large"):
    assert cli.main([command, f"{sys.argv[1]}/{name}.npy", f"{sys.argv[1]}/{name}.gguf", *options]) == 0
    print("PEAK", max(seen))
"""
    if command.startswith("convert"):
        command += " --rename ^$=w"
    out = run_python(source, str(tmp_path), command).splitlines()
    small, large = (float(line.split()[1]) for line in out if line.startswith("PEAK"))
    assert large - small < 80, (small, large)


# ---- checkpoints in folders, kernels, terminals ----------------------------------------------------------------------


@pytest.mark.parametrize("build", [checkpoints.gptq, checkpoints.hqq, checkpoints.bnb4, checkpoints.fp8])
def test_checkpoints_in_folders(tmp_path, capsys, build):
    """Weights in several parts become numbers or blocks; their parts do not get into GGUF as they are."""
    config, parts, weight = build(np.random.default_rng(0), 32, 64)
    folder = checkpoints.write(tmp_path / "c", config, parts)
    names = list(tensorlib.load(folder).tensors)
    run(capsys, "dequantize", folder, tmp_path / "d.safetensors", "--dtype", "f32")
    dense = tensorlib.load(tmp_path / "d.safetensors")
    assert sorted(dense.tensors) == sorted(names)
    np.testing.assert_allclose(dense.tensor("q.weight").numpy(), weight, rtol=1e-3, atol=1e-6)
    run(capsys, "diff", folder, tmp_path / "d.safetensors", "--values")
    assert cli.main(["quantize", str(folder), str(tmp_path / "q.gguf"), "-t", "q8_0"]) == 0
    expected = encode("q8_0", dense.tensor("q.weight").numpy()).tobytes()
    assert bytes(gguf.open(tmp_path / "q.gguf").bytes("q.weight")) == expected
    capsys.readouterr()
    assert "--dtype" in run(capsys, "convert", folder, tmp_path / "x.gguf", status=2)


def test_kernels_of_the_tools():
    from tensorlib import backend
    from zoo import prebuild

    prebuild.build_tools(("q8_0",))
    names = backend.backend().files()
    for kernel in ("encode.encode.q8_0.plain", "encode.encode.q8_0.weighted"):
        assert any(name.startswith(kernel) for name in names), kernel
    assert {"q4_k", "iq3_s", "nvfp4"} <= set(prebuild.ENCODED) and "f16" not in prebuild.ENCODED


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs terminals")
def test_a_bar_on_a_terminal_alone(model, tmp_path):
    """The bar goes to standard error and only where that is a terminal."""
    import termios

    primary, secondary = os.openpty()
    termios.tcsetwinsize(secondary, (24, 80))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = "import sys; from tensorlib import bar; from zoo import cli; bar.DELAY = 0; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "convert", str(model[0]), str(tmp_path / "x.npz"), "--dtype", "f32"]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=secondary, text=True)
    shown = os.read(primary, 1 << 16).decode()
    os.close(primary)
    os.close(secondary)
    assert done.returncode == 0 and "x.npz" in shown and "B/s" in shown
    assert done.stdout == f"{tmp_path / 'x.npz'}\n"
    done = subprocess.run([*command, "--force"], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "B/s" not in done.stderr
