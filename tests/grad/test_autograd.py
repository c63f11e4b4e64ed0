"""The engine: modes, views and in-place writes, versions, hooks, graphs used twice, deep graphs, own functions."""

import gc
import weakref

import numpy as np
import pytest
import torch

import tensorlib
from tensorlib import autograd
from tensorlib.device import Array
from tensorlib.errors import GradError, ShapeError


def leaf(array):
    return tensorlib.from_numpy(np.array(array)).clone().requires_grad_()


def pair(shape, seed=0):
    """The same values as a leaf here and in torch."""
    array = np.random.default_rng(seed).standard_normal(shape)
    return leaf(array), torch.tensor(array, requires_grad=True)


def same(ours, theirs):
    assert np.allclose(ours.numpy(), theirs.numpy(), rtol=1e-12, atol=1e-12), (ours, theirs)


def test_gradients_add_up_over_uses_and_calls():
    x = tensorlib.tensor([1.0, 2.0], requires_grad=True)
    (x * x + x).sum().backward()
    assert x.grad.tolist() == [3, 5]
    (x * 2).sum().backward()
    assert x.grad.tolist() == [5, 7]
    x.grad = None
    (x + x).backward(tensorlib.tensor([1.0, 10.0]))
    assert x.grad.tolist() == [2, 20]


def test_two_leaves_do_not_share_the_memory_of_a_gradient():
    x, y = (tensorlib.ones(3, requires_grad=True) for _ in range(2))
    weight = tensorlib.ones(3)
    (x + y).backward(weight)
    x.grad.mul_(5)
    assert y.grad.tolist() == [1, 1, 1] and weight.tolist() == [1, 1, 1]


@pytest.mark.parametrize("shapes", [((3, 1), (4,)), ((), (2, 3)), ((2, 1, 3), (1, 5, 1)), ((0, 3), (1, 3))])
def test_broadcast_dims_are_summed(shapes):
    (a, ta), (b, tb) = pair(shapes[0]), pair(shapes[1], 1)
    (a * b + a / (b * b + 1)).sum().backward()
    (ta * tb + ta / (tb * tb + 1)).sum().backward()
    same(a.grad, ta.grad)
    same(b.grad, tb.grad)


def test_promoted_operands_get_gradients_of_their_own_dtype():
    x = tensorlib.tensor([1.0, 2.0], dtype="f16", requires_grad=True)
    y = tensorlib.tensor([3.0, 4.0], dtype="f64", requires_grad=True)
    (x * y).sum().backward()
    assert x.grad.dtype is tensorlib.f16 and y.grad.dtype is tensorlib.f64 and x.grad.tolist() == [3, 4]


def write_cases():
    def slices(x, zeros, where):
        y = x * 1
        y[1:3, ::2] = x[:2, :2] * 3
        y[0] = 0
        return y

    def mask(x, zeros, where):
        y = x * 1
        y[y > 0] *= 2
        return y

    def view_of_view(x, zeros, where):
        y = x * x
        v = y.transpose(0, 1)[1:]
        v[0].mul_(3.0)
        return y + v.sum() * y

    def view_made_before(x, zeros, where):
        y = x * 2
        row = y[1]
        y.mul_(3.0)
        y[1, 2] = x[0, 0]
        return row * x

    def into_zeros(x, zeros, where):
        z = zeros(4, 4)
        z[2] = x[1]
        z[:, 1] += x[:, 0]
        z[[0, 3], [1, 2]] = x[1, :2] ** 2
        return z * x

    def filled(x, zeros, where):
        y = x * x
        y[..., 1].fill_(3.0)
        y.view(-1)[5:9].zero_()
        return y * y

    def duplicates(x, zeros, where):
        y = x * 1
        return y[[0, 2, 0]] * y[[1, 1, 3]]

    return [slices, mask, view_of_view, view_made_before, into_zeros, filled, duplicates]


@pytest.mark.parametrize("case", write_cases(), ids=lambda f: f.__name__)
def test_writes_in_place_and_views_as_in_torch(case):
    x, t = pair((4, 4))
    ours = case(x, lambda *s: tensorlib.zeros(*s, dtype="f64"), tensorlib.where)
    theirs = case(t, lambda *s: torch.zeros(*s, dtype=torch.float64), torch.where)
    same(ours.detach(), theirs.detach())
    (ours**2).sum().backward()
    (theirs**2).sum().backward()
    same(x.grad, t.grad)


def test_second_derivative_through_a_write():
    x, t = pair((3,))

    def twice(x, zeros, grad):
        y = zeros(3) + x * x
        y[1:] += x[:2] * x[1:]
        (g,) = grad((y**3).sum(), [x], create_graph=True)
        return grad((g * g).sum(), [x])[0]

    ours = twice(x, lambda n: tensorlib.zeros(n, dtype="f64"), autograd.grad)
    same(ours, twice(t, lambda n: torch.zeros(n, dtype=torch.float64), torch.autograd.grad))


def test_a_value_that_was_changed_after_its_use_is_an_error():
    x = tensorlib.ones(3, requires_grad=True)
    y = x * 2
    z = y * y
    y.add_(1)
    with pytest.raises(GradError, match="mul: got x was changed in place"):
        z.sum().backward()
    y = x * 2
    z = (y + 1).sum()  # a sum needs no values
    y.add_(1)
    z.backward()
    assert x.grad.tolist() == [2, 2, 2]
    w = tensorlib.ones(3)
    z = (x * w).sum()
    with tensorlib.no_grad():
        w.zero_()
    with pytest.raises(GradError, match="changed in place"):
        z.backward()


def test_leaves_change_only_without_recording():
    x = tensorlib.ones(3, requires_grad=True)
    for write in (lambda: x.add_(1), lambda: x[0].zero_(), lambda: x.__setitem__(0, 5)):
        with pytest.raises(GradError, match="leaf"):
            write()
    with tensorlib.no_grad():
        x.sub_(0.5)
    assert x.tolist() == [0.5, 0.5, 0.5] and x.is_leaf and x.requires_grad
    with pytest.raises(GradError, match="out="):
        tensorlib.exp(x, out=tensorlib.empty(3))


def test_modes():
    x = tensorlib.ones(2, requires_grad=True)
    with tensorlib.no_grad():
        assert not (x * 2).requires_grad and not tensorlib.is_grad_enabled()
        with tensorlib.enable_grad():
            assert (x * 2).requires_grad
    with tensorlib.set_grad_enabled(False):
        assert not (x * 2).requires_grad

    @tensorlib.no_grad()
    def double(x):
        return x * 2

    assert not double(x).requires_grad and (x * 2).requires_grad
    assert not x.detach().requires_grad and not (x > 0).requires_grad and not x.argmax().requires_grad


def test_a_graph_is_used_once_unless_retained():
    x = tensorlib.tensor(3.0, requires_grad=True)
    y = x * x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 54
    with pytest.raises(GradError, match="retain_graph"):
        y.backward()


def test_errors_of_backward_and_grad():
    x = tensorlib.ones(2, requires_grad=True)
    with pytest.raises(ShapeError, match="one element"):
        (x * 2).backward()
    with pytest.raises(ShapeError, match=r"gradient of shape \(3,\)"):
        (x * 2).backward(tensorlib.ones(3))
    with pytest.raises(GradError, match="requires no gradient"):
        tensorlib.ones(2).sum().backward()
    with pytest.raises(GradError, match="on which no output depends"):
        autograd.grad((x * 2).sum(), [tensorlib.ones(2, requires_grad=True)])
    other = tensorlib.ones(2, requires_grad=True)
    assert autograd.grad((x * 2).sum(), [other, x], allow_unused=True)[0] is None
    with pytest.raises(GradError, match="float"):
        tensorlib.tensor([1, 2]).requires_grad_()
    with pytest.raises(GradError, match="detach"):
        (x * 2).requires_grad_(False)


def test_grad_leaves_other_leaves_alone():
    x, y = tensorlib.ones(2, requires_grad=True), tensorlib.ones(2, requires_grad=True)
    z = (x * y).sum()
    (g,) = autograd.grad(z, [x])
    assert g.tolist() == [1, 1] and x.grad is None and y.grad is None
    z = (x * y).sum()
    z.backward(inputs=[y])
    assert x.grad is None and y.grad.tolist() == [1, 1]
    middle = x * 3
    assert autograd.grad((middle * middle).sum(), [middle])[0].tolist() == [6, 6]


def test_hooks_and_retained_gradients():
    x = tensorlib.ones(2, requires_grad=True)
    y = x * 2
    y.retain_grad()
    seen = []
    handle = y.register_hook(lambda g: seen.append(g.tolist()))
    x.register_hook(lambda g: g * 10)
    (y + y).sum().backward()
    assert seen == [[2, 2]] and y.grad.tolist() == [2, 2] and x.grad.tolist() == [40, 40]
    handle.remove()
    (x * 2 + y.detach()).sum().backward()
    assert len(seen) == 1
    values = x.max(0).values
    values.register_hook(lambda g: g * 3)
    x.grad = None
    (values + values).backward()
    assert x.grad.sum().item() == 60


def test_deep_graphs_neither_overflow_the_stack_nor_leak():
    x = tensorlib.ones(2, requires_grad=True)
    y = x
    for _ in range(10_000):
        y = y + 1
    y.sum().backward()
    assert x.grad.tolist() == [1, 1]
    for _ in range(100_000):  # given up without a backward
        y = y + 1
    alive = weakref.ref(y)
    del y
    gc.disable()
    try:
        assert alive() is None
    finally:
        gc.enable()


def test_no_cycle_keeps_a_graph_alive():
    gc.collect()
    gc.disable()
    try:
        x = tensorlib.ones(4, requires_grad=True)
        y = x.exp().softmax(0)
        z = y * y
        z[0] = 0
        gone = [weakref.ref(t) for t in (y, z)]
        del y, z
        assert [g() for g in gone] == [None, None]
    finally:
        gc.enable()


def test_checkpoint_gives_the_same_gradients_and_random_numbers():
    x, w = tensorlib.randn(5, requires_grad=True), tensorlib.randn(5, requires_grad=True)

    def block(t):
        return (tensorlib.dropout(t * w, 0.5) + t.exp()).tanh()

    tensorlib.manual_seed(7)
    block(x).sum().backward()
    want = x.grad.tolist(), w.grad.tolist()
    x.grad = w.grad = None
    tensorlib.manual_seed(7)
    autograd.checkpoint(block, x).sum().backward()
    assert (x.grad.tolist(), w.grad.tolist()) == want
    with pytest.raises(GradError, match="checkpoint"):
        autograd.grad(autograd.checkpoint(block, x).sum(), [x], create_graph=True)


class Scale(autograd.Function):
    """(x * y, x + y), with a gradient of its own."""

    @staticmethod
    def forward(ctx, x, y, factor):
        ctx.save_for_backward(x, y)
        ctx.factor = factor
        return x * y * factor, x + y

    @staticmethod
    def backward(ctx, g, h):
        x, y = ctx.saved_tensors
        return g * y * ctx.factor + h, g * x * ctx.factor + h, None


def test_function():
    x, y = tensorlib.tensor(2.0, requires_grad=True), tensorlib.tensor(3.0, requires_grad=True)
    a, b = Scale.apply(x, y, 10.0)
    assert (a.item(), b.item()) == (60, 5)
    (a * a).backward()
    assert (x.grad.item(), y.grad.item()) == (2 * 60 * 30, 2 * 60 * 20)
    (g,) = autograd.grad(Scale.apply(x, y, 1.0)[0] ** 2, [x], create_graph=True)
    assert autograd.grad(g, [y])[0].item() == 4 * 2 * 3  # d/dy of 2 x y^2
    assert not Scale.apply(x.detach(), y.detach(), 1.0)[0].requires_grad


def test_an_op_without_a_gradient_raises_and_none_vanishes():
    from tensorlib.registry import SAME, Op
    from tensorlib.tape import recorded

    row = Op("halve", "unary", SAME, None, "", None, None)
    halve = recorded(row, lambda x: tensorlib.Tensor.clone(x.detach()))
    x = tensorlib.ones(2, requires_grad=True)
    y = halve(x)
    assert y.requires_grad
    with pytest.raises(GradError, match="halve: got a gradient asked for"):
        y.sum().backward()
    from tensorlib import backend

    with pytest.raises(GradError, match="expected an op that records"):  # a kernel that is launched behind its back
        backend.launch(backend.kernel("counter", "add"), [0, 0], reads=(x,), writes=())
    with pytest.raises(GradError, match="expected an op that records"):
        Array.view(x, x.layout)


def test_threads_have_modes_of_their_own():
    import threading

    found = []
    with tensorlib.no_grad():
        thread = threading.Thread(target=lambda: found.append(tensorlib.is_grad_enabled()))
        thread.start()
        thread.join()
    assert found == [True]
