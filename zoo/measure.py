"""`tensorlib bench`: how fast a model is here, as llama.cpp's llama-bench tells it.

*prompt*: tokens of a prompt a second, until the first token after it is chosen. *generate*: tokens a second behind it,
greedy, nothing ends them; with `--batch N` of N texts together, each token of each counted. *start*: milliseconds from
before a process of `tensorlib generate` is made until its first byte. *memory*: the most that such a process had in
memory, MB, for a whole run of prompt and tokens. One run warms up (kernels are compiled and the file is read), then
`--repeats` count: the median, and the quantiles of 20 and 80 %. The ids of a prompt are arbitrary: speed does not
depend on them, but for mixtures of experts.
"""

import os
import platform
import sys
import time

from zoo.options import MANY, at_least, model_options
from zoo.stream import add_parser

COLUMNS = "model format mb device threads batch measure tokens unit p20 p50 p80 repeats version".split()


def add_commands(commands):
    """Add this command's parser to the command line's."""
    more = " Medians and quantiles of 20 and 80 % of runs after a first that does not count."
    parser = add_parser(commands, "bench", "measure how fast a model is", more)
    model_options(parser, threads=counts)
    parser.add_argument("--prompt", type=at_least(1), default=512, metavar="N", help="tokens of a prompt (%(default)s)")
    parser.add_argument("--tokens", type=at_least(1), default=128, metavar="N", help="tokens behind it (%(default)s)")
    parser.add_argument("--repeats", type=at_least(1), default=5, metavar="N", help="runs that count (%(default)s)")
    text = "texts that are generated together, such as 1,8 (1)"
    parser.add_argument("--batch", type=counts, default=[1], metavar="N[,N]", help=text)
    parser.add_argument("--no-start", action="store_true", help="do not measure start and memory, in processes anew")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", help="a list of objects, no table")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="comma-separated values, no table")
    parser.set_defaults(run=run_bench, form="table")


def counts(text):
    """The type of numbers from 1: "1,2" -> [1, 2]."""
    return [at_least(1, MANY)(part) for part in text.split(",")]


def run_bench(arguments):
    """Measure, and print what was measured."""
    from zoo import speed

    host, rows = machine(), []
    if host["load"] > 0.5:
        print(f"tensorlib: load average {host['load']}: something else runs here", file=sys.stderr)
    for row in speed.rows(arguments):
        rows.append(row)
        if arguments.form == "table":
            _line(row, host if len(rows) == 1 else None)
    if arguments.form == "json":
        import json

        print(json.dumps([host | row for row in rows], indent=1))
    elif arguments.form == "csv":
        import csv

        table = csv.DictWriter(sys.stdout, [*host, *COLUMNS], lineterminator="\n")
        table.writeheader()
        table.writerows(host | row for row in rows)


def _line(row, host):
    """Print a row as it comes; above the first, which gets the `host`, what all have in common and names of columns."""
    if host is not None:
        print("{cpu}, {cores} cores, {system}, Python {python}, load {load}".format(**host))
        print("{model} ({mb} MB, {format}), {device}, tensorlib {version}, {repeats} runs\n".format(**row))
        print(f"{'measure':9} {'tokens':>7} {'threads':>8} {'batch':>6} {'median':>10} {'p20':>10} {'p80':>10}")
    figures = " ".join(f"{row[name]:10.1f}" for name in ("p50", "p20", "p80"))
    print("{measure:9} {tokens:7} {threads:8} {batch:6} ".format(**row) + f"{figures} {row['unit']}", flush=True)


def machine():
    """What the figures hold for: processor, cores that may be used, Python, load average of the last minute."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0
    return {
        "cpu": name, "cores": cores, "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(), "load": load, "date": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
    }  # fmt: skip
