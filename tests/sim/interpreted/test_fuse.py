"""Fused chains and users' expressions on the GPU backend: one launch, and what the CPU gives."""

import numpy as np
import pytest

import tensorlib
from tensorlib.errors import NoKernel
from tests.ops.test_fuse import CHAINS, arrays


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_one_launch(name, device):
    count, chain = CHAINS[name]
    operands = arrays(np.random.default_rng(len(name)), count)
    given = [x.to("cuda:0") for x in operands]
    fused = tensorlib.fuse(chain)
    before = device.launches
    found = fused(*given)
    assert device.launches == before + 1
    want = chain(*operands).numpy()
    # functions within 4 ulp of f32 each, of terms up to 16
    np.testing.assert_allclose(found.cpu().numpy(), want, rtol=2e-6, atol=16 * 4 * 2.0**-24)


def test_floats_are_operands(device):
    fused = tensorlib.fuse(lambda x, scale: x * scale + 1)
    x = tensorlib.tensor([1.0, 2.0]).to("cuda:0")
    assert fused(x, 2.0).cpu().tolist() == [3, 5]
    assert fused(x.to("f64"), 0.1).cpu().tolist() == [1.1, 1.2]


def test_expressions_of_users(device):
    swish = tensorlib.custom.elementwise(
        "x / (1 + exp(-y * x)) if x != INF else x",
        vjp={"x": lambda g, x, y, out: g * (y * out + (x * y).sigmoid() * (1 - y * out))},
    )
    x = tensorlib.tensor([-1.0, 0.0, 2.0])
    there = x.to("cuda:0").requires_grad_()
    out = swish(there, 1.5)
    out.sum().backward()
    np.testing.assert_allclose(out.detach().cpu().numpy(), swish(x, 1.5).numpy(), rtol=1e-6)
    np.testing.assert_allclose(there.grad.cpu().numpy(), [-0.0413, 0.5, 1.0881], atol=1e-4)
    with pytest.raises(NoKernel, match="kernels_triton/elementwise"):
        tensorlib.custom.elementwise("frobnicate(x)")(x.to("cuda:0"))
