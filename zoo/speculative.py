"""Speculative decoding (arXiv:2211.17192): several tokens are guessed, and one step of the model scores them all.

A guess is right where the sampler, given the model's scores, draws that very token, so every token is drawn from the
model's own distribution, whoever guesses. Scores of several rows at once round otherwise than those of one: a greedy
text can differ where two tokens are as good as equal.
"""

import struct

import tensorlib
from tensorlib import backend
from tensorlib.capture import Capture
from tensorlib.errors import ShapeError
from zoo.generate import GREEDY


class NGram:
    """Guesses what followed the last time that the last `n` tokens (or fewer, down to one) stood in the text: `count`
    tokens of it (prompt lookup decoding).

    >>> NGram(2, 3)([1, 2, 3, 4, 9, 1, 2])
    [3, 4, 9]
    """

    def __init__(self, n=3, count=4):
        self.n, self.count = n, count

    def __call__(self, ids):
        for n in range(min(self.n, len(ids) - 1), 0, -1):
            tail = ids[-n:]
            for at in range(len(ids) - n - 1, -1, -1):
                if ids[at : at + n] == tail:
                    return ids[at + n : at + n + self.count]
        return []


class Draft:
    """Guesses the `count` tokens that another TextModel of the same vocabulary finds likeliest. ShapeError else."""

    def __init__(self, model, count=4):
        self.model, self.count = model, count

    def __call__(self, ids):
        return list(self.model.generate(ids, min(self.count, self.model.context_length - len(ids)), reuse=True))


class Speculation:
    """Generations of a TextModel with guesses: `generate` as its own. `steps` and `tokens`: how many of each so far."""

    def __init__(self, model, draft):
        theirs = getattr(draft, "model", model).config.vocab_size
        if theirs != model.config.vocab_size:
            expected = f"one of {model.config.vocab_size} tokens, as the model has"
            raise ShapeError("Speculation", f"a draft of {theirs} tokens", expected, "take one of the same family")
        self.model, self.draft, self.steps, self.tokens = model, draft, 0, 0
        self._ids = tensorlib.zeros(draft.count + 1, dtype="i64", device=model.device)
        self._recorded = None

    def generate(self, prompt_ids, max_tokens=None, sampler=GREEDY, stop_ids=()):
        """Yields what `TextModel.generate` yields."""
        model, ids, width = self.model, list(prompt_ids), self.draft.count + 1
        first = list(model.generate(ids, 1, sampler, stop_ids))
        if not first or max_tokens == 0:
            return
        limit = model.context_length - len(ids)
        limit = limit if max_tokens is None else min(limit, max_tokens)
        ids += first
        yield first[0]
        given = 1
        while given < limit:
            guess = self.draft(ids)[: limit - given - 1] if model.cache.length + width <= model.context_length else []
            for token in self._round(ids, guess):
                if token in stop_ids:
                    return
                ids.append(token)
                given += 1
                yield token

    def _round(self, ids, guess):
        """The tokens that one step gives: the guesses that hold, and the one after them."""
        model, length = self.model, self.model.cache.length
        self.steps += 1
        if not guess:
            model.step(ids[-1])
            self.tokens += 1
            return [model.sampler.token_id()]
        held, model._held = model._held, []
        logits, drawn = self._scores([ids[-1], *guess]), []
        for i in range(len(guess) + 1):
            model.sampler(logits[i : i + 1])
            drawn.append(model.sampler.token_id())
            if i == len(guess) or drawn[i] != guess[i]:
                break
        model.cache.reset(length + len(drawn))
        model._held = [*held, ids[-1], *drawn[:-1]]
        self.tokens += len(drawn)
        return drawn

    def _scores(self, tokens):
        """Logits [width, V] after each token; rows behind them mean nothing. Recorded the first time."""
        words = tokens + [0] * (self._ids.shape[0] - len(tokens))
        self._ids.buffer.write(self._ids.ptr, struct.pack(f"{len(words)}q", *words))
        with backend.backend().pool.pinned():
            if self._recorded is None:
                capture = Capture(self.model.device)
                with capture:
                    logits = self.model.model(self._ids, self.model.cache, last_only=False)
                if self.model.device.gpu is not None:
                    capture.replay()
                self._recorded = capture, logits
            else:
                self._recorded[0].replay()
                self.model.cache.length += len(words)
        return self._recorded[1]
