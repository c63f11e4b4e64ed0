"""ChatGLM's own files against `transformers`' class for the same model: its weights under their names; also as GGUF."""

import json

import numpy as np
import pytest

import tensorlib
from tensorlib.errors import FormatError
from tensorlib.io import gguf
from tests.zoo import test_decoders as whole
from tests.zoo.decoders import SIZES, Case
from zoo import auto
from zoo.load import load_gguf

names = pytest.importorskip("gguf")

# run here with the pair of this file
test_prefill, test_cached_steps = whole.test_prefill, whole.test_cached_steps
test_recorded_steps, test_batch = whole.test_recorded_steps, whole.test_batch

GLM = Case(
    "glm", {"attention_bias": True, "head_dim": 8, "rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5}}
)
OURS = (
    ("model.embed_tokens", "transformer.embedding.word_embeddings"),
    ("model.norm", "transformer.encoder.final_layernorm"),
    ("lm_head", "transformer.output_layer"),
    ("model.layers", "transformer.encoder.layers"),
    ("self_attn.o_proj", "self_attention.dense"),
    ("self_attn", "self_attention"),
    ("gate_up_proj", "dense_h_to_4h"),
    ("down_proj", "dense_4h_to_h"),
)
CONFIG = {
    "model_type": "chatglm",
    "padded_vocab_size": SIZES["vocab_size"],
    "hidden_size": SIZES["hidden_size"],
    "ffn_hidden_size": SIZES["intermediate_size"],
    "num_layers": SIZES["num_hidden_layers"],
    "num_attention_heads": SIZES["num_attention_heads"],
    "multi_query_attention": True,
    "multi_query_group_num": SIZES["num_key_value_heads"],
    "kv_channels": 8,
    "layernorm_epsilon": 1.5625e-07,
    "rope_ratio": 50,
    "seq_length": 64,
    "add_bias_linear": False,
    "add_qkv_bias": True,
}


@pytest.fixture(scope="module")
def theirs():
    return whole.torch_model(GLM)


def arrays(theirs):
    return {name: x.numpy() for name, x in theirs.state_dict().items()}


def weights(found):
    """ChatGLM's of {name of transformers': array}: q, k, v together."""
    for old, new in OURS:
        found = {name.replace(old, new): x for name, x in found.items()}
    for i in range(SIZES["num_hidden_layers"]):
        at = f"transformer.encoder.layers.{i}.self_attention"
        for kind in ("weight", "bias"):
            parts = [found.pop(f"{at}.{part}_proj.{kind}") for part in "qkv"]
            found[f"{at}.query_key_value.{kind}"] = np.concatenate(parts)
    return found


def saved(theirs, path):
    """ChatGLM's own files with the weights of transformers' GLM."""
    tensorlib.save(path / "model.safetensors", weights(arrays(theirs)))
    (path / "config.json").write_text(json.dumps({**CONFIG, "layernorm_epsilon": theirs.config.rms_norm_eps}))
    return path


@pytest.fixture(scope="module")
def pair(theirs, tmp_path_factory):
    """(transformers' GLM, ours out of ChatGLM's files, what the tests of decoders need of a case)."""
    return theirs, auto.load(saved(theirs, tmp_path_factory.mktemp("chatglm")))[1], GLM


def test_training_step(pair):
    """Loss and the gradient of every weight."""
    theirs, ours, _ = pair
    theirs.zero_grad()
    ids = whole.torch.tensor([whole.IDS])
    want = whole.torch.nn.functional.cross_entropy(theirs(ids, use_cache=False).logits[0, :-1], ids[0, 1:])
    want.backward()
    ours.requires_grad_(True)
    loss = tensorlib.cross_entropy(ours(whole.tensor([whole.IDS]))[0, :-1], whole.tensor(whole.IDS[1:]))
    loss.backward()
    assert abs(loss.item() - want.item()) <= 1e-5 * want.item()
    expected = weights({name: p.grad.numpy() for name, p in theirs.named_parameters()})
    found = {name: p.grad for name, p in ours.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        whole.close(found[name].numpy(), gradient, 1e-3)
    ours.requires_grad_(False)


def test_gguf(theirs, tmp_path):
    table = names.get_tensor_name_map(names.MODEL_ARCH.CHATGLM, SIZES["num_hidden_layers"])
    tensors = {}
    for name, x in weights(arrays(theirs)).items():
        known = table.get_name(name.removeprefix("transformer."), try_suffixes=(".weight", ".bias"))
        tensors[known] = x
    head = SIZES["hidden_size"] // SIZES["num_attention_heads"]
    numbers = {
        "context_length": 64,
        "embedding_length": SIZES["hidden_size"],
        "feed_forward_length": SIZES["intermediate_size"],
        "block_count": SIZES["num_hidden_layers"],
        "attention.head_count": SIZES["num_attention_heads"],
        "attention.head_count_kv": SIZES["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": theirs.config.rms_norm_eps,
        "rope.dimension_count": head // 2,
        "rope.freq_base": 5e5,
    }
    metadata = {"general.architecture": "chatglm"} | {f"chatglm.{key}": value for key, value in numbers.items()}
    gguf.write(tmp_path / "model.gguf", metadata, tensors)
    ours = load_gguf(tmp_path / "model.gguf")[1]
    whole.close(ours(whole.tensor([whole.IDS])).numpy(), whole.logits(theirs, [whole.IDS]))


def test_what_is_not_this_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "rmsnorm": False}))
    with pytest.raises(FormatError, match="rmsnorm: got False; expected True"):
        auto.load(tmp_path)
