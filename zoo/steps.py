"""One generation: token after token, chosen from scores that processors may change."""

import tensorlib
from tensorlib.errors import ContextError, ShapeError, TensorlibError


class Steps:
    """One generation of a TextModel: the ids so far, and what changes their scores."""

    def __init__(self, model, ids, processors):
        self.model, self.ids, self.processors = model, ids, processors

    def tokens(self, count, stop_ids):
        """Yields at most `count` ids."""
        if count <= 0:
            return
        self.go_on()
        token = self.chosen(self.model.prefill(self.ids[len(self.model._held) :]))
        for _ in range(count - 1):
            if token in stop_ids:
                return
            self.ids.append(token)
            yield token
            self.go_on()
            logits = self.model.step(token, not self.processors)
            token = self.chosen(logits) if self.processors else self.model.sampler.token_id()
        if token not in stop_ids:
            yield token

    def go_on(self):
        """TensorlibError if the cache is another generation's by now."""
        if self.model.turn is not self:
            fix = "end the first one, or see zoo.engine.Engine"
            raise TensorlibError("generate", "another use of this model since it began", "one at a time", fix)

    def chosen(self, logits, ids=None):
        """The sampler's token for logits [1, V] after `ids` (None: those so far)."""
        if self.processors:
            scores = logits[-1].cpu().numpy()  # the logits themselves where they are the CPU's
            for processor in self.processors:
                processor(self.ids if ids is None else ids, scores)
            if logits.device.type != "cpu":
                logits = tensorlib.from_numpy(scores[None]).to(logits.device)
        self.model.sampler(logits)
        return self.model.sampler.token_id()


def room(op, ids, max_tokens, context):
    """How many tokens may follow a prompt: `max_tokens`, or what the context has left. ShapeError for an empty prompt,
    ContextError for one too long.

    >>> room("generate", [1, 2, 3], None, 8), room("generate", [1, 2, 3], 2, 8)
    (5, 2)
    """
    if not ids:
        raise ShapeError(op, "an empty prompt", "at least one token", "start with the tokenizer's bos_id")
    if context - len(ids) < (1 if max_tokens is None else max_tokens):
        got = f"a prompt of {len(ids)} tokens and {max_tokens or 1} to generate"
        fix = "shorten the prompt, lower max_tokens, or load with a larger context"
        raise ContextError(op, got, f"at most {context} in all", fix)
    return context - len(ids) if max_tokens is None else max_tokens


def common(a, b):
    """How many elements two lists begin with alike.

    >>> common([1, 2, 3], [1, 2, 4, 5])
    2
    """
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
