"""What configs of decoders refuse, each with the file and the field."""

import json

import pytest

from tensorlib.errors import FormatError
from zoo import auto
from zoo.config import Fields

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
    ],
)
def test_refusals(model_type, fields, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **SIZES, **fields}))
    with pytest.raises(FormatError, match=rf"config\.json: {message}"):
        auto.load(tmp_path)


def test_windows():
    fields = Fields({"num_hidden_layers": 3, "sliding_window": 4}, "config.json")
    assert fields.windows() == (4, 4, 4)
    assert fields.windows(lambda i: i == 1) == (0, 4, 0)
    assert fields.windows(used=False) == (0, 0, 0)


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
