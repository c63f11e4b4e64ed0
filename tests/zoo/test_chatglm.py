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


def weights(theirs):
    """ChatGLM's: q, k, v together."""
    found = {}
    for name, x in theirs.state_dict().items():
        for old, new in OURS:
            name = name.replace(old, new)
        found[name] = x.numpy()
    for i in range(SIZES["num_hidden_layers"]):
        at = f"transformer.encoder.layers.{i}.self_attention"
        for kind in ("weight", "bias"):
            parts = [found.pop(f"{at}.{part}_proj.{kind}") for part in "qkv"]
            found[f"{at}.query_key_value.{kind}"] = np.concatenate(parts)
    return found


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("chatglm")
    tensorlib.save(path / "model.safetensors", weights(theirs))
    (path / "config.json").write_text(json.dumps({**CONFIG, "layernorm_epsilon": theirs.config.rms_norm_eps}))
    return path


def test_logits_and_steps(theirs, folder):
    ours, want = auto.load(folder)[1], whole.logits(theirs, [whole.IDS, whole.OTHER])
    whole.close(ours(whole.tensor([whole.IDS, whole.OTHER])).numpy(), want)
    cache = ours.new_cache(32, "f32")
    found = [ours(whole.tensor(whole.IDS[:5]), cache, last_only=False).numpy().copy()]
    found += [ours(whole.tensor([i]), cache).numpy().copy() for i in whole.IDS[5:]]
    whole.close(np.concatenate(found), want[0])


def test_training_step(theirs, folder):
    ours = auto.load(folder)[1].requires_grad_(True)
    theirs.zero_grad()
    ids = whole.torch.tensor([whole.IDS])
    want = whole.torch.nn.functional.cross_entropy(theirs(ids, use_cache=False).logits[0, :-1], ids[0, 1:])
    want.backward()
    loss = tensorlib.cross_entropy(ours(whole.tensor([whole.IDS]))[0, :-1], whole.tensor(whole.IDS[1:]))
    loss.backward()
    assert abs(loss.item() - want.item()) <= 1e-5 * want.item()
    assert all(p.grad is not None for _, p in ours.named_parameters())
    mlp = theirs.model.layers[0].mlp
    whole.close(
        ours.transformer.layers[0].mlp.dense_h_to_4h.weight.grad.numpy(), mlp.gate_up_proj.weight.grad.numpy(), 1e-3
    )


def test_gguf(theirs, tmp_path):
    table = names.get_tensor_name_map(names.MODEL_ARCH.CHATGLM, SIZES["num_hidden_layers"])
    tensors = {}
    for name, x in weights(theirs).items():
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
