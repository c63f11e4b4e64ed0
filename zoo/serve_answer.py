"""Answers of `/v1/completions` and `/v1/chat/completions`: from tokens to OpenAI's shapes, whole or as events."""

import asyncio
import json
import os
import time
import traceback

from zoo.completion import Cut
from zoo.serve_errors import ApiError, api_error
from zoo.serve_queue import Generation
from zoo.serve_request import CHAT, COMPLETION, fields
from zoo.serve_text import Request

LEAST = -9999.0  # JSON has no infinity
ENCODER = json.JSONEncoder(separators=(",", ":"))


class Answer:
    """An answer in the making. `await start()`, then `await whole()` or `events()`; `close()` at the end."""

    def __init__(self, service, body, chat):
        asked = fields(body, CHAT if chat else COMPLETION)
        self.name = service.name("text", asked["model"])
        self.service, self.chat, self.asked = service, chat, asked
        self.request = Request(service, asked, chat)
        self.deadline = asyncio.get_running_loop().time() + service.time_limit
        self.id = ("chatcmpl-" if chat else "cmpl-") + os.urandom(12).hex()
        self.created, self._generation = int(time.time()), None

    async def start(self):
        """Have it computed. ApiError for what cannot be."""
        sequences = await self.service.prepared(self.request.sequences)
        self._generation = Generation(self.service.runner, sequences, self.deadline)
        self._choices = [Choice(self.service.tokenizer, self.asked["stop"], s.arguments[1]) for s in sequences]

    def close(self):
        """Cancel what still runs."""
        if self._generation is not None:
            self._generation.close()

    async def whole(self):
        """The answer as one object."""
        parts, choices = [[] for _ in self._choices], []
        async for index, *part in self._pieces():
            parts[index].append(part)
        for index, part in enumerate(parts):
            text, rows = "".join(text for text, _, _ in part), [row for _, rows, _ in part for row in rows]
            said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            logs = self._logprobs(rows, 0)
            choices.append({"index": index, **said, "logprobs": logs, "finish_reason": part[-1][-1]})
        return self._object("chat.completion", choices) | {"usage": self._usage()}

    async def events(self):
        """The answer as bytes of server-sent events. Errors become one."""
        try:
            if self.chat:
                for index in range(len(self._choices)):
                    yield self._chunk(index, {"role": "assistant", "content": ""})
            at = [0] * len(self._choices)
            async for index, text, rows, reason in self._pieces():
                if text or rows:
                    yield self._chunk(index, {"content": text} if self.chat else text, self._logprobs(rows, at[index]))
                    at[index] += len(text)
                if reason:
                    yield self._chunk(index, {} if self.chat else "", reason=reason)
            if self.asked["stream_options"]:
                yield event(self._object("chat.completion.chunk", []) | {"usage": self._usage()})
            yield b"data: [DONE]\n\n"
        except Exception as error:
            yield event(told(error).body())

    async def _pieces(self):
        """(index, text, [(id, Chosen)], finish_reason or None), the text being what has become certain."""
        async for items in self._generation:
            touched = {}
            for index, token, row in items:
                choice = self._choices[index]
                if choice.reason is None:
                    choice.push(token, row)
                    touched[index] = choice
                    if choice.reason:
                        self._generation.cancel(index)
            for index, choice in touched.items():
                if choice.text or choice.reason:
                    yield index, choice.text, choice.rows, choice.reason
                    choice.text, choice.rows = "", []

    # ---- shapes ----

    def _object(self, kind, choices):
        kind = kind if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.name, "choices": choices}

    def _chunk(self, index, said, logprobs=None, reason=None):
        choice = {"index": index, "delta" if self.chat else "text": said, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self.asked["stream_options"] else {}
        return event(self._object("chat.completion.chunk", [choice]) | usage)

    def _usage(self):
        prompt, count = self.request.count, sum(choice.count for choice in self._choices)
        return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}

    def _logprobs(self, rows, at):
        """Of tokens whose text begins `at` characters into the answer."""
        if self.request.logprobs is None:
            return None
        if self.chat:
            content = [self._token(i, row.logprob) | {"top_logprobs": self._top(row)} for i, row in rows]
            return {"content": content, "refusal": None}
        texts = [self._token(i, 0)["token"] for i, _ in rows]
        return {
            "tokens": texts,
            "token_logprobs": [max(row.logprob, LEAST) for _, row in rows],
            "top_logprobs": [{t["token"]: t["logprob"] for t in self._top(row)} for _, row in rows],
            "text_offset": [at + sum(map(len, texts[:n])) for n in range(len(texts))],
        }

    def _top(self, row):
        return [self._token(i, logprob) for i, logprob in row.top]

    def _token(self, i, logprob):
        piece = self.service.tokenizer.piece(i)
        return {"token": piece.decode("utf-8", "replace"), "logprob": max(logprob, LEAST), "bytes": list(piece)}


class Choice:
    """One of an answer's texts: what is certain of it and was not sent, and why it ended."""

    def __init__(self, tokenizer, stop, most):
        self.text, self.rows, self.reason, self.count, self._most = "", [], None, 0, most
        self._cut, self._stream = Cut(stop), tokenizer.stream()

    def push(self, token, row):
        """A token and what LogProbs says of it; None: there are no more."""
        if token is None:
            self.text += self._cut.push(self._stream.flush()) + self._cut.flush()
            self.reason = "stop" if self._cut.found or self.count < self._most else "length"
            return
        self.count += 1
        self.text += self._cut.push(self._stream.push(token))
        if row is not None:
            self.rows.append((token, row))
        if self._cut.found:
            self.reason = "stop"


def event(content):
    """A server-sent event of an object."""
    return b"data: " + ENCODER.encode(content).encode() + b"\n\n"


def told(error):
    """An exception as an ApiError, with its traceback on standard error if it is a mistake of ours."""
    found = api_error(error)
    if found.status == 500 and not isinstance(error, ApiError):
        traceback.print_exception(error)
    return found
