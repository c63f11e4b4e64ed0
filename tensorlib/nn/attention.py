"""Rotary embeddings, key-value caches, attention over them. Positions live in memory, so that a decode step can be
replayed.
"""

from tensorlib.backend import kernel, launch
from tensorlib.device import Device
from tensorlib.errors import ContextError
from tensorlib.nn.module import Module
from tensorlib.ops import decode, fused
from tensorlib.tensor import empty

attention = fused.attention


class RotaryEmbedding(Module):
    """RoPE (arXiv:2104.09864): cos and sin of position * theta^(-2i/dim), [max_positions, dim / 2] f32, made once.

    `interleaved`: pairs are neighbours (x0, x1), as in the paper and in GGUF's Llama files; else (x0, x[dim/2]), as in
    Hugging Face's. `factors` divide the frequencies one by one (scaled variants).
    """

    def __init__(self, dim, max_positions, theta=10000.0, interleaved=False, factors=None):
        self._n, self.interleaved = max_positions, interleaved
        factors = factors or (1.0,) * (dim // 2)
        self._inv_freq = [theta ** (-2 * i / dim) / factor for i, factor in enumerate(factors)]
        self._tables = {}

    def tables(self, device="cpu"):
        """(cos, sin) on a device."""
        device = Device(device)
        if device not in self._tables:
            self._tables[device] = fused.rope_tables(self._inv_freq, self._n, device)
        return self._tables[device]

    def forward(self, x, start):
        """x [T, H, D] at positions start[0], start[0] + 1, ..."""
        return fused.rope(x, *self.tables(x.device), start, interleaved=self.interleaved)


class KVCache:
    """Keys and values of all layers, [kv_heads, max_len, head_dim] each; `start` (i64, one element) tokens are in it.

    Memory is touched only where tokens were written. `reserve` refuses what does not fit, before anything is written.
    `device`: where the memory is; on GPUs dtype may be float8.
    """

    def __init__(self, layers, kv_heads, max_len, head_dim, dtype="f16", device=None):
        shape = (kv_heads, max_len, head_dim)
        made = [empty(shape, dtype=dtype, device=device) for _ in range(2 * layers)]
        self.layers = list(zip(made[::2], made[1::2]))
        self.max_len, self.start = max_len, empty((1,), dtype="i64", device=device)
        self.length = 0
        if self.start.device.gpu is not None:
            decode.counters(self.start.device)  # now, since not while a graph records
        self.reset()

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

    def append(self, layer, k, v, rotary=None):
        """Writes k and v [T, kv_heads, head_dim] behind what is there, k rotated first; returns the layer's (keys,
        values).
        """
        keys, values = self.layers[layer]
        if rotary is None:
            fused.append(keys, k, self.start)
        else:
            fused.rope_append(keys, k, *rotary.tables(k.device), self.start, interleaved=rotary.interleaved)
        fused.append(values, v, self.start)
        return keys, values

    def attend(self, layer, q, k, v, rotary):
        """Attention of q over the layer's keys and values, with k and v [T, kv_heads * head_dim] behind them, q
        [T, heads * head_dim] and k rotated first: [T, heads * head_dim]. One query on a GPU is one launch. ShapeError.
        """
        keys, values = self.layers[layer]
        (groups, _, width), t = keys.shape, q.shape[0]
        q, k, v = q.reshape(t, -1, width), k.reshape(t, groups, width), v.reshape(t, groups, width)
        return decode.attend(q, k, v, keys, values, *rotary.tables(q.device), self.start, rotary.interleaved)


class FullAttention:
    """In a cache's place, for whole sequences and training: nothing is kept, gradients flow, sequences may be several.

    `attend` has KVCache's arguments: q [..., T, heads * head_dim], k and v [..., T, kv_heads * head_dim], the leading
    dims a batch; all positions begin at 0. Sequences of a batch are taken as more heads, so none is copied for another.
    """

    length = 0

    def __init__(self, kv_heads, head_dim, window=0):
        self.kv_heads, self.head_dim, self.window = kv_heads, head_dim, window

    def reserve(self, n):
        """Nothing: there is no limit."""

    def advance(self, n):
        """Nothing: no token is kept."""

    def attend(self, layer, q, k, v, rotary):
        """Causal attention within each sequence, q and k rotated first: q's shape. ShapeError."""
        *batch, t, wide = q.shape
        q, k, v = (self._heads(x, t) for x in (q, k, v))
        if rotary is not None:
            tables, pairs = rotary.tables(q.device), rotary.interleaved
            q, k = (fused.rope(x, *tables, 0, interleaved=pairs) for x in (q, k))
        found = fused.attention(q, k.transpose(0, 1), v.transpose(0, 1), window=self.window)
        return found.reshape(t, -1, wide).transpose(0, 1).reshape(*batch, t, wide)

    def _heads(self, x, t):
        """[..., T, heads * head_dim] as [T, sequences * heads, head_dim], f32 (f64 stays)."""
        x = x if x.dtype.name == "f64" else x.float()
        return x.reshape(-1, t, x.shape[-1]).transpose(0, 1).reshape(t, -1, self.head_dim)
