"""Cross-entropy on the GPU backend, interpreted: more classes than a tile has, options, linear functions in chunks."""

import itertools

import numpy as np
import pytest

import tensorlib
from tensorlib.ops import loss_rows

EPS = 2.0**-24
RNG = np.random.default_rng(0)


def losses(device, x, target, weight, **options):
    """[loss, gradient of x]"""
    x = tensorlib.from_numpy(x).to(device).requires_grad_()
    weight = weight if weight is None else tensorlib.from_numpy(weight).to(device)
    out = tensorlib.cross_entropy(x, tensorlib.from_numpy(target).to(device), weight, **options)
    out.sum().backward()
    return [y.detach().to("cpu").numpy() for y in (out, x.grad)]


@pytest.mark.parametrize("classes", [5, 300, 9001])
def test_cross_entropy_is_that_of_the_cpu(classes, device):
    x = (RNG.normal(size=(6, classes)) * 5).astype(np.float32)
    target = RNG.integers(0, classes, 6)
    target[2] = -100
    weights = [None, RNG.uniform(0.5, 2, classes).astype(np.float32)]
    for weight, smoothing, reduction in itertools.product(weights, (0.0, 0.2), ("mean", "none")):
        options = {"label_smoothing": smoothing, "reduction": reduction}
        (found, slope), (want, expected) = (losses(d, x, target, weight, **options) for d in ("cuda:0", "cpu"))
        # logits of at most 30 are subtracted and scaled by weights of at most 2; sums of classes / 2048 steps
        assert np.abs(found - want).max() <= (40 + classes / 256) * 60 * EPS
        assert np.abs(slope - expected).max() <= 80 * EPS
    device.check()


def test_classes_in_a_middle_dim_and_none():
    x = RNG.normal(size=(2, 9, 3, 4)).astype(np.float32)
    target = RNG.integers(0, 9, (2, 3, 4))
    (found, slope), (want, expected) = (losses(d, x, target, None, reduction="none") for d in ("cuda:0", "cpu"))
    assert np.abs(found - want).max() <= 32 * EPS and np.abs(slope - expected).max() <= 32 * EPS
    one = losses("cuda:0", x[0, :, 0, 0], np.array(3), None)
    assert np.abs(one[0] - losses("cpu", x[0, :, 0, 0], np.array(3), None)[0]) <= 32 * EPS


def test_strided_targets_and_weights():
    x, w = (RNG.normal(size=s).astype(np.float32) for s in ((5, 3), (7, 3)))
    target, weight = np.arange(20)[::4] % 7, np.arange(1, 15, dtype=np.float32)[::2]
    found = []
    for device in ("cuda:0", "cpu"):
        given = [tensorlib.from_numpy(a).to(device) for a in (x, w)]
        wide = [tensorlib.from_numpy(np.repeat(a, 2)).to(device)[::2] for a in (target, weight)]
        slopes = given[1].requires_grad_()
        out = tensorlib.linear_cross_entropy(given[0], slopes, wide[0], weight=wide[1], label_smoothing=0.1)
        out.backward()
        found.append([y.detach().to("cpu").numpy() for y in (out, slopes.grad)])
    for ours, theirs in zip(*found, strict=True):
        assert np.abs(ours - theirs).max() <= 32 * EPS * max(1, np.abs(theirs).max())


def test_a_class_outside_is_nan_and_nothing_is_read():
    x = np.zeros((3, 4), np.float32)
    found, slope = losses("cuda:0", x, np.array([1, 4, -1]), None, reduction="none")
    assert np.isnan(found).tolist() == [False, True, True]
    assert np.isnan(slope).all(1).tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_logits_are_summed_in_f32(dtype):
    x = tensorlib.from_numpy(RNG.normal(size=(4, 5000)).astype(np.float32)).to(getattr(tensorlib, dtype))
    target = tensorlib.from_numpy(np.arange(4))
    want = tensorlib.cross_entropy(x.to(tensorlib.float32), target)
    found = tensorlib.cross_entropy(x.to("cuda:0"), target.to("cuda:0"))
    assert abs(float(found.to("cpu")) - float(want)) <= 2.0 ** (-8 if dtype == "bfloat16" else -11) * float(want)


def test_linear_cross_entropy_in_chunks(monkeypatch, device):
    n, d, c = 40, 24, 50
    arrays = [RNG.normal(size=s).astype(np.float32) for s in ((n, d), (c, d), (c,))]
    target = RNG.integers(0, c, n)
    target[5] = -100
    monkeypatch.setattr(loss_rows, "GPU_CHUNK", 16 * c)
    found = []
    for where in ("cuda:0", "cpu"):
        x, w, b = (tensorlib.from_numpy(a).to(where).requires_grad_() for a in arrays)
        t = tensorlib.from_numpy(target).to(where)
        if where == "cpu":
            out = tensorlib.cross_entropy(tensorlib.linear(x, w, b), t, label_smoothing=0.1)
        else:
            out = tensorlib.linear_cross_entropy(x, w, t, b, label_smoothing=0.1)
        out.backward()
        found.append([y.detach().to("cpu").numpy() for y in (out, x.grad, w.grad, b.grad)])
    for ours, theirs in zip(*found, strict=True):
        assert np.abs(ours - theirs).max() <= 64 * EPS * max(1, np.abs(theirs).max())
    device.check()
