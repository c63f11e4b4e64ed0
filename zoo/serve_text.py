"""From a request for text to sequences for the engine: prompts as ids, limits, samplers, processors."""

from tensorlib.errors import TensorlibError
from zoo.generate import SamplerConfig
from zoo.processors import Grammar, LogitBias, LogProbs, Penalties
from zoo.serve_errors import ApiError
from zoo.serve_queue import Sequence

SAMPLING = SamplerConfig._fields[:-1]  # without the seed


class Request:
    """`asked`: the fields; `chat`: which endpoint they are for; `logprobs`: of how many tokens, or None. `sequences()`
    takes time, and one thread at once; `count` is then how many ids the prompts have.
    """

    def __init__(self, service, asked, chat):
        self.service, self.tokenizer, self.asked, self.chat, self.count = service, service.tokenizer, asked, chat, 0
        self.field = "messages" if chat else "prompt"
        self.logprobs = asked["logprobs"]
        if chat:
            self.logprobs = asked["top_logprobs"] if asked["logprobs"] else None
            if asked["top_logprobs"] and not asked["logprobs"]:
                raise ApiError(400, "top_logprobs: logprobs must be true", "top_logprobs", "invalid_value")

    def sequences(self):
        """A Sequence for each choice of each prompt. ApiError for what cannot be."""
        asked, ends, made = self.asked, self.tokenizer.eos_ids, []
        prompts = [self._conversation()] if self.chat else [self._ids(prompt) for prompt in asked["prompt"]]
        if asked["ignore_eos"] and asked["response_format"] is None:
            ends = ()
        if asked["logit_bias"]:
            self._check_ids("logit_bias", asked["logit_bias"])
        most = asked.get("max_completion_tokens") or asked["max_tokens"]
        for ids in prompts:
            self.count += len(ids)
            room = self._room(ids, most)
            for _ in range(asked["n"]):
                seed = None if asked["seed"] is None else asked["seed"] + len(made)
                sampler = SamplerConfig(*(asked[name] for name in SAMPLING), seed)
                made.append(Sequence(ids, room, sampler, ends, *self._processors(len(ids))))
        return made

    def _conversation(self):
        messages = self.asked["messages"]
        self._check_bytes("".join(message["content"] for message in messages))
        if "developer" not in (self.tokenizer.chat_template or ""):  # OpenAI's newer name of the system
            messages = [m | {"role": "system"} if m["role"] == "developer" else m for m in messages]
        try:
            text = self.tokenizer.apply_chat_template(messages)
            ids = self.tokenizer.encode(text, add_special=False)
        except TensorlibError as error:
            raise ApiError(400, str(error), "messages", "invalid_value") from error
        return self._some(ids)

    def _ids(self, prompt):
        if not isinstance(prompt, str):
            self._check_ids("prompt", prompt)
            return prompt
        self._check_bytes(prompt)
        ids = self.tokenizer.encode(prompt)
        if not ids and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id]  # whatever the model begins with
        return self._some(ids)

    def _some(self, ids):
        if not ids:
            raise ApiError(400, f"{self.field}: there must be a token", self.field, "invalid_value")
        return ids

    def _check_ids(self, name, ids):
        last = self.tokenizer.n_vocab - 1
        if not 0 <= min(ids) <= max(ids) <= last:
            raise ApiError(400, f"{name}: token ids are from 0 to {last}", name, "invalid_value")

    def _check_bytes(self, text):
        """Before a text is tokens: no other request should wait for a megabyte's."""
        if (count := len(text.encode("utf-8", "replace"))) > self.service.most_bytes:
            raise self._too_long(f"{count} bytes")

    def _room(self, ids, most):
        room = self.service.context - len(ids)
        if room < (most or 1):
            raise self._too_long(f"{len(ids)} tokens" + (f" and {most} to generate" if most else ""))
        return most or room

    def _too_long(self, got):
        message = f"This model's context is of {self.service.context} tokens; {self.field} of {got} do not fit"
        return ApiError(400, message, self.field, "context_length_exceeded")

    def _processors(self, prompt):
        """What changes the scores of one sequence, and the LogProbs among it."""
        asked, made = self.asked, []
        if asked["logit_bias"]:
            made.append(LogitBias(asked["logit_bias"]))
        if asked["presence_penalty"] or asked["frequency_penalty"]:
            made.append(Penalties(asked["presence_penalty"], asked["frequency_penalty"], prompt))
        if asked["response_format"] is not None:
            try:
                made.append(Grammar(self.tokenizer, json_schema=asked["response_format"]))
            except TensorlibError as error:
                raise ApiError(400, str(error), "response_format", "invalid_value") from error
        logs = None if self.logprobs is None else LogProbs(self.logprobs)
        return made + ([] if logs is None else [logs]), logs
