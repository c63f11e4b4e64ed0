"""Coverage-guided fuzzing of every reader with Atheris: `python -m tests.fuzz safetensors --seconds 60`.

It starts from the sound files of tests/io/targets.py and the malformed ones of tests/io/cases.py. Whatever comes out of
a reader but FormatError, more than 30 s for one file, or a gigabyte of memory ends the run with a bad exit status, and
the file is kept as crash-..., timeout-... or oom-... Without a name the targets are listed.
"""

import argparse
import os
import pathlib
import sys
import tempfile

KINDS = {"pth_legacy": "pth"}  # whose cases a target takes, where they are not its own
INSTRUMENTED = ["tensorlib.io", "jinja2"]
LARGEST = 4096  # bytes of a file


def seeds(name, target):
    """Small files to start from."""
    from tests.io import cases

    yield from target.seeds
    for case in cases.table():
        if case.kind == KINDS.get(name, name) and not callable(case.data) and len(case.data) <= LARGEST:
            yield case.data


def fuzz(name, options, folder):
    """Runs until the time is over or something breaks; then the process ends."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.io.targets import TARGETS, is_sound, put

        target, work = TARGETS[name], os.path.join(folder, "work")
        os.makedirs(work)
        for data in target.seeds:  # readers are imported when they are used
            is_sound(target, put(target, work, target.wrap(data)))
    start, corpus = os.path.join(folder, "seeds"), options.corpus or os.path.join(folder, "corpus")
    for each in (start, corpus, options.keep):
        os.makedirs(each, exist_ok=True)
    for i, data in enumerate(seeds(name, target)):
        pathlib.Path(start, str(i)).write_bytes(data)
    flags = [f"-max_total_time={options.seconds}", f"-max_len={LARGEST}", "-timeout=30", "-rss_limit_mb=1000"]
    flags += [f"-artifact_prefix={os.path.join(options.keep, name)}-", "-print_final_stats=1"]

    def one(data):
        is_sound(target, put(target, work, target.wrap(data)))

    atheris.Setup([sys.argv[0], *flags, corpus, start], one)
    atheris.Fuzz()


def main():
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument("target", nargs="?")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", default=tempfile.gettempdir(), help="folder for files that a reader fails on")
    parser.add_argument("--corpus", help="folder of files that reached something new, kept between runs")
    options = parser.parse_args()
    if options.target is None:
        from tests.io.targets import TARGETS

        print(*TARGETS)
        return
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()  # Atheris ends its process
        if not child:
            fuzz(options.target, options, folder)
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
