"""`tensorlib generate` and `chat`. They import what they need, so that `--help` and start-up stay fast."""

import contextlib
import sys
import time

from zoo import choices
from zoo.options import DEFAULT_TOKENS, MANY, at_least, form_options, model_options, sampling_options

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def add_commands(commands):
    """Add the parsers of these commands to the command line's."""
    generate = commands.add_parser("generate", help="continue a text", description="Continue a text.")
    generate.add_argument("prompt", nargs="?", help="the text to continue; '-' or nothing: standard input")
    model_options(generate)
    sampling_options(generate, temperature=0.0, top_p=1.0)
    text = "search for the likeliest text among so many; the best is written when it has ended"
    generate.add_argument("--beams", type=at_least(1, MANY), metavar="N", help=text)
    form_options(generate)
    generate.set_defaults(run=run_generate)

    chat = commands.add_parser("chat", help="hold a conversation", description="Hold a conversation. Ctrl-D ends it.")
    chat.add_argument("--system", metavar="TEXT", help="the system message")
    model_options(chat)
    sampling_options(chat, temperature=0.6, top_p=0.9)
    form_options(chat)
    chat.set_defaults(run=run_chat, beams=None)


def run_generate(arguments):
    prompt = given_text(arguments.prompt)
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


def _load(arguments):
    from zoo.generate import load

    return choices.source(load(arguments.model, arguments.threads, arguments.context, arguments.device), arguments)


def given_text(given, command="generate"):
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
    from zoo.generate import SamplerConfig

    limit = arguments.max_tokens
    if limit is None and model.context_length > len(ids):
        limit = min(DEFAULT_TOKENS, model.context_length - len(ids))
    sampler = SamplerConfig(**{name: getattr(arguments, name) for name in SAMPLING})
    first, text = None, []
    answer, logs = choices.answer(model, ids, limit, sampler, arguments, reuse)
    for piece in answer:
        if first is None:
            first = time.perf_counter()
        _write(piece, text)
    if not text or not text[-1].endswith("\n"):
        sys.stdout.write("\n")
        sys.stdout.flush()
    if logs is not None:
        choices.tell(logs, [*ids, *answer.ids], model.tokenizer)
    if arguments.verbose and first is not None:
        _statistics(len(ids), len(answer.ids), started, loaded, first, getattr(model, "steps", None))
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


def _statistics(prompt, count, started, loaded, first, steps):
    now = time.perf_counter()
    guessed = "" if steps is None else f"; {steps} steps of guesses so far"
    print(
        f"tensorlib: loaded in {loaded - started:.3f} s; prompt of {prompt} tokens in {first - loaded:.3f} s "
        f"({prompt / max(first - loaded, 1e-9):.1f} tok/s); {count} tokens in {now - first:.3f} s "
        f"({(count - 1) / max(now - first, 1e-9):.1f} tok/s){guessed}",
        file=sys.stderr,
    )
