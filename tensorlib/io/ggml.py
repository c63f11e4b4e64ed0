"""Files from before GGUF: `ggml`, `ggmf` (version 1) and `ggjt` (versions 1 to 3), as llama.cpp wrote them in 2023.

A header of seven numbers, a vocabulary, then tensors one after the other up to the end of the file; nothing says how
many. They hold LLaMA models alone. Blocks of q4_0, q4_1 and q8_0 had other layouts before ggjt 3, those of q5_0 and
q5_1 before ggjt 2: such tensors are refused, as llama.cpp did.

>>> from tensorlib.io import ggml
>>> file = ggml.open("llama-7b.ggmlv3.q4_0.bin")  # doctest: +SKIP
>>> file.metadata["n_embd"], len(file.vocabulary), file.tensor("tok_embeddings.weight")  # doctest: +SKIP
(4096, 32000, QTensor(shape=(32000, 4096), format=q4_0, 73728000 bytes))
"""

from __future__ import annotations

import struct

from tensorlib.io.cursor import Cursor
from tensorlib.io.gguf import MAX_DIMS, Mapped, TensorInfo, size_of
from tensorlib.io.source import map_private, opened
from tensorlib.quant.formats import BY_ID, FORMATS

MAGICS = {b"lmgg": ("ggml", None), b"fmgg": ("ggmf", (1,)), b"tjgg": ("ggjt", (1, 2, 3))}
ADAPTER = b"algg"
HYPERPARAMETERS = ("n_vocab", "n_embd", "n_mult", "n_head", "n_layer", "n_rot", "ftype")
ALIGNMENT = 32  # of tensor data in ggjt
MAX_TOKEN, MAX_NAME, MAX_TENSORS = 65535, 255, 1 << 16
PLAIN = ("f32", "f16")
SINCE_2 = ("q5_0", "q5_1")
SINCE_3 = ("q4_0", "q4_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
LEAST = {"ggml": 4, "ggmf": 8, "ggjt": 8}  # bytes of an empty token


def open(path, mapped: bool = True) -> GGMLFile:
    """Map the file at `path` (`mapped=False`: read it into memory) and read its structure. FormatError for anything
    that is not a sound file of this kind.
    """
    return opened(GGMLFile, *map_private(path, 8, "a legacy GGML file", mapped))


class GGMLFile(Mapped):
    """An open file; see `Source`. `metadata` are the hyperparameters, `vocabulary` a list of (bytes, score); `kind` is
    ggml, ggmf or ggjt, `version` its version (0 for ggml). Scores of ggml are 0.
    """

    def __init__(self, path, data):
        super().__init__(path, data)
        cursor = Cursor(path, data)
        self.kind, self.version = _header(cursor)
        self.metadata = dict(zip(HYPERPARAMETERS, cursor.numbers("7I", "hyperparameters")))
        self.vocabulary = _vocabulary(cursor, self.metadata["n_vocab"], self.kind)
        allowed = {*PLAIN, *(SINCE_2 if self.version >= 2 else ()), *(SINCE_3 if self.version >= 3 else ())}
        while cursor.at < cursor.end:
            info = self._tensor_info(cursor, allowed)
            if info.name in self.tensors:
                raise self.error(f"tensor {info.name!r}", "it a second time", "names that differ")
            self.tensors[info.name] = info
            if len(self.tensors) > MAX_TENSORS:
                raise self.error(f"offset {cursor.at}", f"more than {MAX_TENSORS} tensors", "a model of that time")

    def _tensor_info(self, cursor, allowed):
        n_dims, length, type = cursor.numbers("3I", "a tensor's header")
        at = f"the tensor at offset {cursor.at - 12}"
        if not 0 < n_dims <= MAX_DIMS:
            raise self.error(at, f"{n_dims} dims", f"1 to {MAX_DIMS}", "is this a LLaMA model?")
        dims = cursor.numbers(f"{n_dims}I", f"dims of {at}")
        name = cursor.name(length, f"the name of {at}", MAX_NAME)
        where = f"tensor {name!r}"
        format = BY_ID.get(type)
        if format is None or format.name not in allowed:
            got = f"{format or f'GGML type {type}'} in {self.kind} version {self.version}"
            known = ", ".join(each for each in FORMATS if each in allowed)
            raise self.error(where, got, f"one of {known}", "convert the original model again")
        if self.kind == "ggjt":
            cursor.take(-cursor.at % ALIGNMENT, f"padding of {where}")
        nbytes = size_of(cursor, where, dims, format)
        return TensorInfo(name, tuple(reversed(dims)), format, cursor.take(nbytes, where), nbytes)


def _header(cursor):
    magic = cursor.data[:4]
    cursor.at = 4
    if magic == ADAPTER:
        fix = "convert the adapter again with a current llama.cpp"
        raise cursor.error("offset 0", "a LoRA adapter (ggla)", "a model", fix)
    if magic not in MAGICS:
        fix = "is this a GGUF file?" if magic == b"GGUF" else "is this a legacy GGML file?"
        raise cursor.error("offset 0", f"magic {magic!r}", "ggml, ggmf or ggjt (reversed, as they lie in a file)", fix)
    kind, versions = MAGICS[magic]
    version = cursor.number("I", "version") if versions else 0
    if versions and version not in versions:
        raise cursor.error("offset 4", f"{kind} version {version}", f"version {' or '.join(map(str, versions))}")
    return kind, version


def _vocabulary(cursor, count, kind):
    """(bytes, score) of every token: bytes, since tokens may be a part of a letter."""
    least = LEAST[kind]
    if count > (cursor.end - cursor.at) // least:
        got = f"{count} tokens in {cursor.end - cursor.at} bytes"
        raise cursor.error("n_vocab", got, f"at least {least} bytes each")
    tokens, data = [], cursor.data
    for index in range(count):
        length = cursor.number("I", f"length of token {index}")
        if length > MAX_TOKEN:
            raise cursor.error(f"token {index} at offset {cursor.at}", f"{length} bytes", f"at most {MAX_TOKEN}")
        start = cursor.take(length, f"token {index}")
        text = data[start : cursor.at]
        score = 0.0
        if kind != "ggml":
            score = struct.unpack_from("<f", data, cursor.take(4, f"score of token {index}"))[0]
        tokens.append((text, score))
    return tokens
