"""Quantised weights on a GPU as Triton compiles them (dp4a, byte permutes, packed halves): the PTX in the simulator."""

import ctypes
import re

import numpy as np
import pytest

import tensorlib
from kernels_triton import quant, quant_layout, quant_matmul, report
from tests.sim.host import install
from tests.sim.quant_cases import check_linear, weight
from tests.sim.simulated import Simulated

PLANES = list(quant_layout.ROWS)
GPUS: dict = {}  # compiled programs are kept


@pytest.fixture
def device(request):
    """A device "cuda:0" of the architecture."""
    gpu = GPUS.setdefault(request.param, Simulated(request.param))
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


@pytest.mark.parametrize("device", [80], indirect=True)
@pytest.mark.parametrize("name", [*PLANES, "iq2_s", "tq1_0"])
def test_bit_for_bit_there_and_back(name, device):
    """Nothing is fused into one rounding."""
    w = weight(name, 3, 256)
    there = w.to("cuda:0")
    got, want = (x.dequantize(cls=tensorlib.Tensor).to("cpu").numpy() for x in (there, w))
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
    back = there.to("cpu")
    assert ctypes.string_at(back.ptr, back.nbytes) == ctypes.string_at(w.ptr, w.nbytes)


@pytest.mark.parametrize("device", [80], indirect=True)
@pytest.mark.parametrize("m", [1, 9])
@pytest.mark.parametrize("name", PLANES)
def test_products(name, m, device):
    check_linear(name, 5, 256, m, residual=m > 1)


@pytest.mark.parametrize("device", [75, 90, 120], indirect=True)
@pytest.mark.parametrize("m", [3, 40])
@pytest.mark.parametrize("name", ["q4_k", "q8_0"])
def test_products_on_other_architectures(name, m, device):
    check_linear(name, 5, 256, m)


@pytest.mark.parametrize("device", [80, 90], indirect=True)
def test_the_largest_tile_and_parts_of_k(device):
    check_linear("q4_0", 130, 512, 100, "f16", residual=True)


@pytest.mark.parametrize("arch", [80, 89, 90])
@pytest.mark.parametrize("name", ["q4_0", "q4_k"])
def test_a_weight_costs_few_instructions(name, arch):
    """Of a product with one row: at most 2.5, 128 bits of weights a load, one conversion to float per 8 at most.

    A warp may have 64 registers for half of all warps to be there; where a program is one warp, 88 leave room for 23 of
    the 32 programs that there can be, and an H200 was faster with them.
    """
    kernel = quant.variants(arch)[f"matvec {name}"]
    found = report.facts(kernel, arch)
    assert (
        float(found["per_item"]) <= 2.5
        and found["registers"] <= (64 if kernel.warps > 1 else 88)
        and not found["stack"]
    )
    assert "x128" in found["loads"] and not re.search(r"x8\b", found["loads"])
    assert found["i2f"] * 32 * kernel.warps * 8 <= kernel.items


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("label", ["q4_k 16", "q4_k 64", "q4_k 128", "q6_k 128"])
def test_each_weight_is_dequantised_once(label, arch):
    """Else several warps would hold the same weights: one subtraction of two halves per two weights of a tile."""
    kernel = quant_matmul.variants(arch)[f"matmul {label}"]
    ptx = kernel.compile(report.target(arch)).asm["ptx"]
    assert ptx.count("sub.f16x2") * 2 * 32 * kernel.warps == kernel.items
    assert report.facts(kernel, arch)["stack"] == 0 and ("wgmma" if arch == 90 else "mma.sync") in ptx
