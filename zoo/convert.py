"""`tensorlib convert | dequantize`: a file of tensors in another format, or in another dtype.

Tensors are read, changed and written one after the other in parts, so that the size of a file does not matter. Metadata
goes with them where the format has a place for it (`metadata.py`); what is left out is said.
"""

import argparse
import importlib
import os
import re
import sys
from math import prod

from zoo.metadata import metadata_for
from zoo.stream import add_jobs, add_parser, is_quantized, numbers, opened, progress, rows, unless_interrupted, use_jobs

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}  # GGUF's general.file_type
ALIASES = {  # dtypes without a row here: safetensors' names and PyTorch's
    "C64": "complex64", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
NAMES = {"safetensors": {v: k for k, v in ALIASES.items()}, "pth_write": ALIASES}


def add_commands(commands):
    """Add the parsers of these commands to the command line's."""
    about = "write a file of tensors in another format: .safetensors, .gguf, .npz, .pth"
    convert = add_parser(commands, "convert", about)
    convert.add_argument("--dtype", metavar="NAME", help="of all floats and blocks: f32, f16, bf16, ... (as they are)")
    about = "write a file with its blocks as floats; what is not in blocks stays as it is"
    dequantize = add_parser(commands, "dequantize", about)
    dequantize.add_argument("--dtype", choices=tuple(FILE_TYPES), default="f32", help="(f32)")
    for parser, run in ((convert, run_convert), (dequantize, run_dequantize)):
        parser.add_argument("file", help="a path or any other reference that --model takes")
        parser.add_argument("out", help="the file to write; its extension says the format")
        parser.add_argument("--shard-size", type=size, metavar="N[K|M|G]", help="safetensors: most bytes in a file")
        add_rename(parser)
        parser.add_argument("--force", action="store_true", help="replace files that are there")
        add_jobs(parser)
        parser.set_defaults(run=run)


def add_rename(parser):
    """The option --rename."""
    text = "rename tensors, as re.sub does; may be given more than once"
    parser.add_argument("--rename", action="append", default=[], type=_renaming, metavar="REGEX=NEW", help=text)


def _renaming(text):
    pattern, equal, new = text.partition("=")
    if not equal:
        raise argparse.ArgumentTypeError(f"{text!r} has no =")
    pattern = compiled(pattern)
    try:
        pattern.sub(new, "")
    except (re.error, IndexError) as error:
        raise argparse.ArgumentTypeError(f"{new!r} is no replacement: {error}") from None
    return pattern, new


def compiled(pattern):
    """A regular expression of the command line."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{pattern!r} is no regular expression: {error}") from None


def size(text):
    """A number of bytes (or of anything) as 1.5G."""
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].upper() in UNITS else (text, "")
    value = float(number) * UNITS[unit]
    if not 1 <= value < 1 << 63:  # NaN is refused too
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 2**63 - 1")
    return int(value)


def run_convert(arguments):
    """Write a file in another format."""
    from tensorlib import dtype

    asked = None if arguments.dtype is None else dtype.get(arguments.dtype)

    def choose(info):
        return asked if is_quantized(info) or (info.dtype is not None and info.dtype.is_float) else None

    _write(arguments, choose)


def run_dequantize(arguments):
    """Write a file with floats in place of blocks."""
    from tensorlib import dtype

    asked = dtype.get(arguments.dtype)
    _write(arguments, lambda info: asked if is_quantized(info) else None)


def _write(arguments, choose):
    """Copies a file; `choose` says of a tensor the dtype that it gets, or None."""
    from tensorlib.io import files

    use_jobs(arguments)
    writer = files.written_as(arguments.out)
    kind, file = opened(arguments.file)
    with file:
        tensors, total = {}, 0
        for info in file.tensors.values():
            wanted = choose(info)
            _storable(file, info, wanted, writer)
            same = wanted in (None, info.dtype)
            raw = file.stored(info.name) if same else converted(file, info, wanted)
            name = renamed(info.name, arguments.rename, tensors, file)
            tensors[name] = raw._replace(format=NAMES.get(writer, {}).get(raw.dtype, raw.format))
            total += info.nbytes if same else prod(info.shape) * wanted.itemsize
        metadata, lost = metadata_for(writer, kind, file)
        if arguments.dtype in FILE_TYPES and "general.file_type" in metadata and writer == "gguf":
            metadata["general.file_type"] = FILE_TYPES[arguments.dtype]
        with unless_interrupted(arguments.out), progress(total, os.path.basename(arguments.out)) as count:
            names = save(writer, arguments, metadata, tensors, count, getattr(file, "alignment", None))
    if lost:
        print(f"tensorlib: left out, since {arguments.out} has no place for it: {_listed(lost)}", file=sys.stderr)
    print(*names, sep="\n")


def _listed(keys):
    return f"metadata {', '.join(keys[:5])}" + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _storable(file, info, dtype, writer):
    """FormatError for blocks that would go where there are none."""
    from tensorlib.errors import FormatError

    if is_quantized(info) and dtype is None and (writer != "gguf" or type(info.format) is str):
        fix = "give --dtype f16 (or another), or write a .gguf"
        raise FormatError(file.path, f"tensor {info.name!r}", f"blocks of {info.format}", "numbers", fix)


def renamed(name, renaming, taken, file):
    """A tensor's new name. FormatError if another has it."""
    from tensorlib.errors import FormatError

    for pattern, new in renaming:
        name = pattern.sub(new, name)
    if name in taken:
        raise FormatError(file.path, f"tensor {name!r}", "two of that name after --rename", "names that differ")
    return name


def save(writer, arguments, metadata, tensors, count, alignment):
    """Writes Raws; the names of the files."""
    from tensorlib.errors import DTypeError
    from tensorlib.io import gguf

    out, sharded = arguments.out, getattr(arguments, "shard_size", None)
    options = {"progress": count, "replace": arguments.force}
    if sharded and writer != "safetensors":
        fix = "write one file, then tensorlib split" if writer == "gguf" else "leave it out"
        raise DTypeError("--shard-size", out, "a .safetensors file", fix)
    if writer == "gguf":
        gguf.write(out, metadata, tensors, alignment, **options)
    elif writer == "safetensors":
        return importlib.import_module("tensorlib.io.safetensors").save(out, tensors, metadata, sharded, **options)
    else:
        importlib.import_module(f"tensorlib.io.{writer}").save(out, tensors, metadata, **options)
    return [out]


def converted(file, info, dtype):
    """A tensor as a Raw of another dtype, made part by part."""
    from tensorlib.io.stored import Raw, memory

    def parts():
        for _, part in rows(file, info.name):
            made = numbers(part, dtype)
            if dtype.name == "f16":
                _overflow(file, info, part, made)
            yield memory(made)

    return Raw(dtype, info.shape, parts)


def _overflow(file, info, part, made):
    """FormatError where finite numbers became infinite."""
    from tensorlib.errors import FormatError

    lost = int(made.isinf().sum().item())
    lost -= int(numbers(part).isinf().sum().item()) if lost else 0
    if lost > 0:
        got = f"{lost} finite numbers beyond 65504, which f16 ends at"
        raise FormatError(file.path, f"tensor {info.name!r}", got, "numbers that fit", "use --dtype bf16 or f32")
