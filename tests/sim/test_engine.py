"""The engine on a GPU that is computed here: pages, latents and states in steps that a graph replays."""

import pytest

from tests.sim.test_decoders import device  # noqa: F401
from tests.zoo.test_engine_families import Scores, same, tiny
from zoo.engine import Engine
from zoo.generate import TextModel


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "deepseek_v3", "mamba2", "granitemoehybrid", "rwkv7"])
def test_streams_are_what_they_are_on_the_cpu(model_type, device):  # noqa: F811
    cpu = tiny(model_type)
    model = TextModel(None, tiny(model_type).model.to("cuda:0"), cache_dtype="f32", device="cuda:0")
    prompts, engine = [[5, 6, 7], [9, 8, 7, 6, 5], [1, 2]], Engine(model, 2, 32, "f32", page_size=16)
    seen, alone = [Scores() for _ in prompts], [Scores() for _ in prompts]
    handles = [engine.submit(ids, 4 + i, processors=[seen[i]]) for i, ids in enumerate(prompts)]
    while engine.busy:
        engine.step()
    for i, (ids, handle) in enumerate(zip(prompts, handles)):
        want = list(cpu.generate(ids, 4 + i, processors=[alone[i]]))
        same(handle.ids, want, seen[i].rows, alone[i].rows)
