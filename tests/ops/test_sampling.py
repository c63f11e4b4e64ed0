"""Philox against Random123's known answers; the choice of a token against a plain NumPy implementation.

The kernel draws by inverse CDF in token order, so a test computes the cumulative probabilities in float64 and asks for
the token whose interval holds u. Tolerance on the cumulative sum: a logit over the temperature is rounded to f32, which
moves its weight by |y| 2**-24 <= 1e-5 for |y| <= 160; vexp adds 2 ulp; the sum over all is moved by no more than that.
"""

import platform

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kernels_numba import levels
from tensorlib import backend, dtype
from tensorlib.capture import Capture
from tensorlib.device import Array, Buffer
from tensorlib.layout import contiguous

TOLERANCE = 2e-5
DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "penalty": 1.0, "window": 0, "capacity": 0}


def address(x):
    """Of a NumPy array's first element."""
    return x.ctypes.data


def philox(key, low, high, blocks=1):
    """The kernel's words, (blocks, 4)."""
    out = np.zeros((blocks, 4), np.uint32)
    array = Array(Buffer.of(out.view(np.uint8).reshape(-1)), contiguous(out.shape), dtype.get("u32"))
    signed = [int(np.uint64(v).view(np.int64)) for v in (key, low, high)]
    backend.launch(backend.kernel("random", "philox"), [array.ptr, blocks, *signed], blocks, (), (array,))
    return out


def reference_philox(key, counter):
    """Random123's philox4x32, 10 rounds; the counter is an int of 128 bits."""
    mask, c, k = 0xFFFFFFFF, [counter >> 32 * i & 0xFFFFFFFF for i in range(4)], [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        x, y = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(y >> 32) ^ c[1] ^ k[0], y & mask, (x >> 32) ^ c[3] ^ k[1], x & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c


# kat_vectors of Random123 1.14: philox4x32 10, counter, key, result; words in order, lowest first
KNOWN = (
    ((0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (((1 << 64) - 1,) * 3, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x299F31D0A4093822, 0x85A308D3243F6A88, 0x0370734413198A2E),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.mark.parametrize(("inputs", "answer"), KNOWN)
def test_philox_known_answers(inputs, answer):
    key, low, high = inputs
    assert tuple(philox(key, low, high)[0]) == answer
    assert tuple(reference_philox(key, low | high << 64)) == answer


def test_philox_counts_over_many_blocks_and_threads():
    many = philox(7, 100, 0, 100_000)
    for i in (0, 1, 49_999, 50_000, 99_999):
        assert list(many[i]) == reference_philox(7, 100 + i)


class Sampler:
    """The memory that the kernel works on, and one call of it. `scratch` ends where the formula says, then poison."""

    def __init__(self, logits, history=(), seed=0, counter=0, **settings):
        self.logits = np.array(logits, np.float32)
        self.settings = s = {**DEFAULTS, **settings}
        words = np.array([s["temperature"], 0, s["top_p"], s["min_p"], s["penalty"], 0, 0], np.float64)
        words.view(np.int64)[[1, 5, 6]] = s["top_k"], s["window"], s["capacity"]
        self.params, self.length = words, np.array([len(history)])
        self.history = np.array([*history, *[-1] * 8], np.int64)
        self.state, self.out = np.array([seed, counter], np.int64), np.array([-1])
        self.bytes = 17 * len(self.logits) + 2048
        memory = np.full(self.bytes + 128, 0x5A, np.uint8)
        self.scratch = memory[-address(memory) % 64 :]

    def __call__(self):
        """The next token; checks that nothing was written that should not be."""
        before = self.logits.copy()
        words = [address(self.logits), len(self.logits), address(self.params), address(self.history)]
        words += [address(x) for x in (self.length, self.state, self.scratch, self.out)]
        backend.launch(backend.kernel("random", "sample"), words)
        np.testing.assert_array_equal(self.logits.view(np.int32), before.view(np.int32))
        assert (self.scratch[self.bytes :] == 0x5A).all()
        return int(self.out[0])


def uniform(seed, counter):
    a, b, *_ = reference_philox(seed, counter)
    return ((a << 32 | b) >> 11) * 2.0**-53


def penalised(logits, history, penalty, window):
    x = np.where(np.isnan(logits), np.float32(-np.inf), logits)
    for token in set(history[-window:] if window else history):
        if 0 <= token < len(x):
            x[token] = x[token] / np.float32(penalty) if x[token] > 0 else x[token] * np.float32(penalty)
    return x


def kept(y, top_k, top_p, min_p):
    """Which tokens remain, and how near (in probability) the nearest decision was."""
    keep, near = np.isfinite(y), 1.0
    if 0 < top_k < len(y):
        keep &= y >= np.sort(y)[-top_k]
    p = np.where(keep, np.exp(y.astype(np.float64) - y[keep].max()), 0.0)
    if top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) / p.sum()
        near = min(near, abs(before - top_p).min())
        first = order[: 1 + np.searchsorted(before, top_p)]
        keep &= np.isin(np.arange(len(y)), first)
    if min_p > 0:
        near = min(near, abs(p[keep] - min_p).min())
        keep &= p >= min(min_p, 1.0)
    return keep, near


def check(sampler, history, seed):
    """Draws once and holds the token to the reference."""
    s = sampler.settings
    x = penalised(sampler.logits.copy(), history, s["penalty"], s["window"])
    token = sampler()
    if not np.isfinite(x).any():
        assert token == 0
    elif s["temperature"] == 0:
        assert token == int(np.argmax(x))
    else:
        y = x / np.float32(s["temperature"])
        keep, near = kept(y, s["top_k"], s["top_p"], s["min_p"])
        assume(near > TOLERANCE)
        p = np.where(keep, np.exp(y.astype(np.float64) - y[keep].max()), 0.0)
        high = np.cumsum(p) / p.sum()
        u = uniform(seed, 0)
        assert keep[token]
        assert high[token] - p[token] / p.sum() - TOLERANCE <= u <= high[token] + TOLERANCE


def some_logits(size, kind, seed):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(size) * rng.choice([0.5, 3, 12])).astype(np.float32)
    if kind == "ties":
        x = np.round(x)
    elif kind == "masked":
        x[rng.random(size) < 0.5] = -np.inf
        x[rng.random(size) < 0.1] = np.nan
    return x


SIZES = st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 129, 1000, 5000])


@settings(max_examples=400)
@given(
    SIZES,
    st.sampled_from(["plain", "ties", "masked"]),
    st.integers(0, 999),
    st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0]),
    st.sampled_from([0, 1, 2, 5, 40, 100, 999]),
    st.sampled_from([1.0, 0.95, 0.9, 0.5, 0.0]),
    st.sampled_from([0.0, 0.02, 0.3, 1.5]),
    st.sampled_from([(1.0, 0), (1.3, 0), (1.3, 2), (0.8, 100)]),
)
def test_sample(size, kind, seed, temperature, top_k, top_p, min_p, penalty):
    logits = some_logits(size, kind, seed)
    history = list(np.random.default_rng(seed).integers(0, size, 5)) + [size - 1, size, -1, 1 << 40]
    names = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    names |= {"penalty": penalty[0], "window": penalty[1]}
    check(Sampler(logits, history, seed, **names), history, seed)


def test_greedy_takes_the_first_of_equals_in_a_large_vocabulary():
    logits = np.random.default_rng(0).standard_normal(49152).astype(np.float32)
    for places in ((49151,), (0, 49151), (31, 32), (70, 5000), (64, 127)):
        x = logits.copy()
        x[list(places)] = 50.0
        x[[3, 33]] = np.nan
        assert Sampler(x, temperature=0)() == places[0]
    for empty in (np.nan, -np.inf):
        assert Sampler([empty] * 100, temperature=0)() == Sampler([empty] * 100)() == 0


def test_extremes_fall_back_to_the_largest():
    logits = some_logits(1000, "plain", 1)
    best = int(logits.argmax())
    assert Sampler(logits, temperature=1e-40)() == best
    assert Sampler(logits, temperature=1e-3, seed=5)() == best
    assert Sampler(logits, top_k=1, seed=5)() == best
    assert Sampler(logits, top_p=0.0, seed=5)() == best
    assert Sampler(logits, min_p=2.0, seed=5)() == best
    logits[7] = np.inf
    assert Sampler(logits, seed=5)() == 7


def test_the_edge_of_top_p_keeps_as_many_ties_as_it_needs():
    # ten equals: 0.45 is reached by five of them, the lowest
    tokens = {Sampler([0.0] * 10, seed=s, top_p=0.45)() for s in range(200)}
    assert tokens == {0, 1, 2, 3, 4}
    # top-k keeps all ties with the k-th
    assert {Sampler([0.0] * 10, seed=s, top_k=3)() for s in range(300)} == set(range(10))


def test_masked_tokens_are_never_drawn():
    logits = np.full(200, -np.inf, np.float32)
    logits[[50, 150]] = -3.0, np.nan
    assert {Sampler(logits, seed=s, temperature=9.0)() for s in range(50)} == {50}


def test_history_grows_to_its_capacity():
    sampler = Sampler([0.0, 5.0, 1.0], history=[2], temperature=0, capacity=3)
    for _ in range(4):
        assert sampler() == 1
    assert list(sampler.history[:4]) == [2, 1, 1, -1]
    assert sampler.length[0] == 3
    # each new token weighs on the next choice: 5 / 1.5 is above 2, 5 / 3 is not
    sampler = Sampler([2.0, 5.0, 1.0], temperature=0, capacity=8, penalty=3.0)
    assert [sampler(), sampler()] == [1, 0]


def test_a_seed_gives_one_sequence():
    logits = some_logits(500, "plain", 3) / 8

    def sequence(seed, counter=0):
        sampler = Sampler(logits, seed=seed, counter=counter)
        return [sampler() for _ in range(40)]

    assert sequence(1) == sequence(1) != sequence(2)
    assert sequence(1)[10:] == sequence(1, counter=10)[:30]
    greedy = Sampler(logits, temperature=0)
    greedy()
    assert greedy.state[1] == 0


@pytest.mark.parametrize("names", [{}, {"temperature": 0.7, "top_k": 12, "top_p": 0.9}])
def test_distribution(names):
    """Pearson's X of n draws: P(X > d + 2 sqrt(d t) + 2 t) <= exp(-t) for d degrees (Laurent and Massart, 2000)."""
    logits, n, t = some_logits(50, "plain", 4) / 3, 20_000, 20
    sampler = Sampler(logits, seed=11, **names)
    counts = np.bincount([sampler() for _ in range(n)], minlength=50)
    s = sampler.settings
    y = logits / np.float32(s["temperature"])
    keep, _ = kept(y, s["top_k"], s["top_p"], s["min_p"])
    p = np.where(keep, np.exp(y.astype(np.float64)), 0)
    expected = n * p[keep] / p.sum()
    degrees = keep.sum() - 1
    assert counts[~keep].sum() == 0 and expected.min() > 5
    assert ((counts[keep] - expected) ** 2 / expected).sum() < degrees + 2 * np.sqrt(degrees * t) + 2 * t


def test_replays():
    logits = some_logits(300, "plain", 5)
    eager, recorded = (Sampler(logits, seed=3, capacity=8, penalty=1.2) for _ in range(2))
    with Capture() as step:
        first = recorded()
    tokens = [first]
    for _ in range(4):
        step.replay()
        tokens.append(int(recorded.out[0]))
    assert tokens == [eager() for _ in range(5)] == list(recorded.history[:5])


DRAWS = """
import numpy as np
from tensorlib import backend
logits = np.sin(np.arange(3000, dtype=np.float64) ** 1.5 % 100).astype(np.float32) * 4
params = np.array([0.8, 0, 0.95, 0.01, 1.1, 0, 0])
params.view(np.int64)[[1, 6]] = 200, 100
history, length, state, out = np.zeros(100, np.int64), np.zeros(1, np.int64), np.array([9, 0]), np.zeros(1, np.int64)
scratch = np.zeros(17 * 3000 + 2048 + 64, np.uint8)
words = [logits.ctypes.data, 3000] + [x.ctypes.data for x in (params, history, length, state)]
words += [scratch.ctypes.data + -scratch.ctypes.data % 64, out.ctypes.data]
for _ in range(60):
    backend.launch(backend.kernel("random", "sample"), words)
print(*history[:60])
"""


HERE = [
    n for n, v in levels.LEVELS.items() if v.flags <= levels.cpu_flags() and v.triple.startswith(platform.machine())
]


def test_levels_agree(run_python):
    drawn = {run_python(DRAWS, TENSORLIB_CPU_LEVEL=level) for level in HERE}
    assert len(drawn) == 1 and len(set(drawn.pop().split())) > 20
