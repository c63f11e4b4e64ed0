"""OpenAI's own Python client against the server: what it parses, raises and cancels. Answers are checked strictly."""

import asyncio
import threading
from typing import Literal

import pytest

pytest.importorskip("openai")
pytest.importorskip("uvicorn")

import openai
import pydantic
import uvicorn
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.zoo import serving
from tests.zoo.serving import HELLO, SAID, FakeEncoder, until
from zoo import serve, serve_http
from zoo.serve_api import application

KEY = "sk-ours"


@pytest.fixture(scope="module")
def of(tiny_tokenizer):
    """A Service whose `url` is where a server has it."""
    of = serving.service(tiny_tokenizer, 64, FakeEncoder(tiny_tokenizer), context=2000, pause=0.001)
    with serve.bound("127.0.0.1", 0, KEY) as listening:
        config = uvicorn.Config(application(of, KEY), http=serve_http.Connection, log_level="critical", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        until(lambda: server.started)
        of.url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        yield of
        server.should_exit = True
        thread.join()
    of.close()


@pytest.fixture
def client(of):
    with openai.OpenAI(base_url=of.url, api_key=KEY, max_retries=0) as client:
        yield client


def checked(kind, response):
    """A raw response as a model of OpenAI's; what is not as its types say is an error."""
    return kind.model_validate_json(response.content, strict=True)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "vectors"]
    assert checked(Model, client.models.with_raw_response.retrieve("tiny")).owned_by == "tensorlib"


def test_chat(client):
    asked = {"model": "tiny", "messages": HELLO, "n": 2, "logprobs": True, "top_logprobs": 2, "seed": 1, "user": "u"}
    whole = checked(ChatCompletion, client.chat.completions.with_raw_response.create(**asked))
    assert [choice.message.content for choice in whole.choices] == [SAID, SAID]
    assert len(whole.choices[1].logprobs.content) == whole.usage.completion_tokens // 2
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.to_dict(), strict=True)
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices and not chunk.choices[0].index]
    assert "".join(said) == SAID and chunks[-1].usage == whole.usage


def test_completions(client):
    asked = {"model": "tiny", "prompt": ["a", "b"], "logprobs": 1, "max_tokens": 9, "logit_bias": {"4": -100}}
    whole = checked(Completion, client.completions.with_raw_response.create(**asked))
    assert [choice.text[:8] for choice in whole.choices] == [SAID[:8]] * 2 and whole.choices[
        0
    ].finish_reason == "length"
    assert len(whole.choices[1].logprobs.token_logprobs) == 9
    said = [chunk.choices[0].text for chunk in client.completions.create(**asked | {"prompt": "a"}, stream=True)]
    assert "".join(said) == whole.choices[0].text


class Pet(pydantic.BaseModel):
    kind: Literal["cat", "dog"]
    ok: bool


def test_structured_outputs(client):
    pytest.importorskip("llguidance")
    asked = {"model": "tiny", "messages": HELLO, "response_format": Pet}
    assert client.chat.completions.parse(**asked).choices[0].message.parsed.kind in ("cat", "dog")
    with client.chat.completions.stream(**asked) as stream:
        assert "content.delta" in {event.type for event in stream}
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Pet)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**asked, max_tokens=2)


def test_what_it_sends_back(client):
    """Its answers are messages, parts are texts, and a developer may speak."""
    said = client.chat.completions.create(model="tiny", messages=HELLO).choices[0].message
    parts = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    again = client.chat.completions.create(model="tiny", messages=[{"role": "developer", "content": "D"}, said, parts])
    assert again.choices[0].message.content == SAID


def test_embeddings(client):
    asked = {"model": "vectors", "input": ["abc", "d"]}
    packed = client.embeddings.create(**asked)  # base64, unless told otherwise
    plain = client.embeddings.with_raw_response.create(**asked, encoding_format="float")
    assert [row.embedding for row in packed.data] == [
        row.embedding for row in checked(CreateEmbeddingResponse, plain).data
    ]
    assert len(client.embeddings.create(model="vectors", input=[[3, 4], [5]], dimensions=3).data) == 2


ERRORS = [
    (openai.NotFoundError, "model_not_found", {"model": "gpt"}),
    (openai.BadRequestError, "context_length_exceeded", {"messages": [{"role": "user", "content": "a" * 2100}]}),
    (openai.BadRequestError, "unsupported_parameter", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    (openai.BadRequestError, "unsupported_parameter", {"modalities": ["text", "audio"]}),
    (openai.BadRequestError, "unknown_parameter", {"extra_body": {"grammar": "a"}}),
    (openai.BadRequestError, "invalid_value", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    (openai.AuthenticationError, "invalid_api_key", {"extra_headers": {"authorization": "Bearer wrong"}}),
]


@pytest.mark.parametrize("kind, code, fields", ERRORS, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("stream", [False, True])
def test_errors(client, kind, code, fields, stream):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": HELLO, "stream": stream} | fields)
    assert caught.value.code == code


def test_what_there_is_not(client):
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
        client.responses.create(model="tiny", input="a")


def test_a_closed_stream_and_a_timeout_cancel(client, of):
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 1900, "extra_body": {"ignore_eos": True}}
    with client.completions.create(**asked, stream=True) as stream:
        next(iter(stream))
        assert of.runner.count == 1
    until(lambda: not of.runner.count and not of.runner.engine.live)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.1).completions.create(**asked)
    until(lambda: not of.runner.count and not of.runner.engine.live)


def test_a_full_queue_is_tried_again(of, monkeypatch):
    monkeypatch.setattr(of.runner, "limit", 2)

    async def go():
        async with openai.AsyncOpenAI(base_url=of.url, api_key=KEY, max_retries=3) as client:
            asked = {"model": "tiny", "prompt": "a", "max_tokens": 20}
            return await asyncio.gather(*(client.completions.create(**asked) for _ in range(4)))

    assert [answer.choices[0].text for answer in asyncio.run(go())] == [SAID[:19]] * 4


def test_fifty_streams_at_once(of):
    async def one(client):
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def go():
        async with openai.AsyncOpenAI(base_url=of.url, api_key=KEY, max_retries=0) as client:
            return await asyncio.gather(*(one(client) for _ in range(50)))

    assert asyncio.run(go()) == [SAID] * 50
    until(lambda: not of.runner.count)
