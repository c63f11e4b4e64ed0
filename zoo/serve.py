"""`tensorlib serve`: a model behind an HTTP interface as OpenAI has it, for as many clients as come.

One process: the main thread talks HTTP (`serve_api.py`), one thread drives the engine, one prepares prompts. Without a
key only this machine may ask. Ctrl-C and SIGTERM let answers that have begun end, for at most half a minute.
"""

import contextlib
import gc
import ipaddress
import os
import signal
import socket
import sys

from zoo.convert import size
from zoo.options import MANY, at_least, between, reference, where_options

DRAIN = 30  # seconds that begun answers have to end
CONNECTIONS = 512  # more are refused with 503
BACKLOG = 2048  # that wait until they are accepted
SEND_BUFFER = 1 << 16  # bytes that the kernel holds for a slow reader
SILENT = 60_000  # milliseconds after which a reader that takes nothing is cut off


def add_commands(commands):
    """Add the parser of `serve` to the command line's."""
    about = "nswer over HTTP as OpenAI's servers do"
    serve = commands.add_parser("serve", help=f"a{about}", description=f"A{about}. Ctrl-C ends it.")
    text = "what to generate text with: see `tensorlib generate --help` (default: SmolLM2-135M-Instruct)"
    serve.add_argument("-m", "--model", type=reference, metavar="REF", help=text)
    text = "what to make vectors with: see `tensorlib embed --help`; without --model, vectors alone are served"
    serve.add_argument("-e", "--embed", type=reference, metavar="REF", help=text)
    serve.add_argument("--name", help="what clients call the model (its file's name)")
    serve.add_argument(
        "--host", default="127.0.0.1", help="where to listen; past this machine a key is needed (%(default)s)"
    )
    serve.add_argument("--port", type=int, default=8000, help="0: any that is free (%(default)s)")
    text = (
        "what clients must send as `Authorization: Bearer KEY` (the variable TENSORLIB_API_KEY, which ps does not show)"
    )
    serve.add_argument("--api-key", metavar="KEY", help=text)
    where_options(serve)
    text = "most tokens of a prompt and its answer"
    serve.add_argument("-c", "--context", type=at_least(3), metavar="N", help=text)  # what starting it computes
    text = "answers computed together (%(default)s)"
    serve.add_argument("--streams", type=at_least(1, MANY), default=8, metavar="N", help=text)
    text = "answers that may wait for their turn; more are refused with 429 (%(default)s)"
    serve.add_argument("--queue", type=at_least(1), default=128, metavar="N", help=text)
    serve.add_argument("--max-body", type=size, default=2 << 20, metavar="N[K|M]", help="most bytes of a request (2M)")
    text = "seconds that a request may take, waiting included (%(default)s)"
    serve.add_argument("--time-limit", type=between(1e-3, 1e9), default=600.0, metavar="S", help=text)
    serve.set_defaults(run=run_serve)


def run_serve(options):
    """Serve until a signal comes. Exit status 0 after SIGTERM; Ctrl-C raises KeyboardInterrupt when all is done."""
    uvicorn = library()
    key = options.api_key or os.environ.get("TENSORLIB_API_KEY")
    with contextlib.ExitStack() as after:
        listening = after.enter_context(bound(options.host, options.port, key))
        service = loaded(options)
        after.callback(service.close)
        from zoo.serve_api import application
        from zoo.serve_http import Connection

        config = uvicorn.Config(
            application(service, key), http=Connection, log_level="critical", access_log=False, ws="none",
            server_header=False, limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=DRAIN,
        )  # fmt: skip
        gc.freeze()  # what is there stays, and collections need not look through it
        gc.collect()  # counts what is left: whole collections come when there is a quarter more
        # uvicorn drains, then raises what it got again: SIGTERM's own action would be another exit status
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        listening.listen(BACKLOG)
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"tensorlib: {', '.join(service.names.values())} on http://{shown}:{port}", file=sys.stderr, flush=True)
        uvicorn.Server(config).run(sockets=[listening])


def library():
    """The module uvicorn; FormatError, with what to do, where it or starlette is not."""
    from tensorlib.errors import FormatError

    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        fix = "pip install 'tensorlib[serve]'"
        raise FormatError("serve", "package", error, "starlette and uvicorn, to answer over HTTP", fix) from error
    return uvicorn


def is_loopback(host):
    """Whether a name or address is this machine's alone.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(host, port, key):
    """A socket at an address, which does not listen yet. DeviceError if that cannot be had, or would need a key."""
    from tensorlib.errors import DeviceError

    if not key and not is_loopback(host):
        fix = "set TENSORLIB_API_KEY or give --api-key, or listen on 127.0.0.1"
        raise DeviceError("serve", f"--host {host} without a key", "a key where others can ask", fix)
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise DeviceError("serve", "a key that no header can carry", "printable ASCII without spaces")
    if not 0 <= port < 1 << 16:
        raise DeviceError("serve", f"--port {port}", "0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise DeviceError("serve", f"{host}:{port}: {error}", "an address of this machine") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # connections inherit these
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT)
        made.bind(address)
    except OSError as error:
        made.close()
        raise DeviceError("serve", f"{host}:{port}: {error}", "an address that is free", "try --port 0") from error
    return made


def loaded(options):
    """A Service of the models that the options name."""
    from tensorlib.io import hub
    from zoo.serve_api import Service

    def name(ref):
        *above, last = ref.split("#")[0].rstrip("/").split("/")
        return above[-1] if last == "model" and above else last.removesuffix(".gguf")

    text = encoder = None
    names = {}
    if options.model or not options.embed:
        from tensorlib import nn
        from zoo import generate
        from zoo.engine import Engine
        from zoo.serve_queue import Runner

        text = generate.load(options.model, options.threads, options.context, options.device)
        names["text"] = options.name or name(options.model or hub.DEFAULT_MODEL)
        nn.prepack(text.model)
        engine = Engine(text, options.streams, text.context_length)
        engine.submit([0], 2)  # compiles what is missing and records a step, so that no client waits for it
        while engine.busy:
            engine.step()
    if options.embed:
        from zoo import embed

        encoder = embed.load(options.embed, options.threads, options.device)
        names["embed"] = (not text and options.name) or name(options.embed)
    runner = text and Runner(engine, options.streams + options.queue)
    return Service(names, text and text.tokenizer, runner, encoder, options.max_body, options.time_limit)
