"""Linear recurrences and the cache of states: against loops over tokens in float64, and gradients against torch's."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import ContextError, ShapeError

torch = pytest.importorskip("torch")

T, H, P, G, N = 150, 4, 3, 2, 5  # more than two chunks of ssd


def drawn(*shapes):
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape) for shape in shapes]


def f32(x):
    return tensorlib.from_numpy(x.astype(np.float32))


def close(got, want, tolerance=1e-5):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def loop(x, log_a, b, c, h):
    """y and the state, token by token; numbers of NumPy's or torch's."""
    found = []
    for t in range(T):
        wide = [each[t].repeat_interleave(H // G, 0) for each in (b, c)]
        h = h * log_a[t].exp()[:, None, None] + x[t][:, None, :] * wide[0][:, :, None]
        found.append((h * wide[1][:, :, None]).sum(1))
    return torch.stack(found), h


def test_ssd():
    """Results of a sequence that goes on, and the gradients of all that goes in."""
    arrays = drawn((T, H, P), (T, H), (T, G, N), (T, G, N), (H, N, P))
    arrays[1] = -np.abs(arrays[1])
    theirs = [torch.tensor(x, requires_grad=True) for x in arrays]
    y, h = loop(*theirs)
    (y.sin().sum() + h.sin().sum()).backward()
    ours = [f32(x).requires_grad_(True) for x in arrays]
    got, state = nn.ssd(*ours)
    (got.sin().sum() + state.sin().sum()).backward()
    close(got.detach().numpy(), y.detach().numpy())
    close(state.detach().numpy(), h.detach().numpy())
    for mine, other in zip(ours, theirs):
        close(mine.grad.numpy(), other.grad.numpy(), 1e-4)


def test_ssd_in_parts():
    """Tokens one by one give what all at once do; sequences of a batch are apart."""
    arrays = drawn((2, 70, H, P), (2, 70, H), (2, 70, G, N), (2, 70, G, N))
    x, log_a, b, c = f32(arrays[0]), -f32(arrays[1]).abs(), f32(arrays[2]), f32(arrays[3])
    want, last = nn.ssd(x, log_a, b, c)
    for i in range(2):
        state, found = None, []
        for t in range(70):
            y, state = nn.ssd(*(each[i, t : t + 1] for each in (x, log_a, b, c)), state)
            found.append(y.numpy())
        close(np.concatenate(found), want[i].numpy())
        close(state.numpy(), last[i].numpy())
    with pytest.raises(ShapeError, match="ssd"):
        nn.ssd(x, log_a, b, c[:, :, :1])


def wkv_loop(r, log_w, k, v, a, b, bonus, state):
    """Both recurrences of RWKV, one token after the other: with `bonus` that of 5 and 6, else that of 7."""
    found = []
    for t in range(len(r)):
        own, decay = k[t][:, :, None] * v[t][:, None, :], np.exp(log_w[t])[:, :, None]
        if bonus is not None:
            found.append(((state + bonus[:, :, None] * own) * r[t][:, :, None]).sum(1))
            state = decay * state + own
        else:
            moved = (state * a[t][:, :, None]).sum(1)
            state = decay * state + b[t][:, :, None] * moved[:, None, :] + own
            found.append((state * r[t][:, :, None]).sum(1))
    return np.stack(found), state


@pytest.mark.parametrize("seventh", [False, True])
def test_wkv(seventh):
    """More than two chunks, from a state and in parts; some decays are far too small to divide by."""
    r, log_w, k, a, v, bonus, past = drawn(*[(40, H, N)] * 4, (40, H, P), (H, N), (H, N, P))
    log_w, a = -np.exp(3 * log_w), a / np.linalg.norm(a, axis=-1, keepdims=True)
    b = -a * np.random.default_rng(1).random(a.shape)
    want, state = wkv_loop(r, log_w, k, v, a, b, None if seventh else bonus, past)

    def run(part, past):
        x = [f32(each[part]) for each in (r, log_w, k, v)]
        return nn.wkv7(*x, f32(a[part]), f32(b[part]), past) if seventh else nn.wkv(*x, f32(bonus), past)

    got, last = run(slice(0, 40), f32(past))
    close(got.numpy(), want)
    close(last.numpy(), state)
    found, last = [], f32(past)
    for part in (slice(0, 21), slice(21, 22), slice(22, 40)):
        y, last = run(part, last)
        found.append(y.numpy())
    close(np.concatenate(found), want)
    with pytest.raises(ShapeError, match="wkv"):
        r = r[:, :, 1:]
        run(slice(0, 40), f32(past))


@pytest.mark.parametrize("n", [1, 2, 13])
def test_linear_scan(n):
    """Along a dim in the middle, from a state."""
    a, b, h = drawn((2, n, 3), (2, n, 3), (2, 3))
    got = nn.linear_scan(f32(a), f32(b), 1, f32(h)).numpy()
    for t in range(n):
        h = a[:, t] * h + b[:, t]
        close(got[:, t], h)


def test_causal_conv():
    """As Conv1d with zeros before; the state goes on in the next part."""
    x, weight, bias = drawn((9, 6), (6, 1, 4), (6,))
    want = torch.nn.functional.conv1d(torch.tensor(x.T), torch.tensor(weight), torch.tensor(bias), padding=3, groups=6)
    want = want.numpy().T[:9]
    got, state = nn.causal_conv(f32(x[:2]), f32(weight), f32(bias))
    close(got.numpy(), want[:2])
    got, state = nn.causal_conv(f32(x[2:]), f32(weight[:, 0]), f32(bias), state)
    close(got.numpy(), want[2:])
    close(state.numpy(), x[-3:], 1e-6)
    with pytest.raises(ShapeError, match="causal_conv"):
        nn.causal_conv(f32(x), f32(weight[:5]))


def test_state_cache():
    cache = nn.StateCache({0: [(2, 3)]}, max_len=4, attention=[1], kv_heads=1, head_dim=8)
    cache.keep(0, 0, tensorlib.ones(2, 3))
    cache.advance(3)
    cache.reset(3)
    assert cache.past(0, 0).sum().item() == 6 and set(cache.layers) == {1}
    with pytest.raises(ContextError, match="no way back"):
        cache.reset(2)
    with pytest.raises(ContextError, match="at most 4"):
        cache.reserve(2)
    with pytest.raises(ShapeError, match="StateCache"):
        cache.keep(0, 0, tensorlib.ones(1, 3))
    cache.reset()
    assert cache.past(0, 0).sum().item() == 0 and cache.start.item() == 0
