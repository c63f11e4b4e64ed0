"""Gradients of every op row on the GPU backend, its kernels interpreted: those that the CPU gives."""

import pytest

from tensorlib.testing import check_gradient, seeded
from tensorlib.testing.rows import missing, results, rows

ROWS = {
    name: op
    for name, op in rows().items()
    if not missing(op) and "f" in results(op) and (op.vjp or op.kind == "composite")
}
FUSED = [name for name, op in ROWS.items() if op.kind == "fused"]  # with kernels of f32 for their gradients


# Seeds, not Hypothesis: the first call that it draws is the simplest one there is, of one element if any.
@pytest.mark.parametrize("name", ROWS)
def test_gradient(name, device):
    assert sum(check_gradient(name, "cuda:0", seeded(seed, "f64", smooth=True)) for seed in (1, 2, 3))
    device.check()


@pytest.mark.parametrize("name", FUSED)
def test_gradient_of_fused_kernels(name, device):
    assert sum(check_gradient(name, "cuda:0", seeded(seed, "f32", smooth=True)) for seed in (1, 2, 3))
    device.check()
