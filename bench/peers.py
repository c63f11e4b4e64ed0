"""The peers: what to install, which worker speaks for them, their shortest program, and where their Python is.

    python -m bench.peers list
    python -m bench.peers install [NAME ...]

Each peer lives in a folder of its own under the bench cache folder (`$TENSORLIB_BENCH_CACHE`, else
`~/.cache/tensorlib-bench`): a virtual environment, or for `llama-server` what cmake and a C++ compiler make of the
llama.cpp that is in llama-cpp-python's source. Both build it for this very CPU; mistralrs is a portable wheel and the
only well-kept way to Candle's CPU kernels from Python, so say "faster than the wheel" of it.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

CACHE = pathlib.Path(os.environ.get("TENSORLIB_BENCH_CACHE") or pathlib.Path.home() / ".cache" / "tensorlib-bench")
WORKERS = pathlib.Path(__file__).parent / "workers"


class Peer(NamedTuple):
    """One row: `start` is the peer's shortest program that prints `FIRST <text of the first token>`."""

    name: str
    requires: tuple  # what pip installs; empty: the Python that runs the bench
    worker: str
    start: str
    environment: dict = {}
    program: str = ""  # what `build` makes, where the peer is no Python's


TENSORLIB_START = """
from zoo.generate import SamplerConfig, load
model = load({model!r}, threads={threads})
for token in model.generate(model.tokenizer.encode({prompt!r}), 1, SamplerConfig(), frozenset()):
    print("FIRST", model.tokenizer.decode([token]), flush=True)
"""

LLAMA_START = """
from llama_cpp import Llama
model = Llama({model!r}, n_threads={threads}, n_threads_batch={threads}, verbose=False)
for chunk in model({prompt!r}, max_tokens=1, temperature=0.0, stream=True):
    print("FIRST", chunk["choices"][0]["text"], flush=True)
    break
"""

MISTRAL_START = """
import os
from mistralrs import CompletionRequest, Runner, Which
model = Runner(Which.GGUF(*os.path.split({model!r})), no_paged_attn=True)
answer = model.send_completion_request(CompletionRequest({prompt!r}, "default", max_tokens=1, temperature=0.0))
print("\\nFIRST", answer.choices[0].text, flush=True)
"""

TENSORLIB = Peer("tensorlib", (), "tensorlib_worker.py", TENSORLIB_START)
LLAMA = Peer("llama.cpp", ("llama-cpp-python==0.3.36",), "llama_worker.py", LLAMA_START)
RAYON = {"RAYON_NUM_THREADS": "{threads}"}
MISTRAL = Peer("mistral.rs", ("mistralrs==0.9.5",), "mistral_worker.py", MISTRAL_START, RAYON)
ONNX = Peer("onnxruntime", ("onnxruntime==1.32.0", "onnx==1.23.2", "safetensors==0.8.0"), "embed_worker.py", "")
TORCH = Peer("torch", (), "embed_worker.py", "")  # with transformers, of the environment that the tests run in
LLAMA_SERVER = Peer("llama-server", LLAMA.requires, "", "", program="llama-server")
PEERS = {peer.name: peer for peer in (LLAMA, MISTRAL, ONNX, TORCH, LLAMA_SERVER)}
CMAKE = (
    "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF "
    "-DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF "  # these would be fetched
    "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF"
).split()


def place(name):
    """Where `install` puts the peer's Python, or its program."""
    return CACHE / "peers" / name / ("build/bin" if PEERS[name].program else "bin") / (PEERS[name].program or "python")


def find(name, overrides=()):
    """The peer's Python or program: the override if there is one, else what `install` made."""
    if name in (TENSORLIB.name, TORCH.name):
        return sys.executable
    found = dict(overrides).get(name) or str(place(name))
    if not os.path.exists(found):
        fix = f"run python -m bench.peers install {name}, or pass --python {name}=PATH"
        raise SystemExit(f"{name}: there is no {found}; {fix}")
    return found


def version(name, python):
    """`package version` of the peer's first requirement as installed, or tensorlib's own version."""
    peer = PEERS.get(name)
    if peer and peer.program:
        return peer.requires[0].split("==")[1]
    package = peer.requires[0].split("==")[0] if peer and peer.requires else name
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or "checkout"


def install(name):
    """Make the peer's virtual environment and install its pinned requirements."""
    folder = CACHE / "peers" / name
    if PEERS[name].program:
        build(PEERS[name], folder)
        return
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", *PEERS[name].requires], check=True)


def build(peer, folder):
    """Fetch the source of the peer's requirement, and have cmake build its program: minutes. What is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (found := sorted(folder.glob("*/vendor/llama.cpp"))):
        source = ["--no-deps", "--no-binary", ":all:", "--dest", str(folder), *peer.requires]
        subprocess.run([sys.executable, "-m", "pip", "download", *source], check=True)
        shutil.unpack_archive(next(folder.glob("*.tar.gz")), folder)
        found = sorted(folder.glob("*/vendor/llama.cpp"))
    made = str(folder / "build")
    subprocess.run(["cmake", "-S", str(found[0]), "-B", made, *CMAKE], check=True)
    jobs = str(os.cpu_count())
    subprocess.run(["cmake", "--build", made, "--target", peer.program, "--parallel", jobs], check=True)


def main():
    """Command line of `python -m bench.peers`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["list", "install"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(PEERS)}")
    options = parser.parse_args()
    for name in options.names or PEERS:
        if options.command == "install" and PEERS[name].requires:
            install(name)
        print(
            f"{name:12} {' '.join(PEERS[name].requires):28} {place(name) if place(name).exists() else 'not installed'}"
        )


if __name__ == "__main__":
    main()
