"""Calls that repeat give what first calls give: other operands, numbers, shared memory, views, captures, threads."""

import threading

import numpy as np
import pytest

import tensorlib
from tensorlib import memo
from tensorlib.capture import Capture
from tensorlib.errors import DTypeError, GradError, NoKernel


def fresh(n=7, seed=0):
    return tensorlib.from_numpy(np.random.default_rng(seed).standard_normal(n).astype(np.float32)).clone()


def plans(function):
    """What an op's quick function remembers."""
    return function.__globals__["plans"]


@pytest.mark.parametrize("n", [7, 5000, 300_000])  # the interpreter's memory; the arena's; several threads
def test_a_repeated_call_reads_its_own_operands(n):
    for seed in range(3):
        x, y = fresh(n, seed), fresh(n, seed + 10)
        want = x.numpy() + y.numpy()
        found = x + y
        assert np.array_equal(found.numpy(), want)
        assert np.array_equal((x + y).numpy(), want) and np.array_equal(found.numpy(), want)
        assert (x + y).buffer is not found.buffer
    assert any(plans(tensorlib.add).values())


def test_one_operand_twice_then_two():
    x, y = fresh(), fresh(7, 1)
    plans(tensorlib.mul).clear()
    for a, b in ((x, x), (x, y), (y, x), (x, x), (y, y)):
        assert np.array_equal((a * b).numpy(), a.numpy() * b.numpy())
    base = fresh(20)
    for a, b in ((base[:7], base[7:14]), (base[:7], base[3:10]), (x, base[3:10]), (x, y)):
        assert np.array_equal((a * b).numpy(), a.numpy() * b.numpy())


def test_numbers_are_told_apart_by_type_and_value():
    x = tensorlib.arange(3)
    for _ in range(2):
        assert (x + 1).tolist() == [1, 2, 3] and (x + 1).dtype is tensorlib.i64
        assert (x + 1.0).dtype is tensorlib.f32 and (x + True).dtype is tensorlib.i64
        assert (1 - x).tolist() == [1, 0, -1] and (2 - x).tolist() == [2, 1, 0]
        assert (x + np.float64(0.5)).tolist() == [0.5, 1.5, 2.5]
        assert tensorlib.where(x > 0, x, 9).tolist() == [9, 1, 2]
        assert tensorlib.where(x > 0, 9, x).tolist() == [0, 9, 9]
        assert (x + (1 << 45)).tolist() == [(1 << 45) + i for i in range(3)]


def test_arguments_by_position_and_by_name():
    x = tensorlib.arange(6, dtype="f32").reshape(2, 3)
    for _ in range(2):
        assert x.sum(0).tolist() == [3, 5, 7] and x.sum(dim=1).tolist() == [3, 12] and x.sum().item() == 15
        assert x.sum(1, keepdim=True).shape == (2, 1) and x.sum((0, 1)).item() == 15 and x.sum([0, 1]).item() == 15
        assert x.sum(0, dtype="f64").dtype is tensorlib.f64 and x.T.sum(0).tolist() == [3, 12]
        assert x.softmax(-1).shape == (2, 3) and x[:, ::-1].amax(1).tolist() == [2, 5]


def test_errors_stay_errors():
    x = tensorlib.arange(6, dtype="f32")
    x.view(1, 6)
    for _ in range(2):
        with pytest.raises(DTypeError):
            x.view(1.0, 6)
        with pytest.raises(DTypeError):
            x.view(True, 6)
        with pytest.raises(DTypeError):
            x.to("i64").bitwise_and(x)
        with pytest.raises(tensorlib.errors.ShapeError):
            x.view(4)
        with pytest.raises(tensorlib.errors.ShapeError):
            x[9]
        with pytest.raises(tensorlib.errors.ShapeError) as caught:
            x @ x[:5]
        assert caught.value.__context__ is None  # or a traceback would begin with an error of ours


def test_views_share_memory_and_indices_by_tensor_are_read_each_time():
    x = tensorlib.arange(12).reshape(3, 4)
    i = tensorlib.tensor(1)
    for step in range(2):
        x[1, 1:3][0] = 50 + step
        assert x.view(12)[5].item() == 50 + step and x[1][1].item() == 50 + step
        assert x[i].tolist() == x[1].tolist()
        i.fill_(1)
        assert x.transpose(0, 1)[1, 1].item() == 50 + step and x[..., None, ::-2].shape == (3, 1, 2)
    i.fill_(2)
    assert x[i].tolist() == [8, 9, 10, 11]


def test_out_and_in_place_are_not_repeated_into_new_memory():
    x, y = fresh(), fresh(7, 1)
    out = tensorlib.empty(7)
    for _ in range(3):
        assert tensorlib.add(x, y, out=out) is out and np.array_equal(out.numpy(), x.numpy() + y.numpy())
    before = x.numpy().copy()
    x.add_(y).add_(y)
    assert np.array_equal(x.numpy(), before + y.numpy() + y.numpy())


def test_a_capture_records_calls_that_were_seen_before():
    x, y = fresh(), fresh(7, 1)
    for _ in range(2):
        x + y
    with Capture() as step:
        found = (x + y).exp().sum()
    assert len(step) == 3
    x.fill_(0.5)
    y.fill_(0.25)
    step.replay()
    assert found.item() == pytest.approx(7 * np.exp(0.75), rel=1e-6)


def test_quick_calls_are_recorded_when_a_gradient_is_asked_for():
    x = fresh()
    (x * x).sum()
    w = fresh(7, 1).requires_grad_()
    (x * w).sum().backward()
    assert np.array_equal(w.grad.numpy(), x.numpy()) and not (x * x).requires_grad
    assert (x * w).view(7, 1).requires_grad and (x * w)[2:].requires_grad


def test_after_a_gradient_was_asked_for_once():
    w = fresh().requires_grad_()
    z, x = tensorlib.zeros(3, 7), fresh(7, 1)
    for _ in range(2):
        assert not (x * x).requires_grad and not z[0].requires_grad and not z.view(21)[:7].requires_grad
    for _ in range(2):
        z = tensorlib.zeros(3, 7)
        row, flat = z[1], z.view(21)
        row.copy_(w * 2)
        assert z.requires_grad and flat.requires_grad and row.requires_grad and z[1].requires_grad
        (flat * flat).sum().backward()
    assert np.allclose(w.grad.numpy(), 16 * w.detach().numpy(), rtol=1e-6)


def test_results_are_of_the_operands_class():
    class Named(tensorlib.Tensor):
        pass

    x = fresh()
    y = Named(x.buffer, x.layout, x.dtype)
    for _ in range(2):
        assert type(x.exp()) is tensorlib.Tensor and type(y.exp()) is Named and type(y[2:]) is Named
        assert type(x + x.clone()) is tensorlib.Tensor and type(y + y.clone()) is Named
        assert type(x + 1.0) is tensorlib.Tensor and type(y + 1.0) is Named and type(2.0 * y) is Named
        assert type(y.sum(0)) is Named and type(x.sum(0)) is tensorlib.Tensor


def test_plans_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(memo, "LIMIT", 8)
    x = fresh()
    for i in range(40):
        assert (x - float(i)).shape == (7,)
    assert len(plans(tensorlib.sub)) <= 8


def kept(view):
    """How many views each of the tables of an op keeps."""
    found, left = {}, [view]
    for each in left:  # it grows: an op is made of functions that see each other
        size = each.cache_info().currsize if hasattr(each, "cache_info") else len(each) if type(each) is dict else None
        if size is not None:
            found[id(each)] = size
        function = getattr(each, "__wrapped__", each) if size is not None else each
        cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        left += [x for x in cells if (callable(x) or type(x) is dict) and not any(x is seen for seen in left)]
    return list(found.values())


def test_views_do_not_pile_up():
    x = tensorlib.zeros(2 * memo.VIEWS)
    with tensorlib.no_grad():
        for i in sorted(2 * list(range(memo.VIEWS + 9))):
            assert x.narrow(0, i, 1).offset == x[i : i + 1].offset == i
    sizes = kept(tensorlib.Tensor.narrow) + kept(tensorlib.Tensor.__getitem__)
    assert len(sizes) == 3 and all(0 < size <= memo.VIEWS for size in sizes)


def test_threads_do_not_mix_their_operands():
    wrong = []

    def work(seed):
        x = tensorlib.full((5,), float(seed))
        for _ in range(3000):
            if (x + x)[0].item() != 2 * seed:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_without_direct_calls(run_python):
    """What other interpreters and machines take: calls through ctypes."""
    source = """
import tensorlib
from tensorlib import backend
backend.backend().direct = None
x = tensorlib.ones(4)
for _ in range(3):
    print(((x + x) * 2).sum().item())
"""
    assert run_python(source).split() == ["16.0"] * 3


# ---- kernels of one's own --------------------------------------------------------------------------------------------


def test_custom_kernels_of_one_to_three_operands():
    x, y = fresh(), fresh(7, 1)
    one = tensorlib.custom.elementwise("x * x - 1")
    two = tensorlib.custom.elementwise("exp(x) * y")
    three = tensorlib.custom.elementwise("select(x > y, x, z)", name="pick")
    assert (
        np.allclose(one(x).numpy(), x.numpy() ** 2 - 1, rtol=1e-6, atol=1e-7) and one(tensorlib.tensor([2])).item() == 3
    )
    assert np.allclose(two(x, y[:, None]).numpy(), np.exp(x.numpy()) * y.numpy()[:, None], rtol=1e-6)
    assert np.array_equal(three(x, 0.0, y).numpy(), np.where(x.numpy() > 0, x.numpy(), y.numpy()))
    want = np.exp(x.numpy()) * y.numpy()
    assert two(x, y, out=x) is x and np.allclose(x.numpy(), want, rtol=1e-6)


def test_custom_kernels_with_and_without_a_gradient():
    x = fresh().requires_grad_()
    cube = tensorlib.custom.elementwise("x * x * x", vjp={"x": lambda g, x: g * 3 * x * x})
    cube(x).sum().backward()
    assert np.allclose(x.grad.numpy(), 3 * x.detach().numpy() ** 2, rtol=1e-6)
    with pytest.raises(GradError, match="gradient asked for"):
        tensorlib.custom.elementwise("x + 2")(x).sum().backward()


def test_custom_expressions_that_are_none():
    for text in ("x +", "x.y", "__import__('os')", "a * b", "y", "x[0]"):
        with pytest.raises(DTypeError, match=r"custom\.elementwise"):
            tensorlib.custom.elementwise(text)
    with pytest.raises(NoKernel, match="nosuch"):
        tensorlib.custom.elementwise("nosuch(x)")(tensorlib.ones(2))
