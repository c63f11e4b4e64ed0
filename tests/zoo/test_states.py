"""Generation by models that keep states, which have no way back."""

import pytest

import tensorlib
from tests.zoo import test_decoders as whole
from zoo import granite_hybrid, lfm2, mamba, recurrent_gemma, rwkv, rwkv7
from zoo.generate import TextModel

MODELS = {
    "granitemoehybrid": (granite_hybrid.GraniteHybridForCausalLM, granite_hybrid.TINY),
    "lfm2": (lfm2.Lfm2ForCausalLM, lfm2.TINY),
    "mamba": (mamba.MambaForCausalLM, mamba.TINY),
    "mamba2": (mamba.Mamba2ForCausalLM, mamba.TINY_2),
    "recurrent_gemma": (recurrent_gemma.RecurrentGemmaForCausalLM, recurrent_gemma.TINY),
    "rwkv5": (rwkv.RwkvForCausalLM, rwkv.TINY_5),
    "rwkv6": (rwkv.RwkvForCausalLM, rwkv.TINY),
    "rwkv7": (rwkv7.Rwkv7ForCausalLM, rwkv7.TINY),
}


@pytest.mark.parametrize("model_type", MODELS)
def test_generation_that_reuses(model_type):
    """What goes on behind all that is held is reused; what turns off before its end is computed anew."""
    tensorlib.manual_seed(0)
    kind, config = MODELS[model_type]
    net = kind(config).requires_grad_(False)
    model = TextModel(None, net, cache_dtype="f32")
    first = list(model.generate([1, 2, 3, 4], 6))
    held = model.cache.length
    assert held == 9 and list(model.generate([1, 2, 3, 4], 6)) == first

    def greedy(ids, count):
        for _ in range(count):
            ids = [*ids, int(net(whole.tensor(ids))[-1].argmax())]
        return ids[-count:]

    longer, other = [1, 2, 3, 4, *first, 7, 7], [1, 2, 3, 9]
    seen = []
    model.prefill = lambda ids, prefill=model.prefill: seen.append(len(ids)) or prefill(ids)
    assert list(model.generate(longer, 5, reuse=True)) == greedy(longer, 5)
    assert list(model.generate(other, 5, reuse=True)) == greedy(other, 5)
    assert seen == [3, 4]
