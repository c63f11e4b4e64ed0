"""A model's steps for several sequences at once: prompts eagerly, one token of each from recorded command lists."""

import tensorlib
from tensorlib import backend, nn
from tensorlib.capture import Capture
from tensorlib.errors import DTypeError


class Batch:
    """The weights of a TextModel over pages of its own (`cache`) for `tokens` tokens in all. For one thread.

    DTypeError for models that keep something else than keys and values.
    """

    def __init__(self, model, streams, context, tokens, cache_dtype="f16", page_size=64):
        like = model.model.new_cache(1, cache_dtype, device=model.device)
        if type(like) is not nn.KVCache:
            fix = "generate its texts one by one, with TextModel.generate"
            raise DTypeError("Batch", f"a model with a {type(like).__name__}", "one with a KVCache", fix)
        heads, _, width = like.layers[0][0].shape
        self.cache = nn.BatchCache(len(like.layers), heads, width, tokens, cache_dtype, model.device, page_size)
        self._model, self._streams, self._most = model, streams, self.cache.pages(context)
        self._recorded = {}

    def prompt(self, sequence, ids):
        """Logits [1, V] after `ids`, which follow what the sequence has. ContextError without enough pages."""
        with backend.backend().pool.pinned():
            self.cache.step([sequence], [len(ids)])
            ids = tensorlib.tensor(ids, dtype="i64", device=self._model.device)
            return self._model.model(ids, self.cache)

    def step(self, sequences, tokens):
        """Logits [1, V] after one token of each sequence, valid until the next step. ContextError, as above."""
        size = self._size(len(sequences))
        with backend.backend().pool.pinned():
            if size in self._recorded:
                slots, capture, rows = self._recorded[size]
                slots.take(sequences, tokens)
                capture.replay()
                return rows[: len(sequences)]
            slots, capture = self.cache.slots(size, self._most), Capture(self._model.device)
            slots.take(sequences, tokens)
            with capture:
                logits = self._model.model(slots.ids, self.cache, last_only=False)
            if self._model.device.gpu is not None:  # a graph records, and runs at its replay only
                capture.replay()
        rows = [logits[i : i + 1] for i in range(size)]
        self._recorded[size] = slots, capture, rows
        return rows[: len(sequences)]

    def _size(self, count):
        """The least power of two that is enough, but no more than there are streams."""
        return min(1 << (count - 1).bit_length(), self._streams)
