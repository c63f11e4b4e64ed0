"""The commands on files of weights: info, verify, split, merge."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import tensorlib
from tensorlib.io import gguf
from tensorlib.io.gguf_write import Raw
from tests.io import build, test_ggml
from zoo import cli


@pytest.fixture
def model(tmp_path):
    """A small sound model."""
    path = tmp_path / "m.gguf"
    tensors = {f"t{i}": tensorlib.full((4, 32), float(i)) for i in range(4)}
    gguf.write(path, {"general.architecture": "llama", "long": ["x"] * 50}, tensors)
    return path


def run(capsys, *arguments, status=0):
    assert cli.main([str(a) for a in arguments]) == status
    out, err = capsys.readouterr()
    assert status or err == ""
    return out if not status else err


def test_split_info_verify_merge(model, tmp_path, capsys):
    out = run(capsys, "split", model, "-o", tmp_path / "p", "--max-size", "1.1K")
    parts = out.split()
    assert parts == [f"{tmp_path}/p-0000{i}-of-00002.gguf" for i in (1, 2)] and all(map(os.path.exists, parts))
    shown = run(capsys, "info", parts[1])
    assert "in 2 parts" in shown and "512 parameters" in shown and "50 x string" in shown and "split.count" in shown
    assert "4 tensors" in run(capsys, "verify", parts[0])
    assert run(capsys, "merge", parts[0], "-o", tmp_path / "one.gguf").strip() == str(tmp_path / "one.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == model.read_bytes()


def test_nothing_is_replaced_unless_told(model, tmp_path, capsys):
    (part,) = run(capsys, "split", model, "-o", tmp_path / "p").split()
    before = os.stat(part).st_mtime_ns
    assert "--force" in run(capsys, "split", model, "-o", tmp_path / "p", status=2)
    assert os.stat(part).st_mtime_ns == before
    assert run(capsys, "split", model, "-o", tmp_path / "p", "--force").split() == [part]


def test_info_of_every_format(tmp_path, capsys):
    x = tensorlib.arange(6).reshape(2, 3).to("f32")
    paths = [tmp_path / f"x{ending}" for ending in (".safetensors", ".npz", ".gguf")]
    for path in paths:
        tensorlib.save(path, {"some.name": x})
    legacy = tmp_path / "old.bin"
    legacy.write_bytes(test_ggml.file(tensors=[test_ggml.tensor("some.name", [3, 2])]))
    for path in (*paths, legacy):
        shown = run(capsys, "info", path)
        assert "some.name" in shown and "2x3" in shown and "6 parameters" in shown and "1 tensors" in shown
    for path in paths:
        assert "1 tensors" in run(capsys, "verify", path)


def test_verify_finds_what_is_wrong(model, tmp_path, capsys):
    bad = {
        "nan": tensorlib.from_numpy(np.array([1.0, np.nan, -np.inf], np.float32)),
        "scale": Raw("q4_0", (64,), bytes(18) + b"\x00\x7c" + bytes(16)),
        "bf16": Raw("bf16", (2,), b"\x80\x7f\x00\x00"),
    }
    for name in bad:
        path = tmp_path / f"{name}.gguf"
        gguf.write(path, {}, {name: bad[name]})
        message = run(capsys, "verify", path, model, status=2)
        assert f"'{name}'" in message and f"{2 if name == 'nan' else 1} numbers" in message
    tensorlib.save(tmp_path / "x.safetensors", {"nan": bad["nan"]})
    assert "2 numbers" in run(capsys, "verify", tmp_path / "x.safetensors", status=2)
    with build.form(">"):
        pairs = [build.pair("a", build.STRING, "x")]
        (tmp_path / "big.gguf").write_bytes(build.one(build.info("t", [1]), data=b"\x7f\x80\0\0", pairs=pairs))
    assert "1 numbers" in run(capsys, "verify", tmp_path / "big.gguf", status=2)
    (tmp_path / "cut.gguf").write_bytes(model.read_bytes()[:-40])
    assert "cut short" in run(capsys, "verify", tmp_path / "cut.gguf", status=2)


def test_verify_holds_blobs_to_their_names(model, tmp_path, capsys):
    import hashlib

    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    good, bad = tmp_path / digest, tmp_path / ("0" * 64)
    for blob in (good, bad):
        blob.write_bytes(model.read_bytes())
    link = tmp_path / "link.gguf"
    link.symlink_to(good)
    assert digest in run(capsys, "verify", link)
    link.unlink()
    link.symlink_to(bad)
    assert digest in run(capsys, "verify", link, status=2)


@pytest.mark.parametrize(
    "arguments",
    ["split", "merge x", "split x --max-size 0", "verify", "split x --max-size big", "split x --max-tensors -1"],
)
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments.split())
    assert caught.value.code == 2 and "usage:" in capsys.readouterr().err


def test_errors_are_one_line(model, tmp_path, capsys):
    for arguments in (["merge", model, "-o", tmp_path / "x.gguf"], ["split", model, "-o", tmp_path / "none" / "p"],
                      ["info", tmp_path / "missing"], ["verify", os.devnull]):  # fmt: skip
        message = run(capsys, *arguments, status=2)
        assert message.startswith("tensorlib: error: ") and message.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["m.gguf"]


def test_ctrl_c_leaves_no_half_file(tmp_path):
    """A split of a large sparse file, interrupted while its temporary files are there."""
    path = tmp_path / "m.gguf"
    infos = [build.info(f"t{i}", [1 << 25], 24, i << 25) for i in range(16)]
    head = build.file([build.ARCH], infos)
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + (16 << 25))
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-m", "zoo.cli", "split", str(path), "-o", str(tmp_path / "p"), "--max-tensors", "4"]
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while len(os.listdir(tmp_path)) < 5 and running.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and out == b"", err
    assert os.listdir(tmp_path) == ["m.gguf"]
