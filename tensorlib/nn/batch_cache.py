"""Pages for language models that serve several sequences: `PagedCache` with the face of `KVCache`, pages of the same
beginnings shared, and steps whose rows are read from memory, so that they can be replayed.

>>> import tensorlib
>>> from tensorlib import nn
>>> cache, rotary = nn.BatchCache(1, kv_heads=1, head_dim=8, tokens=64, page_size=16), nn.RotaryEmbedding(8, 64)
>>> first, held = cache.begin([5, 6, 7])
>>> cache.step([first], [3])
>>> x = tensorlib.zeros(3, 8)
>>> cache.attend(0, x, x, x, rotary).shape, cache.length(first), cache.free_pages
((3, 8), 3, 3)
"""

import hashlib
from array import array
from typing import NamedTuple

from tensorlib.device import Device
from tensorlib.nn.paged_cache import PagedCache
from tensorlib.ops import fused, index, movement
from tensorlib.ops.paged import paged_attention
from tensorlib.tensor import Tensor, tensor, zeros


class Rows(NamedTuple):
    """What a step's tokens are: T rows of B sequences."""

    positions: Tensor  # i64 [T]
    places: Tensor  # i64 [T * kv_heads]: rows of a layer's pages, [pages * kv_heads * page_size]
    table: Tensor  # i64 [B, pages]: of each sequence
    lengths: Tensor  # i64 [B], with the step's tokens
    states: Tensor  # i64 [B]: places of the sequences' states, 0 without any
    starts: list | None = None  # [B + 1] rows of each sequence; None: one each
    ends: list | None = None  # `lengths`


class BatchCache(PagedCache):
    """Keys and values of `tokens` tokens in all, for models whose cache is a KVCache: give it to them after `step`.

    `begin(ids)` makes a sequence that has what is known of a beginning of `ids`; `known(sequence, ids)` tells which
    tokens it has, so that others may begin with them. Page 0 is nobody's: rows that nobody uses are written there.
    Pages that no sequence has keep their tokens until they are needed, the longest unused first.
    `layers`: how many, or which. `apart`: layers want sequences as rows of a batch, [B, 1] tokens of a step.
    """

    apart = False

    def __init__(self, layers, kv_heads, head_dim, tokens, dtype="f16", device=None, page_size=64):
        super().__init__(1 + -(-tokens // page_size), page_size, kv_heads, head_dim, dtype, device)
        self._free = dict.fromkeys(range(1, self._shape[0]))  # the first was freed first
        self._hashes, self._by_hash, self._marks, self._turns = {}, {}, {}, {}
        for layer in range(layers) if isinstance(layers, int) else layers:
            self._pages(layer)

    @classmethod
    def like(cls, cache, streams, context, tokens, page_size=64):
        """What a model gets in place of a KVCache, for up to `streams` sequences of up to `context` tokens."""
        heads, _, width = cache.layers[0][0].shape
        return cls(len(cache.layers), heads, width, tokens, cache.layers[0][0].dtype, cache.start.device, page_size)

    # ---- sequences ---------------------------------------------------------------------------------------------------

    def begin(self, ids):
        """(a sequence, how many of `ids` it has already): whole pages, and not the last of `ids`."""
        name, table = self.new(), []
        for mark in self._chain(ids, (len(ids) - 1) // self.page_size):
            page = self._by_hash.get(mark)
            if page is None:
                break
            table.append(page)
            self._users[page] += 1
            self._free.pop(page, None)
            self._marks[name].append(mark)
        self._tables[name], self._lengths[name] = table, len(table) * self.page_size
        return name, self._lengths[name]

    def known(self, sequence, ids):
        """The tokens that a sequence has are the first of `ids`: what follows them may begin other sequences."""
        marks, table, whole = self._marks[sequence], self._tables[sequence], self._lengths[sequence] // self.page_size
        if len(marks) >= whole:
            return
        for mark in self._chain(ids, whole, marks[-1] if marks else b"", len(marks)):
            page = table[len(marks)]
            marks.append(mark)
            if mark not in self._by_hash and page not in self._hashes:
                self._by_hash[mark], self._hashes[page] = page, mark

    def _chain(self, ids, pages, mark=b"", first=0):
        """A hash of all tokens up to the end of each page."""
        size = self.page_size
        for i in range(first, pages):
            mark = hashlib.sha256(mark + array("q", ids[i * size : (i + 1) * size]).tobytes()).digest()
            yield mark

    def new(self):
        name = super().new()
        self._marks[name] = []
        return name

    def fork(self, sequence):
        name = super().fork(sequence)
        self._marks[name] = list(self._marks[sequence])
        return name

    def free(self, sequence):
        super().free(sequence)
        del self._marks[sequence]

    def reset(self, sequence=None, length=0):
        super().reset(sequence, length)
        if sequence is not None:
            del self._marks[sequence][length // self.page_size :]

    def _release(self, page):
        self._users[page] -= 1
        if not self._users[page]:
            self._free[page] = None

    def _take(self):
        page = next(iter(self._free))
        del self._free[page]
        self._forget(page)
        self._users[page] = 1
        return page

    def _extended(self, name, count):
        start, places = self._lengths[name], super()._extended(name, count)
        if start % self.page_size:  # of a page that was full once, and is not what it was
            self._forget(self._tables[name][start // self.page_size])
        return places

    def _forget(self, page):
        self._by_hash.pop(self._hashes.pop(page, None), None)

    def pages(self, tokens):
        """How many pages so many tokens take."""
        return self._pages_of(tokens)

    def needed(self, sequence, count=1):
        """How many free pages `count` more tokens of a sequence take."""
        return self._needed(sequence, count)

    # ---- tokens ------------------------------------------------------------------------------------------------------

    def step(self, sequences, counts):
        """`counts[i]` tokens of sequences[i] come next. ContextError, with nothing changed, without enough pages."""
        before = [self._lengths[name] for name in sequences]
        places, table, lengths, starts = self._planned(sequences, counts)
        positions = [n + i for n, count in zip(before, counts) for i in range(count)]
        lists = positions, self._rows(places), table, lengths, [self._place(name) for name in sequences]
        self._step = Rows(*(tensor(x, dtype="i64", device=self._device) for x in lists), starts, lengths)
        self._turns = {}

    def slots(self, count, most):
        """Memory for steps of `count` sequences or fewer, of up to `most` pages: see `Slots`."""
        return Slots(self, count, most)

    def width(self, sequences, most):
        """How many pages a step's memory should have for one more token of each of `sequences`: `most`, of which
        attention reads those that there are.
        """
        return most

    def _place(self, sequence):
        """Where the states of a sequence are: nowhere."""
        return 0

    # ---- what models ask for -----------------------------------------------------------------------------------------

    def reserve(self, n):
        """Nothing: `step` has."""

    def advance(self, n):
        """Nothing: `step` has."""

    def positions(self, ids):
        """i64, as ids: where the tokens of the step stand."""
        return movement.reshape(self._step.positions, ids.shape)

    def last(self, x):
        """The rows of x [T, ...] of each sequence's last token: [B, ...]."""
        starts = self._step.starts
        if starts is None or len(starts) == x.shape[0] + 1:
            return x
        if len(starts) == 2:
            return x[-1:]
        return index.index_select(x, 0, [start - 1 for start in starts[1:]])

    def attend(self, layer, q, k, v, rotary, **options):
        """`KVCache.attend` for the rows of the step: q [T, heads * head_dim], k and v [T, kv_heads * head_dim]."""
        rows, (_, heads, _, width), shape = self._step, self._shape, q.shape
        q, k, v = q.reshape(-1, q.shape[-1] // width, width), k.reshape(-1, heads, width), v.reshape(-1, heads, width)
        q, k = self._turned(rotary, q, k)
        keys, values = self._pages(layer)
        for pages, x in ((keys, k), (values, v)):
            pages.reshape(-1, width)[rows.places] = x.to(self._dtype).reshape(-1, width)
        found = paged_attention(q, keys, values, rows.table, rows.lengths, rows.starts, **options)
        return movement.reshape(found, shape)

    def _turned(self, rotary, *rows):
        """Each [T, H, D] of the step rotated to its tokens' positions, unless rotary is None."""
        if rotary is None:
            return rows
        tables = self._turns.get(id(rotary))
        if tables is None:  # once a step, not once a layer
            tables = self._turns[id(rotary)] = rotary.tables_at(self._step.positions)
        return tuple(fused.rope(x, *tables, 0, interleaved=rotary.interleaved) for x in rows)


class Slots:
    """A step of one token for each of `count` sequences, in memory that a recorded step reads.

    `ids` (i64 [count], or [count, 1] if `apart`) are what the model gets. `take` puts sequences and their tokens there,
    in one write, and makes it the cache's step; slots that are left over write to page 0.
    """

    def __init__(self, cache, count, most):
        self._cache, self.count, self._most = cache, count, most
        heads = cache._shape[1]
        sizes = (count, count, count, count, count * heads, count * most)
        self._words = zeros(sum(sizes), dtype="i64", device=Device(cache._device))
        ids, positions, lengths, states, places, table = movement.split(self._words, sizes)
        self.ids = ids.reshape(count, 1) if cache.apart else ids
        self._rows = Rows(positions, places, table.reshape(count, most), lengths, states)

    def take(self, sequences, tokens):
        """One token of each sequence comes next. ContextError, with nothing changed, without enough pages."""
        cache, left, most = self._cache, self.count - len(sequences), self._most
        places, tables, lengths, _ = cache._planned(sequences, [1] * len(sequences))
        words = array("q", [*tokens, *[0] * left, *(n - 1 for n in lengths), *[0] * left, *lengths, *[1] * left])
        words.extend([cache._place(name) for name in sequences] + [0] * left)
        words.extend(cache._rows(places + [0] * left))
        for table in tables:
            words.extend(table + [0] * (most - len(table)))
        words.extend([0] * (left * most))
        self._words.buffer.write(self._words.ptr, words.tobytes())
        cache._step, cache._turns = self._rows, {}
