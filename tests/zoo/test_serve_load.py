"""The server as a process: under load, and at its end. The long version: python -m bench.serve load."""

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import uvicorn

from bench import serve_http, serve_load
from tests.zoo.serving import write_tiny
from zoo import serve
from zoo.serve_api import application
from zoo.serve_http import Connection
from zoo.serve_queue import Generation, Sequence

HEAD = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: "


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("serve") / "tiny.gguf")


def test_two_hundred_clients(model):
    """Of every kind, all at once; then fewer, whose requests must leave nothing: memory, files, threads, sequences."""
    found = serve_load.run(model, warm=1200, requests=900, clients=50, rounds=3)
    assert found.counts.total() >= 2100
    assert {name for name, _ in found.counts} == set(serve_load.KINDS)
    assert abs(found.last / found.first - 1) <= serve_load.GROWTH, found
    done = sum(n for (name, status), n in found.counts.items() if status == 200)
    assert done > 1000  # most are not refused


def send(url, **fields):
    """A connection on which a request for a completion has been sent."""
    body = json.dumps({"prompt": "the cat", "max_tokens": 200, "ignore_eos": True, **fields})
    made = socket.create_connection(url, timeout=60)
    made.sendall(f"{HEAD}{len(body)}\r\n\r\n{body}".encode())
    return made


def whole(connection):
    """All that comes."""
    data = b""
    while piece := connection.recv(1 << 16):
        data += piece
    return data


def test_requests_leave_nothing_to_the_collector(served):
    """What was asked and answered, and its connection, is gone at once: no part of it has itself."""

    def there():
        kinds = (Generation, Sequence, asyncio.Transport)  # by type(): some of PyTorch's objects warn of a look inside
        return [x for x in gc.get_objects() if issubclass(type(x), kinds)]

    def left():
        return [type(x).__name__ for x in there() if not any(x is other for other in others)]

    async def go():
        config = uvicorn.Config(application(served()), http=Connection, log_level="critical")
        with serve.bound("127.0.0.1", 0, None) as listening:
            server = uvicorn.Server(config)
            task = asyncio.create_task(server.serve([listening]))
            while not server.started:
                await asyncio.sleep(0.01)
            for stream in (False, True):
                fields = {"max_tokens": 5, "n": 2, "stream": stream}
                with await asyncio.to_thread(send, listening.getsockname(), **fields) as connection:
                    assert b" 200 " in await asyncio.to_thread(whole, connection)
            for _ in range(100):
                if len(left()) <= 1:
                    break
                await asyncio.sleep(0.02)
            found = left()
            server.should_exit = True
            await task
        return found

    gc.collect()
    others = there()  # of other tests
    gc.disable()
    try:
        assert asyncio.run(go()) in ([], ["Sequence"])  # the engine's thread still has a name for the last of four
    finally:
        gc.enable()


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_lets_answers_end(model, number, status):
    with serve_load.serving(model) as process:
        with send(process.url, stream=True, n=4) as stream, send(process.url) as answer:
            begun = stream.recv(100)
            process.send_signal(number)
            streamed, text = begun + whole(stream), whole(answer)
        assert streamed.count(b'"finish_reason":"length"') == 4 and b"data: [DONE]" in streamed
        assert json.loads(text.split(b"\r\n\r\n")[1])["usage"]["completion_tokens"] == 200
        assert process.wait(30) == status
        assert "Traceback" not in process.stderr.read()
        with pytest.raises(OSError):
            socket.create_connection(process.url, timeout=1)


def test_the_key_is_read_from_the_environment(model, monkeypatch):
    monkeypatch.setenv("TENSORLIB_API_KEY", "secret")
    with serve_load.serving(model, "--host", "0.0.0.0") as process:
        with send(process.url) as connection:
            assert whole(connection).startswith(b"HTTP/1.1 401")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_no_other_machine_without_a_key(model):
    command = [sys.executable, "-m", "zoo.cli", "serve", "-m", str(model), "--host", "0.0.0.0", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(serve_load.ROOT), "TENSORLIB_API_KEY": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("tensorlib: error: serve: got --host 0.0.0.0") and done.stderr.count("\n") == 1


def test_a_wrong_answer_is_seen():
    """The bench's own eyes: half a stream, and an error without a message."""

    async def read(data):
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await serve_load.answer(reader, serve_load.KINDS["stream"])

    good = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    assert asyncio.run(read(good + b"10\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")) == 200
    for bad in (
        good + b"5\r\ndata:\r\n",
        b'HTTP/1.1 400 No\r\ncontent-type: application/json\r\n\r\n{"error": {"message": ""}}',
    ):
        with pytest.raises(AssertionError):
            asyncio.run(read(bad))


def test_what_the_bench_measures(model):
    """The same tokens and texts, whole and as events, of which the first come before the end, or with it: it is a
    small model, and a busy machine may read all at once.
    """
    with serve_http.ours(str(model), 2, {}) as url:
        (_, whole), (seconds, events) = [
            serve_http.together(url, ["a cat", "the mat sat"], 40, s) for s in (False, True)
        ]
    assert [a[:2] + a[4:] for a in whole] == [a[:2] + a[4:] for a in events]
    assert [a.count for a in whole] == [40, 40] and [a.prompt for a in whole] == [5, 10]
    assert all(0 < a.first <= a.seconds <= seconds for a in events) and all(a.first is None for a in whole)
    assert serve_http.alike({"a": [(1.0, whole)], "b": [(1.0, events)]}).startswith("the first 100 %")
    assert serve_http.samples([(2.0, whole)]) == ([40.0], [])


def test_the_first_text_of_events():
    """Not an event without text, and not before the event is whole."""
    empty, full = (b'data: {"choices":[{"text":"%s"}]}\n\n' % text for text in (b"", b"a"))
    pieces = [(1.0, b"head\r\n\r\n"), (2.0, empty + full[:9]), (3.0, full[9:20]), (4.0, full[20:] + full)]
    assert serve_http.first_text(pieces) == 4.0
    with pytest.raises(AssertionError, match="no text"):
        serve_http.first_text(pieces[:3])
    assert serve_http.unchunked(b"3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n") == b"abcd"
