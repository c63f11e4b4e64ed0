"""What the command line's commands do. Each imports what it needs, so that `--help` and start-up stay fast."""

import contextlib
import os
import sys
import time

DEFAULT_TOKENS = 256
LINES = 256  # texts that are embedded before the first is written
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


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
        answer = _answer(model, ids, arguments, started, now, reuse=True)
        messages.append({"role": "assistant", "content": answer})
        started = time.perf_counter()


def run_embed(arguments):
    """Vectors of the texts, in their order: JSON line by line, or one array in NumPy's format."""
    texts = arguments.text
    if texts in ([], ["-"]):
        texts = _prompt("-" if texts else None, "embed").splitlines()
    from zoo.embed import load

    model = load(arguments.model, arguments.threads, arguments.device, arguments.quantize)
    if arguments.format == "npy":
        import io

        import numpy

        out = io.BytesIO()
        numpy.save(out, model.encode(texts, arguments.normalize, arguments.prompt).cpu().numpy())
        sys.stdout.flush()
        sys.stdout.buffer.write(out.getvalue())
        return
    for start in range(0, len(texts), LINES):
        for row in model.encode(texts[start : start + LINES], arguments.normalize, arguments.prompt).cpu().tolist():
            sys.stdout.write("[" + ", ".join(f"{value:.8g}" for value in row) + "]\n")


def _load(arguments):
    from zoo.generate import load

    return load(arguments.model, arguments.threads, arguments.context, arguments.device)


def _prompt(given, command="generate"):
    """The prompt: the argument, or standard input, less the newline that a shell's echo ends it with."""
    from tensorlib.errors import FormatError

    if given is None and (sys.stdin is None or sys.stdin.isatty()):
        fix = f'write: tensorlib {command} "Once upon a time"'
        raise FormatError(command, "prompt", "nothing", "a text, or standard input", fix)
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


def _answer(model, ids, arguments, started, loaded, reuse=False) -> str:
    """Generate after `ids`, write the text as it comes, and return it."""
    from tensorlib import backend
    from zoo.completion import Completion
    from zoo.generate import SamplerConfig

    limit = arguments.max_tokens
    if limit is None and model.context_length > len(ids):
        limit = min(DEFAULT_TOKENS, model.context_length - len(ids))
    sampler = SamplerConfig(**{name: getattr(arguments, name) for name in SAMPLING})
    first, text = None, []
    answer = Completion(model, ids, limit, sampler, arguments.stop, _processors(model, arguments), reuse)
    for piece in answer:
        if first is None:
            first = time.perf_counter()
            backend.compiling.end()
        _write(piece, text)
    if not text or not text[-1].endswith("\n"):
        sys.stdout.write("\n")
        sys.stdout.flush()
    if arguments.verbose and first is not None:
        _statistics(len(ids), len(answer.ids), started, loaded, first)
    return "".join(text)


def _processors(model, arguments):
    """What `--json-schema` asks for."""
    if arguments.json_schema is None:
        return ()
    import json

    from tensorlib.errors import FormatError
    from zoo.processors import Grammar

    text = arguments.json_schema
    try:
        if not text.lstrip().startswith("{"):
            with open(text, encoding="utf-8") as file:
                text = file.read()
        schema = json.loads(text)
    except (OSError, ValueError) as e:
        raise FormatError("--json-schema", "schema", str(e), "JSON, or a file of it", "see json-schema.org") from e
    return (Grammar(model.tokenizer, json_schema=schema),)


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


# ---- kernels --------------------------------------------------------------------------------------------------------


def run_kernels(arguments):
    from tensorlib import backend

    here = backend.backend()
    if arguments.what == "build":
        from zoo import prebuild

        prebuild.build(destination=arguments.destination, tools=arguments.tools)
        print(f"tensorlib: {len(here.files())} kernels in {here.folder}", file=sys.stderr)
    elif arguments.what == "path":
        print(here.folder)
    else:
        for name in here.files():
            print(f"{os.path.getsize(os.path.join(here.folder, name)):9}  {name}")
