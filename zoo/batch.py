"""A model's steps for several sequences at once: prompts eagerly, one token of each from recorded command lists."""

import tensorlib
from tensorlib import backend, nn
from tensorlib.capture import Capture
from tensorlib.errors import DTypeError

KINDS = {nn.KVCache: nn.BatchCache, nn.LatentCache: nn.BatchLatentCache, nn.StateCache: nn.BatchStateCache}


class Batch:
    """The weights of a TextModel over memory of its own (`cache`) for `tokens` tokens in all. For one thread.

    `spare`: how many sequences there are at once, beyond `streams`, while they fork. DTypeError for a model that keeps
    something else, as encoder-decoders do.
    """

    def __init__(self, model, streams, context, tokens, cache_dtype="f16", page_size=64, spare=0):
        kind = type(getattr(model, "cache", None))
        if kind not in KINDS:
            got = f"a {type(model.model).__name__}{'' if kind is type(None) else f' with a {kind.__name__}'}"
            expected = f"a model with a {' or a '.join(each.__name__ for each in KINDS)}"
            raise DTypeError("Batch", got, expected, "generate its texts one by one, see `tensorlib generate`")
        like = model.model.new_cache(1, cache_dtype, device=model.device)
        self.cache = KINDS[kind].like(like, streams + spare, context, tokens, page_size)
        self._model, self._streams, self._most = model, streams, self.cache.pages(context)
        self._recorded = {}

    def prompt(self, sequence, ids):
        """Logits [1, V] after `ids`, which follow what the sequence has. ContextError without enough pages."""
        return self.prompts([sequence], [ids])[0]

    def prompts(self, sequences, parts):
        """[logits [1, V]] after the ids that follow what each sequence has, computed together. ContextError, as above.

        With states they are computed one by one.
        """
        if self.cache.apart and len(parts) > 1:
            return [self.prompt(*each) for each in zip(sequences, parts)]
        with backend.backend().pool.pinned():
            self.cache.step(sequences, list(map(len, parts)))
            ids = tensorlib.tensor([i for part in parts for i in part], dtype="i64", device=self._model.device)
            logits = self._model.model(ids, self.cache)
        return [logits[i : i + 1] for i in range(len(parts))]

    def step(self, sequences, tokens):
        """Logits [1, V] after one token of each sequence, valid until the next step. ContextError, as above."""
        key = size, most = self._size(len(sequences)), self.cache.width(sequences, self._most)
        with backend.backend().pool.pinned():
            if key in self._recorded:
                slots, capture, rows = self._recorded[key]
                slots.take(sequences, tokens)
                capture.replay()
                return rows[: len(sequences)]
            slots, capture = self.cache.slots(size, most), Capture(self._model.device)
            slots.take(sequences, tokens)
            with capture:
                logits = self._model.model(slots.ids, self.cache, last_only=False)
            if self._model.device.gpu is not None:  # a graph records, and runs at its replay only
                capture.replay()
        logits = logits.reshape(size, -1)
        rows = [logits[i : i + 1] for i in range(size)]
        self._recorded[key] = slots, capture, rows
        return rows[: len(sequences)]

    def _size(self, count):
        """The least power of two that is enough, but no more than there are streams."""
        return min(1 << (count - 1).bit_length(), self._streams)
