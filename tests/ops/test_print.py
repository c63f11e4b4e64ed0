"""Printing. The texts are PyTorch's for the same values (its `dtype=torch.float16` reads `dtype=f16` here)."""

import numpy as np
import pytest

import tensorlib

CASES = [
    (tensorlib.tensor, ([1.0, 2.0, 3.0],), "tensor([1., 2., 3.])"),
    (tensorlib.tensor, ([1.5, -2.25],), "tensor([ 1.5000, -2.2500])"),
    (tensorlib.tensor, ([1, -20],), "tensor([  1, -20])"),
    (tensorlib.tensor, (3.14159,), "tensor(3.1416)"),
    (tensorlib.tensor, (7,), "tensor(7)"),
    (tensorlib.tensor, (True,), "tensor(True)"),
    (tensorlib.tensor, ([True, False],), "tensor([ True, False])"),
    (tensorlib.tensor, ([],), "tensor([])"),
    (tensorlib.zeros, (0, 3), "tensor([], size=(0, 3))"),
    (tensorlib.tensor, ([[1, 2], [3, 4]],), "tensor([[1, 2],\n        [3, 4]])"),
    (tensorlib.tensor, ([1.0, float("nan"), float("inf")],), "tensor([1., nan, inf])"),
    (tensorlib.tensor, ([1.5, float("nan"), -float("inf")],), "tensor([1.5000,    nan,   -inf])"),
    (tensorlib.tensor, ([1e-5, 1.0],), "tensor([1.0000e-05, 1.0000e+00])"),
    (tensorlib.tensor, ([1e9, 1.0],), "tensor([1.0000e+09, 1.0000e+00])"),
    (tensorlib.tensor, ([0.0, -0.0],), "tensor([0., -0.])"),
    (tensorlib.tensor, ([0.001, 0.5],), "tensor([0.0010, 0.5000])"),
    (tensorlib.tensor, ([1000.5, 1.0],), "tensor([1.0005e+03, 1.0000e+00])"),
    (tensorlib.tensor, ([123456.0, 654321.0],), "tensor([123456., 654321.])"),
]


@pytest.mark.parametrize("make, args, text", CASES)
def test_known_texts(make, args, text):
    assert repr(make(*args)) == text


def test_dtypes_are_shown_where_literals_would_not_give_them():
    assert repr(tensorlib.tensor([1.0], dtype="f16")) == "tensor([1.], dtype=f16)"
    assert repr(tensorlib.tensor([1], dtype="u8")) == "tensor([1], dtype=u8)"
    assert repr(tensorlib.zeros(0, dtype="i64")) == "tensor([], dtype=i64)"
    assert repr(tensorlib.zeros(2, 0, dtype="f16")) == "tensor([], size=(2, 0), dtype=f16)"
    assert repr(tensorlib.tensor([0.5], dtype="f8e4m3")) == "tensor([0.5000], dtype=f8e4m3)"


def test_gradients_are_said_in_pytorch_s_words():
    x = tensorlib.ones(2, dtype="f16", requires_grad=True)
    assert repr(x) == "tensor([1., 1.], dtype=f16, requires_grad=True)"
    assert (
        repr(x.float() * 2) == "tensor([2., 2.], grad_fn=<mul>)" and repr(x.detach()) == "tensor([1., 1.], dtype=f16)"
    )
    assert repr(tensorlib.zeros(0, requires_grad=True)) == "tensor([], requires_grad=True)"


def test_notebooks_say_what_it_is():
    x = tensorlib.tensor([[1.5, 2.5]], requires_grad=True)
    html = x._repr_html_()
    assert "1 \u00d7 2 f32, cpu, 8 bytes, requires_grad=True" in html and "tensor([[1.5000, 2.5000]]" in html
    html = (x.sum() * 2)._repr_html_()
    assert "scalar f32, cpu, 4 bytes, grad_fn=&lt;mul&gt;" in html and "<mul>" not in html


def test_long_lines_wrap_at_80_columns():
    assert repr(tensorlib.arange(30)) == (
        "tensor([ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13, 14, 15, 16, 17,\n"
        "        18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29])"
    )
    x = tensorlib.full((18,), 1.25, dtype="f16")
    assert repr(x) == (
        "tensor([1.2500, 1.2500, 1.2500, 1.2500, 1.2500, 1.2500, 1.2500, 1.2500, 1.2500,\n"
        "        1.2500, 1.2500, 1.2500, 1.2500, 1.2500, 1.2500, 1.2500, 1.2500, 1.2500],\n"
        "       dtype=f16)"
    )


def test_more_than_1000_elements_are_summarised():
    assert repr(tensorlib.arange(1001)) == "tensor([   0,    1,    2,  ...,  998,  999, 1000])"
    assert repr(tensorlib.zeros(100, 11)) == (
        "tensor([[0., 0., 0.,  ..., 0., 0., 0.],\n        [0., 0., 0.,  ..., 0., 0., 0.],\n"
        "        [0., 0., 0.,  ..., 0., 0., 0.],\n        ...,\n        [0., 0., 0.,  ..., 0., 0., 0.],\n"
        "        [0., 0., 0.,  ..., 0., 0., 0.],\n        [0., 0., 0.,  ..., 0., 0., 0.]])"
    )
    lines = repr(tensorlib.zeros(2, 600, 1)).split("\n")
    assert lines[0] == "tensor([[[0.]," and lines[3] == "         ...," and lines[7] == "" and len(lines) == 15


def test_three_dims_have_a_blank_line_between():
    assert repr(tensorlib.tensor([[[1]], [[2]]])) == "tensor([[[1]],\n\n        [[2]]])"


def test_views_print_as_they_are():
    x = tensorlib.from_numpy(np.arange(6).reshape(2, 3))
    assert (
        repr(x.T) == "tensor([[0, 3],\n        [1, 4],\n        [2, 5]])"
        and repr(x[:, ::-2]) == "tensor([[2, 0],\n        [5, 3]])"
    )


def test_same_as_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for scale in (1e-6, 1e-2, 1, 1e3, 1e9):
        for shape in ((), (3,), (40,), (3, 4), (2, 3, 5), (1200,), (40, 50), (7, 200, 3)):
            a = (rng.standard_normal(shape) * scale).astype(np.float32)
            for array in (a, np.round(a), a.astype(np.float64), (a * 10).astype(np.int64), a > 0):
                array = np.asarray(array)
                want = repr(torch.from_numpy(array.copy())).replace("torch.float64", "f64").replace("\\n", "\n")
                found = repr(tensorlib.from_numpy(array))
                assert found.replace(" ", "").replace("\n", "") == want.replace(" ", "").replace("\n", "")
                assert "dtype" in want or found == want
