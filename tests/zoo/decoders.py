"""The decoders of the zoo: a row per architecture with a tiny config, from which tests and the table are made."""

from typing import NamedTuple

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 16
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


class Case(NamedTuple):
    """`model_type` of Hugging Face; what its config has beside SIZES; `variant` tells rows of one type apart.

    `context`: positions prepared for. `gguf`: the file's architecture, None where llama.cpp has none or it is not here.
    """

    model_type: str
    fields: dict = {}
    variant: str = ""
    context: int | None = None
    gguf: str | None = None

    @property
    def id(self):
        return f"{self.model_type}-{self.variant}" if self.variant else self.model_type


CASES = [
    Case("llama"),
    Case("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}, "biases"),
    Case("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, "linear"),
    Case("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 5e4}}, "llama3"),
    Case("llama", {"rope_parameters": {**YARN, "rope_theta": 1e4}, "head_dim": 16}, "yarn"),
    Case("mistral", {"sliding_window": 8}),
]
