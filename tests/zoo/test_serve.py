"""The server's answers and errors, in this process, on an engine that says what it is told to."""

import asyncio
import base64
import json
import math
import sys
import threading

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from tests.zoo import serving
from tests.zoo.serving import CHAT, HELLO, SAID, TEXT, VECTORS, FakeEncoder, ask, events, until
from zoo import serve_http
from zoo.pipeline import Prompts

# ---- answers ---------------------------------------------------------------------------------------------------------


def test_completion(served):
    found = ask(served(), TEXT, {"prompt": "One", "max_tokens": 40, "model": "tiny", "user": "ignored"})
    answer = found.json()
    assert found.status_code == 200 and found.headers["content-type"] == "application/json"
    assert answer.pop("id").startswith("cmpl-") and answer.pop("created") > 1.7e9
    choice = {"index": 0, "text": SAID, "logprobs": None, "finish_reason": "stop"}
    count = len(SAID.encode())
    usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}
    assert answer == {"object": "text_completion", "model": "tiny", "choices": [choice], "usage": usage}


def test_chat(served):
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    bodies = [{"messages": HELLO}, {"messages": [{"role": "user", "content": parts}], "max_completion_tokens": 5}]
    whole, short = [ask(served(), CHAT, body).json() for body in bodies]
    assert whole["object"] == "chat.completion" and whole["id"].startswith("chatcmpl-")
    message = {"role": "assistant", "content": SAID, "refusal": None}
    assert whole["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    assert short["choices"][0]["message"]["content"] == SAID[:5]
    assert short["choices"][0]["finish_reason"] == "length"
    rendered = "<|im_start|>user\nHi<|im_end|><|im_start|>assistant\n"
    ids = len(rendered.replace("<|im_start|>", "1").replace("<|im_end|>", "2"))
    assert whole["usage"]["prompt_tokens"] == short["usage"]["prompt_tokens"] == ids
    assert short["usage"]["completion_tokens"] == 5


def test_completion_of_several_prompts_and_choices(served):
    of = served(streams=8)
    body = {"prompt": ["a", "bcd", [70, 71]], "n": 2, "seed": 7, "max_tokens": 3, "temperature": 0.5, "top_k": 4}
    answer = ask(of, TEXT, body).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert {choice["text"] for choice in answer["choices"]} == {SAID[:3]}
    assert answer["usage"] == {"prompt_tokens": 2 * 0 + 1 + 3 + 2, "completion_tokens": 18, "total_tokens": 24}
    samplers = of.runner.engine.samplers
    assert [sampler.seed for sampler in samplers] == [7, 8, 9, 10, 11, 12]
    assert samplers[0]._replace(seed=None) == (0.5, 4, 1.0, 0.0, 1.0, None)
    ask(of, TEXT, {"prompt": "a", "max_tokens": 1})
    assert samplers[-1] == (1.0, 0, 1.0, 0.0, 1.0, None)  # OpenAI's defaults


def test_an_empty_prompt_is_what_the_model_begins_with(served):
    assert ask(served(), TEXT, {"prompt": ""}).json()["usage"]["prompt_tokens"] == 1


@pytest.mark.parametrize("stop, text", [("The", "Hello, wörld! "), (["zzz", "ld!"], "Hello, wör"), (["xx"], SAID)])
@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(served, stop, text, stream):
    of = served()
    found = ask(of, TEXT, {"prompt": "a", "stop": stop, "max_tokens": 30, "stream": stream, "ignore_eos": False})
    choices = [e["choices"][0] for e in events(found)] if stream else found.json()["choices"]
    assert "".join(choice["text"] for choice in choices) == text
    assert choices[-1]["finish_reason"] == "stop"
    until(lambda: not of.runner.engine.live and not of.runner.count)


def test_a_stop_string_ends_the_sequence(served):
    of = served(context=10_000, pause=0.001)
    ask(of, TEXT, {"prompt": "a", "stop": "end", "max_tokens": 9000, "ignore_eos": True})
    until(lambda: of.runner.engine.cancelled == 1)


def test_ignore_eos_goes_on(served):
    answer = ask(served(), TEXT, {"prompt": "a", "max_tokens": 50, "ignore_eos": True}).json()
    assert answer["usage"]["completion_tokens"] == 50 and answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("n", [1, 2])
def test_stream_of_chat(served, n):
    body = {"messages": HELLO, "stream": True, "n": n, "stream_options": {"include_usage": True}}
    found = ask(served(), CHAT, body)
    assert found.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(found)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1 and all(chunk["usage"] is None for chunk in chunks)
    count = len(SAID.encode()) * n
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == count
    for index in range(n):
        choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["delta"].get("content", "") for c in choices) == SAID
        assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["stop"]
        assert choices[-1]["delta"] == {}


def test_stream_has_no_half_characters_and_no_usage_unless_asked(served):
    chunks = events(ask(served(), TEXT, {"prompt": "a", "max_tokens": 40, "stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == SAID
    assert not any("usage" in chunk or "\ufffd" in chunk["choices"][0]["text"] for chunk in chunks)


def softmax(first, rest):
    """Logarithms of the probabilities of FakeEngine's scores: 5 once, 0 for the others."""
    return first - math.log(math.exp(5) + rest)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_chat(served, tiny_tokenizer, stream):
    body = {"messages": HELLO, "logprobs": True, "top_logprobs": 2, "max_tokens": 9, "stream": stream}
    found = ask(served(), CHAT, body)
    choices = [chunk["choices"][0] for chunk in events(found)] if stream else found.json()["choices"]
    rows = [row for choice in choices if choice["logprobs"] for row in choice["logprobs"]["content"]]
    assert bytes(b for row in rows for b in row["bytes"]) == SAID.encode()[:9]
    assert [row["token"] for row in rows] == [*"Hello, w", "\ufffd"]
    for row in rows:
        assert row["logprob"] == pytest.approx(softmax(5, tiny_tokenizer.n_vocab - 1), abs=1e-5)
        assert row["top_logprobs"][0]["bytes"] == row["bytes"]
        assert row["top_logprobs"][1]["logprob"] == pytest.approx(softmax(0, tiny_tokenizer.n_vocab - 1), abs=1e-5)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_completions(served, stream):
    body = {"prompt": "a", "logprobs": 1, "max_tokens": 6, "stream": stream, "logit_bias": {"4": -100, "5": -100}}
    found = ask(served(), TEXT, body)
    choices = [chunk["choices"][0] for chunk in events(found)] if stream else found.json()["choices"]
    rows = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    logs = {name: [x for row in rows for x in row[name]] for name in rows[0]}
    assert logs["tokens"] == list(SAID[:6]) and logs["text_offset"] == list(range(6))
    assert logs["top_logprobs"] == [{t: x} for t, x in zip(logs["tokens"], logs["token_logprobs"])]


def test_biases_and_penalties_change_the_choice(served, tiny_tokenizer):
    (x,) = tiny_tokenizer.encode("x")
    found = ask(served(), TEXT, {"prompt": "a", "max_tokens": 3, "logit_bias": {str(x): 100}}).json()
    assert found["choices"][0]["text"] == "xxx"
    body = {"prompt": "a", "max_tokens": 20, "presence_penalty": 2, "frequency_penalty": 2, "logit_bias": {str(x): 4}}
    text = ask(served(), TEXT, body).json()["choices"][0]["text"]
    assert text[:3] == "Hel" and text[3] == "x"  # the second l has lost 4 of its 5, x has 4


SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["cat", "dog"]}},
    "required": ["ok", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_json_schema(served, stream):
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    body = {"messages": HELLO, "response_format": form, "ignore_eos": True, "stream": stream}
    found = ask(served(context=128), CHAT, body)
    if stream:
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events(found))
    else:
        text = found.json()["choices"][0]["message"]["content"]
    answer = json.loads(text)
    assert answer["ok"] in (True, False) and answer["kind"] in ("cat", "dog") and len(answer) == 2


def test_json_object(served):
    pytest.importorskip("llguidance")
    of = served(said="{}")
    body = {"messages": HELLO, "response_format": {"type": "json_object"}}
    assert ask(of, CHAT, body).json()["choices"][0]["message"]["content"] == "{}"
    body["response_format"] = {"type": "text"}
    assert ask(served(), CHAT, body).json()["choices"][0]["message"]["content"] == SAID


def test_a_format_without_its_package(served, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    found = ask(served(), CHAT, {"messages": HELLO, "response_format": {"type": "json_object"}})
    assert found.status_code == 400 and "pip install 'tensorlib[grammar]'" in found.json()["error"]["message"]


def test_embeddings(served, tiny_tokenizer):
    of = served(encoder=FakeEncoder(tiny_tokenizer))
    answer = ask(of, VECTORS, {"input": ["abc", "d", [70, 71]], "model": "vectors"}).json()
    assert answer["object"] == "list" and answer["model"] == "vectors"
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    firsts = [tiny_tokenizer.encode("abc")[0], tiny_tokenizer.encode("d")[0], 70]
    rows = [[3.0, firsts[0], 0.5], [1.0, firsts[1], 0.5], [2.0, firsts[2], 0.5]]
    assert answer["data"] == [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    coded = ask(of, VECTORS, {"input": "abc", "encoding_format": "base64", "dimensions": 3}).json()["data"][0]
    assert np.frombuffer(base64.b64decode(coded["embedding"]), "<f4").tolist() == rows[0]
    found = ask(of, VECTORS, {"input": [3] * 17})
    assert (found.status_code, found.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert ask(of, VECTORS, {"input": "a", "dimensions": 5}).json()["error"]["param"] == "dimensions"


def test_embeddings_that_come_together_are_a_batch(served, tiny_tokenizer):
    of = served(encoder=FakeEncoder(tiny_tokenizer))

    async def go():
        return await asyncio.gather(*(of.vectors.of([([i], 0)] * 2) for i in range(6)))

    found = asyncio.run(go())
    assert [x[:, 1].tolist() for x in found] == [[float(i)] * 2 for i in range(6)]
    assert sum(of.vectors.encoder.calls) == 12 and len(of.vectors.encoder.calls) <= 2


@pytest.mark.parametrize("pooled", [True, False])
def test_prompts_before_texts_that_are_embedded(served, tiny_tokenizer, pooled):
    """The model's default before texts, another by its name, none before ids; each skips what its own has."""
    prompts = Prompts({"query": "q: ", "passage": "p:", "none": ""}, "q: ", pooled)
    of = served(encoder=FakeEncoder(tiny_tokenizer, prompts))
    q, p, a = (tiny_tokenizer.encode(text)[0] for text in "qpa")
    default = ask(of, VECTORS, {"input": ["abc", [70, 71], "d"]}).json()
    rows = [[6.0, q, 0.5 if pooled else 3.5], [2.0, 70.0, 0.5], [4.0, q, 0.5 if pooled else 3.5]]
    assert [each["embedding"] for each in default["data"]] == rows
    assert default["usage"]["prompt_tokens"] == 12
    for name, row in {"passage": [3.0, p, 0.5 if pooled else 2.5], "none": [1.0, a, 0.5]}.items():
        answer = ask(of, VECTORS, {"input": "a", "prompt_name": name}).json()
        assert answer["data"][0]["embedding"] == row
    wrong = ask(of, VECTORS, {"input": "a", "prompt_name": "q"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "prompt_name")
    assert "query, passage, none" in wrong.json()["error"]["message"]


def test_models_and_health(served, tiny_tokenizer):
    of = served(encoder=FakeEncoder(tiny_tokenizer))
    found = ask(of, "/v1/models").json()
    assert found["object"] == "list" and [model["id"] for model in found["data"]] == ["tiny", "vectors"]
    assert ask(of, "/v1/models/tiny").json() == found["data"][0]
    assert ask(of, "/health").json() == {"status": "ok", "answers": 0}


# ---- errors ----------------------------------------------------------------------------------------------------------

BAD = [
    (TEXT, {}, 400, "prompt", "missing_required_parameter"),
    (TEXT, {"prompt": "a", "max_completion_tokens": 5}, 400, "max_completion_tokens", "unknown_parameter"),  # chat's
    (TEXT, {"prompt": "a", "max_token": 5, "user": "u"}, 400, "max_token", "unknown_parameter"),
    (CHAT, {"messages": HELLO, "grammar": "root ::= [a]", "store": True}, 400, "grammar", "unknown_parameter"),
    (CHAT, {"messages": HELLO, "x" * 80: 1}, 400, "x" * 60, "unknown_parameter"),
    (TEXT, {"prompt": "a", "\ud800": 1}, 400, "\ud800", "unknown_parameter"),
    (CHAT, {"messages": HELLO, "top_logprobs": 2}, 400, "top_logprobs", "invalid_value"),  # without logprobs
    (CHAT, {"messages": HELLO, "tool_choice": "required"}, 400, "tool_choice", "unsupported_parameter"),
    (CHAT, {"messages": HELLO, "function_call": {"name": "f"}}, 400, "function_call", "unsupported_parameter"),
    (CHAT, {"messages": HELLO, "reasoning_effort": "high"}, 400, "reasoning_effort", "unsupported_parameter"),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{}]}]}, 400, "messages", "unsupported_parameter"),
    (CHAT, {"messages": []}, 400, "messages", "invalid_value"),
    (CHAT, {"messages": "Hi"}, 400, "messages", "invalid_value"),
    (CHAT, {"messages": [{"content": "Hi"}]}, 400, "messages", "invalid_value"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages", "invalid_value"),
    (CHAT, {"messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter"),
    (CHAT, {"messages": HELLO, "response_format": {"type": "xml"}}, 400, "response_format", "invalid_value"),
    (CHAT, {"messages": HELLO, "top_logprobs": 21}, 400, "top_logprobs", "invalid_value"),
    (CHAT, {"messages": HELLO, "stream_options": True}, 400, "stream_options", "invalid_value"),
    (TEXT, {"prompt": 3}, 400, "prompt", "invalid_value"),
    (TEXT, {"prompt": []}, 400, "prompt", "invalid_value"),
    (TEXT, {"prompt": ["a", 3]}, 400, "prompt", "invalid_value"),
    (TEXT, {"prompt": [3, True]}, 400, "prompt", "invalid_value"),
    (TEXT, {"prompt": [3, 10**30]}, 400, "prompt", "invalid_value"),
    (TEXT, {"prompt": [-1]}, 400, "prompt", "invalid_value"),
    (TEXT, {"prompt": "a", "max_tokens": 0}, 400, "max_tokens", "invalid_value"),
    (TEXT, {"prompt": "a", "max_tokens": 1.5}, 400, "max_tokens", "invalid_value"),
    (TEXT, {"prompt": "a", "max_tokens": True}, 400, "max_tokens", "invalid_value"),
    (TEXT, {"prompt": "a", "temperature": "hot"}, 400, "temperature", "invalid_value"),
    (TEXT, {"prompt": "a", "temperature": math.nan}, 400, "temperature", "invalid_value"),
    (TEXT, {"prompt": "a", "top_p": 1.1}, 400, "top_p", "invalid_value"),
    (TEXT, {"prompt": "a", "n": 129}, 400, "n", "invalid_value"),
    (TEXT, {"prompt": "a", "n": 5}, 400, "n", None),  # the server has room for 4
    (TEXT, {"prompt": "a", "stop": [""]}, 400, "stop", "invalid_value"),
    (TEXT, {"prompt": "a", "stop": ["a"] * 5}, 400, "stop", "invalid_value"),
    (TEXT, {"prompt": "a", "logprobs": 6}, 400, "logprobs", "invalid_value"),
    (TEXT, {"prompt": "a", "logit_bias": {"x": 1}}, 400, "logit_bias", "invalid_value"),
    (TEXT, {"prompt": "a", "logit_bias": {"1": 101}}, 400, "logit_bias", "invalid_value"),
    (TEXT, {"prompt": "a", "logit_bias": {"260": 1}}, 400, "logit_bias", "invalid_value"),
    (TEXT, {"prompt": "a", "seed": 2**63}, 400, "seed", "invalid_value"),
    (TEXT, {"prompt": "a", "echo": True}, 400, "echo", "unsupported_parameter"),
    (TEXT, {"prompt": "a", "stream": "yes"}, 400, "stream", "invalid_value"),
    (TEXT, {"prompt": "a", "model": "gpt-\ud800"}, 404, "model", "model_not_found"),
    (TEXT, {"prompt": "ab" * 40}, 400, "prompt", "context_length_exceeded"),
    (TEXT, {"prompt": "ab" * 1000}, 400, "prompt", "context_length_exceeded"),  # without tokens being made
    (TEXT, {"prompt": "a", "max_tokens": 64}, 400, "prompt", "context_length_exceeded"),
    (CHAT, {"messages": [{"role": "user", "content": "ab" * 40}]}, 400, "messages", "context_length_exceeded"),
    (VECTORS, {"input": "a"}, 404, "model", "model_not_found"),
]


@pytest.fixture(scope="module")
def standing(tiny_tokenizer):
    of = serving.service(tiny_tokenizer)
    yield of
    of.close()


@pytest.mark.parametrize("path, body, status, param, code", BAD, ids=str)
def test_wrong_fields(standing, path, body, status, param, code):
    found = ask(standing, path, method="POST", content=json.dumps(body))
    error = found.json()["error"]
    assert (found.status_code, error["param"], error["code"]) == (status, param, code), error
    assert error["type"] == "invalid_request_error" and 0 < len(error["message"]) < 400
    assert ask(standing, TEXT, {"prompt": "a", "max_tokens": 1, "stop": None}).status_code == 200


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b'{"a":' + b"[" * 2000, b"[" * 2000, b"9" * 4000])
def test_malformed_json(standing, content):
    for path in (TEXT, CHAT, VECTORS):
        found = ask(standing, path, method="POST", content=content)
        assert (found.status_code, found.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    "messages, got",
    [
        ([], "an empty list"),
        ([None], "null"),
        ([{}], "a message without a role"),
        ([{"role": "user"}], "null as content"),
        ([{"role": "user", "content": ["a"]}], '"a"'),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], 'a part of type "image_url"'),
        ([{"role": "user", "content": [{"type": "text", "text": True}]}], "true as text"),
    ],
)
def test_what_is_wrong_with_messages(standing, messages, got):
    message = ask(standing, CHAT, {"messages": messages}).json()["error"]["message"]
    assert message.startswith("messages: expected ") and message.endswith(f", got {got}")


def test_fields_that_change_no_answer(served):
    body = {"metadata": {"a": "b"}, "store": True, "service_tier": "flex", "safety_identifier": "s", "surprise": None}
    body |= {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "verbosity": "medium", "echo": False}
    history = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [], "refusal": None, "audio": None}, *HELLO]
    for each in (HELLO, history):
        assert ask(served(context=128), CHAT, {"messages": each} | body).status_code == 200


@pytest.mark.parametrize("template, role", [("", "system"), ("{# developer #}", "developer")])
def test_a_developer_is_the_system_to_templates_that_know_none(served, monkeypatch, template, role):
    of = served()
    monkeypatch.setattr(of.tokenizer, "chat_template", template + serving.TEMPLATE)
    body = {"messages": [{"role": "developer", "content": "D"}, *HELLO], "max_tokens": 1}
    same = body | {"messages": [{"role": role, "content": "D"}, *HELLO]}
    asked, seen = [], of.tokenizer.apply_chat_template
    monkeypatch.setattr(of.tokenizer, "apply_chat_template", lambda told: asked.append(told) or seen(told))
    assert ask(of, CHAT, body).json()["usage"] == ask(of, CHAT, same).json()["usage"]
    assert asked[0] == asked[1] and asked[0][0]["role"] == role


@pytest.mark.parametrize(
    "method, path, status", [("GET", TEXT, 405), ("GET", "/", 404), ("POST", "/v1/responses", 404)]
)
def test_wrong_paths(standing, method, path, status):
    found = ask(standing, path, method=method)
    error = found.json()["error"]
    assert found.status_code == status and error["type"] == "invalid_request_error" and path in error["message"]
    assert error["code"] == ("unknown_url" if status == 404 else "method_not_allowed")
    assert (found.headers.get("allow") or CHAT) in error["message"]
    assert ask(standing, "/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_bodies_have_a_limit(standing):
    async def pieces():
        for _ in range(20):
            yield b"x" * 1000

    for content in (b"x" * 4097, pieces()):
        found = ask(standing, TEXT, method="POST", content=content)
        assert (found.status_code, found.json()["error"]["code"]) == (413, "body_too_large")
    assert ask(standing, TEXT, method="POST", content=b"x" * 4096).json()["error"]["code"] == "invalid_json"


def test_a_body_that_does_not_come(standing, monkeypatch):
    monkeypatch.setattr(serve_http, "BODY_SECONDS", 0.05)

    async def pieces():
        yield b"{"
        await asyncio.sleep(10)

    assert ask(standing, TEXT, method="POST", content=pieces()).status_code == 408


def test_a_full_queue(served):
    of = served(streams=2, pause=0.02)
    first = threading.Thread(target=ask, args=(of, TEXT, {"prompt": "a", "n": 2, "max_tokens": 15}))
    first.start()
    until(lambda: of.runner.count == 2)
    found = ask(of, TEXT, {"prompt": "a"})
    assert (found.status_code, found.json()["error"]["code"]) == (429, "queue_full")
    assert found.json()["error"]["type"] == "rate_limit_error" and int(found.headers["retry-after"]) > 0
    first.join()
    assert ask(of, TEXT, {"prompt": "a", "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_the_time_limit(served, stream):
    of = served(time_limit=0.1, pause=0.05)
    found = ask(of, TEXT, {"prompt": "a", "stream": stream})
    if stream:
        assert (
            json.loads(found.text.split("data: ")[-1])["error"]["code"] == "time_limit" and "[DONE]" not in found.text
        )
    else:
        assert (found.status_code, found.json()["error"]["code"]) == (503, "time_limit")
    until(lambda: of.runner.engine.cancelled == 1 and not of.runner.count)


def test_an_engine_that_fails_tells_everybody_and_goes_on(served, capfd):
    of = served(broken=1)
    found = ask(of, TEXT, {"prompt": "a"})
    error = found.json()["error"]
    assert (found.status_code, error["type"], error["code"]) == (500, "server_error", "internal_error")
    assert "on purpose" not in error["message"] and "on purpose" in capfd.readouterr().err
    assert ask(of, "/health").status_code == 503
    assert of.runner.engine.live == []
    assert ask(of, TEXT, {"prompt": "a", "max_tokens": 1}).status_code == 200
    assert ask(of, "/health").status_code == 200


def test_a_processor_that_fails_ends_its_answer_alone(served, tiny_tokenizer, monkeypatch, capfd):
    monkeypatch.setattr("zoo.serve_text.Grammar", lambda *_, **__: 1 / 0)
    of = served()
    found = ask(of, CHAT, {"messages": HELLO, "response_format": {"type": "json_object"}})
    assert found.status_code == 500 and "ZeroDivisionError" in capfd.readouterr().err
    monkeypatch.setattr("zoo.serve_text.Grammar", lambda *_, **__: lambda ids, scores: 1 / 0)
    found = ask(of, CHAT, {"messages": HELLO, "response_format": {"type": "json_object"}})
    assert found.status_code == 500 and "ZeroDivisionError" in capfd.readouterr().err
    assert ask(of, TEXT, {"prompt": "a", "max_tokens": 1}).status_code == 200
    monkeypatch.setattr("zoo.serve_text.Grammar", lambda *_, **__: lambda ids, scores: scores.fill(-np.inf))
    found = ask(of, CHAT, {"messages": HELLO, "response_format": {"type": "json_object"}})
    assert found.status_code == 500 and found.json()["error"]["param"] == "response_format"
    assert of.runner.healthy and of.runner.engine.live == []
