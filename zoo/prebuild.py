"""Compiles the kernels that text generation needs, by generating with tiny models of zeros in every format.

What it compiles is what it ran, so no list can be out of date. `TENSORLIB_CPU_LEVEL` chooses another level than this
CPU's best, and `destination` another folder than the user's cache: `kernels_numba/prebuilt` makes a wheel carry them.
Those of `tensorlib quantize` and `dequantize`, two for every format, are compiled when asked for.
"""

import numpy

import tensorlib
from tensorlib import backend
from tensorlib.capture import Capture
from tensorlib.device import Buffer
from tensorlib.nn import Sampler, VarBuilder
from tensorlib.quant import formats
from tensorlib.quant.encode import encode
from tensorlib.quant.tensor import QTensor, from_bytes
from zoo import mixes
from zoo.llama import TINY, LlamaForCausalLM
from zoo.load import gguf_name

FORMATS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k")
HEAD_DIMS = (64, 128)
ENCODED = tuple(name for name in mixes.FILE_TYPES if formats.get(name).quantized)  # what `quantize` writes


class _Zeros:
    """A source of weights for VarBuilder: all zero, matrices in `format`."""

    path = "zeros"

    def __init__(self, model, format):
        self.format = formats.get(format)
        self.tensors = {gguf_name(path): spec.shape for path, spec in model.named_parameters()}

    def tensor(self, name):
        shape = self.tensors[name]
        if len(shape) == 1:
            return tensorlib.zeros(shape)
        n = self.format.row_bytes(shape[1]) * shape[0]
        return QTensor(Buffer.of(bytes(n)), 0, shape, self.format)


def _generate(format, head_dim):
    config = TINY._replace(hidden_size=256, intermediate_size=256, head_dim=head_dim, rope_interleaved=True)
    config = config._replace(tie_word_embeddings=True)
    model = LlamaForCausalLM(config)
    VarBuilder(_Zeros(model, format), gguf_name).load(model)
    cache, sampler = model.new_cache(64), Sampler(config.vocab_size, 64)
    sampler.reset([1] * 8)
    sampler(model(tensorlib.tensor([1] * 8, dtype="i64"), cache))
    with Capture() as step:
        sampler(model(sampler.token, cache))
    step.replay()


def build_tools(formats=ENCODED):
    """Compiles what encodes to each format, with importances and without, and what decodes it to f32 and f16."""
    rows = numpy.zeros((1, 256), numpy.float32)
    for format in formats:
        for importance in (None, rows[0]):
            blocks = encode(format, rows, importance)
        x = from_bytes(blocks.reshape(-1), rows.shape, format)
        for dtype in ("f32", "f16"):
            x.dequantize(dtype)


def build(formats=FORMATS, head_dims=HEAD_DIMS, destination=None, tools=False):
    """Compiles for every format at the first head dim, and for the other head dims, and if `tools` what these use;
    returns the folder and kernel names.
    """
    here = backend.backend()
    if destination is not None:
        here.store_under(destination)
    for i, format in enumerate(formats):
        for head_dim in head_dims if i == 0 else head_dims[:1]:
            _generate(format, head_dim)
    if tools:
        build_tools()
    return here.folder, here.files()
