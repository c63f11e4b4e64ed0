"""What the tests of the server share: a tiny model with a tokenizer, an engine that says what it is told to."""

import asyncio
import json
import time

import httpx
import numpy as np

import tensorlib
from tensorlib.errors import ContextError
from tensorlib.io.vocabulary import LETTER_OF_BYTE
from tests.zoo.conftest import write_llama
from zoo.llama import TINY
from zoo.pipeline import Prompts
from zoo.serve_api import Service, application
from zoo.serve_queue import Runner

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIALS, *LETTER_OF_BYTE, "th"]
END = 2
TEMPLATE = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
SAID = "Hello, wörld! The end."
LOOPBACK = "http://127.0.0.1"
CHAT, TEXT, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HELLO = [{"role": "user", "content": "Hi"}]


def with_tokenizer(writer):
    """Adds bytes as tokens, one merge, and a chat template."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS)))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(END)
    writer.add_chat_template(TEMPLATE)


def write_tiny(path, context=256):
    """A Llama of random weights that has a tokenizer."""
    config = TINY._replace(vocab_size=len(TOKENS), max_position_embeddings=context)
    return write_llama(path, "f32", config, more=with_tokenizer)


class FakeEngine:
    """The engine's face. Every answer is `said`, then the end token, unless processors make others likelier; `pause`
    seconds a step; `broken`: steps that fail.
    """

    def __init__(self, tokenizer, said=SAID, context=64, pause=0.0, broken=0):
        self.context, self.pause, self.broken, self.vocab = context, pause, broken, tokenizer.n_vocab
        self.said = [*tokenizer.encode(said), END]
        self.live, self.made, self.cancelled, self.samplers = [], 0, 0, []

    @property
    def busy(self):
        return bool(self.live)

    def submit(self, ids, max_tokens, sampler=None, stop_ids=(), processors=()):
        if len(ids) + max_tokens > self.context:
            raise ContextError("engine", "too much", "less")
        self.made += 1
        self.samplers.append(sampler)
        handle = FakeHandle(list(ids), max_tokens, stop_ids, processors)
        self.live.append(handle)
        return handle

    def cancel(self, handle):
        if handle in self.live:
            self.live.remove(handle)
            self.cancelled += 1

    def step(self):
        time.sleep(self.pause)
        if self.broken:
            self.broken -= 1
            raise RuntimeError("a broken step, on purpose")
        out = []
        for handle in list(self.live):
            token = None
            try:
                token = self.chosen(handle)
            except Exception as error:
                handle.error = error
            if token in handle.ends:
                token = None
            if token is not None:
                handle.ids.append(token)
                out.append((handle, token))
            if token is None or len(handle.ids) == handle.most:
                self.live.remove(handle)
                out.append((handle, None))
        return out

    def chosen(self, handle):
        scores = np.zeros(self.vocab, np.float32)
        scores[self.said[(len(handle.ids) - handle.prompt) % len(self.said)]] = 5.0
        for processor in handle.processors:
            processor(handle.ids, scores)
        return int(scores.argmax())


class FakeHandle:
    """What the engine knows a stream by."""

    def __init__(self, ids, most, ends, processors):
        self.ids, self.prompt, self.most, self.ends, self.processors = ids, len(ids), len(ids) + most, ends, processors
        self.error = None


def service(tokenizer, streams=4, encoder=None, max_body=4096, time_limit=30.0, **options):
    """A Service on a FakeEngine."""
    names = {"text": "tiny"} | ({"embed": "vectors"} if encoder else {})
    runner = Runner(FakeEngine(tokenizer, **options), streams)
    return Service(names, tokenizer, runner, encoder, max_body, time_limit)


def ask(of, path, body=None, key=None, **options):
    """The response to a request, a GET if there is no body."""

    async def go():
        transport = httpx.ASGITransport(application(of, key), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=LOOPBACK) as client:
            if body is None and not options.keys() & {"content", "method"}:
                return await client.get(path, **options)
            return await client.request(options.pop("method", "POST"), path, json=body, **options)

    return asyncio.run(go())


def events(response):
    """The objects of a stream of events, whose end must be [DONE]."""
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""], lines[-3:]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def until(condition, seconds=10):
    """Wait for a condition."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it does not come"
        time.sleep(0.005)


class FakeEncoder:
    """Vectors that say what they are of: [length, first id, how many tokens are in no pool and 0.5]."""

    max_length = 16

    def __init__(self, tokenizer, prompts=None):
        self.tokenizer, self.prompts, self.calls = tokenizer, prompts or Prompts(), []

    def embed(self, rows, skip=0):
        self.calls.append(len(rows))
        return tensorlib.tensor([[float(len(row)), float(row[0]), skip + 0.5] for row in rows])
