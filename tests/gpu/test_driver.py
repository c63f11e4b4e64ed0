"""Memory, copies, streams and a second GPU, as the real driver has them; and that PyTorch runs no op of its own."""

import traceback

import numpy as np
import pytest

import tensorlib
from tensorlib.capture import Capture
from tensorlib.device import Device
from tests.zoo.conftest import tiny_llama  # noqa: F401
from zoo.generate import TextModel
from zoo.load import load_gguf


@pytest.mark.parametrize("nbytes", [1, 15, 4096, (1 << 20) + 3])
def test_copies_there_and_back(nbytes, device):
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)
    there = tensorlib.from_numpy(data).to("cuda:0")
    assert (there.clone().cpu().numpy() == data).all()
    turned = tensorlib.from_numpy(data[::-1]).to("cuda:0")
    assert (turned.cpu().numpy() == data[::-1]).all()


def test_uploads_of_several_stages(real):
    from kernels_triton.driver import STAGING

    data = np.arange(5 * STAGING // 8 + 3, dtype=np.int64)
    assert (tensorlib.from_numpy(data).to("cuda:0").cpu().numpy() == data).all()


def test_launches_go_into_the_current_stream(real):
    """A long chain in a stream of its own; the result is there once that stream is done."""
    import torch

    stream = torch.cuda.Stream(0)
    x = tensorlib.ones(1 << 22, device="cuda:0")
    real.synchronize()
    with torch.cuda.stream(stream):
        assert real.stream() == stream.cuda_stream
        for _ in range(50):
            x = x + 1
        stream.synchronize()
        assert x.cpu().numpy().min() == 51
    assert real.stream() != stream.cuda_stream


def test_a_capture_is_replayed(device):
    x = tensorlib.ones(1000, device="cuda:0")
    (x * 2 + 1).cpu()  # compiled before it is recorded
    with Capture("cuda:0") as step:
        y = x * 2 + 1
    for value in (1.0, 3.5):
        x.fill_(value)
        step.replay()
        assert (y.cpu().numpy() == 2 * value + 1).all()


def test_out_of_memory_says_what_is_free(real):
    with pytest.raises(MemoryError, match=r"cuda:0: got a request for .* expected at most [\d,]+ \(of [\d,]+\)"):
        tensorlib.empty((1 << 45,), dtype="u8", device="cuda:0")
    assert tensorlib.ones(3, device="cuda:0").tolist() == [1, 1, 1]


def test_two_gpus(real):
    from kernels_triton import driver

    if driver.count() < 2:
        pytest.skip(f"{driver.count()} GPU")
    data = np.arange(1 << 20, dtype=np.float32)
    x = tensorlib.from_numpy(data).to("cuda:0") * 2
    y = x.to("cuda:1")
    assert y.device == Device("cuda:1") and (y.cpu().numpy() == 2 * data).all()
    assert ((y + 1).cpu().numpy() == 2 * data + 1).all() and ((x + 1).cpu().numpy() == 2 * data + 1).all()
    assert (y.to("cuda:0").cpu().numpy() == 2 * data).all()


class Forbidden:
    """While it is on, any op of PyTorch raises, but for those of a CUDA graph's begin: memory of its random numbers."""

    def __new__(cls):
        from torch.utils._python_dispatch import TorchDispatchMode

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if any(frame.name == "capture_begin" for frame in traceback.extract_stack()):
                    return func(*args, **(kwargs or {}))
                raise AssertionError(f"an op of PyTorch runs: {func}")

        return Mode()


def test_the_mode_that_forbids_ops_does():
    torch = pytest.importorskip("torch")
    with Forbidden(), pytest.raises(AssertionError, match="an op of PyTorch runs"):
        torch.zeros(3)


def test_no_op_of_torch_runs(device, tiny_llama):  # noqa: F811
    """Copies, a forward, a backward, a generation with its graph."""
    pytest.importorskip("torch")
    path = tiny_llama("q4_0")
    with Forbidden():
        x, w = (tensorlib.from_numpy(np.ones((4, 64), np.float32)).to("cuda:0").requires_grad_() for _ in range(2))
        (tensorlib.softmax(x @ w.T, -1) * tensorlib.rms_norm(x, w[0], 1e-5).sum()).sum().backward()
        assert np.isfinite(w.grad.cpu().numpy()).all()
        model = TextModel(*load_gguf(path, device="cuda:0"), device="cuda:0")
        assert len(list(model.generate([3, 200, 17], 4))) == 4
