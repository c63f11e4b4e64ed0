"""The driver of real GPUs, over a stand-in for torch: memory, copies, graphs, and that torch is for these alone."""

import ast
import pathlib

DRIVER = pathlib.Path(__file__).resolve().parents[2] / "kernels_triton" / "driver.py"
# all that may be named after `torch.`: memory, streams, graphs, properties; no op and no tensor
ALLOWED = {
    "OutOfMemoryError", "UntypedStorage", "_C._cuda_cudaCachingAllocator_raw_alloc",
    "_C._cuda_cudaCachingAllocator_raw_delete", "_C._cuda_getCurrentRawStream", "cuda.CUDAGraph", "cuda.Event",
    "cuda.Stream",
    "cuda.cudart", "cuda.current_stream", "cuda.device", "cuda.device_count", "cuda.get_device_properties",
    "cuda.is_available",
    "cuda.mem_get_info", "cuda.memory_allocated", "cuda.memory_reserved", "cuda.stream", "cuda.synchronize",
    "version.hip",
}  # fmt: skip

START = """
from tests.sim import stand_in_torch
driver = stand_in_torch.install()
import tensorlib
from tensorlib.errors import DeviceError
from tensorlib import backend
log = stand_in_torch.LOG
"""


def test_torch_is_the_allocator_and_nothing_more():
    names = set()
    for node in ast.walk(ast.parse(DRIVER.read_text())):
        text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if text.startswith("torch."):
            names.add(text.removeprefix("torch."))
    inner = {n for n in names if any(other.startswith(n + ".") for other in names)}
    # what is called on their results (.cuda_stream, .synchronize) hangs on a call, and does not start with "torch."
    assert {n for n in names - inner if "(" not in n} <= ALLOWED


def test_copies_there_and_back(run_python):
    source = """
import numpy as np
data = np.arange(3 * driver.STAGING // 8 + 5, dtype=np.int64)  # three stages and a bit
x = tensorlib.from_numpy(data).to("cuda:1")
assert str(x.device) == "cuda:1" and x.buffer.device.gpu.arch == 90 and x.buffer.device.gpu.shared == 232448
copied = [entry[1] for entry in log if entry[0] == "copy"]
assert copied == [driver.STAGING] * 3 + [40], copied
assert ("allocate", data.nbytes, 7) in log and log.count(("pin", driver.STAGING)) == 2
back = x.cpu().numpy()
assert (back == data).all()
y = tensorlib.tensor([1.5, 2.5], device="cuda:0").to("cuda:1")
assert y.tolist() == [1.5, 2.5] and ("synchronize", 0) in log
print("fine")
"""
    assert run_python(START + source).strip() == "fine"


def test_small_blocks_of_the_default_stream_are_kept_for_the_next(run_python):
    source = """
gpu = driver.gpu(0)
def taken(nbytes):
    return gpu.allocate(nbytes)
def count(what):
    return sum(entry[0] == what for entry in log)
for stream, most in ((7, 0), (0, driver.KEPT)):  # another stream may be captured: nothing is kept of it
    stand_in_torch.STREAM[0] = stream
    kept = [taken(1000) for _ in range(12)]
    assert len({ptr for ptr, _ in kept}) == 12 and all(ptr % 512 == 0 for ptr, _ in kept)
    before = count("delete")
    kept.clear()
    assert count("delete") - before == 12 - most, (stream, count("delete") - before)
before, live = count("allocate"), len(stand_in_torch.LIVE)
again = [taken(n) for n in (513, 1000, 1024)]  # of one size
assert count("allocate") == before
other = taken(512), taken(1025), taken(driver.SMALL), taken(driver.SMALL + 1)
assert count("allocate") == before + 4
stand_in_torch.STREAM[0] = 7
del again, other  # a block goes back to where it came from, whatever the stream is now
assert count("delete") - (12 + 12 - driver.KEPT) == 1
stand_in_torch.CAPACITY = 100
try:
    taken(1 << 20)
except MemoryError:  # and all that was kept was given back first
    assert not stand_in_torch.LIVE, len(stand_in_torch.LIVE)
    print("fine")
"""
    assert run_python(START + source).strip() == "fine"


def test_out_of_memory_and_missing_devices_say_so(run_python):
    source = """
for call in (lambda: tensorlib.empty((1 << 28,), device="cuda:0"), lambda: tensorlib.empty(3, device="cuda:2")):
    try:
        call()
    except (MemoryError, DeviceError) as e:
        print(type(e).__name__, e)
"""
    first, second = run_python(START + source).strip().splitlines()
    assert first.startswith("MemoryError cuda:0: got a request for 1,073,741,824 bytes; expected at most 134,219,728")
    assert "smaller batch" in first
    assert second.startswith("DeviceError device 'cuda:2': got 2 GPUs; expected a number below 2")


def test_a_capture_is_a_graph(run_python):
    source = """
from tensorlib.capture import Capture
with Capture("cuda:0") as step:
    kept = tensorlib.empty(4, device="cuda:0")
step.replay()
names = [entry[0] for entry in log if entry[0] in ("capture_begin", "capture_end", "replay")]
assert names == ["capture_begin", "capture_end", "replay"], names
print("fine")
"""
    assert run_python(START + source).strip() == "fine"


def test_without_a_gpu_one_error_says_what_is_missing(run_python):
    source = """
import tensorlib
from tensorlib.errors import DeviceError
try:
    tensorlib.zeros(3, device="cuda")
except DeviceError as e:
    print(e)
"""
    text = run_python(source, CUDA_VISIBLE_DEVICES="")
    assert "device 'cuda'" in text and "Device('cpu')" in text
