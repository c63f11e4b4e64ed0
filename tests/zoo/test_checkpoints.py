"""Llama from quantised checkpoints of its own names: a VarBuilder of the folder is all that it takes."""

import numpy as np
import pytest

import tensorlib
from tensorlib.nn import VarBuilder
from tensorlib.quant.tensor import QTensor
from tests.quant import checkpoints
from tests.quant.checkpoints import awq, bnb4, bnb8, compressed, gptq, hqq
from zoo.llama import TINY, LlamaForCausalLM

IDS = [3, 200, 17, 17, 99, 4, 250]
BUILDERS = {
    "gptq": lambda *a, name: gptq(*a, order=True, name=name),
    "awq": lambda *a, name: awq(*a, name=name),
    "nf4": lambda *a, name: bnb4(*a, name=name),
    "int8": lambda *a, name: bnb8(*a, name=name),
    "hqq": lambda *a, name: hqq(*a, name=name),
    "compressed-tensors": lambda *a, name: compressed(*a, kind="F16", zeros=True, name=name),
}


def logits(builder):
    model = builder.load(LlamaForCausalLM(TINY))
    return model, model(tensorlib.tensor(IDS), model.new_cache(16, "f32"), last_only=False).numpy()


@pytest.mark.parametrize("method", BUILDERS)
def test_logits(method, tmp_path):
    rng, parts, dense = np.random.default_rng(0), {}, {}
    for name, _, _, spec in LlamaForCausalLM(TINY).named_weights():
        stem, shape = name.removesuffix(".weight"), spec.shape
        if "proj" in stem:
            config, made, weight = BUILDERS[method](rng, *shape, name=stem)
            size = 0.5 / np.abs(weight).mean() / shape[1] ** 0.5  # scales such that nothing grows
            for part, (kind, values, *_) in made.items():
                if kind[0] == "F" and part.endswith(("scale", ".scales", ".SCB", "absmax")):
                    made[part] = kind, (values * values.dtype.type(size)).astype(values.dtype)
            parts |= made
        else:
            values = np.ones(shape) if "norm" in stem else rng.standard_normal(shape)
            parts[name] = "F32", values.astype(np.float32)
    with tensorlib.load(checkpoints.write(tmp_path, config, parts)) as file:
        for name in file.tensors:
            w = file.tensor(name)
            dense[name] = w.dequantize(cls=tensorlib.Tensor) if isinstance(w, QTensor) else w
        model, got = logits(VarBuilder(file))
        exact = logits(VarBuilder(file, dequantize=True))[1]
    assert isinstance(model.model.layers[0].mlp.gate_proj.weight, QTensor)
    want = logits(VarBuilder(dense))[1]
    np.testing.assert_array_equal(exact, want)
    # activations are rounded to 1/254 of a block's largest value at most, in 14 products after each other
    assert np.abs(got - want).max() <= (1e-4 if method == "nf4" else 14 / 254) * np.abs(want).max()
    assert want.std() > 0.1
