"""What a launch on a GPU costs in Python: Triton's own launcher on a stand-in for NVIDIA's driver, so no GPU is needed.

    python -m bench.launches [--check]

The stand-in (`libcuda.so.1`, compiled from a few lines of C) answers every call at once; the driver's own 2 us and the
query for PyTorch's current stream are not in the figures. Compared in one process: `fn[grid](...)`, as Triton's users
write it, the compiled kernel that this project keeps, and an op of ours from call to launch. Needs a C compiler.
"""

import argparse
import ctypes
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

from kernels_triton.launch import Workspaces

TARGET = 4.0  # microseconds of a launch of ours
FUNCTIONS = """cuCtxGetLimit cuCtxSetLimit cuCtxSetCurrent cuDeviceGet cuFuncSetAttribute cuFuncSetCacheConfig
cuGetErrorString cuModuleLoadData cuModuleUnload cuPointerGetAttribute cuOccupancyMaxActiveClusters
cuTensorMapEncodeIm2col cuTensorMapEncodeTiled""".split()
SOURCE = """
static int value(int *p) { *p = 232448; return 0; }
static int handle(void **p) { *p = (void *)64; return 0; }
int cuDeviceGetAttribute(int *p, int a, int d) { return value(p); }
int cuFuncGetAttribute(int *p, int a, void *f) { *p = a == 0 ? 1024 : 16; return 0; }
int cuDriverGetVersion(int *p) { *p = 12090; return 0; }
int cuCtxGetCurrent(void **p) { return handle(p); }
int cuDevicePrimaryCtxRetain(void **p, int d) { return handle(p); }
int cuModuleGetFunction(void **p, void *m, const char *n) { return handle(p); }
static long launches;
long stand_in_launches(void) { return launches; }
int cuLaunchKernelEx(void *c, void *f, void **a, void **e) { launches++; return 0; }
int cuLaunchKernel(void *f, int a, int b, int c, int d, int e, int g, int h, void *s, void **p, void **q) {
    launches++; return 0; }
"""


def stand_in(folder):
    """Compiles the stand-in into `folder`, and makes Triton load it; the library."""
    code = SOURCE + "".join(f"int {name}(void) {{ return 0; }}\n" for name in FUNCTIONS)
    (folder / "cuda.c").write_text(code)
    library = folder / "libcuda.so.1"
    command = ["cc", "-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, folder / "cuda.c"]
    subprocess.run(command, check=True)
    (folder / "libcuda.so").symlink_to(library)
    os.environ["TRITON_LIBCUDA_PATH"], os.environ["TRITON_CACHE_DIR"] = str(folder), str(folder / "cache")
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def activate():
    """Triton's CUDA driver over the stand-in, without torch."""
    import triton.backends.nvidia.driver as nvidia
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver(nvidia.CudaDriver):
        def __init__(self):
            self.utils, self.launcher_cls = nvidia.CudaUtils(), nvidia.CudaLauncher
            self.get_current_device = lambda: 0
            self.get_current_stream = lambda device: 0
            self.get_device_capability = lambda device: (9, 0)
            self.set_current_device = lambda device: None

        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

    driver.set_active(Driver())


class StandIn(Workspaces):
    """A Gpu (see kernels_triton/driver.py) whose memory is the host's and whose kernels run nowhere."""

    index, name, units, arch, shared, memory, interpreted, trace = 0, "stand-in", 132, 90, 232448, 1 << 33, False, None
    tuned = {}

    def __init__(self):
        from kernels_triton.report import target

        self.target, self.ready = target(90), {}

    def count(self):
        return 1

    def gpu(self, index):
        return self

    def allocate(self, nbytes):
        owner = ctypes.create_string_buffer(nbytes + 512)
        return (ctypes.addressof(owner) + 511) & -512, owner

    def stream(self):
        return 0

    def synchronize(self):
        pass

    def upload(self, ptr, host, nbytes):
        ctypes.memmove(ptr, host, nbytes)

    def download(self, host, ptr, nbytes):
        ctypes.memmove(host, ptr, nbytes)

    copy = upload

    def mapped(self, nbytes):
        ptr, owner = self.allocate(nbytes)
        return ptr, ptr, owner

    def load(self, kernel, hints):
        from kernels_triton.launch import launcher

        return launcher(kernel.compile(self.target, hints), len(kernel.consts), lambda: 0)


class Pointer:
    """What Triton's own launcher takes for a tensor."""

    __slots__ = ("address", "dtype")

    def __init__(self, address, dtype):
        self.address, self.dtype = address, dtype

    def data_ptr(self):
        return self.address


def microseconds(call, rounds=9, count=2000):
    """Median over rounds of the CPU time of a call."""
    for _ in range(200):
        call()
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(count):
            call()
        taken.append((time.process_time() - start) / count * 1e6)
    return statistics.median(taken)


def measure():
    """{what: microseconds of a launch}."""
    activate()
    import triton.language as tl

    import tensorlib
    from bench.workers.launch_kernels import add, product
    from kernels_triton.launch import Kernel
    from tensorlib import backend

    gpu, a = StandIn(), 1 << 20
    backend.install("cuda", backend.GpuBackend(gpu))
    handles = [Pointer(a, tl.float32)] * 3
    kernel = Kernel(add, ("*fp32", "*fp32", "*fp32", "i32"), ("n",), BLOCK=256)
    sizes = (64,) * 3 + (64, 1) * 3
    large = Kernel(product, ("*fp32",) * 3 + ("i32",) * 9, warps=4, BLOCK=64, GROUP=8)
    x, y = tensorlib.ones(1000, device="cuda:0"), tensorlib.ones(1000, device="cuda:0")
    return {
        "add, 4 arguments: fn[grid](...)": microseconds(lambda: add[(4,)](*handles, 1000, BLOCK=256)),
        "add, 4 arguments: kept, as here": microseconds(lambda: kernel(gpu, (4, 1, 1), a, a, a, 1000)),
        "product, 12 arguments: fn[grid](...)": microseconds(
            lambda: product[(4,)](*handles, *sizes, BLOCK=64, GROUP=8)
        ),
        "product, 12 arguments: kept, as here": microseconds(lambda: large(gpu, (4, 1, 1), a, a, a, *sizes)),
        "x + y of ours, from the call to the launch": microseconds(lambda: x + y),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help=f"fail if a launch of ours takes over {TARGET} us")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        library = stand_in(pathlib.Path(folder))
        before = library.stand_in_launches()
        found = measure()
        assert library.stand_in_launches() > before, "nothing reached the stand-in"
    for what, taken in found.items():
        print(f"{taken:6.2f} us  {what}")
    late = [what for what, taken in found.items() if "as here" in what and taken > TARGET]
    if check and late:
        raise SystemExit(f"over {TARGET} us: {', '.join(late)}")


if __name__ == "__main__":
    main()
