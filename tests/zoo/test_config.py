"""What configs of decoders refuse, each with the file and the field."""

import json

import pytest

import tensorlib
from tensorlib.errors import FormatError
from tests.zoo.decoders import MLA
from zoo import auto
from zoo.config import Fields
from zoo.llama import TINY, LlamaForCausalLM
from zoo.t5 import T5Config

LINEAR = {"rope_type": "linear", "factor": 4.0}
SIZES = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "model_type, fields, message",
    [
        ("mamba9", {}, "model_type: got 'mamba9'; expected one of .*llama, "),
        ("deepseek_v2", {"moe_layer_freq": 2}, "moe_layer_freq: got 2; expected 1; this is not here yet"),
        (
            "mistral",
            {"layer_types": ["full_attention"]},
            "layer_types: got .*; expected 2 of sliding_attention or full",
        ),
        ("mistral", {"layer_types": ["full_attention", "half"]}, "layer_types: got"),
        ("llama", {"hidden_size": "8"}, "hidden_size: got '8'; expected an integer"),
        ("qwen3", {"sliding_window": 2.5, "use_sliding_window": True}, "sliding_window: got 2.5"),
        (
            "llama",
            {"partial_rotary_factor": 0.5},
            "partial_rotary_factor: got 0.5; expected 1.0; this model turns whole",
        ),
        (
            "mistral",
            {"rope_scaling": {"type": "linear", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor: got 0.5",
        ),
        ("llama", {"hidden_act": "mish"}, "hidden_act: got 'mish'; expected one of silu, "),
        ("phi3", {"hidden_act": "gelu"}, "hidden_act: got 'gelu'; expected 'silu'"),
        ("glm", {"hidden_act": "gelu"}, "hidden_act: got 'gelu'; expected 'silu'"),
        ("phi", {"tie_word_embeddings": True}, "tie_word_embeddings: got True"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention: got True; expected False"),
        ("deepseek_v2", {**MLA, "scoring_func": "sigmoid"}, "scoring_func: got 'sigmoid'; expected 'softmax'"),
        ("deepseek_v2", {**MLA, "topk_method": "noaux_tc"}, "topk_method: got 'noaux_tc'; expected one of greedy, "),
        ("deepseek_v2", {**MLA, "mlp_bias": True}, "mlp_bias: got True; expected False"),
        ("deepseek_v3", {**MLA, "n_group": 8, "topk_group": 2}, "topk_group: got 2; expected groups of as many"),
        (
            "bert",
            {"position_embedding_type": "relative_key"},
            "position_embedding_type: got 'relative_key'; expected 'abs",
        ),
        ("roberta", {"is_decoder": True}, "is_decoder: got True; expected False"),
        ("deberta-v2", {"pos_att_type": "p2c|c2p"}, "relative_attention: got False; expected True"),
        (
            "deberta-v2",
            {"max_relative_positions": 3, "position_buckets": 4},
            "max_relative_positions: got 3; expected more than half",
        ),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention: got True; expected False"),
        ("deberta-v2", {"conv_groups": 2}, "conv_groups: got 2; expected 1"),
        ("deberta-v2", {"embedding_size": 4}, "embedding_size: got 4; expected 8"),
        ("new", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling: rope_type: got 'yarn'"),
        ("modernbert", {"rope_parameters": {"full_attention": LINEAR}}, "rope_type: got 'linear'; expected 'default'"),
        (
            "modernbert",
            {"rope_parameters": {"sliding_attention": LINEAR}},
            "rope_type: got 'linear'; expected 'default'",
        ),
        ("nomic_bert", {"rope_scaling": LINEAR}, "rope_type: got 'linear'; expected 'default'"),
        ("nomic_bert", {"rotary_scaling_factor": 2}, "rotary_scaling_factor: got 2.0; expected None"),
        ("nomic_bert", {"activation_function": "gelu"}, "activation_function: got 'gelu'; expected 'swiglu'"),
        ("nomic_bert", {"prenorm": True}, "prenorm: got True; expected False"),
        (
            None,
            {"d_model": 8, "n_layer": 1, "ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}},
            "ssm_cfg: rmsnorm: got False; expected True",
        ),
    ],
)
def test_refusals(model_type, fields, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **SIZES, **fields}))
    with pytest.raises(FormatError, match=rf"config\.json: {message}"):
        auto.load(tmp_path)


def test_activation_of_t5():
    """What older files say beside `feed_forward_proj` counts for more, as in transformers."""
    sizes = dict.fromkeys(("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"), 8)
    found = T5Config.from_hf(Fields({**sizes, "feed_forward_proj": "gated-gelu"}, ""))
    assert (found.act, found.gated) == ("gelu_new", True)
    found = T5Config.from_hf(Fields({**sizes, "dense_act_fn": "silu", "is_gated_act": True}, ""))
    assert (found.act, found.gated) == ("silu", True)


def test_a_bias_that_the_config_does_not_say(tmp_path):
    """FormatError, not a model without it."""
    model = LlamaForCausalLM(TINY._replace(attention_bias=True))
    tensorlib.save(tmp_path / "model.safetensors", model.state_dict())
    fields = {name: getattr(TINY, name) for name in TINY._fields[:7]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **fields}))
    with pytest.raises(
        FormatError, match=r"safetensors: model.layers.0.self_attn.q_proj.bias: got a bias; expected none"
    ):
        auto.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **fields, "attention_bias": True}))
    auto.load(tmp_path)


def test_windows():
    fields = Fields({"num_hidden_layers": 3, "sliding_window": 4}, "config.json")
    assert fields.windows() == (4, 4, 4)
    assert fields.windows(lambda i: i == 1) == (0, 4, 0)
    assert fields.windows(switched=True) == (0, 0, 0)


def test_rope_scaling():
    """Old names and new ones, with what stands beside them."""
    beside = {"max_position_embeddings": 64, "original_max_position_embeddings": None}
    assert Fields({"rope_theta": 5.0}, "").rope_scaling() is None
    assert Fields({"rope_parameters": {"rope_type": "default", "rope_theta": 5}}, "").rope_scaling() is None
    old = Fields({"rope_scaling": {"type": "linear", "factor": 2.0}, "max_position_embeddings": 64}, "")
    assert old.rope_scaling() == {"type": "linear", "factor": 2.0, "partial_rotary_factor": 1.0, **beside}
    assert Fields({"partial_rotary_factor": 0.5}, "").rope_scaling(0.25)["partial_rotary_factor"] == 0.5
    assert Fields({}, "").rope_scaling(0.25)["partial_rotary_factor"] == 0.25
    assert Fields({"rope_parameters": {"rope_theta": 5}, "rope_theta": 3.0}, "").rope_theta() == 5.0
