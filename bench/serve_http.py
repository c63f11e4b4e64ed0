"""`tensorlib serve` against llama.cpp's `llama-server`, over HTTP: tokens per second of all requests, time to a token.

    python -m bench.peers install llama.cpp llama-server
    python -m bench.serve http [--streams 1,8] [--threads 2] [--formats q8_0] [--tokens 128] [--repeats 5] [--check]

Both get the same requests from the same client: so many at once, each on a connection of its own, for a completion of
a text of 32 to 64 tokens, greedy, end of text ignored, whole (`answers`) and as events (`events`). What counts is the
tokens that the answers' `usage` names by the seconds from the first connection until the last answer is whole; of
events also the milliseconds until each request's first piece of text (`first`). No text comes twice, and llama.cpp's
caches of prompts are off. A round starts each server once, in an order that rotates; only one runs at a time, on
`--threads` cores, after requests that are not measured. llama.cpp's has eight slots with continuous batching (`-np 8`),
its other options as they are; see OPTIONS.
"""

import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from itertools import takewhile
from typing import NamedTuple

from bench import harness, models, peers
from bench.serve_load import serving

TARGETS = {8: 1.5}  # streams -> least ratio of tensorlib's median to llama-server's
SLOTS, CONTEXT = 8, 256  # of both servers; tokens of each slot
OPTIONS = "--no-cache-prompt --cache-ram 0 --no-ui --log-disable".split()
PATIENCE = 120  # seconds that a server has to start, and an answer to come
MODES = {"answers": False, "events": True}


class Answer(NamedTuple):
    """Of one request: tokens generated, tokens of its prompt, seconds to the first text (events only) and to the end,
    the text.
    """

    count: int
    prompt: int
    first: float
    seconds: float
    text: str


# ---- servers ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ours(path, threads, _overrides):
    """(host, port) of a `tensorlib serve`."""
    options = "--threads", str(threads), "--streams", str(SLOTS), "--context", str(CONTEXT)
    with serving(path, *options) as process:
        confine(process.pid, threads)
        yield process.url


@contextlib.contextmanager
def theirs(path, threads, overrides):
    """(host, port) of a `llama-server`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = free.getsockname()
    server = peers.find(peers.LLAMA_SERVER.name, overrides)
    command = [server, "-m", path, "--host", url[0], "--port", str(url[1]), "-t", str(threads)]
    command += ["-np", str(SLOTS), "-c", str(SLOTS * CONTEXT), *OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            confine(process.pid, threads)
            until_well(process, url)
            yield url
        finally:
            process.kill()


SERVERS = {peers.TENSORLIB.name: ours, peers.LLAMA_SERVER.name: theirs}


def confine(pid, threads):
    """Allow a process the last `threads` cores, as the workers do."""
    if hasattr(os, "sched_setaffinity"):
        for task in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(task), sorted(os.sched_getaffinity(0))[-threads:])


def until_well(process, url):
    """Wait until a server that was started says that it is ready."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        if process.poll() is not None:
            raise SystemExit(f"{process.args}\nended with {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{url[0]}:{url[1]}/health") as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise SystemExit(f"{process.args}\nwas not ready after {PATIENCE} s")


# ---- the client ------------------------------------------------------------------------------------------------------


async def ask(url, prompt, tokens, stream):
    """Answer to one request. What comes is only kept with its time, and read when all is over."""
    asked = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": stream}
    asked |= {"cache_prompt": False} | ({"stream_options": {"include_usage": True}} if stream else {})
    body = json.dumps(asked).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    began, pieces = time.perf_counter(), []
    reader, writer = await asyncio.open_connection(*url)
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    async with asyncio.timeout(PATIENCE):
        while piece := await reader.read(1 << 16):
            pieces.append((time.perf_counter() - began, piece))
    writer.close()
    return pieces


def read(pieces, stream):
    """The Answer that [(seconds, bytes)] are. AssertionError for one that is an error or not whole."""
    data = b"".join(piece for _, piece in pieces)
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.split()[1] == b"200", data[:500]
    if b"chunked" in head.lower():
        rest = unchunked(rest)
    if not stream:
        answer = json.loads(rest)
        return made(answer["usage"], None, pieces, answer["choices"][0]["text"])
    events = [line[6:] for line in rest.split(b"\n") if line.startswith(b"data: ")]
    assert events[-1].strip() == b"[DONE]", data[-500:]
    events = [json.loads(event) for event in events[:-1]]
    texts = [choice["text"] for event in events for choice in event["choices"]]
    (usage,) = [event["usage"] for event in events if event.get("usage")]
    return made(usage, first_text(pieces), pieces, "".join(texts))


def made(usage, first, pieces, text):
    """An Answer of what was found."""
    return Answer(usage["completion_tokens"], usage["prompt_tokens"], first, pieces[-1][0], text)


def first_text(pieces):
    """Seconds until an event with text was there whole."""
    seen = b""
    for seconds, piece in pieces:
        seen += piece
        lines = [line[6:] for line in seen.split(b"\n")[:-1] if line.startswith(b"data: {")]
        if any(choice["text"] for line in lines for choice in json.loads(line)["choices"]):
            return seconds
    raise AssertionError(f"no text came: {seen[-500:]}")


def unchunked(data):
    """A body without the sizes of its chunks. AssertionError if the last one is missing."""
    found = bytearray()
    while True:
        size, _, data = data.partition(b"\r\n")
        count = int(size.split(b";")[0], 16)
        if not count:
            return bytes(found)
        found += data[:count]
        assert data[count : count + 2] == b"\r\n", "a torn chunk"
        data = data[count + 2 :]


def together(url, prompts, tokens, stream):
    """(seconds until the last is whole, Answers) of requests that are sent at once."""

    async def go():
        began = time.perf_counter()
        pieces = await asyncio.gather(*(ask(url, prompt, tokens, stream) for prompt in prompts))
        return time.perf_counter() - began, pieces

    seconds, found = asyncio.run(go())
    return seconds, [read(pieces, stream) for pieces in found]


# ---- rounds ----------------------------------------------------------------------------------------------------------


class Texts:
    """Prompts of 32 to 64 tokens, none of which comes twice."""

    def __init__(self, path):
        from tensorlib.io import gguf
        from tensorlib.io.tokenizer import Tokenizer

        with gguf.open(path) as file:
            self._tokenizer = Tokenizer.from_gguf(file)
        self._ids, self._at, self._count = self._tokenizer.encode(models.text()), 0, 0

    def take(self, count):
        """The next `count`."""
        found = []
        for _ in range(count):
            width = 32 + (self._count * 37 + 11) % 33
            found.append(self._tokenizer.decode(self._ids[self._at : self._at + width]))
            assert self._at + width <= len(self._ids), "there is no more text"
            self._at, self._count = self._at + width, self._count + 1
        return found


def turn(server, jobs, tokens):
    """[(seconds, Answers)] of each job (mode, prompts) at a server that is there for this alone."""
    with server as url:
        for stream in MODES.values():
            together(url, [f"{i} is a number that" for i in range(SLOTS)], 16, stream)
        return [together(url, prompts, tokens, MODES[mode]) for mode, prompts in jobs]


def measure(options, path, threads, own):
    """{(mode, streams): {peer: [(seconds, Answers) of each round]}}."""
    counts, texts = harness.numbers(options.streams), Texts(path)
    names = list(SERVERS)
    found = {(mode, count): {name: [] for name in names} for count in counts for mode in MODES}
    for number in range(options.repeats):
        jobs = {key: texts.take(key[1]) for key in found}
        for name in names[number % 2 :] + names[: number % 2]:
            asked = [(mode, jobs[mode, count]) for mode, count in found]
            answers = turn(SERVERS[name](path, threads, own), asked, options.tokens)
            for key, answer in zip(found, answers, strict=True):
                found[key][name].append(answer)
    return found


def samples(rounds):
    """(tokens per second of each round, milliseconds to each request's first text) of one peer's rounds of one kind."""
    speed = [sum(answer.count for answer in answers) / seconds for seconds, answers in rounds]
    first = [1000 * answer.first for _, answers in rounds for answer in answers if answer.first is not None]
    return speed, first


def alike(rounds):
    """What the peers' greedy answers have in common, and whether they counted the prompts' tokens alike."""
    pairs = list(zip(*([a for _, answers in one for a in answers] for one in rounds.values()), strict=True))
    begun = [sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(a.text, b.text))) for a, b in pairs]
    shared = statistics.median(n / len(b.text) for n, (_, b) in zip(begun, pairs, strict=True))
    same = sum(a.prompt == b.prompt for a, b in pairs)
    return f"the first {100 * shared:.0f} % of the text are the same (median); {same} of {len(pairs)} prompts' counts"


def main():
    """Command line of `python -m bench.serve http`."""
    parser = harness.parser(__doc__)
    parser.set_defaults(threads="2", formats="q8_0", peers=peers.LLAMA_SERVER.name)
    parser.add_argument("--streams", default="1,8", help="comma-separated, of 1 to 8")
    parser.add_argument("--tokens", type=int, default=128, help="tokens to generate, at most 192")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    host, own, table, written, missed = harness.machine(), harness.overrides(options), [], [], []
    versions = {name: peers.version(name, peers.find(name, own)) for name in SERVERS}
    for kind in options.formats.split(","):
        path = models.formatted(models.base(options.model), kind, own)
        for threads in harness.numbers(options.threads):
            for (mode, count), rounds in measure(options, path, threads, own).items():
                print(f"{kind}, {mode}, {count} streams: {alike(rounds)}", file=sys.stderr)
                where, middles = {"threads": threads, "format": kind, "amount": count}, []
                for name, one in rounds.items():
                    speed, first = samples(one)
                    low, middle, high = harness.quantiles(speed)
                    middles.append(middle)
                    shown = (f"{middle:.0f}", f"{low:.0f} to {high:.0f}", f"{middles[0] / middle:.2f}x")
                    shown += ("{1:.0f} ({0:.0f} to {2:.0f})".format(*harness.quantiles(first)) if first else "",)
                    table.append((kind, threads, mode, count, name, *shown))
                    row = (host, f"http {mode}", name, versions[name])
                    written.append(harness.row(*row, speed, "tokens/s", **where))
                    if first:
                        row = (host, "http first", name, versions[name])
                        written.append(harness.row(*row, first, "ms", **where))
                if (ratio := middles[0] / middles[1]) < TARGETS.get(count, 0):
                    missed.append(f"{kind}, {mode}, {count} streams: {ratio:.2f}x, target {TARGETS[count]}x")
    harness.headline(host)
    header = ["format", "threads", "mode", "streams", "peer", "tokens/s", "p20 to p80", "tensorlib / peer"]
    harness.show([*header, "ms to first text (p20 to p80)"], table)
    harness.write(written, "serve_http", options)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    sys.exit(1 if options.check and missed else 0)
