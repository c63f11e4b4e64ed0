"""Attention over pages: the row's own cases run in test_rows.py; here against caches in one stretch, dtypes, errors."""

import numpy as np
import pytest

import tensorlib
from tensorlib.capture import Capture
from tensorlib.errors import DTypeError, ShapeError


def paged(dtype="f32"):
    """(pages of K and of V, the same caches in one stretch, block table): 2 sequences of 3 pages of 4 rows."""
    rng = np.random.default_rng(0)
    table = [[5, 0, 3], [1, 4, 2]]
    made = [rng.standard_normal((6, 2, 4, 8)).astype(np.float32) for _ in range(2)]
    whole = [np.stack([np.concatenate(list(x[row]), 1) for row in table]) for x in made]
    return [tensorlib.from_numpy(x).to(dtype) for x in (*made, *whole)] + [table]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_pages_are_one_stretch(dtype):
    k, v, all_k, all_v, table = paged(dtype)
    q = tensorlib.randn(4, 4, 8)
    found = tensorlib.paged_attention(q, k, v, tensorlib.tensor(table), tensorlib.tensor([9, 12]), [0, 1, 4])
    for rows, i, n in ((slice(0, 1), 0, 9), (slice(1, 4), 1, 12)):
        want = tensorlib.attention(q[rows], all_k[i, :, :n], all_v[i, :, :n])
        np.testing.assert_array_equal(found[rows].numpy(), want.numpy())


def test_gradients_reach_the_pages():
    k, v, _, _, table = paged()
    leaves = [x.requires_grad_() for x in (tensorlib.randn(2, 2, 8), k, v)]
    tensorlib.paged_attention(*leaves, table, [5, 1]).sum().backward()
    touched = np.abs(leaves[2].grad.numpy()).sum((1, 3)) > 0  # V: what a query sees has a weight
    want = np.zeros((6, 4), bool)
    want[5], want[0, 0], want[1, 0] = True, True, True
    np.testing.assert_array_equal(touched, want)


def test_errors():
    k, v, _, _, table = paged()
    q = tensorlib.randn(2, 4, 8)
    for given in ((table, [1]), (table[:1], [1, 2]), (table, [1, 2], [0, 2]), (table[:1], [1])):
        with pytest.raises(ShapeError, match="one of each a sequence"):
            tensorlib.paged_attention(q, k, v, *given)
    with pytest.raises(ShapeError):
        tensorlib.paged_attention(tensorlib.randn(2, 3, 8), k, v, table, [1, 2])
    with pytest.raises(ShapeError, match="queries from 0 to 1; expected from 0 to 2, all of q"):
        tensorlib.paged_attention(q, k, v, table, [1, 1], [0, 1, 1])
    with pytest.raises(DTypeError):
        tensorlib.paged_attention(q, k, v.to("f16"), table, [1, 2])


@pytest.mark.parametrize(
    ("dtype", "options"), [("f32", {}), ("f16", {"window": 20}), ("f16", {"softcap": 3.0, "scale": 0.3})]
)
def test_one_query_each_is_the_same(dtype, options):
    """Pages of 16: read as they lie, at most 2 roundings per key from a gather's sums."""
    rng = np.random.default_rng(1)
    k, v = (tensorlib.from_numpy(rng.standard_normal((9, 2, 16, 24)).astype(np.float32)).to(dtype) for _ in range(2))
    q, table, lengths = tensorlib.randn(4, 6, 24), [[8, 1, 3], [2, 0, 0], [4, 5, 0], [7, 6, 2]], [48, 1, 17, 33]
    found = tensorlib.paged_attention(q, k, v, table, lengths, **options)
    want = tensorlib.paged_attention(q, k, v, table, lengths, [0, 1, 2, 3, 4], **options)
    np.testing.assert_allclose(found.numpy(), want.numpy(), rtol=0, atol=2e-6)


def test_a_replay_reads_the_table_anew():
    rng = np.random.default_rng(2)
    k, v = (tensorlib.from_numpy(rng.standard_normal((4, 1, 16, 8)).astype(np.float32)) for _ in range(2))
    q, table, lengths = tensorlib.randn(2, 2, 8), tensorlib.tensor([[0, 1], [2, 3]]), tensorlib.tensor([20, 3])
    with Capture() as step:
        found = tensorlib.paged_attention(q, k, v, table, lengths)
    table[0, 1], lengths[1] = 3, 32
    step.replay()
    np.testing.assert_array_equal(found.numpy(), tensorlib.paged_attention(q, k, v, [[0, 3], [2, 3]], [20, 32]).numpy())
    table[1, 0] = 4
    step.replay()
    assert np.isnan(found[1].numpy()).all() and not np.isnan(found[0].numpy()).any()
    lengths[0] = 0
    step.replay()
    assert (found[0].numpy() == 0).all()
