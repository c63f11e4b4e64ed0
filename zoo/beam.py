"""Beam search: the `num_beams` likeliest texts so far go on, side by side in one batch, on pages that they share.

What is kept, when it ends and how texts are scored is Hugging Face's: a text that has ended has its logarithm of the
probability divided by length ** length_penalty (Wu et al., arXiv:1609.08144, section 7, with another formula).
"""

from typing import NamedTuple

import numpy as np

from tensorlib.errors import ContextError, ShapeError
from zoo.batch import Batch
from zoo.generate import CHUNK
from zoo.processors import log_softmax

PAGE = 16  # texts that part copy the page that they have in common


class Text(NamedTuple):
    """What beam search gives: the ids behind the prompt, a stop id not among them, and their score."""

    ids: list
    score: float


def beam_search(model, prompt_ids, num_beams, max_tokens, length_penalty=1.0, early_stopping=False, stop_ids=()):
    """The `num_beams` best Texts found for a TextModel, best first (fewer where fewer ended).

    early_stopping: True ends with the first `num_beams` texts that have ended; False when the best that go on are worse
    than those, as if they ended now; "never" when they are, whatever they become. ContextError as for `generate`.
    """
    prompt, most = list(prompt_ids), model.context_length
    if not prompt or num_beams < 1 or max_tokens < 1:
        got = f"{len(prompt)} prompt tokens, {num_beams} beams, {max_tokens} tokens to generate"
        raise ShapeError("beam_search", got, "at least 1 of each", "give more")
    if len(prompt) + max_tokens > most:
        got, fix = f"a prompt of {len(prompt)} tokens and {max_tokens} to generate", "shorten the prompt"
        raise ContextError("beam_search", got, f"at most {most} in all", fix)
    context = len(prompt) + max_tokens
    batch = Batch(model, num_beams, context, context + num_beams * (max_tokens + 2 * PAGE), "f32", PAGE, num_beams)
    search = _Search(num_beams, max_tokens, length_penalty, early_stopping, frozenset(stop_ids))
    sequence, _ = batch.cache.begin(prompt)
    for i in range(0, len(prompt), CHUNK):
        rows = [batch.prompt(sequence, prompt[i : i + CHUNK])]
    running, sequences = [Text([], 0.0)], [sequence]
    while True:
        chosen = search.step(running, [row[-1].cpu().numpy() for row in rows])
        if search.done:
            return search.ended
        before, sequences = sequences, [batch.cache.fork(sequences[parent]) for _, parent in chosen]
        for name in before:
            batch.cache.free(name)
        running = [text for text, _ in chosen]
        rows = batch.step(sequences, [text.ids[-1] for text in running])


class _Search:
    """Which texts go on. `ended`: the best that have; `done`: whether that is final."""

    def __init__(self, beams, max_tokens, length_penalty, early_stopping, stop_ids):
        self._beams, self._max, self._penalty, self._early = beams, max_tokens, length_penalty, early_stopping
        self._stop, self.ended, self.done = stop_ids, [], False

    def step(self, running, rows):
        """[(text, number of the running one that it continues)], best first."""
        n = len(running[0].ids) + 1
        best = self._best(running, rows, max(2, 1 + len(self._stop)) * self._beams)
        last = [n == self._max or token in self._stop for _, _, token in best]
        for (score, parent, token), over in list(zip(best, last))[: self._beams]:
            if over:
                ids = running[parent].ids + [token] * (token not in self._stop)
                self.ended.append(Text(ids, float(score / np.float32(n**self._penalty))))
        self.ended = sorted(self.ended, key=lambda text: -text.score)[: self._beams]
        going = [(Text([*running[p].ids, token], score), p) for (score, p, token), over in zip(best, last) if not over]
        self.done = not going or self._decided(going[0][0].score, n)
        return going[: self._beams]

    def _best(self, running, rows, count):
        """[(score, number of the running text, token)] of the best continuations, best first."""
        scores = np.stack([log_softmax(row) + np.float32(text.score) for row, text in zip(rows, running)])
        flat, width = scores.reshape(-1), scores.shape[1]
        count = min(count, len(flat))
        top = np.argpartition(-flat, count - 1)[:count]
        top = sorted(top.tolist(), key=lambda i: (-flat[i], i))
        return [(flat[i], *divmod(i, width)) for i in top]

    def _decided(self, score, n):
        """Whether the texts that go on, the best of this score, cannot be better than those that have ended."""
        if len(self.ended) < self._beams:
            return False
        if self._early is True:
            return True
        length = self._max if self._early == "never" and self._penalty > 0 else n
        return bool(score / np.float32(length**self._penalty) <= self.ended[-1].score)
