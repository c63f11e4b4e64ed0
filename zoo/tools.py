"""The commands on files of weights: `tensorlib info | verify | split | merge`; the others are in files of their own.

`info` and `verify` take every format that is read here; `split` and `merge` take GGUF. What is written gets its name
when it is whole. Progress goes to standard error, if that is a terminal.
"""

import os
import sys
from math import prod

from zoo import convert, diff, quantize
from zoo.commands import shown
from zoo.convert import size
from zoo.stream import add_parser, opened, progress, unless_interrupted


def add_commands(commands):
    """Add the parsers of these commands to the command line's."""
    about = "show what is in a file of weights"
    info = add_parser(commands, "info", about)
    info.add_argument("file", help="a path or any other reference that --model takes")
    info.set_defaults(run=run_info)

    about = "check files: structure, every tensor's data, NaN and infinity, SHA-256"
    verify = add_parser(commands, "verify", about)
    verify.add_argument("files", nargs="+", metavar="FILE", help="a path or any other reference that --model takes")
    verify.set_defaults(run=run_verify)

    about = "write a GGUF file as several"
    split = add_parser(commands, "split", about)
    split.add_argument("file", help="a GGUF file")
    split.add_argument("-o", "--output", metavar="PREFIX", help="PREFIX-00001-of-00003.gguf (the file's own name)")
    split.add_argument("--max-size", type=size, metavar="N[K|M|G]", help="most bytes of tensors in a part")
    split.add_argument("--max-tensors", type=size, metavar="N", help="most tensors in a part")
    split.set_defaults(run=run_split)

    about = "write the parts of a GGUF model as one file"
    merge = add_parser(commands, "merge", about)
    merge.add_argument("file", help="any of the parts")
    merge.add_argument("-o", "--output", metavar="FILE", required=True, help="the file to write")
    merge.set_defaults(run=run_merge)
    for each in (split, merge):
        each.add_argument("--force", action="store_true", help="replace files that are there")
    for module in (convert, quantize, diff):
        module.add_commands(commands)


# ---- info ------------------------------------------------------------------------------------------------------------


def run_info(arguments):
    """Print a file's metadata, its formats and its tensors."""
    if arguments.file.endswith(".dat"):
        return _info_of_imatrix(arguments.file)
    kind, file = opened(arguments.file)
    tensors = file.tensors.values()
    version = f" version {file.version}" if hasattr(file, "version") else ""
    parts = f" in {len(file.parts)} parts" if hasattr(file, "parts") else ""
    size = getattr(file, "nbytes", None) or sum(info.nbytes for info in tensors)
    print(f"{shown(str(file.path))}: {kind.upper() if kind[0] == 'g' else kind}{version}, {size / 1e6:.1f} MB{parts}")
    parameters = sum(prod(info.shape) for info in tensors)
    print(f"{len(file.tensors)} tensors, {parameters:,} parameters, {len(file.metadata)} metadata keys\n")
    for key in file.metadata:
        print(f"{shown(str(key)):44} {_value(file.metadata, key)}")
    print()
    formats = {}
    for info in tensors:
        count, numel, nbytes = formats.get(str(info.format), (0, 0, 0))
        formats[str(info.format)] = count + 1, numel + prod(info.shape), nbytes + info.nbytes
    print(f"{'format':8} {'tensors':>8} {'parameters':>16} {'MB':>10} {'bits each':>10}")
    for name, (count, numel, nbytes) in sorted(formats.items(), key=lambda row: -row[1][2]):
        print(f"{shown(name):8} {count:8} {numel:16,} {nbytes / 1e6:10.2f} {8 * nbytes / max(numel, 1):10.2f}")
    print(f"\n{'tensor':44} {'format':8} {'shape':>20} {'bytes':>12} {'offset':>12}")
    for info in tensors:
        shape = "x".join(map(str, info.shape)) or "scalar"
        place = "" if info.offset is None else info.offset
        print(f"{shown(info.name):44} {shown(str(info.format)):8} {shape:>20} {info.nbytes:12} {place:12}")


def _info_of_imatrix(path):
    """Print an importance matrix: the inputs of every weight, how often it was used, and how much they differ."""
    from tensorlib.io import imatrix

    found = imatrix.read(path)
    texts = ", ".join(found.datasets) or "unknown texts"
    print(
        f"{shown(path)}: importance matrix of {len(found.importance)} weights, {found.chunks} chunks of {shown(texts)}"
    )
    print(f"\n{'weight':44} {'inputs':>12} {'used':>10} {'mean':>10} {'largest':>10} {'zeros':>8}")
    for name, x in found.importance.items():
        inputs, used = "x".join(map(str, x.shape)), sum(found.counts[name])
        numbers = f"{x.mean().item():10.4g} {x.max().item():10.4g} {int((x == 0).sum().item()):8}"
        print(f"{shown(name):44} {inputs:>12} {used:10.0f} {numbers}")
    return 0


def _value(metadata, key):
    kind, count = metadata.kind(key) if hasattr(metadata, "kind") else ("", None)
    if count is not None and count > 8:
        return f"{count} x {kind}"
    text = repr(metadata[key])
    return shown(text) if len(text) <= 70 else f"{shown(text[:67])}... ({len(text) - 2} characters)"


# ---- verify ----------------------------------------------------------------------------------------------------------


def run_verify(arguments):
    """Every file is checked, also after one that is bad; the exit status is 2 if any is."""
    from tensorlib.errors import TensorlibError

    status = 0
    for ref in arguments.files:
        try:
            print(f"{shown(ref)}: {_verified(ref)}", flush=True)
        except TensorlibError as error:
            print(f"tensorlib: error: {shown(' '.join(str(error).split()))}", file=sys.stderr)
            status = 2
    return status


def _verified(ref):
    """What a sound file is said to be; FormatError for any other."""
    from zoo.verify import finite, sha256

    kind, file = opened(ref)
    for key in file.metadata:
        file.metadata[key]  # arrays are decoded when asked for
    paths = [part.path for part in file.parts] if hasattr(file, "parts") else [file.path]
    total = sum(info.nbytes for info in file.tensors.values())
    with progress(total + sum(map(os.path.getsize, paths)), os.path.basename(paths[0])) as count:
        for info in file.tensors.values():
            finite(file, info)
            count(info.nbytes)
        digests = [sha256(path, count) for path in paths]
    return f"{kind}, {len(file.tensors)} tensors, {total} bytes of data; sha256 {' '.join(digests)}"


# ---- split and merge -------------------------------------------------------------------------------------------------


def run_split(arguments):
    """Write a GGUF file as several, and print their names."""
    from tensorlib.io import gguf, hub

    path = hub.resolve(arguments.file)
    prefix = arguments.output or os.path.basename(path).removesuffix(".gguf")
    limits = arguments.max_size, arguments.max_tensors
    with unless_interrupted(prefix), progress(os.path.getsize(path), "split") as count:
        names = gguf.split(path, prefix, *limits, count, replace=arguments.force)
    for name in names:
        print(name)


def run_merge(arguments):
    """Write the parts of a GGUF model as one file, and print its name."""
    from tensorlib.io import gguf, hub

    path = hub.resolve(arguments.file)
    with gguf.open(path) as file:
        total = sum(info.nbytes for info in file.tensors.values())
    with unless_interrupted(arguments.output), progress(total, "merge") as count:
        gguf.merge(path, arguments.output, count, replace=arguments.force)
    print(arguments.output)
