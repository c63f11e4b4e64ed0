"""Keys and values in pages, of which sequences have lists: they share what is the same, and waste less than a page.

>>> import tensorlib
>>> from tensorlib import nn
>>> cache = nn.PagedCache(pages=8, page_size=4, kv_heads=1, head_dim=8)
>>> x = tensorlib.zeros(6, 1, 8)
>>> first = cache.new()
>>> cache.step([first], [6])
>>> cache.attend(0, x, x, x).shape, cache.free_pages
((6, 1, 8), 6)
>>> second = cache.fork(first)  # shares both pages, until it writes to the last one
>>> cache.step([second], [1])
>>> cache.attend(0, x[:1], x[:1], x[:1]).shape, cache.free_pages
((1, 1, 8), 5)
"""

from tensorlib.errors import ContextError, ShapeError
from tensorlib.nn.caches import refuse_gradients
from tensorlib.ops import index
from tensorlib.ops.paged import paged_attention
from tensorlib.tensor import empty, tensor


class PagedCache:
    """`pages` pages of `page_size` tokens for every layer, [pages, kv_heads, page_size, head_dim] (Kwon et al.,
    arXiv:2309.06180). Sequences are numbers: `new()`, `fork(sequence)`, `free(sequence)`.

    `step(sequences, counts)` says whose tokens come next, and how many of each; then each layer gets them, one sequence
    behind the other: `append(layer, k, v)` with k and v [total, kv_heads, head_dim], or `attend`. Layers take memory
    when they are first appended to.
    """

    def __init__(self, pages, page_size, kv_heads, head_dim, dtype="f32", device=None):
        if min(pages, page_size, kv_heads, head_dim) < 1:
            got = f"{pages} pages of {page_size}, {kv_heads} heads of {head_dim}"
            raise ShapeError("PagedCache", got, "at least 1 of each", "give more")
        self.page_size, self._shape = page_size, (pages, kv_heads, page_size, head_dim)
        self._dtype, self._device = dtype, device or "cpu"
        self._layers, self._free, self._users = {}, list(range(pages))[::-1], [0] * pages
        self._tables, self._lengths, self._names = {}, {}, 0
        self._step = None

    # ---- sequences ---------------------------------------------------------------------------------------------------

    def new(self):
        """An empty sequence."""
        self._names += 1
        self._tables[self._names], self._lengths[self._names] = [], 0
        return self._names

    def fork(self, sequence):
        """A sequence with the same tokens, in the same pages. One that is written to is copied before (its last)."""
        name = self.new()
        self._tables[name], self._lengths[name] = list(self._tables[sequence]), self._lengths[sequence]
        for page in self._tables[name]:
            self._users[page] += 1
        return name

    def free(self, sequence):
        """Forgets a sequence; pages that no other has are free again."""
        self.reset(sequence)
        del self._tables[sequence], self._lengths[sequence]

    def reset(self, sequence=None, length=0):
        """Forgets the tokens of a sequence after its first `length`, or all tokens of all sequences."""
        if sequence is None:
            for name in self._tables:
                self.reset(name)
            return
        if length > self._lengths[sequence]:
            got = f"reset to {length} tokens"
            raise ContextError("PagedCache", got, f"at most {self._lengths[sequence]}", "append them")
        table, kept = self._tables[sequence], self._pages_of(length)
        for page in table[kept:]:
            self._release(page)
        del table[kept:]
        self._lengths[sequence] = length

    def length(self, sequence):
        """How many tokens it has, with those of the current step."""
        return self._lengths[sequence]

    @property
    def free_pages(self):
        """How many pages no sequence has."""
        return len(self._free)

    def _pages_of(self, tokens):
        return -(-tokens // self.page_size)

    def _release(self, page):
        self._users[page] -= 1
        if not self._users[page]:
            self._free.append(page)

    def _take(self):
        page = self._free.pop()
        self._users[page] = 1
        return page

    # ---- tokens ------------------------------------------------------------------------------------------------------

    def step(self, sequences, counts):
        """`counts[i]` tokens of sequences[i] come next. ContextError, with nothing changed, without enough pages."""
        places, table, lengths, starts = self._planned(sequences, counts)
        rows = self._rows(places)
        self._step = [tensor(x, device=self._device) for x in (rows, table, lengths, starts)]

    def _planned(self, sequences, counts):
        """Lists: the rows of all pages together that the tokens go to, the pages of each sequence, filled up to the
        most, how many tokens it has then, where its tokens begin.
        """
        if len(sequences) != len(counts) or len(set(sequences)) != len(sequences) or not min(counts, default=0) > 0:
            got = f"sequences {sequences}, counts {counts}"
            raise ShapeError(
                "PagedCache.step", got, "different sequences, at least 1 token of each", "leave out others"
            )
        need = sum(map(self._needed, sequences, counts))
        if need > len(self._free):
            fix = "free sequences, or make a larger cache"
            raise ContextError("PagedCache", f"{need} pages needed", f"at most {len(self._free)}, which are free", fix)
        rows, starts = [], [0]
        for name, count in zip(sequences, counts):
            rows += self._extended(name, count)
            starts.append(starts[-1] + count)
        most = max(len(self._tables[name]) for name in sequences)
        table = [self._tables[name] + [0] * (most - len(self._tables[name])) for name in sequences]
        return rows, table, [self._lengths[name] for name in sequences], starts

    def _rows(self, places):
        """The same rows of every head: pages are [heads, rows of a page]."""
        _, heads, size, _ = self._shape
        return [place // size * heads * size + head * size + place % size for place in places for head in range(heads)]

    def _needed(self, name, count):
        """Pages that `count` more tokens of a sequence take."""
        table, length = self._tables[name], self._lengths[name]
        shared = length % self.page_size and self._users[table[-1]] > 1
        return self._pages_of(length + count) - len(table) + bool(shared)

    def _extended(self, name, count):
        """The rows of all pages together that a sequence's next tokens go to; its last page is its own from now on."""
        table, start = self._tables[name], self._lengths[name]
        if start % self.page_size and self._users[table[-1]] > 1:
            old, table[-1] = table[-1], self._take()
            self._release(old)
            for pages in self._layers.values():
                for x in pages:
                    x[table[-1]] = x[old].clone()
        while len(table) < self._pages_of(start + count):
            table.append(self._take())
        self._lengths[name] += count
        return [
            table[at // self.page_size] * self.page_size + at % self.page_size for at in range(start, start + count)
        ]

    def append(self, layer, k, v):
        """Writes k and v [total, kv_heads, head_dim] of this step to a layer; its pages of (keys, values).

        ShapeError; GradError for what requires a gradient.
        """
        refuse_gradients("PagedCache", k, v)
        if self._step is None:
            raise ShapeError("PagedCache", "tokens before a step", "step(sequences, counts)", "call it once a step")
        rows, (_, heads, _, width) = self._step[0], self._shape
        wanted = (rows.shape[0] // heads, heads, width)
        if k.shape != wanted or v.shape != wanted:
            raise ShapeError("PagedCache", f"k {k.shape}, v {v.shape}", f"both {wanted}", "see step")
        pair = self._pages(layer)
        for pages, x in zip(pair, (k, v)):
            pages.reshape((-1, width))[rows] = x.to(self._dtype).to(self._device).reshape((-1, width))
        return pair

    def _pages(self, layer):
        """A layer's pages, made when they are first asked for."""
        if layer not in self._layers:
            made = [empty(self._shape, dtype=self._dtype, device=self._device) for _ in range(2)]
            self._layers[layer] = tuple(x.zero_() for x in made)  # rows behind a length are read, and have no weight
        return self._layers[layer]

    def attend(self, layer, q, k, v, scale=None, window=0, softcap=0.0):
        """`paged_attention` of q [total, H, D] over the layer, k and v behind what is there: q's shape. ShapeError."""
        keys, values = self.append(layer, k, v)
        _, table, lengths, starts = self._step
        return paged_attention(q, keys, values, table, lengths, starts, scale, window, softcap)

    def keys_values(self, layer, sequence):
        """The (keys, values) of one sequence, copied: [kv_heads, length, head_dim]."""
        pages, length = tensor(self._tables[sequence], dtype="i64", device=self._device), self._lengths[sequence]
        found = (index.index_select(x, 0, pages).permute((1, 0, 2, 3)) for x in self._layers[layer])
        return tuple(x.reshape((x.shape[0], -1, x.shape[3]))[:, :length] for x in found)
