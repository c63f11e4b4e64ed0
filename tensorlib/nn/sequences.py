"""Sequences of several lengths one after the other, without padding: what encoders compute on."""

from copy import copy

from tensorlib.errors import ShapeError
from tensorlib.ops import create, fused, index, movement
from tensorlib.ops.attention import scaled_dot_product_attention
from tensorlib.ops.exchange import tolist
from tensorlib.tensor import tensor


class Sequences:
    """B sequences of tokens as one of N: `ids` and `positions` (within each sequence) i64 [N], `lengths` B ints.

    From ids [T] or [B, T] with `attention_mask` (as ids; where it is 0 stands padding, at either side), or from a list
    of lists of ids. Padding is left out, and costs nothing. ShapeError for an empty sequence, or for another shape.
    `seen`: of each sequence how many of its first tokens are attended to; None: all.

    >>> import tensorlib
    >>> s = Sequences(tensorlib.tensor([[5, 6, 0], [7, 8, 9]]), tensorlib.tensor([[1, 1, 0], [1, 1, 1]]))
    >>> s.ids.tolist(), s.lengths, s.positions.tolist()
    ([5, 6, 7, 8, 9], (2, 3), [0, 1, 0, 1, 2])
    >>> s.unpack(s.ids.float().reshape(5, 1)).reshape(2, 3).tolist()
    [[5.0, 6.0, 0.0], [7.0, 8.0, 9.0]]
    """

    def __init__(self, ids, attention_mask=None, device=None, seen=None):
        self._kept, self._shape, self.seen = None, None, seen
        if isinstance(ids, (list, tuple)):
            self.lengths = tuple(map(len, ids))
            self.ids = tensor([i for row in ids for i in row], dtype="i64", device=device)
        else:
            self._shape = tuple(ids.shape)
            if len(self._shape) not in (1, 2) or (attention_mask is not None and attention_mask.shape != ids.shape):
                got = f"ids {ids.shape}, attention_mask {getattr(attention_mask, 'shape', None)}"
                raise ShapeError("Sequences", got, "[T] or [B, T], a mask as the ids", "stack the rows")
            rows, width = ([1] * 2 + list(self._shape))[-2:] if ids.ndim == 2 else (1, self._shape[0])
            self.lengths = (width,) * rows
            if attention_mask is not None:
                flat = tolist(attention_mask.reshape(rows, width))
                self.lengths = tuple(sum(map(bool, row)) for row in flat)
                kept = [i for i, keep in enumerate(keep for row in flat for keep in row) if keep]
                self._kept = kept if len(kept) < rows * width else None
            self.ids = self.pack(ids)
        if not self.lengths or not all(self.lengths):
            raise ShapeError("Sequences", f"lengths {self.lengths[:20]}", "at least one token each", "leave them out")
        places = [i for n in self.lengths for i in range(n)]
        self.positions, self._turns = tensor(places, dtype="i64", device=self.ids.device), {}

    @classmethod
    def of(cls, ids, attention_mask=None):
        """`ids` itself, if they are Sequences already."""
        return ids if isinstance(ids, cls) else cls(ids, attention_mask)

    def __len__(self):
        return len(self.lengths)

    def flat(self):
        """The same sequences, of which `unpack` leaves things as they are: [N, ...]."""
        found = copy(self)
        found._kept = found._shape = None
        return found

    def pack(self, x):
        """What stands beside each id, of the shape that ids had, without padding: [N]."""
        flat = x.reshape(-1)
        return flat if self._kept is None else flat[tensor(self._kept, dtype="i64", device=x.device)]

    def unpack(self, x):
        """[N, ...] in the shape that ids had, padding as 0: [T, ...] or [B, T, ...]; as it is if those were lists."""
        if self._shape is None:
            return x
        if self._kept is not None:
            count = 1
            for size in self._shape:
                count *= size
            places = [len(self._kept)] * count  # the row of zeros behind the others
            for row, place in enumerate(self._kept):
                places[place] = row
            nothing = create.zeros(type(x), (1, *x.shape[1:]), dtype=x.dtype, device=x.device)
            x = movement.cat([x, nothing], 0)[tensor(places, dtype="i64", device=x.device)]
        return x.reshape(*self._shape, *x.shape[1:])

    def split(self, x):
        """The sequences of x [N, ...], one by one: views."""
        if len(self.lengths) == 1:
            return [x]
        starts, found = 0, []
        for n in self.lengths:
            found.append(movement.narrow(x, 0, starts, n))
            starts += n
        return found

    def mean(self, x):
        """The mean of each sequence of x [N, D]: [B, D]."""
        return self._each(x, lambda rows, dim: rows.mean(dim))

    def max(self, x):
        """The largest of each sequence of x [N, D], column by column: [B, D]."""
        return self._each(x, lambda rows, dim: rows.amax(dim))

    def _each(self, x, reduced):
        if len(set(self.lengths)) == 1:
            return reduced(x.reshape(len(self), self.lengths[0], -1), 1)
        return movement.stack([reduced(rows, 0) for rows in self.split(x)], 0)

    def at(self, x, which):
        """Row `which` (0: the first, -1: the last) of each sequence of x [N, D]: [B, D]."""
        return movement.stack([rows[which] for rows in self.split(x)], 0)

    def turn(self, rotary, x):
        """x [N, H, D] rotated (RotaryEmbedding) to its tokens' positions."""
        if rotary not in self._turns:
            tables = rotary.tables(x.device, max(self.lengths))
            self._turns[rotary] = tables if len(self) == 1 else rotary.tables_at(self.positions)
        return fused.rope(x, *self._turns[rotary], 0, interleaved=rotary.interleaved)

    def attend(self, q, k, v, heads, rotary=None, bias=None, memory=None, **options):
        """Attention of each sequence to all of itself, or of `memory` (Sequences that k and v are of): q's shape.

        q [N, heads * D], k and v likewise, or of fewer heads that groups of q's share. `rotary` turns q and k first.
        `bias`: f(q, k) of one sequence's [T, heads, D] gives what is added to the scores, [heads, T, T of k];
        `options`: scale, window (without bias) and so on, of `nn.attention`.
        """
        width = q.shape[-1] // heads
        q, k, v = (x.reshape(x.shape[0], -1, width) for x in (q, k, v))
        if rotary is not None:
            q, k = self.turn(rotary, q), self.turn(rotary, k)
        memory = memory or self
        k, v = memory.split(k), memory.split(v)
        if memory.seen is not None:
            k, v = ([rows[:n] for rows, n in zip(x, memory.seen)] for x in (k, v))
        found = [self._one(*part, bias, **options) for part in zip(self.split(q), k, v)]
        return (found[0] if len(found) == 1 else movement.cat(found, 0)).reshape(q.shape[0], -1)

    @staticmethod
    def _one(q, k, v, bias, causal=False, **options):
        k, v = k.transpose(0, 1), v.transpose(0, 1)
        if bias is None:
            start = None if causal else 0
            return fused.attention(q, k, v, start, causal=causal, length=k.shape[1], **options)
        mask = bias(q, k.transpose(0, 1))
        return scaled_dot_product_attention(q.transpose(0, 1), k, v, mask, **options).transpose(0, 1)


class PackedAttention:
    """In a cache's place, for a decoder that reads `tokens` (Sequences) without padding: nothing is kept, gradients
    flow. Not `causal`: every token sees its whole sequence. See FullAttention.

    >>> import tensorlib
    >>> tokens = Sequences([[5, 6], [7]])
    >>> x = tensorlib.ones(3, 8)
    >>> PackedAttention(tokens, head_dim=4, causal=False).attend(0, x, x, x, None).shape
    (3, 8)
    """

    length = 0

    def __init__(self, tokens, head_dim, causal=True):
        self.tokens, self.head_dim, self.causal = tokens, head_dim, causal

    def reserve(self, n):
        """Nothing: there is no limit."""

    def advance(self, n):
        """Nothing: no token is kept."""

    def last(self, x):
        """The row of x [N, D] of each sequence's last token: [B, D]."""
        return self.tokens.at(x, -1)

    def positions(self, ids):
        """i64 [N]: where each token stands in its sequence."""
        return self.tokens.positions

    def attend(self, layer, q, k, v, rotary, **options):
        """Attention within each sequence, q and k rotated first: q's shape. See KVCache.attend."""
        q, k, v = (x if x.dtype.name == "f64" else x.float() for x in (q, k, v))
        heads = q.shape[-1] // self.head_dim
        return self.tokens.attend(q, k, v, heads, rotary, causal=self.causal, **options)


class Padding:
    """Batches [T] or [B, T] with padding where `attention_mask` is 0, at either side: `behind` puts it behind the
    tokens, where causal models do not see it and positions begin at 0, `back` undoes that. Gradients flow.

    `cache`: the one that a model was given beside a mask, which is an error, since that has no padding. ShapeError.

    >>> import tensorlib
    >>> padding = Padding(tensorlib.tensor([[0, 0, 1, 1], [0, 1, 1, 1]]))
    >>> ids = padding.behind(tensorlib.tensor([[9, 9, 5, 6], [9, 7, 8, 4]]))
    >>> ids.tolist(), padding.back(ids).tolist()
    ([[5, 6, 5], [7, 8, 4]], [[0, 0, 5, 6], [0, 7, 8, 4]])
    """

    def __init__(self, attention_mask, cache=None):
        if cache is not None:
            fix = "leave out padding, and see zoo/generate_batch.py"
            raise ShapeError("Padding", "an attention_mask and a cache", "one of them", fix)
        self._shape = tuple(attention_mask.shape)
        if len(self._shape) not in (1, 2) or 0 in self._shape:
            raise ShapeError("Padding", f"a mask of shape {self._shape}", "[T] or [B, T]", "stack the rows")
        rows = tolist(attention_mask.reshape(-1, self._shape[-1]))
        kept = [[i for i, keep in enumerate(row) if keep] for row in rows]
        self._width = width = max(1, *map(len, kept))
        self._behind, nothing = [], len(rows) * width  # the row of zeros behind the others
        self._back = [nothing] * (len(rows) * self._shape[-1])
        for b, places in enumerate(kept):
            first = b * self._shape[-1]
            some = places + (places[:1] or [0]) * (width - len(places))  # an id that there is
            self._behind += [first + i for i in some]
            for rank, i in enumerate(places):
                self._back[first + i] = b * width + rank

    def behind(self, x):
        """x [B, T, ...] with the tokens first, of as many columns as the longest has. ShapeError."""
        batch = len(self._shape)
        if tuple(x.shape[:batch]) != self._shape:
            got, expected = f"{tuple(x.shape)} for a mask of {self._shape}", "the mask's shape, or more dims behind"
            raise ShapeError("Padding", got, expected, "give a mask of ids")
        flat = x.reshape(-1, *x.shape[batch:])
        return index.index_select(flat, 0, self._behind).reshape(*self._shape[:-1], self._width, *x.shape[batch:])

    def back(self, x):
        """What was computed from `behind` at the tokens' own places; 0 where padding is."""
        more = x.shape[len(self._shape) :]
        nothing = create.zeros(type(x), (1, *more), dtype=x.dtype, device=x.device)
        flat = movement.cat([x.reshape(-1, *more), nothing], 0)
        return index.index_select(flat, 0, self._back).reshape(*self._shape, *more)
