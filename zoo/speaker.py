"""What models of text have in common beside `generate`: their tokenizer, text for text, what they look like."""

from tensorlib.io.tokenizer import Tokenizer

USUAL = 256  # tokens of an answer, if nobody says how many


class Speaker:
    """Base of TextModel and Translator, which have `file`, `folder` (None: the tokenizer is in the file), `model`,
    `device`, `context_length` and `generate`.
    """

    _tokenizer = None

    @property
    def tokenizer(self):
        """The tokenizer out of the file or folder, built when first asked for."""
        if self._tokenizer is None and self.folder is not None:
            self._tokenizer = Tokenizer.from_folder(self.folder)
        elif self._tokenizer is None:
            self._tokenizer = Tokenizer.from_gguf(self.file)
        return self._tokenizer

    def complete(self, prompt, max_tokens=None, stop=(), processors=(), **sampling):
        """What follows a text, or ids: a Completion, which gives pieces as they come (`for piece in ...`), or all of it
        (`str(...)`, `print(...)`). At most `max_tokens` (None: 256, or what the context allows), up to one of the
        strings `stop`. `sampling` is SamplerConfig's: `temperature=0.7, seed=1`. ContextError.
        """
        from zoo.completion import Completion
        from zoo.generate import SamplerConfig

        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id]  # an empty prompt: whatever the model begins with
        if max_tokens is None and self.context_length > len(ids):
            max_tokens = min(USUAL, self.context_length - len(ids))
        return Completion(self, ids, max_tokens, SamplerConfig(**sampling), stop, processors, reuse=True)

    def chat(self, messages, max_tokens=None, stop=(), processors=(), **sampling):
        """The answer to a question, or to a list of {"role": ..., "content": ...}: as `complete`. FormatError for a
        model without a chat template.
        """
        messages = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        text = self.tokenizer.apply_chat_template(messages)
        ids = self.tokenizer.encode(text, add_special=False)
        return self.complete(ids, max_tokens, stop, processors, **sampling)

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(self._facts())})"

    def _repr_html_(self):
        from html import escape

        return f"<div>{escape(repr(self))}</div>{self.model._repr_html_()}"

    def _facts(self):
        """Class, weights, where they are, and for how many tokens."""
        from tensorlib.nn.text import weight

        return type(self.model).__name__, weight(self.model), str(self.device), f"context of {self.context_length:,}"
