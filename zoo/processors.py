"""What changes the scores of the next token before one is chosen: `TextModel.generate(..., processors=[...])`.

Each is called with the ids so far and their scores, float32 NumPy [V], which it changes in place; -inf forbids a token.
One object serves one generation.

>>> import numpy
>>> scores = numpy.array([1.0, 2.0, 0.5], numpy.float32)
>>> LogitBias({1: -2.0})([0], scores)
>>> scores.tolist()
[1.0, 0.0, 0.5]
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from tensorlib.errors import FormatError, ShapeError


class LogitBias:
    """Adds a number to the score of some ids (-100 forbids, 100 forces): {id: number}."""

    def __init__(self, biases):
        self._ids, self._biases = list(biases), np.fromiter(biases.values(), np.float32)

    def __call__(self, ids, scores):
        if self._ids and not 0 <= min(self._ids) <= max(self._ids) < len(scores):
            raise ShapeError("LogitBias", f"ids {self._ids}", f"0 to {len(scores) - 1}", "see the tokenizer")
        scores[self._ids] += self._biases


class Penalties:
    """OpenAI's: `presence` is taken from the score of every id that was generated, `frequency` once for each time.

    `prompt`: how many of the ids come from the prompt, and do not count.
    """

    def __init__(self, presence=0.0, frequency=0.0, prompt=0):
        self.presence, self.frequency, self.prompt = presence, frequency, prompt

    def __call__(self, ids, scores):
        for token, count in Counter(ids[self.prompt :]).items():
            scores[token] -= self.presence + self.frequency * count


class Typical:
    """Locally typical sampling (arXiv:2202.00666): the tokens whose surprise is nearest to the entropy, up to a
    probability of `p` together. `temperature` is the sampler's.
    """

    def __init__(self, p, temperature=1.0):
        self.p, self.temperature = p, temperature

    def __call__(self, ids, scores):
        if self.p >= 1:
            return
        logs = log_softmax(scores / self.temperature)
        shares = np.exp(logs)
        entropy = -np.sum(shares * np.where(shares > 0, logs, 0.0))
        order = np.argsort(np.abs(-logs - entropy), kind="stable")
        kept = np.searchsorted(np.cumsum(shares[order]), self.p) + 1
        scores[order[kept:]] = -np.inf


class Mirostat:
    """Mirostat 2 (arXiv:2007.14966): tokens of more surprise than mu bits are out, and mu follows the surprise of what
    was drawn so that its mean becomes `tau`; `eta` is how fast. `temperature` is the sampler's; its top_k, top_p and
    min_p should be off.
    """

    def __init__(self, tau=5.0, eta=0.1, temperature=1.0):
        self.tau, self.eta, self.temperature, self.mu = tau, eta, temperature, 2.0 * tau
        self._bits = None

    def __call__(self, ids, scores):
        if self._bits is not None:
            self.mu -= self.eta * (self._bits[ids[-1]] - self.tau)
        bits = -log_softmax(scores / self.temperature) / np.log(2.0)
        out = bits > self.mu
        out[np.argmin(bits)] = False
        scores[out] = -np.inf
        self._bits = -log_softmax(scores / self.temperature) / np.log(2.0)  # of what may be drawn


class Chosen(NamedTuple):
    """What `LogProbs` keeps of a token: its logarithm of the probability, and the likeliest (id, logarithm) pairs."""

    logprob: float
    top: list


class LogProbs:
    """Keeps what the scores say of the tokens that are drawn, in `rows`: put it last. `top`: of so many others.

    `finish(ids)` adds the last token's, which no later call shows.
    """

    def __init__(self, top=0):
        self.top, self.rows, self._logs, self._at = top, [], None, 0

    def __call__(self, ids, scores):
        self.finish(ids)
        self._logs, self._at = log_softmax(scores), len(ids)

    def finish(self, ids):
        """`ids` has the token that was drawn last at its end, if it has grown."""
        if self._logs is None or len(ids) <= self._at:
            return
        best = np.argsort(-self._logs, kind="stable")[: self.top]
        pairs = [(int(i), float(self._logs[i])) for i in best]
        self.rows.append(Chosen(float(self._logs[ids[self._at]]), pairs))
        self._logs = None


class Grammar:
    """Only text of a form: `json_schema` (a dict), `regex` or `grammar` (Lark's, as llguidance reads it). One of them.

    The library llguidance knows which tokens may come; FormatError for a grammar that it does not take.
    """

    def __init__(self, tokenizer, json_schema=None, regex=None, grammar=None):
        import json

        llguidance = library()
        spaces = {"whitespace_flexible": False}  # else a model may write line breaks until its tokens are used up
        text = json_schema if json_schema is None else json.dumps(json_schema | {"x-guidance": spaces})
        made = [f(x) for f, x in zip((llguidance.LLMatcher.grammar_from_json_schema,
                llguidance.LLMatcher.grammar_from_regex, llguidance.LLMatcher.grammar_from_lark),
                (text, regex, grammar)) if x is not None]  # fmt: skip
        if len(made) != 1:
            raise ShapeError("Grammar", f"{len(made)} forms", "one of json_schema, regex, grammar", "give one")
        self._matcher = llguidance.LLMatcher(vocabulary(tokenizer), made[0])
        if self._matcher.is_error():
            got = " ".join(self._matcher.get_error().split())[:300]
            raise FormatError("grammar", "grammar", got, "what llguidance reads", "see its documentation")
        self._seen = None

    def __call__(self, ids, scores):
        if self._seen is not None:
            self._matcher.consume_tokens(ids[self._seen :])
        self._seen = len(ids)
        allowed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(allowed, count=min(len(scores), 8 * len(allowed)), bitorder="little")
        scores[: len(allowed)][allowed == 0] = -np.inf
        scores[len(allowed) :] = -np.inf


def vocabulary(tokenizer):
    """llguidance's view of a tokenizer: the bytes of each token, and which of them end a text. Made once each."""
    llguidance = library()
    made = getattr(tokenizer, "guidance", None)
    if made is None:
        pieces = [tokenizer.piece(i) for i in range(tokenizer.n_vocab)]
        made = tokenizer.guidance = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Pieces(tokenizer, pieces)))
    return made


class _Pieces:
    """What llguidance asks a tokenizer for."""

    def __init__(self, tokenizer, pieces):
        self.tokens, self.special_token_ids = pieces, sorted(tokenizer.eos_ids)
        self.eos_token_id = tokenizer.eos_id if tokenizer.eos_id is not None else self.special_token_ids[0]
        self.bos_token_id = tokenizer.bos_id
        self._encode = tokenizer.encode

    def __call__(self, text):
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._encode(text, add_special=False)


def library():
    """The package llguidance. FormatError, with what to do, where it is not."""
    try:
        import llguidance
    except ImportError as error:
        fix = "pip install 'tensorlib[grammar]'"
        raise FormatError(
            "grammar", "grammar", f"no package llguidance ({error})", "it, to read grammars", fix
        ) from error
    return llguidance


def log_softmax(scores):
    """Logarithms of the probabilities, float32."""
    shifted = scores - scores.max()
    return shifted - np.log(np.exp(shifted).sum(dtype=np.float64)).astype(np.float32)
