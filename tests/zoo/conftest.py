"""A tiny random Llama as a GGUF file, in any format."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from zoo.llama import TINY


def write_llama(path, fmt="q8_0", config=TINY, seed=0, arch="llama", skip=(), tied=True, more=None, **wrong):
    """Writes random weights of `config` to `path`; `skip` names tensors to leave out, `wrong` replaces metadata.

    `more`: is called with the writer, and adds what else there should be.
    """
    rng, c = np.random.default_rng(seed), config
    writer = GGUFWriter(path, arch)
    numbers = {
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "rope.dimension_count": c.head_dim,
        "attention.key_length": c.head_dim,
    }
    for key, value in {**numbers, **wrong}.items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", c.rms_norm_eps)
    writer.add_float32(f"{arch}.rope.freq_base", c.rope_theta)
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    shapes = {"attn_q": (q, c.hidden_size), "attn_k": (kv, c.hidden_size), "attn_v": (kv, c.hidden_size)}
    shapes |= {"attn_output": (c.hidden_size, q), "attn_norm": (c.hidden_size,), "ffn_norm": (c.hidden_size,)}
    shapes |= {f"ffn_{n}": (c.intermediate_size, c.hidden_size) for n in ("gate", "up")}
    shapes["ffn_down"] = (c.hidden_size, c.intermediate_size)
    every = {"token_embd.weight": (c.vocab_size, c.hidden_size), "output_norm.weight": (c.hidden_size,)}
    every |= {f"blk.{i}.{k}.weight": s for i in range(c.num_hidden_layers) for k, s in shapes.items()}
    every |= {} if tied else {"output.weight": (c.vocab_size, c.hidden_size)}
    kind = GGMLQuantizationType[fmt.upper()]
    for name, shape in every.items():
        if name in skip:
            continue
        if len(shape) == 1:
            writer.add_tensor(name, (1 + rng.standard_normal(shape) / 10).astype(np.float32))
        else:
            w = (rng.standard_normal(shape) * 2 / np.sqrt(shape[-1])).astype(np.float32)
            writer.add_tensor(name, quantize(w, kind), raw_dtype=kind)
    if more is not None:
        more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """Function: path of a tiny Llama in a format, made once per session."""
    made = {}

    def make(fmt="q8_0", **options):
        key = (fmt, *sorted(options.items()))
        if key not in made:
            made[key] = write_llama(tmp_path_factory.mktemp("llama") / f"{fmt}.gguf", fmt, **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    """The tokenizer of the tests of the server."""
    from tensorlib.io import gguf
    from tensorlib.io.tokenizer import Tokenizer
    from tests.zoo.serving import write_tiny

    return Tokenizer.from_gguf(gguf.open(write_tiny(tmp_path_factory.mktemp("serve") / "tiny.gguf")))


@pytest.fixture
def served(tiny_tokenizer):
    """Function: a Service, on an engine that says what it is told to; it is closed after the test."""
    from tests.zoo.serving import service

    kept = []

    def make(**options):
        kept.append(service(tiny_tokenizer, **options))
        return kept[-1]

    yield make
    for each in kept:
        each.close()
