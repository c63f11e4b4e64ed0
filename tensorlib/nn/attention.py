"""Rotary embeddings, key-value caches, attention over them. Positions live in memory, so that a decode step can be
replayed.
"""

from tensorlib.backend import kernel, launch
from tensorlib.device import Device
from tensorlib.errors import ContextError, ShapeError
from tensorlib.nn.module import Module
from tensorlib.ops import decode, elementwise, fused, index, movement
from tensorlib.tensor import arange, empty

attention = fused.attention


class RotaryEmbedding(Module):
    """RoPE (arXiv:2104.09864): cos and sin of position * theta^(-2i/dim), [max_positions, dim / 2] f32, made once.

    `interleaved`: pairs are neighbours (x0, x1), as in the paper and in GGUF's Llama files; else (x0, x[dim/2]), as in
    Hugging Face's. `factors` divide the frequencies one by one (scaled variants). `scaling`: what `rope_frequencies`
    gives, in place of theta and factors. `sections`: how many frequencies turn with each axis of positions, of which
    there are several (M-RoPE, arXiv:2409.12191), one section behind the other, or with `mixed` in turns.
    """

    def __init__(
        self, dim, max_positions, theta=10000.0, interleaved=False, factors=None, scaling=None, sections=None,
        mixed=False,
    ):  # fmt: skip
        self._n, self.interleaved = max_positions, interleaved
        factors = factors or (1.0,) * (dim // 2)
        self._inv_freq, self._factor = [theta ** (-2 * i / dim) / factor for i, factor in enumerate(factors)], 1.0
        if scaling is not None:
            self._inv_freq, self._factor = list(scaling[0]), scaling[1]
        self._axes = None if sections is None else _axes(sections, mixed, len(self._inv_freq))
        self._tables = {}

    def tables(self, device="cpu", positions=0):
        """(cos, sin) on a device. ContextError if they are of fewer than so many positions."""
        if positions > self._n:
            fix = "shorten the text, or prepare more"
            raise ContextError("RotaryEmbedding", f"{positions} positions", f"at most {self._n}", fix)
        device = Device(device)
        if device not in self._tables:
            made = fused.rope_tables(self._inv_freq, self._n, device)
            if self._factor != 1.0:
                made = tuple(elementwise.mul(table, self._factor) for table in made)
            self._tables[device] = made
        return self._tables[device]

    def tables_at(self, positions):
        """(cos, sin), a row for each of T positions: i64 [T], or with `sections` [axes, T]. ShapeError."""
        half, axes = len(self._inv_freq), self._axes or (0,) * len(self._inv_freq)
        positions = positions if self._axes else movement.unsqueeze(positions, 0)
        if positions.ndim != 2 or positions.shape[0] <= max(axes):
            expected = f"[{max(axes) + 1}, T]" if self._axes else "[T]"
            raise ShapeError("RotaryEmbedding", f"positions of shape {positions.shape}", expected, "see sections")
        rows = movement.transpose(index.index_select(positions, 0, list(axes)), 0, 1)
        places = elementwise.add(elementwise.mul(rows, half), arange(half, device=positions.device))
        flat = movement.reshape(places, -1)
        tables = (movement.reshape(table, -1) for table in self.tables(positions.device))
        return tuple(movement.reshape(index.index_select(table, 0, flat), places.shape) for table in tables)

    def forward(self, x, start=0, positions=None):
        """x [T, H, D] at positions start[0], start[0] + 1, ..., or at those given: see `tables_at`."""
        if positions is None:
            return fused.rope(x, *self.tables(x.device), start, interleaved=self.interleaved)
        return fused.rope(x, *self.tables_at(positions), 0, interleaved=self.interleaved)


def _axes(sections, mixed, frequencies):
    """The axis of positions that each frequency turns with. ShapeError unless the sections are all of them."""
    if sum(sections) != frequencies:
        got = f"sections {tuple(sections)} of {frequencies} frequencies"
        raise ShapeError("RotaryEmbedding", got, "sections that add up", "see mrope_section in the model's config.json")
    if not mixed:
        return tuple(axis for axis, size in enumerate(sections) for _ in range(size))
    n = len(sections)
    return tuple(i % n if i < n * sections[i % n] else 0 for i in range(frequencies))


class KVCache:
    """Keys and values of all layers, [kv_heads, max_len, head_dim] each; `start` (i64, one element) tokens are in it.

    Memory is touched only where tokens were written. `reserve` refuses what does not fit, before anything is written.
    `device`: where the memory is; on GPUs dtype may be float8. `rewinds`: whether `reset` takes any length.
    """

    rewinds = True

    def __init__(self, layers, kv_heads, max_len, head_dim, dtype="f16", device=None):
        self.layers = self._memory(layers, kv_heads, max_len, head_dim, dtype, device)
        self.max_len, self.start = max_len, empty((1,), dtype="i64", device=device)
        self.length = 0
        if self.start.device.gpu is not None:
            decode.counters(self.start.device)  # now, since not while a graph records
        self.reset()

    def _memory(self, layers, heads, max_len, width, dtype, device):
        made = [empty((heads, max_len, width), dtype=dtype, device=device) for _ in range(2 * layers)]
        return list(zip(made[::2], made[1::2]))

    def reset(self, length=0):
        """Forgets all tokens after the first `length`."""
        self.length = length
        self._count("store", length)

    def reserve(self, n):
        """ContextError unless `n` more tokens fit."""
        if self.length + n > self.max_len:
            got = f"{self.length} tokens in the cache and {n} more"
            raise ContextError(
                "KVCache", got, f"at most {self.max_len}", "shorten the prompt, or load with a larger context"
            )

    def advance(self, n):
        """`n` tokens were appended to every layer (recorded like any kernel)."""
        self.length += n
        self._count("add", n)

    def _count(self, name, n):
        launch(kernel("counter", name, device=self.start.device.type), (self.start.ptr, n), writes=(self.start,))

    def last(self, x):
        """The row of x [T, ...] of the last token: [1, ...]."""
        return x[-1:] if x.shape[0] > 1 else x

    def positions(self, ids):
        """i64 [T]: where the next tokens `ids` [T] stand, read from memory when a recorded step is replayed."""
        return elementwise.add(arange(ids.shape[-1], device=ids.device), self.start)

    def append(self, layer, k, v, rotary=None):
        """Writes k and v [T, kv_heads, head_dim] behind what is there, k rotated first (unless rotary is None);
        returns the layer's (keys, values).
        """
        keys, values = self.layers[layer]
        if rotary is None:
            fused.append(keys, k, self.start)
        else:
            tables = rotary.tables(k.device, self.length + k.shape[0])
            fused.rope_append(keys, k, *tables, self.start, interleaved=rotary.interleaved)
        fused.append(values, v, self.start)
        return keys, values

    def attend(self, layer, q, k, v, rotary, **options):
        """Attention of q over the layer's keys and values, with k and v [T, kv_heads * head_dim] behind them, q
        [T, heads * head_dim] and k rotated first (unless rotary is None): [T, heads * head_dim]. ShapeError.

        `options`: scale, window and softcap of `attention`. One query on a GPU is one launch, without options.
        """
        keys, values = self.layers[layer]
        (groups, _, width), t = keys.shape, q.shape[0]
        q, k, v = q.reshape(t, -1, width), k.reshape(t, groups, width), v.reshape(t, groups, width)
        if not options and rotary is not None:
            tables = rotary.tables(q.device, self.length + t)
            return decode.attend(q, k, v, keys, values, *tables, self.start, rotary.interleaved)
        self.append(layer, k, v, rotary)
        if rotary is not None:
            q = fused.rope(q, *rotary.tables(q.device), self.start, interleaved=rotary.interleaved)
        return fused.attention(q, keys, values, start=self.start, **options).reshape(t, -1)


class FullAttention:
    """In a cache's place, for whole sequences and training: nothing is kept, gradients flow, sequences may be several.

    `attend` has KVCache's arguments: q [..., T, heads * head_dim], k and v [..., T, kv_heads * head_dim], the leading
    dims a batch; all positions begin at 0. Sequences of a batch are taken as more heads, so none is copied for another.
    """

    length = 0

    def __init__(self, head_dim):
        self.head_dim = head_dim

    def reserve(self, n):
        """Nothing: there is no limit."""

    def advance(self, n):
        """Nothing: no token is kept."""

    def last(self, x):
        """The row of x [..., T, D] of each sequence's last token: [..., 1, D]."""
        return x[..., -1:, :]

    def past(self, layer, i):
        """None: every sequence begins here (see StateCache)."""

    def keep(self, layer, i, state):
        """Nothing: no token comes after (see StateCache)."""

    def positions(self, ids):
        """i64 [T]: where the tokens `ids` [..., T] of every sequence stand."""
        return arange(ids.shape[-1], device=ids.device)

    def attend(self, layer, q, k, v, rotary, **options):
        """Causal attention within each sequence, q and k rotated first: q's shape. ShapeError. See KVCache.attend."""
        *batch, t, wide = q.shape
        q, k, v = (self._heads(x, t) for x in (q, k, v))
        if rotary is not None:
            tables, pairs = rotary.tables(q.device, t), rotary.interleaved
            q, k = (fused.rope(x, *tables, 0, interleaved=pairs) for x in (q, k))
        found = fused.attention(q, k.transpose(0, 1), v.transpose(0, 1), **options)
        return found.reshape(t, -1, wide).transpose(0, 1).reshape(*batch, t, wide)

    def _heads(self, x, t):
        """[..., T, heads * head_dim] as [T, sequences * heads, head_dim], f32 (f64 stays)."""
        x = x if x.dtype.name == "f64" else x.float()
        return x.reshape(-1, t, x.shape[-1]).transpose(0, 1).reshape(t, -1, self.head_dim)
