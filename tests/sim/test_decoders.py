"""Decoders of the zoo on the simulated GPU, one of every architecture: a prompt, then steps of one graph, as
`transformers` has them on the CPU.
"""

import numpy as np
import pytest

import tensorlib
from tensorlib.capture import Capture
from tensorlib.io import gguf
from tests.sim.host import install
from tests.sim.simulated import Simulated
from tests.zoo import test_based as based
from tests.zoo import test_chatglm as chatglm
from tests.zoo import test_decoders as whole
from tests.zoo import test_rwkv as rwkv
from tests.zoo.decoders import CASES
from tests.zoo.test_decoders_gguf import write
from zoo import auto
from zoo.load import load_gguf

# of every architecture its first row; more of what has kernels of its own
SIMULATED = [case for case in CASES if not case.variant or case.id == "falcon-alibi"]


@pytest.fixture(scope="module")
def device():
    """A device "cuda:0"."""
    gpu = Simulated(90)
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


def steps(ours):
    """Logits of a prompt, and of replays of one graph behind it."""
    cache, ids = ours.new_cache(16, "f32", device="cuda:0"), whole.IDS[:9]
    found = [ours(tensorlib.tensor(ids[:6], dtype="i64", device="cuda:0"), cache, last_only=False).cpu().numpy()]
    token, step = tensorlib.tensor([0], dtype="i64", device="cuda:0"), Capture("cuda:0")
    with step:
        out = ours(token, cache)
    for i in ids[6:]:
        token.fill_(i)
        step.replay()
        found.append(out.cpu().numpy().copy())
    return np.concatenate(found)


@pytest.mark.parametrize("case", SIMULATED, ids=lambda case: case.id)
def test_a_prompt_and_a_graph_of_steps(case, device, tmp_path):
    theirs = whole.torch_model(case)
    theirs.save_pretrained(tmp_path)
    ours = auto.load(tmp_path, device="cuda:0")[1]
    whole.close(steps(ours), whole.logits(theirs, [whole.IDS[:9]])[0])


def test_based(device, tmp_path):
    """Linear attention, a window, convolutions."""
    theirs = based.saved(based.CONFIG, tmp_path)
    whole.close(steps(auto.load(tmp_path, device="cuda:0")[1]), whole.logits(theirs, [whole.IDS[:9]])[0])


def test_chatglm(device, tmp_path):
    """Weights that are one for q, k and v."""
    theirs = whole.torch_model(chatglm.GLM)
    ours = auto.load(chatglm.saved(theirs, tmp_path), device="cuda:0")[1]
    whole.close(steps(ours), whole.logits(theirs, [whole.IDS[:9]])[0])


@pytest.mark.parametrize("name", rwkv.CASES)
def test_rwkv(name, device, tmp_path):
    """States of matrices, shifts of tokens."""
    kind, weights = rwkv.CASES[name][0], rwkv.saved(name, tmp_path)
    ours = auto.load(tmp_path, device="cuda:0")[1]
    whole.close(steps(ours), whole.logits(kind(weights), [whole.IDS[:9]])[0])


def test_experts_of_a_gguf_file(device, tmp_path):
    """Gate and up are apart there, and may be in blocks: a step gathers those that its token chose."""
    case = next(case for case in CASES if case.gguf == "qwen3moe")
    case = case._replace(fields={**case.fields, "moe_intermediate_size": 32})
    theirs, path = whole.torch_model(case), tmp_path / "model.gguf"
    write(path, case, theirs)
    whole.close(steps(load_gguf(path, device="cuda:0")[1]), whole.logits(theirs, [whole.IDS[:9]])[0])
    with gguf.open(path) as file:
        tensors = {name: file.tensor(name) for name in file.tensors}
        for kind in ("blocks", "floats"):
            found = {name: tensorlib.quantize(x, "q8_0") if "_exps" in name else x for name, x in tensors.items()}
            if kind == "floats":
                found = {name: x.dequantize() if "_exps" in name else x for name, x in found.items()}
            gguf.write(tmp_path / f"{kind}.gguf", dict(file.metadata), found)
    got, want = (steps(load_gguf(tmp_path / f"{kind}.gguf", device="cuda:0")[1]) for kind in ("blocks", "floats"))
    # the prompt's products round activations to 8 bits, or f16; a step's are those of the floats
    assert np.abs(got - want).max() <= 0.05 * np.abs(want).max()
