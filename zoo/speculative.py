"""Speculative decoding (arXiv:2211.17192): several tokens are guessed, and one step of the model scores them all.

A guess is right where the sampler, given the model's scores, draws that very token, so every token is drawn from the
model's own distribution, whoever guesses. Scores of several rows at once round otherwise than those of one: a greedy
text can differ where two tokens are as good as equal.
"""

import itertools
import struct

import tensorlib
from tensorlib import backend
from tensorlib.capture import Capture
from tensorlib.errors import DTypeError, ShapeError
from zoo.generate import GREEDY
from zoo.steps import Steps, room

PADDING = 128  # tokens by which vocabularies of one family differ, their tables being filled up to round numbers


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
    """Guesses the `count` tokens that another TextModel of the same vocabulary finds likeliest, within its context."""

    def __init__(self, model, count=4):
        self.model, self.count = model, count

    def __call__(self, ids):
        count = min(self.count, self.model.context_length - len(ids))
        if count < 1 or max(ids) >= self.model.config.vocab_size:
            return []
        return list(self.model.generate(ids, count, reuse=True))


class Speculation:
    """Generations of a TextModel with guesses: `generate` as its own. `steps` and `tokens`: how many of each so far.

    ShapeError for a draft of another vocabulary, DTypeError for a model whose state cannot forget a wrong guess.
    """

    def __init__(self, model, draft):
        if not getattr(getattr(model, "cache", None), "rewinds", False):
            got = f"a {type(getattr(model, 'cache', model)).__name__}"
            raise DTypeError("Speculation", got, "a cache that can forget tokens", "generate without guesses")
        theirs = getattr(draft, "model", model).config.vocab_size
        if abs(theirs - model.config.vocab_size) > PADDING:
            expected = f"one of {model.config.vocab_size} tokens, as the model has"
            raise ShapeError("Speculation", f"a draft of {theirs} tokens", expected, "take one of the same family")
        self.model, self.draft, self.steps, self.tokens = model, draft, 0, 0
        self._ids = tensorlib.zeros(draft.count + 1, dtype="i64", device=model.device)
        self._recorded = None
        self.context_length = model.context_length

    @property
    def tokenizer(self):
        """The model's."""
        return self.model.tokenizer

    def generate(self, prompt_ids, max_tokens=None, sampler=GREEDY, stop_ids=(), processors=(), reuse=False):
        """Yields what `TextModel.generate` yields, for the same arguments."""
        model, ids, width = self.model, list(prompt_ids), self.draft.count + 1
        limit = room("Speculation", ids, max_tokens, model.context_length)
        first = list(model.generate(ids, min(limit, 1), sampler, stop_ids, processors, reuse))
        if not first:
            return
        model.turn = steps = Steps(model, ids, list(processors))
        ids += first
        yield first[0]
        given = 1
        while given < limit:
            steps.go_on()
            room_for = limit - given - 1 if model.cache.length + width <= model.context_length else 0
            guess = self._known(self.draft(ids)[:room_for]) if room_for else []
            for token in self._round(steps, guess):
                if token in stop_ids:
                    return
                ids.append(token)
                given += 1
                yield token

    def _known(self, guess):
        """A guess up to the first token that the model does not have."""
        return list(itertools.takewhile(lambda token: token < self.model.config.vocab_size, guess))

    def _round(self, steps, guess):
        """The tokens that one step gives: the guesses that hold, and the one after them."""
        model, ids, length = self.model, list(steps.ids), self.model.cache.length
        self.steps += 1
        if not guess:
            logits = model.step(ids[-1], not steps.processors)
            self.tokens += 1
            return [steps.chosen(logits) if steps.processors else model.sampler.token_id()]
        held, model._held = model._held, []
        logits, drawn = self._scores([ids[-1], *guess]), []
        for i in range(len(guess) + 1):
            drawn.append(steps.chosen(logits[i : i + 1], ids + drawn))
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
