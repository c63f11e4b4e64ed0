"""The command line: `tensorlib generate | chat | embed | rerank | perplexity | bench | serve | kernels`; on files of
weights `info | verify | convert | quantize | dequantize | diff | split | merge`.

What a model says goes to standard output, everything else to standard error. Exit status: 0; 1 where `diff` finds a
difference; 2 for an error that is told in one line; 130 after Ctrl-C. Each module of `_parser` adds
its commands, and imports what they need when they run.
"""

import argparse
import contextlib
import os
import signal
import sys


def main(argv=None) -> int:
    """Run a command; `argv` defaults to the process's arguments. Returns the exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed: nobody wants to read it
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if getattr(sys.stdout, "encoding", None) not in (None, "utf-8"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a letter should not end the story
    try:
        arguments = _parser().parse_args(argv)
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status or 0
    except KeyboardInterrupt as error:
        return _interrupted(error)
    except BrokenPipeError:
        return _reader_left()
    except MemoryError:
        return _fail(
            "there is not enough memory: lower --context, --streams, --beams or --batch, or take a smaller model"
        )
    except Exception as error:
        from tensorlib.errors import TensorlibError  # here, so that `--help` does not wait for the package

        if not isinstance(error, (TensorlibError, OSError)):
            raise
        return _fail(error)


def _fail(error) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        _reader_left()
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
    """Standard output takes no more (`| head`, a full disk): be quiet, also when Python flushes the stream at exit."""
    with contextlib.suppress(OSError):  # a stream without a descriptor, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


# ---- arguments -------------------------------------------------------------------------------------------------------


def _parser():
    from zoo import commands, measure, perplexity, serve, tools, vectors  # here, for Ctrl-C to find `main`'s except

    parser = argparse.ArgumentParser(prog="tensorlib", description="Language models on your own machine.")
    rows = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (commands, vectors, perplexity, measure, serve, tools):
        module.add_commands(rows)
    _add_kernels(rows)
    return parser


def _add_kernels(rows):
    kernels = rows.add_parser("kernels", help="compile kernels ahead of time", description="Compiled kernels.")
    kernels.add_argument("what", choices=("build", "list", "path"), help="compile all, list the compiled, say where")
    kernels.add_argument(
        "-d", "--destination", metavar="DIR", help="build under DIR (kernels_numba/prebuilt: for wheels)"
    )
    kernels.add_argument("--tools", action="store_true", help="build those of quantize and dequantize as well")
    kernels.set_defaults(run=_kernels)


def _kernels(arguments):
    from tensorlib import backend

    here = backend.backend()
    if arguments.what == "build":
        from zoo import prebuild

        _writable(arguments.destination or here.folder)
        prebuild.build(destination=arguments.destination, tools=arguments.tools)
        print(f"tensorlib: {len(here.files())} kernels in {here.folder}", file=sys.stderr)
    elif arguments.what == "path":
        print(here.folder)
    else:
        for name in here.files():
            print(f"{os.path.getsize(os.path.join(here.folder, name)):9}  {name}")


def _writable(folder):
    """FormatError for a folder where no file can be made, before minutes go into what could not be kept."""
    import tempfile

    from tensorlib.errors import FormatError

    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise FormatError(folder, "folder", error.strerror or str(error), "one that can be written") from error


if __name__ == "__main__":
    sys.exit(main())
