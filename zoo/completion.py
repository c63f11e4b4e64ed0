"""A generation as text: pieces as they become certain, ended by an end token, a stop string or a number of tokens."""

from zoo.generate import GREEDY


class Completion:
    """Iterate over it for pieces of text that together are the answer, or take it whole: `str(...)`. `ids`: the tokens
    so far; `finish_reason`, when it has ended: "stop" or "length"; `text`: what was given so far.

    `stop`: strings that end the text, and are not part of it: what may be the beginning of one is held back. The other
    arguments are those of `TextModel.generate`; the tokenizer's end tokens stop it.
    """

    def __init__(self, model, prompt_ids, max_tokens=None, sampler=GREEDY, stop=(), processors=(), reuse=False):
        self.ids, self.finish_reason, self.text = [], None, ""
        self._cut = Cut(stop)
        self._ends = model.tokenizer.eos_ids
        self._tokens = model.generate(prompt_ids, max_tokens, sampler, (), processors, reuse)
        self._stream = model.tokenizer.stream()
        self._anew = getattr(model, "anew", False)  # whether a space before the text is none of it

    def __iter__(self):
        for token in self._tokens:
            self.ids.append(token)
            if token in self._ends:
                self.finish_reason = "stop"
                break
            yield from self._given(self._cut.push(self._stream.push(token)))
            if self._cut.found:
                self.finish_reason = "stop"
                break
        if not self._cut.found:
            yield from self._given(self._cut.push(self._stream.flush()) + self._cut.flush())
        self.finish_reason = "stop" if self._cut.found else self.finish_reason or "length"
        self._tokens.close()

    def __str__(self):
        """The whole text, generated as far as it is not yet."""
        for _ in self:
            pass
        return self.text

    def _ipython_display_(self):
        """Notebooks show the text as it comes."""
        print(self.text, end="")
        for piece in self:
            print(piece, end="", flush=True)
        print()

    def _given(self, piece):
        piece = piece.lstrip(" ") if self._anew and not self.text else piece
        if piece:
            self.text += piece
            yield piece


class Cut:
    """Text up to the first of some strings, as it comes in pieces.

    >>> cut = Cut(["END"])
    >>> [cut.push(piece) for piece in ("a E", "N", "b EN", "D c")], cut.found
    (['a ', '', 'ENb ', ''], 'END')
    """

    def __init__(self, stop=()):
        self._stop, self._held, self.found = [s for s in stop if s], "", None

    def push(self, piece):
        """What is certain of the text so far and was not given yet."""
        if self.found is not None:
            return ""
        text = self._held + (piece or "")
        places = [(text.find(s), s) for s in self._stop if s in text]
        if places:
            at, self.found = min(places)
            self._held = ""
            return text[:at]
        kept = max((n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        self._held = text[len(text) - kept :] if kept else ""
        return text[: len(text) - kept]

    def flush(self):
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return held
