"""Several prompts at once, as users of transformers have them: texts, lists of ids, or rows with padding and a mask.

>>> model = generate.load()  # doctest: +SKIP
>>> generate_batch(model, ["One fine day", "Water is"], max_tokens=20)  # doctest: +SKIP
>>> batch = tokenizer(texts, return_tensors="np", padding=True)  # doctest: +SKIP
>>> generate_batch(model, batch["input_ids"], 20, attention_mask=batch["attention_mask"])  # doctest: +SKIP
"""

from tensorlib.errors import ShapeError
from zoo.completion import Cut
from zoo.engine import Engine
from zoo.generate import GREEDY, SamplerConfig


def generate_batch(
    model, prompts, max_tokens=None, sampler=GREEDY, stop_ids=None, attention_mask=None, stop=(), streams=8,
    cache_dtype="f16",
):  # fmt: skip
    """What follows each of `prompts`: a list of lists of ids, or of texts for texts. Each is what it is alone.

    prompts: texts, or ids: lists of any lengths, or rows [B, T] of any kind, with `attention_mask` (as they; 0 where
    padding is, at either side). sampler: a SamplerConfig, or one for each, with a seed of its own. stop_ids: ids that
    end a text, and are not among what is given; None: none, but for texts the tokenizer's. stop: strings that do so,
    for texts. `streams` are computed at once. ShapeError, ContextError.

    >>> rows([[7, 7, 5], [1, 2, 3]], [[0, 1, 1], [1, 1, 1]])
    [[7, 5], [1, 2, 3]]
    """
    prompts, texts = rows(prompts, attention_mask, model), any(isinstance(each, str) for each in prompts)
    samplers = [sampler] * len(prompts) if isinstance(sampler, SamplerConfig) else list(sampler)
    if len(samplers) != len(prompts) or (stop and not texts):
        got = (
            f"{len(prompts)} prompts{' of ids' * (not texts)}, {len(samplers)} samplers, {len(stop)} strings to stop at"
        )
        raise ShapeError(
            "generate_batch", got, "a sampler for each, and strings for texts alone", "see stop_ids for ids"
        )
    ends = stop_ids if stop_ids is not None else model.tokenizer.eos_ids if texts else ()
    longest = max(map(len, prompts), default=0)
    context = None if max_tokens is None else longest + max_tokens
    engine = Engine(model, min(streams, max(1, len(prompts))), context, cache_dtype)
    handles = [engine.submit(ids, max_tokens, config, ends) for ids, config in zip(prompts, samplers)]
    said = {handle: _Text(model.tokenizer, stop) for handle in handles} if texts else {}
    while engine.busy:
        for handle, token in engine.step():
            if handle in said and said[handle].push(token):
                engine.cancel(handle)
    return [said[handle].text if texts else handle.ids for handle in handles]


def rows(prompts, attention_mask=None, model=None):
    """Lists of ids without padding, of all that `generate_batch` takes. ShapeError."""
    if isinstance(prompts, str) or getattr(prompts, "ndim", 2) != 2:
        got = "one text" if isinstance(prompts, str) else f"ids of shape {tuple(prompts.shape)}"
        raise ShapeError("generate_batch", got, "a list of prompts, or [B, T]", "put it into a list")
    prompts, mask = _listed(prompts), None if attention_mask is None else _listed(attention_mask)
    prompts = [model.tokenizer.encode(each) if isinstance(each, str) else list(each) for each in prompts]
    if mask is None:
        return prompts
    if list(map(len, mask)) != list(map(len, prompts)):
        got = f"rows of {[*map(len, prompts)][:20]} ids, a mask of {[*map(len, mask)][:20]}"
        raise ShapeError("generate_batch", got, "a mask as the ids", "pad both alike")
    return [[token for token, keep in zip(ids, row) if keep] for ids, row in zip(prompts, mask)]


def _listed(x):
    return x.tolist() if hasattr(x, "tolist") else list(x)


class _Text:
    """What a stream says, up to a string that ends it."""

    def __init__(self, tokenizer, stop):
        self._stream, self._cut, self.text = tokenizer.stream(), Cut(stop), ""

    def push(self, token):
        """A token, or None at the end; whether there is no more to come."""
        if token is not None:
            self.text += self._cut.push(self._stream.push(token))
        elif self._cut.found is None:
            self.text += self._cut.push(self._stream.flush()) + self._cut.flush()
        return token is not None and self._cut.found is not None
