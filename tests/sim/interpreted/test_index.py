"""Reading and writing by index on a GPU: the CPU's bits, whatever is named twice, outside, or in many dims."""

import numpy as np
import pytest

from kernels_triton import along, segments
from tensorlib.errors import ShapeError
from tensorlib.ops import create, index, movement, scatter
from tensorlib.tensor import Tensor, from_numpy
from tests.sim.interpreted.devices import check

rng = np.random.default_rng(4)
OPS = {
    "scatter": index.scatter, "add": index.scatter_add, "amax": scatter.scatter_amax, "amin": scatter.scatter_amin,
    "prod": scatter.scatter_prod,
}  # fmt: skip


def some(shape, dtype):
    """Small whole numbers, whose sums are exact in any order."""
    return rng.integers(-2, 3, shape).astype(dtype)


@pytest.mark.parametrize("inner", [1, 3, 70])
@pytest.mark.parametrize("dtype", ["u1", "f2", "f8"])
def test_rows_are_taken(inner, dtype, device):
    x = some((3, 17, inner), dtype)
    for ids in (
        rng.integers(-17, 17, 40),
        rng.integers(0, 17, 3).astype(np.int32),
        rng.integers(0, 17, 5).astype("u1"),
    ):
        check(lambda x, i: index.index_select(x, 1, i), x, ids)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["f4", "f2", "i8", "u4", "i1", "?"])
def test_along_a_dim(op, dtype, device):
    x = some((4, 3, 5), dtype)
    for dim in range(3):
        shape = (3, 2, 4)
        ids = rng.integers(-x.shape[dim], x.shape[dim], shape)
        check(lambda x, i, s, dim=dim: OPS[op](x, dim, i, s), x, ids, some(shape, dtype))
        check(lambda x, i, dim=dim: index.gather(x, dim, i), x, ids)


@pytest.mark.parametrize("n", [511, 512, 1700])
def test_runs_across_blocks_are_added_in_order(n, device):
    for ids in (np.zeros(n, int), rng.integers(0, 3, n), np.arange(n) // 600, rng.permutation(n)):
        check(lambda x, i, s: index.scatter_add(x, 0, i, s), some(n, "f4"), ids, some(n, "f4"))


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8", "i8", "i1", "?"])
@pytest.mark.parametrize("shape, n", [((40, 3), 100), ((3, 7, 2), 20), ((2, 5, 1100), 9), ((1, 2), 1), ((4, 6), 5)])
def test_whole_rows_are_added(shape, n, dtype, device):
    dim = len(shape) - 2
    x, y = some(shape, dtype), some((*shape[:dim], n, *shape[dim + 1 :]), dtype)
    size = shape[dim]
    for ids in (np.zeros(n, int), rng.integers(-size, size, n), np.arange(n) // 20 % size):
        check(lambda x, i, s: index.index_add(x, dim, i, s), x, ids, y)
        for op in ("amax", "prod"):
            check(lambda x, i, s, op=op: OPS[op](x, dim, i.reshape(-1, 1).expand(*s.shape), s), x, ids, y)
    device.check()


@pytest.mark.parametrize("programs", [segments.PROGRAMS, 2])
def test_rows_are_added_in_one_order_and_rounded_once(programs, device, monkeypatch):
    monkeypatch.setattr(segments, "PROGRAMS", programs)  # few of them walk over more rows
    ids, src = rng.integers(0, 5, 300), rng.standard_normal((300, 40)).astype("f2")
    on_gpu = [from_numpy(v).to("cuda:0") for v in (np.zeros((5, 40), "f2"), ids, src)]
    device.trace = []
    first, second = (index.index_add(on_gpu[0], 0, *on_gpu[1:]).to("cpu").numpy() for _ in range(2))
    kernels, device.trace = [launch[0].fn.__name__ for launch in device.trace], None
    assert kernels.count("combine_row_ends") == 2  # 300 numbers were sorted, and not one per element
    assert first.tobytes() == second.tobytes()
    exact = np.zeros((5, 40))
    np.add.at(exact, ids, src.astype(float))
    # one rounding to f16, and 300 of f32, of sums of at most 300 numbers
    assert (np.abs(first - exact) <= 2.0**-11 * np.abs(exact) + 300 * 2.0**-24 * np.abs(src).sum(0)).all()


def test_rows_outside_are_named(device):
    x, ids = create.zeros(Tensor, 4, 3, device="cuda:0"), create.tensor(Tensor, [0, 4], device="cuda:0")
    with pytest.raises(ShapeError, match=r"index 4 in a dim of size 4"):
        index.index_add(x, 0, ids, create.zeros(Tensor, 2, 3, device="cuda:0")).to("cpu")
    device.check()


def test_sums_do_not_depend_on_the_launch(device):
    x, ids, src = np.zeros(5, "f4"), rng.integers(0, 5, 1500), rng.standard_normal(1500).astype("f4")
    on_gpu = [from_numpy(v).to("cuda:0") for v in (x, ids, src)]
    first, second = (index.scatter_add(on_gpu[0], 0, *on_gpu[1:]).to("cpu").numpy() for _ in range(2))
    assert first.tobytes() == second.tobytes()
    exact = np.zeros(5)
    np.add.at(exact, ids, src.astype(float))
    # a sum of m numbers of size 1 in f32, in any order, is off by m m 2**-24 at most
    assert np.abs(first - exact).max() <= np.abs(src).sum() * 1500 * 2.0**-24


def test_many_dims_and_strides(device):
    x = some((2, 3, 2, 3, 2, 2), "f4").transpose(5, 2, 0, 4, 1, 3)[:, ::-1]
    ids = rng.integers(0, 2, x.shape)
    check(lambda x, i: index.gather(x, 3, i), x, ids)
    check(lambda x, i, s: index.scatter(x, 3, i, s), x, ids, some(x.shape, "f4"))
    check(lambda x, i, s: index.scatter_(x[1:], 3, i[1:], s[1:]), x, ids, some(x.shape, "f4"))


def test_the_last_of_equal_rows_is_put(device):
    def put(x, ids, values):
        x = movement.clone(x)
        x[ids] = values
        return x

    for inner in (1, 40):
        check(put, some((7, inner), "f4"), rng.integers(-7, 7, 3000 // inner), some((3000 // inner, inner), "f4"))


def test_an_index_outside_is_named(device):
    x, ids = create.zeros(Tensor, 4, 3, device="cuda:0"), create.tensor(Tensor, [0, 4, -5], device="cuda:0")
    calls = lambda: index.index_select(x, 0, ids), lambda: x[ids], lambda: x.__setitem__(ids, 1.0)
    for op, call in zip(("index_select", "index", "index"), calls, strict=True):
        call()
        with pytest.raises(ShapeError, match=rf"^{op}: got index (-5|4) in a dim of size 4; expected .* \[-4, 3\]"):
            x.to("cpu")
        x.to("cpu")  # nobody is told twice
    device.check()


@pytest.mark.parametrize("shape, dim", [((6, 5), 0), ((2, 3000), 1), ((6,), 0), ((3, 4, 2), 1)])
def test_what_is_outside_is_0_and_writes_nothing(shape, dim, device):
    ids, n = np.array(rng.integers(-shape[dim], shape[dim], shape)), shape[dim]
    outside = rng.random(shape) < 0.3
    outside.flat[0] = True
    ids[outside] = rng.choice([-n - 1, n, 1 << 40, -(1 << 62)], outside.sum())
    x, y = some(shape, "f4") + 9, some(shape, "f4") + 9
    on_gpu = [from_numpy(v).to("cuda:0") for v in (x, ids, y)]

    def told(op, *args):
        """Values although the op's indices are outside."""
        out = op(*args)
        with pytest.raises(ShapeError, match=f"in a dim of size {n}"):
            x_there.to("cpu")
        return out.to("cpu").numpy()

    x_there, i_there, y_there = on_gpu
    inside = np.where(outside, 0, ids)
    want = np.where(outside, 0, np.take_along_axis(x, inside, dim))
    np.testing.assert_array_equal(told(index.gather, x_there, dim, i_there), want)
    for op in (index.scatter, index.scatter_add):
        kept = index.gather(x_there, dim, from_numpy(inside).to("cuda:0"))
        wanted = x.copy()
        places = list(np.indices(shape))
        places[dim] = inside
        places = tuple(p[~outside] for p in places)
        if op is index.scatter:
            wanted[places] = y[~outside]
        else:
            np.add.at(wanted, places, y[~outside])
        assert kept.shape == shape
        np.testing.assert_array_equal(told(op, x_there, dim, i_there, y_there), wanted)
    device.check()


def test_rows_that_are_outside_are_0(device):
    x = some((5, 40), "f4") + 9
    ids = np.array([4, 5, -6, 0, -5])
    there = from_numpy(x).to("cuda:0")
    out = index.index_select(there, 0, from_numpy(ids).to("cuda:0"))
    with pytest.raises(ShapeError, match="in a dim of size 5"):
        there.to("cpu")
    want = x[[4, 0, 0, 0, 0]]
    want[1:3] = 0
    np.testing.assert_array_equal(out.to("cpu").numpy(), want)


@pytest.mark.parametrize("op, dtype", [("add", "f4"), ("amin", "f4"), ("prod", "f8")])
def test_lanes_are_walked_along(op, dtype, device, monkeypatch):
    monkeypatch.setattr(along, "LANES", 1)
    for shape, dim in (((37, 9), 0), ((3, 20, 2), 1), ((1, 9), 0)):
        x, y = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
        for n in (min(3, shape[dim]), shape[dim]):
            ids = rng.integers(-n, n, shape)
            check(lambda x, i, s, dim=dim: OPS[op](x, dim, i, s), x, ids, y)
            check(lambda x, i, s, dim=dim: OPS[op](x.flip(dim), dim, i, s), x, ids, y)
    x, y = some((3, 4, 5), dtype), some((3, 4, 5), dtype)
    check(lambda x, i, s: index.scatter_add_(x[:, 1:, ::2], 1, i, s), x, rng.integers(-3, 3, (2, 4, 2)), y)


@pytest.mark.parametrize("dtype", ["u1", "f2", "f4", "f8"])
def test_long_rows_are_gathered(dtype, device):
    for rows, size, count in ((3, 700, 2100), (2, 1024, 1024), (1, 4096, 4099)):
        x = rng.integers(0, 99, (rows, size + 3)).astype(dtype)[:, :size]
        check(lambda x, i: index.gather(x, 1, i), x, rng.integers(-size, size, (rows, count)))


def test_places(device):
    for n, density in ((1, 1.0), (5000, 0.0), (9000, 0.4), (4096, 1.0)):
        check(index._nonzero, rng.random(n) < density)


@pytest.mark.parametrize("dtype", ["i64", "u8", "bool", "f64", "f32", "bf16", "f8e4m3"])
def test_ranges(dtype, device):
    ranges = (0, 5, 1), (-3, 30, 7), (0.5, 20.0, 1.7)
    for start, end, step in ranges[: 2 if dtype in ("i64", "u8", "bool") else 3]:
        cpu, gpu = (create.arange(Tensor, start, end, step, dtype, d).to("cpu") for d in ("cpu", "cuda:0"))
        assert cpu.tolist() == gpu.tolist()


def test_products_of_one_place_leave_f32_on_their_way(device):
    """Whatever the order: a subnormal factor has all of its bits in the end."""
    factors = np.float32([-629.5, 428.25, 895.125, 503.5, 398.75, -2.8e-45, 601.5])
    for lanes in (1, 3):
        x, ids = np.full((1, lanes), 601.5, "f4"), np.zeros((7, lanes), "i8")
        x, ids, src = (from_numpy(v).to("cuda:0") for v in (x, ids, np.repeat(factors[:, None], lanes, 1)))
        found = scatter.scatter_prod(x, 0, ids, src).to("cpu").numpy()
        want = 601.5 * np.prod(factors.astype(np.float64))
        assert (np.abs(found - want) <= 2.0**-24 * abs(want)).all()
    device.check()
