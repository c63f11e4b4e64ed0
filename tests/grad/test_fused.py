"""Gradients of norms, gated activations, embedding, rotary embedding and caches."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tensorlib
from tensorlib import backend
from tensorlib.autograd import grad
from tensorlib.errors import GradError
from tensorlib.ops import fused
from tests.grad.cases import against_torch, check, differences, randn, tensor

NORMS = {
    "rms_norm": (lambda x, w: fused.rms_norm(x, w, 1e-3), lambda x, w: F.rms_norm(x, w.shape, w, 1e-3), 1),
    "rms_norm offset": (
        lambda x, w: fused.rms_norm(x, w, 1e-3, offset=1.0),
        lambda x, w: F.rms_norm(x, w.shape, w + 1, 1e-3),
        1,
    ),
    "rms_norm plain": (lambda x: fused.rms_norm(x, None, 1e-3), lambda x: F.rms_norm(x, x.shape[-1:], None, 1e-3), 0),
    "layer_norm": (
        lambda x, w, b: fused.layer_norm(x, w, b, 1e-3),
        lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-3),
        2,
    ),
    "layer_norm plain": (lambda x: fused.layer_norm(x, eps=1e-3), lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-3), 0),
    "layer_norm no bias": (
        lambda x, w: fused.layer_norm(x, w, None, 1e-3),
        lambda x, w: F.layer_norm(x, w.shape, w, None, 1e-3),
        1,
    ),
}  # fmt: skip


def drawn(lead, width, weights, scale=1.0):
    rng = np.random.default_rng(0)
    return [scale * randn(rng, *lead, width), *(randn(rng, width) for _ in range(weights))]


@pytest.mark.parametrize("name", NORMS)
def test_norms_against_differences(name):
    ours, _, weights = NORMS[name]
    check(ours, *drawn((2, 2), 3, weights))


@pytest.mark.parametrize("shape", [((), 5), ((3,), 1), ((2, 3), 70), ((700,), 33), ((0,), 4)])
@pytest.mark.parametrize("name", NORMS)
def test_norms_against_torch(name, shape):
    ours, theirs, weights = NORMS[name]
    against_torch(ours, theirs, drawn(*shape, weights, 3.0))


@pytest.mark.parametrize("dtypes", [("f16", "f32"), ("bf16", "bf16")])
def test_norms_of_half_precision(dtypes):
    against_torch(*NORMS["rms_norm"][:2], drawn((5,), 130, 1), dtypes)
    against_torch(*NORMS["layer_norm"][:2], drawn((5,), 130, 2), (*dtypes, dtypes[1]))


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_the_kernel_of_a_norm_and_its_composition_agree(name):
    """Far from the mean, in strided rows, with a gradient that is expanded: f32's kernel and f64."""
    ours, _, weights = NORMS[name]
    x, *more = drawn((7, 4), 37, weights)
    x = x + 10

    def gradients(dtype):
        xs = [tensor(v, dtype).requires_grad_() for v in (x, *more)]
        (ours(xs[0].transpose(0, 1)[1:], *xs[1:]) * xs[0][0, 0]).sum(0).sum(0).backward(tensor(np.arange(37.0), dtype))
        return [v.grad.to("f64").numpy() for v in xs]

    for got, want in zip(gradients("f32"), gradients("f64"), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * abs(want).max())


def test_gradients_do_not_depend_on_threads():
    x, w, b = (tensor(v, "f32").requires_grad_() for v in drawn((301,), 700, 2))
    ids, table = tensorlib.randint(0, 50, (300,)), tensorlib.randn(50, 700, requires_grad=True)
    losses = {
        "layer_norm": lambda: (fused.layer_norm(x, w, b).square().sum(), [x, w, b]),
        "rms_norm": lambda: (fused.rms_norm(x, w).square().sum(), [x, w]),
        "embedding": lambda: (fused.embedding(ids, table).square().sum(), [table]),
    }
    try:
        for make in losses.values():
            found = []
            for threads in (1, 2, 3):
                backend.set_num_threads(threads)
                loss, leaves = make()
                found.append([g.numpy().copy() for g in grad(loss, leaves)])
            for other in found[1:]:
                for a, b_ in zip(found[0], other, strict=True):
                    np.testing.assert_array_equal(a, b_)
    finally:
        backend.set_num_threads(None)


@pytest.mark.parametrize("name", ["swiglu", "geglu"])
def test_gated(name):
    rng = np.random.default_rng(0)
    ours = getattr(fused, name)
    theirs = {
        "swiglu": lambda a, b: F.silu(a) * b,
        "geglu": lambda a, b: F.gelu(a, approximate="tanh") * b,
    }[name]
    check(ours, randn(rng, 2, 3), randn(rng, 2, 3))
    against_torch(ours, theirs, [4 * randn(rng, 3, 77), randn(rng, 3, 77)])
    against_torch(ours, theirs, [4 * randn(rng, 1100), randn(rng, 1100)], ["bf16", "bf16"])
    against_torch(
        lambda a, b: ours(a[:, 1:], b[:, :-1]), lambda a, b: theirs(a[:, 1:], b[:, :-1]), [randn(rng, 3, 20)] * 2
    )

    def turned(f):
        return lambda a, b: f(a.transpose(0, 1), b.transpose(0, 1))

    against_torch(turned(ours), turned(theirs), [randn(rng, 2, 3, 5), randn(rng, 2, 3, 5)])


@pytest.mark.parametrize("name", ["swiglu", "geglu"])
def test_gated_far_out(name):
    gate = tensorlib.tensor([-3e38, -200.0, 200.0, 3e38], requires_grad=True)
    getattr(fused, name)(gate, tensorlib.ones(4)).backward(tensorlib.ones(4))
    np.testing.assert_allclose(gate.grad.numpy(), [0, 0, 1, 1], atol=1e-35)


def test_embedding():
    rng, ids = np.random.default_rng(0), tensorlib.tensor([[0, 2, 2], [3, 0, 2]])
    indices = torch.tensor(ids.numpy())
    check(lambda w: fused.embedding(ids, w), randn(rng, 4, 3))
    for dtype in ("f32", "f16"):
        against_torch(
            lambda w: fused.embedding(ids, w), lambda w: F.embedding(indices, w), [randn(rng, 4, 33)], [dtype]
        )


@pytest.mark.parametrize("create_graph", [False, True])
def test_ids_without_a_row_have_no_gradient(create_graph):
    weight = tensorlib.ones(3, 2, requires_grad=True)
    out = fused.embedding(tensorlib.tensor([-1, 1, 3, 1]), weight)
    out.backward(tensorlib.ones(4, 2), create_graph=create_graph)
    assert out.detach().isnan().tolist() == [[True] * 2, [False] * 2, [True] * 2, [False] * 2]
    assert weight.grad.tolist() == [[0, 0], [2, 2], [0, 0]]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [4, 7])
def test_rope(interleaved, width):
    rng = np.random.default_rng(0)
    cos, sin = fused.rope_tables([0.9, 0.4], 6)
    check(lambda x: fused.rope(x, cos, sin, 2, interleaved), randn(rng, 3, 2, width))
    x = randn(rng, 3, 2, width)
    single = tensor(x, "f32").requires_grad_()
    start = tensorlib.tensor([2])
    weights = tensor(randn(rng, 3, 2, width), "f32")
    out = fused.rope(single, cos, sin, start, interleaved)
    out.backward(weights)
    wide = weights.to("f64")
    np.testing.assert_allclose(
        out.detach().numpy(), fused.rope(tensor(x), cos, sin, start, interleaved).numpy(), atol=1e-6
    )
    (want,) = differences(lambda v: (fused.rope(v, cos, sin, 2, interleaved) * wide).sum(), [x])
    np.testing.assert_allclose(single.grad.numpy(), want, atol=1e-5)


def test_rope_of_f64_past_its_tables_is_nan():
    cos, sin = fused.rope_tables([1.0], 3)
    got = fused.rope(tensorlib.ones(3, 1, 3, dtype="f64"), cos, sin, 1).isnan().all(1)
    assert got.tolist() == [[False] * 3] * 2 + [[True, True, False]]


def test_a_position_that_moved_on_is_noticed():
    cos, sin = fused.rope_tables([1.0], 9)
    start = tensorlib.tensor([2])
    out = fused.rope(tensorlib.ones(1, 1, 2, requires_grad=True), cos, sin, start)
    start += 1
    with pytest.raises(GradError, match="start was changed"):
        out.sum().backward()


@pytest.mark.parametrize("name", ["append", "rope_append"])
def test_caches_refuse_a_gradient(name):
    cache, x = tensorlib.zeros(2, 5, 4), tensorlib.ones(1, 2, 4, requires_grad=True)
    tables = fused.rope_tables([1.0, 0.5], 9) if name == "rope_append" else ()
    with pytest.raises(GradError, match=r"requires? a gradient"):
        getattr(fused, name)(cache, x, *tables, 0)
    with tensorlib.no_grad():
        assert getattr(fused, name)(cache, x, *tables, 0) is cache
