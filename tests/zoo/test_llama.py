"""Llama against an independent float64 implementation: prefill, cached steps, recorded steps; and what it refuses."""

import gc

import numpy as np
import pytest

import tensorlib
from bench.reference import Reference
from kernels_numba import quant_layout
from tensorlib.errors import ContextError, FormatError, ShapeError, TensorlibError
from tests.quant.test_linear import rounded
from tests.zoo.conftest import write_llama
from zoo.generate import TextModel
from zoo.llama import TINY, LlamaConfig
from zoo.load import load_gguf

IDS = [3, 200, 17, 17, 99, 4, 250, 1, 0, 77, 31, 5, 142, 8]


def model(path, cache="f16", **options):
    return TextModel(*load_gguf(path, **options), cache_dtype=cache)


def close(got, want, tolerance):
    """Relative to the spread of the logits: they are sums of hidden_size terms of one size."""
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


class Rounding:
    """A weight of the reference whose products first round the activations to 8 bits per 32, as the kernels do."""

    __array_ufunc__ = None

    def __init__(self, weight, noise=None):
        self.weight, self.T, self.noise = weight, self, noise

    def __getitem__(self, ids):
        return self.weight[ids]

    def __rmatmul__(self, x):
        # f32's roundings so far: some hundred of 2^-24, of which the root of the number adds up
        x = x if self.noise is None else x * (1 + 2.0**-20 * self.noise.standard_normal(x.shape))
        return rounded(x) @ self.weight.T


def reference(path, fmt, noise=None):
    found = Reference(path)
    if fmt in quant_layout.BIAS:
        found.weights = {k: Rounding(w, noise) if w.ndim == 2 else w for k, w in found.weights.items()}
    return found


# With an f32 cache all that differs is f32 arithmetic, 2^-24 a step and some hundred steps. Where that tips the
# rounding of an activation, all that follows moves: as far as the reference moves under noise of that size.
@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16", "q8_0", "q4_1", "q5_0"])
def test_logits(fmt, tiny_llama):
    path = tiny_llama(fmt)
    want, tolerance = reference(path, fmt).logits(IDS), 1e-4
    if fmt in quant_layout.BIAS:
        moved = [reference(path, fmt, np.random.default_rng(i)).logits(IDS) for i in range(8)]
        tolerance += 2 * max(np.abs(m - want).max() for m in moved) / np.abs(want).max()
        assert tolerance < 0.05  # a wrong weight or position moves logits by as much as they are
    close(model(path, "f32").logits(IDS), want, tolerance)


def test_a_cache_of_f16(tiny_llama):
    """Keys and values off by 2^-12 of themselves: scores of up to 8 by some 2^-9, so outputs too, in each of two
    layers.
    """
    path = tiny_llama("f32")
    close(model(path).logits(IDS), reference(path, "f32").logits(IDS), 2 * 2.0**-9)


def test_an_untied_output_layer(tiny_llama):
    path = tiny_llama("q8_0", tied=False)
    close(model(path, "f32").logits(IDS), reference(path, "q8_0").logits(IDS), 1e-3)


def test_steps_equal_the_prompt(tiny_llama):
    m = model(tiny_llama("f32"))
    whole = m.logits(IDS)
    m.cache.reset()
    steps = [m.model(tensorlib.tensor([i], dtype="i64"), m.cache).numpy().copy() for i in IDS]
    # the same products in another order of summation, and one f16 cache: only f32 rounding differs
    close(np.concatenate(steps), whole, 2e-4)


def test_recorded_steps_equal_eager_ones(tiny_llama):
    m = model(tiny_llama("q8_0"))
    got = list(m.generate(IDS, 20))
    ids = list(IDS)
    m.cache.reset()
    logits = m.model(tensorlib.tensor(ids, dtype="i64"), m.cache)
    for _ in range(20):
        ids.append(int(logits.numpy()[-1].argmax()))
        logits = m.model(tensorlib.tensor(ids[-1:], dtype="i64"), m.cache)
    assert got == ids[len(IDS) :]
    assert list(m.generate(IDS, 20)) == got, "the recorded step is used again, from a fresh cache"


def test_stops_and_counts(tiny_llama):
    m = model(tiny_llama("q8_0"))
    whole = list(m.generate(IDS, 12))
    assert len(whole) == 12
    stop = whole[5]
    assert list(m.generate(IDS, 12, stop_ids=[stop])) == whole[: whole.index(stop)]
    assert list(m.generate(IDS, 0)) == []
    assert len(list(m.generate(IDS))) == TINY.max_position_embeddings - len(IDS)


def test_context_is_refused_before_anything_runs(tiny_llama):
    m = model(tiny_llama("q8_0"))
    limit = TINY.max_position_embeddings
    with pytest.raises(ContextError, match=f"a prompt of {limit + 1} tokens"):
        m.generate([1] * (limit + 1))
    with pytest.raises(ContextError, match=f"at most {limit} in all"):
        m.generate([1] * limit, 1)
    with pytest.raises(ContextError, match="KVCache: got 0 tokens in the cache and 65 more"):
        m.logits([1] * (limit + 1))
    assert m.cache.length == 0
    with pytest.raises(ShapeError, match="an empty prompt"):
        m.generate([])
    assert model(tiny_llama("q8_0"), context=16).context_length == 16


@pytest.mark.parametrize("use", [lambda m: m.generate(IDS, 4), lambda m: m.logits(IDS)], ids=["generate", "logits"])
@pytest.mark.parametrize("begun", [0, 2])
def test_one_generation_at_a_time(tiny_llama, use, begun):
    """Its cache is another's: it must not go on as if nothing had been."""
    m = model(tiny_llama("q8_0"))
    first = m.generate(IDS[:3], 8)
    for _ in range(begun):
        next(first)
    use(m)
    with pytest.raises(TensorlibError, match="another use of this model since it began"):
        next(first)
    assert len(list(m.generate(IDS, 4))) == 4


def test_seeds(tiny_llama):
    from zoo.generate import SamplerConfig

    m = model(tiny_llama("q8_0"))
    draw = lambda seed: list(m.generate(IDS, 24, SamplerConfig(temperature=1.5, top_k=50, seed=seed)))  # noqa: E731
    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(4)}) == 4
    assert list(m.generate(IDS, 24, SamplerConfig(temperature=1.5, top_k=1))) == list(m.generate(IDS, 24))


def test_what_is_not_a_llama(tmp_path):
    with pytest.raises(FormatError, match=r"general.architecture: got 'other'; expected one of .*gemma, .*llama, "):
        load_gguf(write_llama(tmp_path / "other.gguf", arch="other"))
    with pytest.raises(FormatError, match=r"missing: blk\.1\.ffn_up\.weight; expected the weights of LlamaForCausalLM"):
        load_gguf(write_llama(tmp_path / "part.gguf", skip=["blk.1.ffn_up.weight"]))
    with pytest.raises(FormatError, match=r"of another shape: blk.0.ffn_gate.weight \(128, 64\) for \(96, 64\)"):
        load_gguf(write_llama(tmp_path / "shape.gguf", feed_forward_length=96))
    with pytest.raises(FormatError, match="head_count"):
        load_gguf(write_llama(tmp_path / "heads.gguf", **{"attention.head_count": 5}))
    with pytest.raises(FormatError, match="head_count"):
        load_gguf(write_llama(tmp_path / "none.gguf", **{"attention.head_count": 0}))


def test_names_are_those_of_the_gguf_package():
    from gguf import MODEL_ARCH, get_tensor_name_map

    from zoo.llama import LlamaForCausalLM
    from zoo.load import gguf_name

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, TINY.num_hidden_layers)
    for path, _ in LlamaForCausalLM(TINY).named_parameters():
        assert gguf_name(path) == names.get_name(path, try_suffixes=(".weight",)), path


def test_more_fields_while_memory_is_collected():
    """A class whose dict was read is alive while that happens: the collector empties what nobody holds."""
    kept = gc.get_threshold()
    try:
        for count in range(1, 80):
            gc.set_threshold(count)
            made = LlamaConfig.plus(other=1)
            gc.set_threshold(*kept)
            assert made(*TINY).other == 1
    finally:
        gc.set_threshold(*kept)
