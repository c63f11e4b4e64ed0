"""Clients of the server: those that leave or read slowly, and who may ask at all."""

import asyncio
import contextlib
import json
import sys
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from tensorlib import nn
from tensorlib.errors import DeviceError, FormatError
from tests.zoo import serving
from tests.zoo.serving import TEXT, FakeEncoder, ask, until
from zoo import cli, serve, serve_http, serve_queue
from zoo.serve_api import application

# ---- clients that leave, or read slowly ------------------------------------------------------------------------------


async def talk(of, body, send, leave):
    """The application as a server sees it: `leave` is an Event after which the client is gone."""
    content, given = json.dumps(body).encode(), []

    async def receive():
        if not given:
            given.append(True)
            return {"type": "http.request", "body": content, "more_body": False}
        await leave.wait()
        return {"type": "http.disconnect"}

    headers = [(b"host", b"localhost:80"), (b"content-length", str(len(content)).encode())]
    scope = {"type": "http", "method": "POST", "path": TEXT, "headers": headers, "query_string": b"", "root_path": ""}
    await application(of)(scope, receive, send)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_sequences(served, stream):
    of = served(context=10_000, pause=0.005)

    async def go():
        leave, sent = asyncio.Event(), []

        async def send(message):
            sent.append(message)

        body = {"prompt": "a", "n": 2, "max_tokens": 9000, "ignore_eos": True, "stream": stream}
        task = asyncio.create_task(talk(of, body, send, leave))
        while len(sent) < 5 if stream else of.runner.engine.made < 2:
            await asyncio.sleep(0.005)
        leave.set()
        await asyncio.wait_for(task, 10)

    started = time.monotonic()
    asyncio.run(go())  # it ends when all tasks have
    assert time.monotonic() - started < 10
    until(lambda: of.runner.engine.cancelled == 2)
    assert of.runner.engine.live == [] and of.runner.count == 0


def test_a_slow_reader_is_cancelled(served, monkeypatch):
    """One that takes nothing: when as much waits as may, the engine is free again, although the send still hangs."""
    monkeypatch.setattr(serve_queue, "BUFFER", 50)
    monkeypatch.setattr(serve_http, "STALL", 1.0)
    of = served(context=100_000)

    async def go():
        freed = []

        async def send(message):
            if message["type"] == "http.response.body":
                while not of.runner.engine.cancelled:
                    await asyncio.sleep(0.001)
                freed.append(of.runner.count)
                await asyncio.sleep(100)

        body = {"prompt": "a", "max_tokens": 90_000, "ignore_eos": True, "stream": True}
        await asyncio.wait_for(talk(of, body, send, asyncio.Event()), 10)
        return freed

    assert asyncio.run(go()) == [0]


def test_a_reader_that_was_too_slow_is_told(served, monkeypatch):
    monkeypatch.setattr(serve_queue, "BUFFER", 50)
    of = served(context=100_000)

    async def go():
        sent = []

        async def send(message):
            sent.append(message.get("body", b""))
            while not of.runner.engine.cancelled:
                await asyncio.sleep(0.001)

        body = {"prompt": "a", "max_tokens": 90_000, "ignore_eos": True, "stream": True}
        await talk(of, body, send, asyncio.Event())
        return sent

    *_, last, end = asyncio.run(go())
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "slow_reader" and end == b""


def test_a_connection_without_a_request_is_cut(served, monkeypatch):
    """One that says nothing, or a letter now and then; one that waits for its answer is not."""
    uvicorn = pytest.importorskip("uvicorn")
    monkeypatch.setattr(serve_http, "HEAD_SECONDS", 0.1)
    of, body = served(pause=0.03), json.dumps({"prompt": "a", "max_tokens": 20, "ignore_eos": True})
    whole = f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    async def talk(port, first, rest):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(first)
        found, reading = b"", asyncio.create_task(reader.read(1 << 16))
        with contextlib.suppress(ConnectionError):  # cut in the middle of a letter
            for letter in rest:
                done, _ = await asyncio.wait([reading], timeout=0.02)
                if done:
                    break
                writer.write(bytes([letter]))
            found = await asyncio.wait_for(reading, 5)
        writer.transport.abort()
        return found

    async def go():
        config = uvicorn.Config(application(of), http=serve_http.Connection, log_level="critical")
        with serve.bound("127.0.0.1", 0, None) as listening:
            server = uvicorn.Server(config)
            task = asyncio.create_task(server.serve([listening]))
            while not server.started:
                await asyncio.sleep(0.01)
            port, slowly = listening.getsockname()[1], b"GET /health HTTP/1.1\r\nA: " + b"b" * 1000
            found = await asyncio.gather(talk(port, b"", b""), talk(port, b"", slowly), talk(port, whole, b""))
            server.should_exit = True
            await task
        return found

    nothing, slow, answer = asyncio.run(go())
    assert nothing == b"" and slow == b"" and b'"completion_tokens": 20' in answer


# ---- who may ask -----------------------------------------------------------------------------------------------------


def test_the_key(served):
    of = served()
    for headers in ({}, {"authorization": "Bearer no"}, {"authorization": "Basic secret"}, {"authorization": "secret"}):
        found = ask(of, "/v1/models", key="secret", headers=headers)
        assert found.status_code == 401 and found.json()["error"]["code"] == "invalid_api_key"
        assert found.headers["www-authenticate"] == "Bearer"
        assert ask(of, "/nowhere", key="secret", headers=headers).status_code == 401
    good = {"authorization": "Bearer secret", "host": "example.org", "origin": "https://example.org"}
    assert ask(of, "/v1/models", key="secret", headers=good).status_code == 200
    assert ask(of, "/health", key="secret").status_code == 200


@pytest.mark.parametrize(
    "path, key, status", [("/v1/responses", None, 404), ("/health", None, 405), (TEXT, "secret", 401)]
)
def test_bodies_that_nobody_reads_are_taken(served, path, key, status):
    """A connection that is closed with data unread is reset, and its client does not see the answer."""
    taken = []

    async def pieces():
        for i in range(10):
            yield b"x" * 1000
            taken.append(i)

    assert ask(served(), path, key=key, method="POST", content=pieces()).status_code == status
    assert len(taken) == 10


@pytest.mark.parametrize("name", ["host", "origin"])
def test_without_a_key_other_sites_get_nothing(served, name):
    of = served()
    for host in ("evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::", ""):
        value = f"http://{host}" if name == "origin" else host
        found = ask(of, TEXT, {"prompt": "a"}, headers={name: value})
        assert found.status_code == 403 and found.json()["error"]["type"] == "permission_error", host
    for host in ("localhost:3000", "127.0.0.1:8000", "[::1]:8000"):
        value = f"http://{host}" if name == "origin" else host
        assert ask(of, "/health", headers={name: value}).status_code == 200


def test_other_machines_need_a_key():
    for host in ("0.0.0.0", "::"):
        with pytest.raises(DeviceError, match="TENSORLIB_API_KEY"):
            serve.bound(host, 0, None)
    with serve.bound("0.0.0.0", 0, "key") as other, serve.bound("127.0.0.1", 0, None) as mine:
        mine.listen()
        with pytest.raises(DeviceError, match="--port 0"):
            serve.bound("127.0.0.1", mine.getsockname()[1], None)
        assert other.getsockname()[1]


@pytest.mark.parametrize("key", ["é", " ", "a b", "a\n"])
def test_keys_that_no_client_could_send(key):
    with pytest.raises(DeviceError, match="printable ASCII"):
        serve.bound("127.0.0.1", 0, key)


@pytest.mark.parametrize("port", [-1, 70_000])
def test_ports_that_are_none(port):
    with pytest.raises(DeviceError):
        serve.bound("127.0.0.1", port, None)


@pytest.mark.parametrize("package", ["uvicorn", "starlette"])
def test_a_missing_package_is_one_line(monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FormatError, match=r"pip install 'tensorlib\[serve\]'"):
        serve.library()
    assert cli.main(["serve", "--port", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_embeddings_have_a_time_limit(served, tiny_tokenizer):
    encoder = FakeEncoder(tiny_tokenizer)
    encoder.embed = lambda rows, skip: time.sleep(0.3)
    found = ask(served(encoder=encoder, time_limit=0.05), "/v1/embeddings", {"input": "a"})
    assert (found.status_code, found.json()["error"]["code"]) == (503, "time_limit")


def test_names_of_models(monkeypatch, served, tiny_tokenizer):
    """What the options name is what clients see."""
    text = SimpleNamespace(model=nn.Module(), tokenizer=tiny_tokenizer, context_length=64)
    monkeypatch.setattr("zoo.generate.load", lambda *_: text)
    monkeypatch.setattr("zoo.embed.load", lambda *_: FakeEncoder(tiny_tokenizer))
    monkeypatch.setattr("zoo.engine.Engine", lambda *_: serving.FakeEngine(tiny_tokenizer), raising=False)
    for arguments, names in (
        ("", {"text": "SmolLM2-135M-Instruct.Q4_1"}),
        ("-m a/b/Some-Model.gguf", {"text": "Some-Model"}),
        ("-m x --name mine -e org/minilm/", {"text": "mine", "embed": "minilm"}),
        ("-e org/minilm --name mine", {"embed": "mine"}),
        ("-e pypi:some==1.0/some_minilm/model", {"embed": "some_minilm"}),
        ("-e model", {"embed": "model"}),
    ):
        of = serve.loaded(cli._parser().parse_args(["serve", *arguments.split()]))
        assert of.names == names
        of.close()
