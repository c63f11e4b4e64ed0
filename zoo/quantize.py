"""`tensorlib quantize`: the weights of a model in blocks, as a GGUF file.

Matrices that are named weights get the type of `--type`, or of its mix (`mixes.py`); vectors and norms become f32, all
else stays as it is. Weights are decoded, encoded and written part by part.
"""

import argparse
import os
import sys
from math import prod

from zoo import mixes
from zoo.convert import add_rename, compiled, converted, renamed, save
from zoo.metadata import metadata_for
from zoo.stream import add_jobs, add_parser, is_quantized, numbers, opened, progress, rows, unless_interrupted, use_jobs

GROUPED = 4  # heads that share a key and a value, from which on a mix treats them as shared


def add_commands(commands):
    """Add this command's parser to the command line's."""
    about = "write a model's weights in blocks, as a GGUF file"
    parser = add_parser(commands, "quantize", about, f" Types: {', '.join(mixes.types())}.")
    parser.add_argument("file", help="a model in any format: a path or any other reference that --model takes")
    parser.add_argument("out", help="the .gguf file to write")
    parser.add_argument("-t", "--type", type=_type, required=True, metavar="TYPE", help="q4_k_m, q8_0, ...")
    parser.add_argument("--imatrix", metavar="FILE", help="importances of the columns, as llama.cpp's tool writes them")
    parser.add_argument("--output-type", type=_pure, metavar="TYPE", help="of the output's weight")
    parser.add_argument("--embedding-type", type=_pure, metavar="TYPE", help="of the table of embeddings")
    text = "of the weights whose names match; may be given more than once, the first that matches counts"
    parser.add_argument("--tensor-type", type=_typed, action="append", default=[], metavar="REGEX=TYPE", help=text)
    text = "leave the tensors whose names match as they are"
    parser.add_argument("--keep", type=compiled, action="append", default=[], metavar="REGEX", help=text)
    add_rename(parser)
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    add_jobs(parser)
    parser.set_defaults(run=run_quantize)


def _type(text):
    if text.lower() not in mixes.types():
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(mixes.types())}")
    return text.lower()


def _pure(text):
    if _type(text) not in mixes.FILE_TYPES:
        raise argparse.ArgumentTypeError(f"{text!r} is a mix")
    return text.lower()


def _typed(text):
    pattern, equal, type = text.rpartition("=")
    if not equal:
        raise argparse.ArgumentTypeError(f"{text!r} has no =")
    return compiled(pattern), _pure(type)


def run_quantize(arguments):
    """Write a model in blocks, and say what was not as asked for."""
    from tensorlib.errors import FormatError

    if not arguments.out.lower().endswith(".gguf"):
        raise FormatError(arguments.out, "path", "its extension", ".gguf, which blocks are stored in")
    use_jobs(arguments)
    kind, file = opened(arguments.file)
    with file:
        importances, facts = _importances(arguments.imatrix)
        plan = Plan(arguments, kind, file)
        tensors = {}
        for info in file.tensors.values():
            name = renamed(info.name, arguments.rename, tensors, file)
            tensors[name] = _stored(file, info, name, plan.types.get(info.name), importances)
        metadata, lost = metadata_for("gguf", kind, file)
        metadata |= {"general.quantization_version": 2, "general.file_type": mixes.file_type(arguments.type)}
        metadata |= facts
        alignment = getattr(file, "alignment", None) if kind == "gguf" else None
        total = sum(_nbytes(raw) for raw in tensors.values())
        with unless_interrupted(arguments.out), progress(total, os.path.basename(arguments.out)) as count:
            save("gguf", arguments, metadata, tensors, count, alignment)
    if lost:
        plan.notes.append(f"{len(lost)} metadata keys have no place in GGUF")
    if importances is not None and (missing := plan.types.keys() - importances.keys()):
        plan.notes.append(f"{len(missing)} weights are not in the imatrix, as {min(missing)}: all columns count alike")
    for note in plan.notes:
        print(f"tensorlib: {note}", file=sys.stderr)
    print(arguments.out)


class Plan:
    """The types of a file's weights by name, `notes` on what is not as asked for."""

    def __init__(self, arguments, kind, file):
        from tensorlib.quant import formats

        weights = {
            info.name: info
            for info in file.tensors.values()
            if mixes.is_weight(info.name, info.shape) and _floats(info) and prod(info.shape)
        }
        self.types, self.notes, short = {}, [], {}
        asked = mixes.chosen(arguments.type, list(weights), _grouped(kind, file))
        special = {"output": arguments.output_type, "embedding": arguments.embedding_type}
        for name, type in asked.items():
            if any(pattern.search(name) for pattern in arguments.keep):
                continue
            type = special.get(mixes.kind_of(name)) or type
            type = next((each for pattern, each in arguments.tensor_type if pattern.search(name)), type)
            self.types[name] = fits = mixes.fitting(type, weights[name].shape[-1], formats)
            if fits != type:
                short.setdefault((type, fits, weights[name].shape[-1]), []).append(name)
        for (type, fits, width), names in short.items():
            text = f"rows of {width} weights are not whole blocks of {type}: {fits} for {len(names)}, as {names[0]}"
            self.notes.append(text)
        twice = {
            str(w.format)
            for n, w in weights.items()
            if is_quantized(w) and str(w.format) != self.types.get(n, str(w.format))
        }
        if twice:
            text = "quantise the original for the best quality"
            self.notes.append(f"weights were in blocks before ({', '.join(sorted(twice))}) and lose twice: {text}")


def _floats(info):
    return is_quantized(info) or (info.dtype is not None and info.dtype.is_float)


def _grouped(kind, file):
    """Whether at least four heads share a key and a value."""
    get = file.metadata.get
    arch = get("general.architecture", "") if kind == "gguf" else ""
    heads, shared = get(f"{arch}.attention.head_count"), get(f"{arch}.attention.head_count_kv")
    return type(heads) is type(shared) is int and heads >= GROUPED * shared > 0


def _importances(path):
    """{name: NumPy array} of an importance matrix and what GGUF's metadata say of it; None and nothing without one."""
    if path is None:
        return None, {}
    from tensorlib.io import imatrix

    found = imatrix.read(path)
    facts = {"file": os.path.basename(path), "entries_count": len(found.importance), "chunks_count": found.chunks}
    facts |= {"dataset": found.datasets[0]} if found.datasets else {}
    return (
        {name: x.numpy() for name, x in found.importance.items()},
        {f"quantize.imatrix.{key}": value for key, value in facts.items()},
    )


def _stored(file, info, name, type, importances):
    """A tensor as a Raw: encoded part by part, or where `type` is None as f32 (vectors and norms) or as it is."""
    from tensorlib import dtype
    from tensorlib.errors import FormatError
    from tensorlib.io.stored import Raw
    from tensorlib.quant import formats

    small = len(info.shape) < 2 or "norm" in info.name
    if type is None and small and _floats(info) and not is_quantized(info):
        type = "f32"
    if type is None or str(info.format) == type or getattr(info.dtype, "name", "") == type:
        return file.stored(info.name)
    format = formats.get(type)
    if not format.quantized:
        return converted(file, info, dtype.get(type))
    weights = (importances or {}).get(info.name, (importances or {}).get(name))
    experts = info.shape[0] if len(info.shape) == 3 else 1
    shape = info.shape[-1:] if experts == 1 else (experts, info.shape[-1])
    if weights is not None and weights.shape not in (info.shape[-1:], shape):
        got = f"importances {weights.shape} for {info.shape}"
        raise FormatError(file.path, f"tensor {info.name!r}", got, f"{shape}", "is this the imatrix of this model?")
    return Raw(format, info.shape, lambda: _encoded(file, info, format, weights))


def _encoded(file, info, format, weights):
    """The blocks of a tensor, part by part. FormatError for weights that the format cannot hold."""
    from tensorlib.errors import EncodeError, FormatError
    from tensorlib.quant.encode import encode

    group = info.shape[-2] if weights is not None and weights.ndim == 2 else None
    for first, part in rows(file, info.name, group):
        try:
            yield encode(format, numbers(part).numpy(), weights[first // group] if group else weights)
        except EncodeError as error:
            where = f"tensor {info.name!r}, from row {first} on"
            raise FormatError(file.path, where, error.got, error.expected, error.fix) from None


def _nbytes(raw):
    """Bytes of a Raw of any format of GGUF, about."""
    rest = getattr(raw.format, "nbytes", getattr(raw.format, "itemsize", 1))
    return prod(raw.shape) // getattr(raw.format, "elements", 1) * rest
