"""Text from an encoder-decoder (T5, Marian), which reads a text whole and answers it: for it what a TextModel is for a
decoder.
"""

import tensorlib
from tensorlib import nn
from tensorlib.device import Device
from tensorlib.errors import ContextError, FormatError, ShapeError
from zoo.generate import GREEDY
from zoo.speaker import Speaker
from zoo.steps import Steps

USUAL = 512  # tokens of an answer, if nobody says how many
UNBOUNDED = 1 << 20  # positions of models that have none, but distances


class Translator(Speaker):
    """A model of zoo/seq2seq.py with its tokenizer: `generate` and attributes as TextModel's. Not for two threads at
    once. `context_length`: the most tokens of a text and of its answer together. `folder`: where the tokenizer is, if
    it is not in the file. FormatError for any other model.
    """

    anew = True  # an answer does not continue the text: no space before it

    def __init__(self, file, model, device="cpu", folder=None):
        if not hasattr(model, "crossings"):
            fix = "see tensorlib embed for models that give vectors"
            raise FormatError(file.path, "model", type(model).__name__, "a model that gives text", fix)
        self.file, self.folder, self.model, self.config = file, folder, model, model.config
        self.device, self.sampler, self._capacity = Device(device), None, 0
        self._most = getattr(model.config, "max_position_embeddings", UNBOUNDED)
        self.context_length = 2 * self._most

    @property
    def tokenizer(self):
        """The tokenizer out of the file or folder; its `eos_ids` are the model's, too."""
        made = super().tokenizer
        made.eos_ids |= frozenset(self.config.ends)
        return made

    def generate(self, prompt_ids, max_tokens=None, sampler=GREEDY, stop_ids=(), processors=(), reuse=False):
        """Yields the ids of the answer to a text's, at most `max_tokens` (None: 512), up to a stop id, not yielded.

        ContextError, before any work, for more than the model has positions. `processors` see the text's ids and,
        behind them, the answer's. `reuse` changes nothing: each text is read anew.
        """
        ids, count = list(prompt_ids), min(USUAL, self._most) if max_tokens is None else max_tokens
        if not ids:
            raise ShapeError("generate", "an empty text", "at least one token", "give a text")
        if max(len(ids), count) > self._most:
            got, fix = f"a text of {len(ids)} tokens and an answer of {count}", "give it in parts, or lower max_tokens"
            raise ContextError("generate", got, f"at most {self._most} of each", fix)
        if count >= self._capacity:
            self._capacity = count + 1
            words = getattr(self.config, "decoder_vocab_size", self.config.vocab_size)
            self.sampler = nn.Sampler(words, self._capacity, device=self.device)
        self.sampler.reset([self.config.start], *sampler)
        steps = Steps(self, ids, list(processors))

        def choose(logits):
            ids.append(steps.chosen(logits))
            return ids[-1]

        return self.model.answer(tensorlib.tensor(ids, dtype="i64", device=self.device), count, choose, stop_ids)
