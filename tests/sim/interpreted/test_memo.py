"""Calls that repeat on a GPU: other operands, scratch memory, several launches, what cannot be repeated, traces."""

import numpy as np
import pytest

import tensorlib
from tensorlib import gpu_plan, memo
from tensorlib.ops import attention, index, linalg, norm, reduce
from tensorlib.quant.tensor import from_bytes, quantized_linear

rng = np.random.default_rng(5)


def drawn(*shape, dtype=np.float32):
    return tensorlib.from_numpy(rng.standard_normal(shape).astype(dtype)).to("cuda:0")


def plans(function):
    """What an op's quick function found: functions of addresses."""
    return [p[2] for p in function.__globals__["plans"].values() if p[0] is None and p[2] is not None]


class Trace(list):
    """Launches told."""


def repeats(function, quick, *calls, exact=True):
    """Calls of other operands, after the first, are repeated, and give what they give anew; their launches are told."""
    memo.forget()
    gpu = calls[0][0].device.gpu
    function(*calls[0])
    function(*calls[0])  # where the first filled a table
    assert len(plans(quick)) == 1, function
    for args in calls:
        before, gpu.trace = gpu.trace, Trace()
        found, told = function(*args), gpu.trace
        kept = quick.__globals__["plans"].copy()
        quick.__globals__["plans"].clear()
        gpu.trace = Trace()
        want, anew = function(*args), gpu.trace
        gpu.trace = before
        quick.__globals__["plans"].clear()
        quick.__globals__["plans"].update(kept)
        assert [t[0] for t in told] == [t[0] for t in anew] and told
        assert np.array_equal(found.cpu().numpy(), want.cpu().numpy(), equal_nan=True)
        assert found.buffer is not want.buffer and found.shape == want.shape and found.dtype is want.dtype


def test_one_launch_and_numbers(device):
    repeats(tensorlib.add, tensorlib.add, (drawn(7), drawn(7)), (drawn(7), drawn(7)))
    repeats(lambda x: 2.5 - x, tensorlib.sub, (drawn(9),), (drawn(9),))
    x = drawn(6)
    assert np.array_equal((x + x).cpu().numpy(), 2 * x.cpu().numpy())


def test_reductions_in_parts_and_norms(device):
    x, y = drawn(3, 40_000), drawn(3, 40_000)
    repeats(lambda v: v.sum(), reduce.sum, (x,), (y,))
    w = drawn(33), drawn(33)
    repeats(lambda *a: norm.rms_norm(*a, 1e-5), norm.rms_norm, (drawn(4, 33), w[0]), (drawn(4, 33), w[1]))
    repeats(lambda a: norm.rms_norm(a, None), norm.rms_norm, (drawn(4, 33),), (drawn(4, 33),))


def test_attention_and_rows_by_index(device):
    sdpa = attention.scaled_dot_product_attention
    calls = [(drawn(1, 4, 1, 16), drawn(1, 2, 40, 16), drawn(1, 2, 40, 16)) for _ in range(2)]
    quick = next(
        c.cell_contents
        for c in sdpa.__closure__
        if hasattr(c.cell_contents, "__globals__") and "plans" in c.cell_contents.__globals__
    )
    repeats(lambda q, k, v: sdpa(q, k, v, enable_gqa=True), quick, *calls)
    ids = [tensorlib.from_numpy(rng.integers(0, 9, 5)).to("cuda:0") for _ in range(2)]
    repeats(lambda x, i: index.index_select(x, 0, i), index.index_select, *((drawn(9, 6), i) for i in ids))


def test_quantised_weights(device):
    def weight():
        blocks = rng.integers(0, 256, (8, 2, 18), np.uint8)
        blocks[..., :2] = np.float16(0.01).reshape(1).view(np.uint8)
        return from_bytes(blocks, (8, 64), "q4_0").to("cuda:0")

    repeats(lambda x, w: w.linear(x), quantized_linear, (drawn(1, 64), weight()), (drawn(1, 64), weight()))


def test_casting_is_not_taken_for_the_operands(device):
    from tensorlib.amp import autocast

    for place in ("cpu", "cuda:0"):
        x, y = drawn(4, 8).to(place), drawn(8, 3).to(place)
        with tensorlib.no_grad():
            for _ in range(2):
                assert (x @ y).dtype is tensorlib.f32
            for _ in range(2):
                with autocast(dtype="bf16"):
                    assert (x @ y).dtype is tensorlib.bf16
                assert (x @ y).dtype is tensorlib.f32


def test_a_trace_that_was_there_is_told_of_all_launches(device):
    memo.forget()
    before, device.trace = device.trace, Trace()
    trace = device.trace
    for count in (1, 2, 3):
        drawn(5).exp()
        assert device.trace is trace and len(trace) == count
    device.trace = before


@pytest.mark.parametrize("name", ["upload", "download", "synchronize"])
def test_what_copies_meanwhile_is_not_repeated(name, device):
    def function(x):
        out = x + 1.0
        {
            "upload": lambda: x.buffer.write(x.ptr, bytes(4)),
            "download": lambda: x.buffer.read(x.ptr, 4),
            "synchronize": device.synchronize,
        }[name]()
        return out

    _, events = gpu_plan.watched(device, function, (drawn(3),))
    assert events is None and not vars(device).keys() & {"upload", "allocate", "copy"}


def test_memory_given_back_and_taken_again_is_told_apart(device):
    """What was scratch first and then the result's is scratch for what was launched before."""
    x = drawn(8)
    out = tensorlib.empty(8, device="cuda:0")

    class Kernel:
        pointers = [0, 1]

    kernel, seen = Kernel(), []
    events = [
        (out.buffer.ptr, 4096),
        (kernel, lambda *a: seen.append(a), (1, 1, 1), (out.buffer.ptr + 64, x.ptr)),
        (out.buffer.ptr, 32),
        (kernel, lambda *a: seen.append(a), (2, 1, 1), (out.buffer.ptr, x.ptr)),
    ]
    again = gpu_plan.plan([((x,), (out,))], events, (x,), out)
    found = again(1 << 40)
    (_, _, _, (scratch, a)), (_, _, _, (result, b)) = seen
    assert a == b == 1 << 40 and result == found.buffer.ptr and not 0 <= scratch - result < 32
    strange = [events[2], (kernel, None, (1, 1, 1), (out.buffer.ptr, 1 << 41))]
    assert gpu_plan.plan([((x,), (out,))], strange, (x,), out) is None
    assert gpu_plan.plan([((x,), (x,))], events, (x,), out) is None and linalg is not None
