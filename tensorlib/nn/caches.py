"""Caches of keys and values for batches: each layer's are [..., G, T, D], as `scaled_dot_product_attention` takes them.

All have `append(layer, k, v)`, which gives the layer's (keys, values); `mask(layer, t)`: which of them each of the
last t queries sees, None for all; `attend(layer, q, k, v)`: both and the attention between them; `length`: how many
tokens every layer has; `reset()`. Keys are rotated before they get here. Only `ConcatCache` is differentiable.

    AppendCache      memory that doubles when it is full, or of a fixed size
    RotatingCache    the last `window` tokens, in a ring
    ConcatCache      a new tensor per step
    ScatteredCache   streams of a batch at positions of their own, each in a ring
    PagedCache       sequences in pages that they share (paged_cache.py)

>>> import tensorlib
>>> from tensorlib import nn
>>> cache = nn.RotatingCache(window=4)
>>> for t in (3, 1, 1):
...     k = tensorlib.zeros(1, 2, t, 8)
...     shape = cache.attend(0, k, k, k).shape
>>> cache.length, cache.append(0, k, k)[0].shape
(5, (1, 2, 4, 8))
"""

from tensorlib import tape
from tensorlib.errors import ContextError, GradError, ShapeError
from tensorlib.ops import index, movement
from tensorlib.ops.attention import scaled_dot_product_attention
from tensorlib.tensor import arange, empty, tensor


class Cache:
    """What all have. `layers` grows as layers are first appended to."""

    def __init__(self):
        self._layers = {}

    @property
    def length(self):
        """How many tokens all layers have."""
        return min((layer.length for layer in self._layers.values()), default=0)

    def append(self, layer, k, v):
        """Adds k [..., G, T, D] and v to a layer; its (keys, values), the new ones last unless in a ring. ShapeError,
        ContextError; GradError for what requires a gradient.
        """
        if k.ndim < 3 or k.shape[:-1] != v.shape[:-1]:
            got = f"k {k.shape}, v {v.shape}"
            raise ShapeError(type(self).__name__, got, "both [..., G, T, D], of as many tokens", "reshape them")
        if layer not in self._layers:
            self._layers[layer] = self._new(k, v)
        return self._layers[layer].append(k, v)

    def mask(self, layer, t):
        """Which of a layer's keys each of its last t tokens sees, bool [t, S] (or [B, 1, t, S]); None: all see all."""
        return self._layers[layer].mask(t)

    def attend(self, layer, q, k, v, scale=None):
        """`scaled_dot_product_attention` of q [..., H, T, D] over the layer's keys and values, k and v behind them.

        Causal; H is a multiple of G. Keys and values are cast to q's dtype, if the cache has another.
        """
        keys, values = (x.to(q.dtype) for x in self.append(layer, k, v))
        return scaled_dot_product_attention(
            q, keys, values, self.mask(layer, q.shape[-2]), scale=scale, enable_gqa=True
        )

    def reset(self):
        """Forgets all tokens; memory is kept."""
        for layer in self._layers.values():
            layer.reset(0)


def refuse_gradients(name, *tensors):
    """GradError for tensors of which gradients are recorded."""
    if tape.used and tape.mode.recording and any(map(tape.live, tensors)):
        fix = "generate under tensorlib.no_grad(), train without a cache or with ConcatCache"
        raise GradError(name, "keys or values that require a gradient", "what is not differentiated", fix)


def causal_mask(positions, keys, window=0):
    """bool [..., T, S] for positions [..., T] of queries and [..., S] of keys (below 0: none is there): a query sees
    keys up to its own position, with `window` the last so many.

    >>> causal_mask(tensor([1, 2]), tensor([0, 1, 2, -1]), window=2).tolist()
    [[True, True, False, False], [False, True, True, False]]
    """
    positions, keys = movement.unsqueeze(positions, -1), movement.unsqueeze(keys, -2)
    seen = (keys <= positions) & (keys >= 0)
    return seen & (keys > positions - window) if window else seen


class _Appended:
    """Two buffers [..., G, rows, D], of which `length` rows are filled."""

    def __init__(self, name, k, v, rows, fixed, dtype, device):
        self.name, self.length, self.fixed = name, 0, fixed
        self.dtype, self.device = dtype or k.dtype, device or k.device
        self.buffers = [self._made(x, rows) for x in (k, v)]

    def _made(self, like, rows):
        return empty((*like.shape[:-2], rows, like.shape[-1]), dtype=self.dtype, device=self.device)

    def append(self, k, v):
        refuse_gradients(self.name, k, v)
        self.reserve(k.shape[-2])
        for buffer, x in zip(self.buffers, (k, v)):
            self.write(buffer, x, self.length)
        self.length += k.shape[-2]
        return tuple(movement.narrow(buffer, -2, 0, self.length) for buffer in self.buffers)

    def write(self, buffer, x, at):
        """x to rows from `at` on."""
        if buffer.shape[:-2] != x.shape[:-2] or buffer.shape[-1] != x.shape[-1]:
            got = f"{x.shape} for a cache of {buffer.shape}"
            raise ShapeError(self.name, got, "other sizes than the tokens' as at first", "make a new cache")
        movement.narrow(buffer, -2, at, x.shape[-2])[...] = x

    def reserve(self, n):
        rows = self.buffers[0].shape[-2]
        if self.length + n <= rows:
            return
        if self.fixed:
            got, fix = f"{self.length} tokens and {n} more", "shorten the prompt, or make a longer cache"
            raise ContextError(self.name, got, f"at most {rows}", fix)
        for i, old in enumerate(self.buffers):
            self.buffers[i] = self._made(old, max(2 * rows, self.length + n))
            movement.narrow(self.buffers[i], -2, 0, self.length)[...] = movement.narrow(old, -2, 0, self.length)

    def mask(self, t):
        return None if t == 1 else _after(self.length, t, self.device)

    def reset(self, length):
        self.length = length


def _after(length, t, device, window=0, first=0):
    """The mask of the last t of `length` tokens over those from `first` on."""
    keys = arange(first, length, device=device)
    return causal_mask(arange(length - t, length, device=device), keys, window)


class AppendCache(Cache):
    """Tokens one behind the other in memory of `rows` (doubled when full), or of `max_len`, which is not exceeded.

    dtype, device: of the memory (None: as the first keys); float8 where the device has it.
    """

    def __init__(self, rows=256, max_len=None, dtype=None, device=None):
        super().__init__()
        self._options = (max_len or rows, max_len is not None, dtype, device)

    def _new(self, k, v):
        return _Appended(type(self).__name__, k, v, *self._options)

    def reset(self, length=0):
        """Forgets the tokens after the first `length` of each layer. ContextError if there are not so many."""
        if length > self.length:
            raise ContextError("AppendCache", f"reset to {length} tokens", f"at most {self.length}", "append them")
        for layer in self._layers.values():
            layer.reset(length)


class ConcatCache(Cache):
    """Tokens one behind the other in a new tensor per step, in the dtype that they come in. Differentiable."""

    def _new(self, k, v):
        return _Joined()


class _Joined:
    def __init__(self):
        self.pair, self.length = None, 0

    def append(self, k, v):
        self.pair = (k, v) if self.pair is None else tuple(movement.cat(x, -2) for x in zip(self.pair, (k, v)))
        self.length = self.pair[0].shape[-2]
        return self.pair

    def mask(self, t):
        return None if t == 1 else _after(self.length, t, self.pair[0].device)

    def reset(self, length):
        self.pair, self.length = None, 0


class RotatingCache(Cache):
    """The last `window` tokens, in a ring: each query sees so many keys, its own the last (sliding window attention).

    One token is written over the oldest, and keys stand in the ring's order. Several at once come behind the last
    window - 1 before them, so that each sees its whole window. dtype, device: of the memory (None: the keys').
    """

    def __init__(self, window, dtype=None, device=None):
        super().__init__()
        if window < 1:
            raise ShapeError("RotatingCache", f"window {window}", "at least 1", "give the number of keys that are seen")
        self.window, self._options = window, (dtype, device)

    def _new(self, k, v):
        return _Ring(type(self).__name__, k, v, self.window, False, *self._options)

    def positions(self, layer):
        """The positions (i64 [S]) of the keys that the layer's last append gave."""
        return self._layers[layer].positions()


class _Ring(_Appended):
    """Token p is in row p % window."""

    def append(self, k, v):
        refuse_gradients(self.name, k, v)
        window, t = self.buffers[0].shape[-2], k.shape[-2]
        before = min(self.length, window - 1)
        old = [] if t == 1 else [self._last(buffer, before) for buffer in self.buffers]
        for buffer, x in zip(self.buffers, (k, v)):
            skipped = max(0, t - window)
            self._write_around(buffer, movement.narrow(x, -2, skipped, t - skipped), self.length + skipped)
        self.length, self.first = self.length + t, self.length - before
        if t == 1:
            self.first = None  # in the ring's order
            return tuple(movement.narrow(buffer, -2, 0, min(self.length, window)) for buffer in self.buffers)
        return tuple(movement.cat([x, new.to(self.dtype).to(self.device)], -2) for x, new in zip(old, (k, v)))

    def _write_around(self, buffer, x, position):
        window, t = buffer.shape[-2], x.shape[-2]
        at = position % window
        head = min(t, window - at)
        self.write(buffer, movement.narrow(x, -2, 0, head), at)
        if t > head:
            self.write(buffer, movement.narrow(x, -2, head, t - head), 0)

    def _last(self, buffer, n):
        """The last n tokens in order."""
        window, end = buffer.shape[-2], self.length
        at = (end - n) % window
        head = min(n, window - at)
        parts = [movement.narrow(buffer, -2, at, head), movement.narrow(buffer, -2, 0, n - head)]
        return movement.cat(parts, -2)

    def positions(self):
        if self.first is not None:
            return arange(self.first, self.length, device=self.device)
        window, last = self.buffers[0].shape[-2], self.length - 1
        rows = arange(min(self.length, window), device=self.device)
        return last - (last - rows) % window

    def mask(self, t):
        if t == 1 and self.first is None:
            return None
        return _after(self.length, t, self.device, self.buffers[0].shape[-2], self.first)


class ScatteredCache(Cache):
    """Streams of a batch, each at a position of its own: k and v [B, G, T, D], of which stream b adds the first
    counts[b] tokens; what lies behind is padding, whose results mean nothing. The last `window` tokens of a stream are
    kept, in a ring (Kyutai's scheme: a server's streams come and go, and the batch stays).

    Several tokens at once come behind the ring as it was before, so that each sees its whole window.
    """

    def __init__(self, streams, window, dtype=None, device=None):
        super().__init__()
        if streams < 1 or window < 1:
            raise ShapeError("ScatteredCache", f"{streams} streams of {window}", "at least 1 of each", "give more")
        self.streams, self.window, self._options = streams, window, (dtype, device)
        self.counts = None

    def step(self, counts=None):
        """How many tokens of those that come next each stream adds, in every layer; None: all, bools: all or none."""
        if counts is not None and len(counts) != self.streams:
            raise ShapeError("ScatteredCache", f"{len(counts)} counts", f"{self.streams}", "give one per stream")
        self.counts = None if counts is None else list(counts)

    def _new(self, k, v):
        if k.ndim != 4 or k.shape[0] != self.streams:
            got = f"k of shape {k.shape}"
            raise ShapeError("ScatteredCache", got, f"({self.streams}, G, T, D)", "put the streams first")
        return _Scattered(self, k, v, *self._options)

    @property
    def lengths(self):
        """How many tokens each stream has, in all layers."""
        each = [layer.lengths for layer in self._layers.values()] or [[0] * self.streams]
        return [min(some) for some in zip(*each)]

    @property
    def length(self):
        """How many tokens the longest stream has."""
        return max(self.lengths)

    def positions(self, t):
        """i64 [B, t]: where the next t tokens of each stream stand, as rotary embeddings need it."""
        return tensor([[n + i for i in range(t)] for n in self.lengths])

    def reset(self, stream=None):
        """Forgets all tokens of a stream, or of all streams."""
        for layer in self._layers.values():
            for b in range(self.streams) if stream is None else (stream,):
                layer.lengths[b] = 0


class _Scattered:
    """Buffers [B * window, G, D]; `places`: the position of each row's token, [B, window], -1 where there is none."""

    def __init__(self, cache, k, v, dtype, device):
        self.cache, self.window, self.lengths = cache, cache.window, [0] * cache.streams
        self.dtype, self.device = dtype or k.dtype, device or k.device
        rows = cache.streams * cache.window
        self.buffers = [empty((rows, x.shape[1], x.shape[3]), dtype=self.dtype, device=self.device) for x in (k, v)]
        for buffer in self.buffers:
            buffer.zero_()  # what is hidden is multiplied by 0, and has to be a number

    def append(self, k, v):
        refuse_gradients("ScatteredCache", k, v)
        t, window = k.shape[2], self.window
        counts = [t if n is True else min(int(n), t) for n in self.cache.counts or [t] * len(self.lengths)]
        self.queries = tensor([[n + i for i in range(t)] for n in self.lengths], device=self.device)
        before, found = self._places(), None
        if t > 1:  # what is written below may be in the window of the first ones still
            pairs = zip(self.buffers, (k, v))
            found = tuple(movement.cat([self._all(old), x.to(self.dtype).to(self.device)], 2) for old, x in pairs)
        rows, chosen = [], []
        for b, (n, count) in enumerate(zip(self.lengths, counts)):
            for i in range(max(0, count - window), count):
                rows.append(b * window + (n + i) % window)
                chosen.append(b * t + i)
        if rows:
            rows, chosen = tensor(rows, device=self.device), tensor(chosen, device=self.device)
            for buffer, x in zip(self.buffers, (k, v)):
                tokens = x.permute((0, 2, 1, 3)).reshape((-1, x.shape[1], x.shape[3])).to(self.dtype).to(self.device)
                buffer[rows] = index.index_select(tokens, 0, chosen)
        starts, self.lengths = self.lengths, [n + count for n, count in zip(self.lengths, counts)]
        if found is None:
            self.keys = tensor(self._places(), device=self.device)
            return tuple(self._all(buffer) for buffer in self.buffers)
        new = [[n + i if i < count else -1 for i in range(t)] for n, count in zip(starts, counts)]
        self.keys = tensor([a + b for a, b in zip(before, new)], device=self.device)
        return found

    def _all(self, buffer):
        return buffer.reshape((len(self.lengths), self.window, *buffer.shape[1:])).permute((0, 2, 1, 3))

    def _places(self):
        window = self.window
        found = []
        for n in self.lengths:
            last = n - 1
            found.append([last - (last - row) % window if row < n else -1 for row in range(window)])
        return found

    def mask(self, t):
        return movement.unsqueeze(causal_mask(self.queries, self.keys, self.window), 1)
