"""A decode step on the simulated GPU: its kernels as compiled PTX, and how many launches a whole model takes."""

import functools
import re

import numpy as np
import pytest

import tensorlib
from kernels_triton import decode_attention, decode_matvec
from kernels_triton.report import target
from tensorlib.capture import Capture
from tensorlib.ops import decode
from tests.sim import decode_cases as cases
from tests.sim import errors
from tests.sim.host import install
from tests.sim.simulated import Simulated
from tests.zoo.conftest import write_llama
from zoo.llama import LlamaConfig
from zoo.load import load_gguf

GPUS: dict = {}  # compiled programs are kept
LAYERS = 32


@pytest.fixture
def device(request):
    """A device "cuda:0" of the architecture."""
    arch = getattr(request, "param", 80)
    gpu = GPUS.setdefault(arch, Simulated(arch))
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


@pytest.mark.parametrize("name, k, m", [("q4_0", 96, 1), ("q4_0", 96, 3), ("q6_k", 256, 1), ("mxfp4", 64, 1)])
def test_products(name, k, m, device):
    cases.check_linears([name] * 3, (9, 4, 7), k, m)
    cases.check_swiglu(name, 64, k, m)
    cases.check_add_norm(name, 96, k, m)


@pytest.mark.parametrize("device", [75, 90, 120], indirect=True)
def test_products_on_other_architectures(device):
    cases.check_linears(["q4_k"] * 2, (9, 4), 256, 1)
    cases.check_swiglu("q8_0", 32, 64, 1)
    cases.check_add_norm("q5_0", 64, 64, 2)


@pytest.mark.parametrize("heads, groups, width, cache", [(2, 2, 32, "f16"), (8, 1, 64, "bf16"), (3, 3, 16, "f32")])
def test_attention(heads, groups, width, cache, device):
    for at in (0, 139):
        cases.check_attend(heads, groups, width, cache, at, 140)


@pytest.mark.parametrize("device", [75, 90, 120], indirect=True)
def test_attention_on_other_architectures(device):
    cases.check_attend(4, 2, 32, "f16", 100, 140, True)


def test_float8_caches(device):
    cases.check_attend(4, 2, 32, "f8e4m3", 139, 140)


# ---- the last program ------------------------------------------------------------------------------------------------


def relaxed(room, name):
    return functools.partial(getattr(room, name), sem="relaxed")


def test_a_counter_that_orders_nothing_is_trapped(device, monkeypatch):
    """Planted: the last program may not see what the others stored."""
    monkeypatch.setattr(decode, "_counters", {})  # which a trapped launch does not leave at 0
    monkeypatch.setattr(decode_matvec, "_closing", relaxed(decode_matvec, "_closing"))
    with pytest.raises(errors.GridRace):
        cases.check_add_norm("q4_0", 96, 96, 1)
    monkeypatch.setattr(decode_attention, "compiled", relaxed(decode_attention, "compiled"))
    with pytest.raises(errors.GridRace):
        cases.check_attend(2, 2, 32, "f16", 139, 140)


@pytest.mark.parametrize("arch", [80, 90])
def test_barriers_stand_around_the_count(arch):
    """The simulator does not tell threads of a program apart here: one of them releases and acquires for all."""
    _, made, warps, stages = decode_attention.config(arch, "f16", 4, 64, True)
    made = made._replace(SPLIT=True)
    step = decode_attention.compiled("f16", "f16", made, warps, stages, True, True, 4)
    for kernel in (step, decode_matvec.variants(arch)["closing q4_0"]):
        before, _, after = kernel.compile(target(arch)).asm["ptx"].partition("atom.global.gpu.acq_rel")
        assert re.search(r"bar\.sync\s+0;(?!.*st\.global).*$", before, re.S), "no barrier"
        assert after.index("bar.sync") < after.index("ld.global"), "threads read before the one that counts acquired"


# ---- a model ---------------------------------------------------------------------------------------------------------


def llama(kv_heads):
    """A Llama of 32 layers whose launches are those of a large one: they do not depend on sizes."""
    return LlamaConfig(64, 64, 64, LAYERS, 2, kv_heads, 32, max_position_embeddings=32, rope_interleaved=True)


def token(i):
    return tensorlib.tensor([i], dtype="i64", device="cuda:0")


@pytest.mark.parametrize("kv_heads", [2, 1], ids=["as Llama 2 7B", "as Llama 3 8B"])
def test_launches_of_a_step(kv_heads, device, tmp_path):
    """At most 200 a token with 32 layers of q4_0; then a graph of as many, whose replay has the same bits."""
    _, model = load_gguf(write_llama(tmp_path / "model.gguf", "q4_0", llama(kv_heads), tied=False), device="cuda:0")
    caches = [model.new_cache(32, "f16", device="cuda:0") for _ in range(2)]
    for cache in caches:
        model(token(7), cache)
    out, count = cases.launches(lambda: model(token(5), caches[0]))
    print(f"{count} launches a token of {LAYERS} layers")
    assert count == 5 * LAYERS + 5
    step, given = Capture("cuda:0"), token(0)
    with step:
        kept = model(given, caches[1])
    assert len(step._graph) == count
    given.fill_(5)
    step.replay()
    np.testing.assert_array_equal(cases.bits(kept), cases.bits(out))
    cases.counters_are_zero()
