"""The kernels of a decode step, interpreted: as the composition, for every format and shape of heads."""

import numpy as np
import pytest

import tensorlib
from kernels_triton import decode_matvec, quant_layout
from tensorlib import nn
from tensorlib.ops import decode, fused
from tests.sim import decode_cases as cases
from tests.sim.quant_cases import activations

PLANES = list(quant_layout.ROWS)


@pytest.mark.parametrize("name", PLANES)
def test_every_format(name, device):
    cases.check_linears([name] * 3, (5, 4, 3), 256, 1)
    cases.check_swiglu(name, 32, 256, 1)
    cases.check_add_norm(name, 32, 256, 1)
    device.check()


@pytest.mark.parametrize("m", [2, 5])
def test_several_rows(m, device):
    cases.check_linears(["q4_0"] * 2, (2, 3), 64, m)
    cases.check_swiglu("q4_0", 32, 32, m)
    cases.check_add_norm("q4_0", 32, 32, m)


def test_runs_of_formats(device):
    cases.check_linears(["q4_0", "q4_0", "q8_0", "q4_0"], (5, 8, 3, 2), 64, 2)
    cases.check_linears(["q4_0"] * 3, (4, 4, 4), 64, 1)


def test_a_row_that_is_normed_in_pieces(device, monkeypatch):
    monkeypatch.setattr(decode_matvec, "NORM", 64)
    cases.check_add_norm("q8_0", 160, 32, 1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("heads, groups, width", [(2, 2, 32), (4, 1, 64), (6, 2, 16), (2, 2, 96)])
def test_attention(heads, groups, width, interleaved, device):
    for at in (0, 69, 139):  # in several segments
        cases.check_attend(heads, groups, width, "f16", at, 140, interleaved)
    device.check()


@pytest.mark.parametrize("cache", ["f32", "bf16", "f8e4m3"])
def test_dtypes_of_caches(cache, device):
    cases.check_attend(4, 2, 32, cache, 39)


def test_a_position_behind_the_caches(device):
    """Nothing is written, and the query sees all rows."""
    q, k, table = (tensorlib.ones(*shape, device="cuda:0") for shape in ((1, 4, 32), (1, 2, 32), (50, 16)))
    cache, start = tensorlib.zeros(2, 40, 32, device="cuda:0"), tensorlib.tensor([40], dtype="i64", device="cuda:0")
    out, count = cases.launches(lambda: decode.attend(q, k, k, cache, cache, table, table, start))
    assert count == 1
    want = fused.attention(fused.rope(q, table, table, start), cache, cache, start=start)
    np.testing.assert_array_equal(out.to("cpu").numpy(), want.to("cpu").numpy().reshape(1, 128))
    assert not cases.bits(cache).any()


def test_what_has_no_kernel_is_composed(device):
    """9 rows, two formats, a bias: the same values, in more launches."""
    a, b = cases.layer("q4_0", 32, 64), cases.layer("q8_0", 32, 64, 1)
    _, x = activations(9, 64)
    norm = nn.RMSNorm(32)
    norm.weight = tensorlib.ones(32, device="cuda:0")
    for some in (x, x[:2].contiguous()):
        np.testing.assert_array_equal(cases.bits(nn.swiglu_linear(some, a, b)), cases.bits(nn.swiglu(a(some), b(some))))
    y = tensorlib.ones(9, 32, device="cuda:0")
    total, normed = nn.add_norm(y, a, x, norm)
    np.testing.assert_array_equal(cases.bits(total), cases.bits(y + a(x)))
    np.testing.assert_array_equal(cases.bits(normed), cases.bits(norm(total)))
    a.bias = tensorlib.ones(32, device="cuda:0")
    one = x[:1].contiguous()
    c = cases.layer("q4_0", 4, 64)
    _, count = cases.launches(lambda: nn.linears(one, a, c))
    assert count == 3  # to 8 bits, products, the bias
    np.testing.assert_array_equal(cases.bits(nn.linears(one, a, b)[0]), cases.bits(a(one)))


def test_gradients_take_the_parts(device):
    """What is recorded is the composition."""
    a, b = cases.layer("q4_0", 32, 64), cases.layer("q4_0", 32, 64, 1)
    x = tensorlib.ones(1, 64, device="cuda:0").requires_grad_()
    nn.swiglu_linear(x, a, b).sum().backward()
    other = tensorlib.ones(1, 64, device="cuda:0").requires_grad_()
    nn.swiglu(a(other), b(other)).sum().backward()
    np.testing.assert_array_equal(cases.bits(x.grad), cases.bits(other.grad))
