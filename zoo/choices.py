"""What the options of `tensorlib generate` and `chat` come to: a form, guesses, beams, log-probabilities."""

import json
import os
import sys

FORMS = ("json_schema", "regex", "grammar")
WITHOUT_BEAMS = ("logprobs", "draft", "ngram", *FORMS)  # options of drawing token by token


def source(model, arguments):
    """What generates: the model, or guesses that it judges."""
    if arguments.draft is None and arguments.ngram is None:
        return model
    from zoo.speculative import Draft, NGram, Speculation

    if arguments.ngram is not None:
        return Speculation(model, NGram(arguments.ngram, arguments.guesses))
    from zoo.generate import load

    draft = load(arguments.draft, None, arguments.context, arguments.device)
    return Speculation(model, Draft(draft, arguments.guesses))


def answer(source, ids, limit, sampler, arguments, reuse):
    """(an iterable of pieces of text with `ids`, the LogProbs that were asked for or None)."""
    if arguments.beams is not None:
        return Best(source, ids, limit, arguments), None
    from zoo.completion import Completion

    processors, logs = _form(source.tokenizer, arguments), None
    if arguments.logprobs is not None:
        from zoo.processors import LogProbs

        logs = LogProbs(arguments.logprobs)
        processors = [*processors, logs]
    return Completion(source, ids, limit, sampler, arguments.stop, processors, reuse), logs


def _form(tokenizer, arguments):
    """The processors that a form asks for. FormatError."""
    given = {name: getattr(arguments, name) for name in FORMS if getattr(arguments, name) is not None}
    if not given:
        return []
    from tensorlib.errors import FormatError
    from zoo.processors import Grammar

    (name, text), option = next(iter(given.items())), "--" + next(iter(given)).replace("_", "-")
    try:
        if name != "regex" and os.path.isfile(text):
            with open(text, encoding="utf-8") as file:
                text = file.read()
        form = json.loads(text) if name == "json_schema" else text
    except (OSError, ValueError) as e:
        raise FormatError(option, name, str(e), "it, or a file of it", "see json-schema.org") from e
    if name == "json_schema" and not isinstance(form, dict):
        raise FormatError(option, name, type(form).__name__, "an object", "see json-schema.org")
    return [Grammar(tokenizer, **{name: form})]


class Best:
    """The best text of a beam search, as one piece; `ids`: its tokens. FormatError for options that do not go along."""

    def __init__(self, model, ids, limit, arguments):
        from tensorlib.errors import FormatError

        wrong = [f"--{name.replace('_', '-')}" for name in WITHOUT_BEAMS if getattr(arguments, name) is not None]
        wrong += ["--temperature"] * (arguments.temperature > 0)
        if wrong:
            raise FormatError("--beams", "options", f"it with {wrong[0]}", "one of them", "leave one of them out")
        if not hasattr(model, "cache"):
            got = type(model.model).__name__
            raise FormatError("--beams", "model", got, "a model that continues a text", "leave --beams out")
        self._model, self._prompt, self._limit, self._given, self.ids = model, ids, limit, arguments, []

    def __iter__(self):
        from zoo.beam import beam_search
        from zoo.completion import Cut

        tokenizer, cut = self._model.tokenizer, Cut(self._given.stop)
        ends = tokenizer.eos_ids
        self.ids = beam_search(self._model, self._prompt, self._given.beams, self._limit or 1, stop_ids=ends)[0].ids
        stream = tokenizer.stream()
        text = "".join(stream.push(token) for token in self.ids) + stream.flush()
        yield cut.push(text) + cut.flush()


def tell(logs, ids, tokenizer):
    """Write the log-probability of each token of `ids` that was drawn, and of the likeliest, to standard error."""
    logs.finish(ids)
    for token, row in zip(ids[len(ids) - len(logs.rows) :], logs.rows):
        others = "  ".join(f"{_shown(tokenizer, id)} {value:.4f}" for id, value in row.top)
        print(f"{row.logprob:9.4f}  {_shown(tokenizer, token)}" + (f"  of {others}" if others else ""), file=sys.stderr)


def _shown(tokenizer, id):
    return json.dumps(tokenizer.piece(id).decode("utf-8", "replace"), ensure_ascii=False)
