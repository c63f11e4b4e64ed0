"""StarCoder2 (arXiv:2402.19173): Mistral with biases everywhere, LayerNorm, and a plain MLP with GELU (section 6)."""

from tensorlib import nn
from zoo import llama


class Starcoder2Config(llama.LlamaConfig):
    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        bias = c("use_bias", bool, True)
        return (
            super()
            .from_hf(c)
            ._replace(
                windows=c.windows(),
                attention_bias=bias,
                mlp_bias=bias,
                rms_norm_eps=c("norm_epsilon", float, 1e-5),
                hidden_act=c.act("hidden_act", "gelu_pytorch_tanh"),
                tie_word_embeddings=c("tie_word_embeddings", bool, True),
            )
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        windows = (get("attention.sliding_window", int, 0),) * self.num_hidden_layers
        return self._replace(windows=windows, mlp_bias=self.attention_bias, hidden_act="gelu_pytorch_tanh")


TINY = Starcoder2Config(*llama.TINY)._replace(
    attention_bias=True, mlp_bias=True, hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True
)


class Starcoder2MLP(nn.Module):
    """gelu(W_fc x); W_proj is applied by the layer."""

    down_proj = property(lambda self: self.c_proj)

    def __init__(self, config):
        self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self._act = nn.activation(config.hidden_act)

    def forward(self, x_TD):
        return self._act(self.c_fc(x_TD))


class Starcoder2DecoderLayer(llama.LlamaDecoderLayer):
    MLP = Starcoder2MLP

    @staticmethod
    def norm(config):
        """A norm of the residual stream."""
        return nn.LayerNorm(config.hidden_size, config.rms_norm_eps)


class Starcoder2Model(llama.LlamaModel):
    Layer = Starcoder2DecoderLayer


class Starcoder2ForCausalLM(llama.LlamaForCausalLM):
    Model = Starcoder2Model
