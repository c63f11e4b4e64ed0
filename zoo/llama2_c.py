"""Files of llama2.c (karpathy's stories15M.bin and the like): a Llama in f32 behind seven numbers; a tokenizer.bin.

Version 0, "legacy", has no magic; version 1 begins with one, and has the weights in another order. Version 2, in 8 bits
with groups that need not end with rows, is refused. q and k turn in neighbouring pairs, as in Meta's files.

>>> from zoo.llama2_c import load
>>> file, model = load("stories15M.bin")  # doctest: +SKIP
>>> file.metadata["dim"], model.config.max_position_embeddings  # doctest: +SKIP
(288, 256)
"""

import os
import struct

from tensorlib import dtype
from tensorlib.io.cursor import Cursor
from tensorlib.io.source import Source, TensorInfo, map_private, opened
from tensorlib.nn import VarBuilder
from zoo.llama import LlamaConfig, LlamaForCausalLM

MAGIC, HEADER = 0x616B3432, 256  # of versions from 1 on; bytes before the weights
SIZES = "dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"
MOST = 1 << 24  # of each size
TABLE, NORM, HEAD, ANGLES = "model.embed_tokens", "model.norm", "lm_head", "cos and sin of positions"
LAYER = "model.layers.{}."
Q, K, V, O = (f"{LAYER}self_attn.{name}_proj" for name in "qkvo")  # noqa: E741
GATE, UP, DOWN = (f"{LAYER}mlp.{name}_proj" for name in ("gate", "up", "down"))
BEFORE, BEHIND = f"{LAYER}input_layernorm", f"{LAYER}post_attention_layernorm"
ORDERS = {
    0: (TABLE, BEFORE, Q, K, V, O, BEHIND, GATE, DOWN, UP, NORM, ANGLES, HEAD),
    1: (BEFORE, BEHIND, NORM, TABLE, Q, K, V, O, GATE, DOWN, UP, HEAD),
}


def is_file(path):
    """Whether a path is a file that begins as these do, and is none of a model's folder."""
    if not path.endswith(".bin") or os.path.exists(os.path.join(os.path.dirname(path), "config.json")):
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(36)
    except OSError:
        return False
    if len(start) < 36 or struct.unpack_from("<I", start)[0] == MAGIC:
        return len(start) == 36
    numbers = struct.unpack_from("<7i", start)
    return all(0 < abs(n) <= MOST for n in numbers) and all(n > 0 for n in (*numbers[:5], numbers[6]))


class Llama2cFile(Source):
    """An open file; see `Source`. `metadata`: the SIZES, and "version"."""

    def __init__(self, path, data):
        super().__init__(path, data)
        cursor, version = Cursor(path, data), 0
        if struct.unpack_from("<I", data)[0] == MAGIC:
            version = cursor.numbers("Ii", "magic and version")[1]
            if version != 1:
                raise self.error("offset 4", f"version {version}", "0 or 1", "export the model with --version 1")
        sizes = dict(zip(SIZES, cursor.numbers("7i", "seven sizes")))
        shared = sizes["vocab_size"] > 0 if version == 0 else bool(cursor.number("B", "shared_classifier"))
        sizes["vocab_size"] = abs(sizes["vocab_size"])
        self._check(sizes)
        self.metadata = {"version": version, **sizes}
        cursor.at = HEADER if version else cursor.at
        for name, shape in self._tensors(version, shared):
            nbytes, offset = 4 * shape[0] * shape[-1] ** (len(shape) - 1), cursor.at
            cursor.take(nbytes, name)
            if not name.startswith(ANGLES):
                self.tensors[name] = TensorInfo(name, shape, "F32", dtype.f32, offset, nbytes)
        if cursor.at != cursor.end:
            got = f"{cursor.end - cursor.at} bytes behind the last weight"
            raise self.error(f"offset {cursor.at}", got, "the end of the file", "is this a file of llama2.c?")

    def _check(self, sizes):
        for name, size in sizes.items():
            if not 0 < size <= MOST:
                raise self.error(name, size, f"1 to {MOST}", "is this a file of llama2.c?")
        heads, groups = sizes["n_heads"], sizes["n_kv_heads"]
        if sizes["dim"] % (2 * heads) or heads % groups:
            got = f"{sizes['dim']} channels, {heads} heads, {groups} of keys"
            raise self.error("n_heads", got, "even heads, in groups of one size", "is this a file of llama2.c?")

    def _tensors(self, version, shared):
        """(name, shape) of all, in the file's order."""
        m = self.metadata
        D, F, W = m["dim"], m["hidden_dim"], m["vocab_size"]
        h = D // m["n_heads"]
        G = h * m["n_kv_heads"]
        shapes = {Q: (D, D), K: (G, D), V: (G, D), O: (D, D), GATE: (F, D), UP: (F, D), DOWN: (D, F), TABLE: (W, D)}
        shapes |= {HEAD: (W, D), ANGLES: (m["seq_len"], h)}
        for part in ORDERS[version]:
            if part == HEAD and shared:
                continue
            for i in range(m["n_layers"] if LAYER in part else 1):
                yield f"{part.format(i)}.weight", shapes.get(part, (D,))

    def config(self):
        """LlamaConfig."""
        m = self.metadata
        return LlamaConfig(
            vocab_size=m["vocab_size"],
            hidden_size=m["dim"],
            intermediate_size=m["hidden_dim"],
            num_hidden_layers=m["n_layers"],
            num_attention_heads=m["n_heads"],
            num_key_value_heads=m["n_kv_heads"],
            head_dim=m["dim"] // m["n_heads"],
            max_position_embeddings=m["seq_len"],
            tie_word_embeddings=f"{HEAD}.weight" not in self.tensors,
            rope_interleaved=True,
        )


def load(path, context=None, device="cpu"):
    """(file, model) for a file; `context`, at most the model's own, is how many positions it is prepared for.
    FormatError for one that is damaged, or none of these.
    """
    file = opened(Llama2cFile, *map_private(path, 36, "a file of llama2.c"))
    config = file.config()
    if context is not None:
        config = config._replace(max_position_embeddings=min(context, config.max_position_embeddings))
    return file, VarBuilder(file, device=device).load(LlamaForCausalLM(config))
