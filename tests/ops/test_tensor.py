"""Making, viewing, joining, converting and exchanging tensors."""

import copy
import gc
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib import dtype as D
from tensorlib.errors import DeviceError, DTypeError, ShapeError
from tests.ops.cases import few, operands, tensors

# ---- making ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", D.ALL, ids=str)
def test_values_in_and_out_of_every_dtype(dtype):
    data = (
        [[True, False]] if dtype.kind == "b" else [[0, 1], [3, 7]] if dtype.kind != "f" else [[0.5, -2.0], [1.0, 0.0]]
    )
    data = data if dtype.kind != "u" else [[0, 1], [3, 255]]
    x = tensorlib.tensor(data, dtype=dtype)
    assert x.dtype is dtype and x.tolist() == data and x.numpy().dtype == dtype.numpy_dtype()
    assert x[0, 1].item() == data[0][1] and type(x[0, 1].item()) is type(data[0][1])
    assert (tensorlib.ones(2, dtype=dtype) == 1).all() and tensorlib.full((2,), 1, dtype=dtype).tolist() == [1, 1]
    assert tensorlib.from_numpy(x.numpy()).tolist() == data


def test_tensor_infers_dtype_and_shape():
    assert tensorlib.tensor([1, 2.5]).dtype is D.f32 and tensorlib.tensor([[True]]).dtype is D.bool_
    assert (
        tensorlib.tensor(3).shape == ()
        and tensorlib.tensor([]).shape == (0,)
        and tensorlib.tensor([[], []]).shape == (2, 0)
    )
    assert tensorlib.tensor(np.arange(3)).tolist() == [0, 1, 2] and tensorlib.tensor([True, 2, 0.5]).tolist() == [
        1,
        2,
        0.5,
    ]
    assert tensorlib.tensor(tensorlib.tensor([1.5])).item() == 1.5
    assert tensorlib.tensor([1e39, -1e39, 65520.0], dtype="f16").tolist() == [float("inf"), -float("inf"), float("inf")]
    with pytest.raises(ShapeError, match="lists of shapes"):
        tensorlib.tensor([[1], [1, 2]])
    with pytest.raises(DTypeError, match="a str"):
        tensorlib.tensor(["a"])
    with pytest.raises(DTypeError, match="cannot hold"):
        tensorlib.tensor([300], dtype="u8")
    with pytest.raises(ShapeError, match="sizes of 0 or more"):
        tensorlib.zeros(-1)


@pytest.mark.parametrize("args", [(5,), (2, 9, 3), (9, 2, -2), (0.0, 1.0, 0.1), (3, 0), (1, 2, 0.25)])
def test_arange(args):
    assert np.allclose(tensorlib.arange(*args).numpy(), np.arange(*args), atol=1e-6)
    assert tensorlib.arange(*args).dtype is (D.i64 if all(isinstance(a, int) for a in args) else D.f32)


def test_other_factories():
    assert tensorlib.eye(2, 3).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert np.allclose(tensorlib.linspace(0, 1, 5).numpy(), np.linspace(0, 1, 5)) and tensorlib.linspace(
        3, 4, 1
    ).tolist() == [3]
    x = tensorlib.full((2, 1), 7, dtype="i16")
    assert tensorlib.zeros_like(x).tolist() == [[0], [0]] and tensorlib.ones_like(x, dtype="f32").dtype is D.f32
    assert tensorlib.full_like(x, 3).dtype is D.i16 and tensorlib.empty_like(x).shape == (2, 1)
    assert x.new_tensor([1.9]).tolist() == [1] and tensorlib.as_tensor(x) is x


# ---- views and joins -------------------------------------------------------------------------------------------------


@given(st.data())
@few(60)
def test_movement(data):
    (a,) = data.draw(operands(["f32"], special=False))
    x = tensors([a])[0]
    order = data.draw(st.permutations(range(a.ndim)))
    assert np.array_equal(x.permute(order).numpy(), a.transpose(order))
    assert np.array_equal(x.permute(*order).contiguous().numpy(), a.transpose(order))
    assert np.array_equal(x.permute(order).reshape(-1).numpy(), a.transpose(order).reshape(-1))
    assert np.array_equal(x.T.numpy(), a.T) and np.array_equal(x.flatten().numpy(), a.ravel())
    assert np.array_equal(x.squeeze().unsqueeze(-1).numpy(), a.squeeze()[..., None])
    assert x.clone().is_contiguous() and np.array_equal(x.clone().numpy(), a)
    if a.ndim:
        d = data.draw(st.integers(-a.ndim, a.ndim - 1))
        assert np.array_equal(x.flip(d).numpy(), np.flip(a, d))
        assert np.array_equal(x.roll(2, d).numpy(), np.roll(a, 2, d)) and np.array_equal(
            x.roll(-1).numpy(), np.roll(a, -1)
        )
        assert np.array_equal(tensorlib.cat([x, x], d).numpy(), np.concatenate([a, a], d))
        assert np.array_equal(tensorlib.stack([x, x], d).numpy(), np.stack([a, a], d))
        assert np.array_equal(x.movedim(d, 0).numpy(), np.moveaxis(a, d, 0))
        assert np.array_equal(x.repeat_interleave(2, d).numpy(), np.repeat(a, 2, d))
        parts = x.split(2, d)
        assert sum(p.shape[d] for p in parts) == a.shape[d] and np.array_equal(tensorlib.cat(parts, d).numpy(), a)
        assert len(x.unbind(d)) == a.shape[d]
    reps = (2, *[1] * (a.ndim - 1), 2) if a.ndim else (2,)
    assert np.array_equal(x.repeat(*reps).numpy(), np.tile(a, reps))


def test_views_share_memory():
    x = tensorlib.arange(6, dtype="f32")
    y = x.view(2, 3)[:, 1:].T
    y[0, 0] = -1
    assert x[1].item() == -1 and x.view("i32").dtype is D.i32 and x.view(-1, 2).shape == (3, 2)
    with pytest.raises(ShapeError, match="view: got shape"):
        y.view(-1)
    with pytest.raises(DTypeError, match="same size"):
        x.view("f16")
    assert y.reshape(-1).shape == (4,) and x.expand(2, -1).shape == (2, 6) and x.chunk(4)[-1].shape == (2,)
    assert [p.shape[0] for p in x.split([1, 2, 3])] == [1, 2, 3] and x.unflatten(0, (2, -1)).shape == (2, 3)
    with pytest.raises(ShapeError, match="sizes that sum to 6"):
        x.split([1, 2])
    with pytest.raises(ShapeError, match="stack"):
        tensorlib.stack([x, x[1:]])
    with pytest.raises(ShapeError, match="cat"):
        tensorlib.cat([x, x[None]])


def test_large_transposed_copies():
    a = np.random.default_rng(0).standard_normal((3, 129, 257)).astype(np.float32)
    x = tensorlib.from_numpy(a)
    for order in ((0, 2, 1), (2, 1, 0), (1, 0, 2), (2, 0, 1)):
        assert np.array_equal(x.permute(order).contiguous().numpy(), a.transpose(order))
    assert np.array_equal(x.to("f16").transpose(1, 2).contiguous().numpy(), a.astype(np.float16).transpose(0, 2, 1))


# ---- Python's protocols ----------------------------------------------------------------------------------------------


def test_python_protocols():
    x = tensorlib.tensor([[1, 2], [3, 4]])
    assert len(x) == 2 and [r.tolist() for r in x] == [[1, 2], [3, 4]] and 3 in x and 9 not in x
    assert int(x[0, 1]) == 2 and float(x[1, 1]) == 4.0 and [10, 20, 30][x[0, 1]] == 30 and bool(x[0, 0])
    assert f"{x[0, 1].float():.2f}" == "2.00" and hash(x) != hash(x.clone())
    twin = copy.deepcopy(x)
    twin[0] = 0
    assert x[0].tolist() == [1, 2] and x.dim() == 2 and x.size(1) == 2 and x.stride() == (2, 1) and x.nbytes == 32
    with pytest.raises(ShapeError, match=r"use \.any\(\) or \.all\(\)"):
        bool(x)
    with pytest.raises(DTypeError):
        len(tensorlib.tensor(1))
    with pytest.raises(ShapeError, match="item: got 4 elements"):
        x.item()


def test_to_and_its_short_forms():
    x = tensorlib.tensor([1.7, -1.7])
    assert x.to("i32").tolist() == [1, -1] and x.half().dtype is D.f16 and x.to(tensorlib.bfloat16).dtype is D.bf16
    assert x.float() is x and x.to("cpu") is x and x.to(x.half()).dtype is D.f16 and x.long().dtype is D.i64
    assert x.to(np.dtype("float64")).dtype is D.f64 and x.to(dtype=bool).tolist() == [True, True]
    with pytest.raises(DTypeError, match="one of bool"):
        x.to("complex64")
    with pytest.raises(DeviceError):
        x.to("metal")


# ---- NumPy, DLPack, PyTorch ------------------------------------------------------------------------------------------


@given(st.data(), st.sampled_from([d.name for d in D.ALL]))
@few(60)
def test_numpy_shares_memory_both_ways(data, dtype):
    (a,) = data.draw(operands([dtype]))
    x = tensorlib.from_numpy(a)
    back = x.numpy()
    assert back.dtype == a.dtype and back.shape == a.shape and back.tobytes() == a.tobytes()
    if a.size:
        assert np.shares_memory(a, back) and back.__array_interface__["data"][0] == a.__array_interface__["data"][0]
        assert [s for s, n in zip(back.strides, a.shape) if n > 1] == [s for s, n in zip(a.strides, a.shape) if n > 1]


def test_numpy_keeps_memory_alive():
    a = tensorlib.from_numpy(np.arange(1000.0)).numpy()[5:]
    b = (tensorlib.arange(1000) + 1).numpy()
    gc.collect()
    junk = [tensorlib.zeros(1000) for _ in range(50)]
    assert a[0] == 5 and b[0] == 1 and b[-1] == 1000 and len(junk) == 50


def test_numpy_odd_arrays():
    big = np.arange(4, dtype=">i4")
    assert tensorlib.from_numpy(big).tolist() == [0, 1, 2, 3]
    fields = np.zeros(3, dtype=[("a", "i1"), ("b", "<f4")])
    assert tensorlib.from_numpy(fields["b"]).tolist() == [0, 0, 0]  # strides of 5 bytes: copied
    assert np.asarray(tensorlib.tensor([1.0], dtype="f16")).dtype == np.float16
    assert (
        np.add(tensorlib.tensor([1.0]), 1).tolist() == [2.0] and np.array(tensorlib.tensor([1]), dtype="f8")[0] == 1.0
    )
    with pytest.raises(DTypeError):
        tensorlib.from_numpy(np.array(["a"]))
    frozen = np.arange(3.0)
    frozen.flags.writeable = False
    assert (tensorlib.from_numpy(frozen) + 1).tolist() == [1, 2, 3]
    assert not tensorlib.from_numpy(frozen).numpy().flags.writeable
    with pytest.raises(DeviceError, match="read-only memory"):
        tensorlib.from_numpy(frozen)[0] = 1


@given(st.data())
@few(40)
def test_dlpack_to_and_from_numpy(data):
    dtype = data.draw(st.sampled_from([d.name for d in D.ALL if not d.name.startswith(("bf", "f8"))]))
    (a,) = data.draw(operands([dtype]))
    if not a.flags.writeable:
        a = a.copy()
    x = tensorlib.from_dlpack(a)
    assert x.numpy().tobytes() == a.tobytes() and x.shape == a.shape
    b = np.from_dlpack(x)
    assert b.tobytes() == a.tobytes() and (not a.size or np.shares_memory(a, b))


@pytest.mark.parametrize("dtype", ["bf16", "f8e4m3", "f8e5m2"])
def test_dlpack_of_what_numpy_lacks(dtype):
    x = tensorlib.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=dtype).T
    y = tensorlib.from_dlpack(x)
    assert y.dtype is x.dtype and y.tolist() == x.tolist() and y.ptr == x.ptr and y.strides == x.strides


def test_dlpack_lifetimes():
    from tensorlib.ops import exchange

    gc.collect()
    before = len(exchange._exported)
    x = tensorlib.arange(5)
    capsule = x.__dlpack__()
    assert len(exchange._exported) == before + 1
    del capsule  # never consumed
    y = np.from_dlpack(x)
    del x
    gc.collect()
    assert y.tolist() == [0, 1, 2, 3, 4]
    del y
    gc.collect()
    assert len(exchange._exported) == before
    assert tensorlib.arange(2).__dlpack_device__() == (1, 0)


def test_torch():
    torch = pytest.importorskip("torch")
    for dtype in D.ALL:
        x = tensorlib.tensor([[1, 0, 1], [0, 1, 1]], dtype=dtype)
        t = x[:, ::2].to_torch()
        assert t.dtype == getattr(torch, dtype.torch) and t.float().tolist() == x[:, ::2].float().tolist()
        back = tensorlib.from_torch(t)
        assert back.ptr == x.ptr and back.dtype is dtype
    assert tensorlib.arange(3).flip(0).to_torch().tolist() == [2, 1, 0]


def test_nothing_heavy_is_imported_by_plain_use():
    code = (
        "import sys, tensorlib as t\n"
        "x = t.tensor([[1.0, 2.0], [3.0, 4.0]], dtype='bf16')\n"
        "print(x, x.tolist(), x[0, 1].item(), x.view(4).shape, t.from_dlpack(x))\n"
        "assert not {'numpy', 'torch', 'ml_dtypes'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_ml_dtypes_arrays():
    a = np.array([1.0, 2.5], ml_dtypes.bfloat16)
    assert tensorlib.tensor(a).tolist() == [1.0, 2.5] and tensorlib.from_numpy(a).dtype is D.bf16
    assert (tensorlib.ones(9, dtype="f8e4m3") * 1).dtype is D.f8e4m3


def test_a_mapped_file_is_not_written_to(tmp_path):
    from tensorlib.device import map_file
    from tensorlib.layout import contiguous

    path = tmp_path / "data"
    path.write_bytes(bytes(64))
    x = tensorlib.Tensor(map_file(path), contiguous((16,)), tensorlib.f32)
    for write in (lambda: x.add_(1), lambda: x.__setitem__(0, 1.0), lambda: x.fill_(2)):
        with pytest.raises(DeviceError, match="read-only memory"):
            write()
    assert x.sum().item() == 0 and not x.numpy().flags.writeable
