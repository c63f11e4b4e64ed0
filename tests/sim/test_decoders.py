"""Decoders of the zoo on the simulated GPU, one of every family: a prompt, then steps of one graph, as `transformers`
has them on the CPU.
"""

import numpy as np
import pytest

import tensorlib
from tensorlib.capture import Capture
from tests.sim.host import install
from tests.sim.simulated import Simulated
from tests.zoo import test_decoders as whole
from tests.zoo.decoders import CASES
from zoo import auto

FAMILIES = ("mixtral", "deepseek_v3", "granitemoe", "gpt2", "gpt_bigcode", "gpt_neox", "mpt")


@pytest.fixture(scope="module")
def device():
    """A device "cuda:0"."""
    gpu = Simulated(90)
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


@pytest.mark.parametrize("case", [case for case in CASES if case.id in FAMILIES], ids=lambda case: case.id)
def test_a_prompt_and_a_graph_of_steps(case, device, tmp_path):
    theirs = whole.torch_model(case)
    theirs.save_pretrained(tmp_path)
    ours = auto.load(tmp_path, device="cuda:0")[1]
    cache, ids = ours.new_cache(16, "f32", device="cuda:0"), whole.IDS[:9]
    found = [ours(tensorlib.tensor(ids[:6], dtype="i64", device="cuda:0"), cache, last_only=False).cpu().numpy()]
    token, step = tensorlib.tensor([0], dtype="i64", device="cuda:0"), Capture("cuda:0")
    with step:
        out = ours(token, cache)
    for i in ids[6:]:
        token.fill_(i)
        step.replay()
        found.append(out.cpu().numpy().copy())
    whole.close(np.concatenate(found), whole.logits(theirs, [ids])[0])
