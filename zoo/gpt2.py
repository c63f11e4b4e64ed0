"""GPT-2 (Radford et al., 2019) and StarCoder (arXiv:2305.06161): a pre-norm decoder with learned positions added to
embeddings, LayerNorm, GELU, biases everywhere. StarCoder: one key-value head for all query heads (arXiv:1911.02150).

q, k, v are one product. GPT-2's files have products' weights the other way round, [in, out].
"""

import tensorlib
from tensorlib import nn
from zoo import llama


class Gpt2Config(llama.LlamaConfig.plus(n_positions=1024, turned=True)):
    """`n_positions`: how many are learned. `turned`: weights of products are [in, out]."""

    @classmethod
    def from_hf(cls, c, activation="gelu_new"):
        """Out of the fields of a config.json (zoo/config.py)."""
        hidden, heads, positions = c("n_embd", int), c("n_head", int), c("n_positions", int, 1024)
        for name, value in {"scale_attn_weights": True, "add_cross_attention": False}.items():
            c.only(name, bool, value)
        for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"):
            c.only(name, bool, False)
        return cls(
            vocab_size=c("vocab_size", int),
            hidden_size=hidden,
            intermediate_size=c("n_inner", int, 4 * hidden),
            num_hidden_layers=c("n_layer", int),
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=hidden // heads,
            rms_norm_eps=c("layer_norm_epsilon", float, 1e-5),
            max_position_embeddings=positions,
            tie_word_embeddings=c("tie_word_embeddings", bool, True),
            hidden_act=c.act("activation_function", activation),
            n_positions=positions,
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        return self._replace(n_positions=get("context_length", int), hidden_act="gelu_new", turned=False)


class GptBigCodeConfig(Gpt2Config):
    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        made = super().from_hf(c, "gelu_pytorch_tanh")._replace(turned=False)
        return made._replace(num_key_value_heads=1 if c("multi_query", bool, True) else made.num_attention_heads)


TINY = Gpt2Config(*llama.TINY)._replace(
    num_key_value_heads=4, n_positions=64, hidden_act="gelu_new", tie_word_embeddings=True
)
TINY_BIGCODE = GptBigCodeConfig(*TINY)._replace(num_key_value_heads=1, turned=False)


class Conv1D(nn.Module):
    """x W + b."""

    def __init__(self, rows, columns):
        self.weight, self.bias = nn.Parameter(rows, columns, init=nn.init.fan_uniform(rows)), nn.Parameter(columns)

    def forward(self, x):
        return tensorlib.matmul(x, self.weight) + self.bias


class Gpt2Attention(nn.Module):
    def __init__(self, config, layer):
        H, K, h, D, self._layer = *config[4:7], config.hidden_size, layer
        product, self._sizes = Conv1D if config.turned else nn.Linear, (H * h, K * h, K * h)
        self.c_attn, self.c_proj = product(D, (H + 2 * K) * h), product(H * h, D)

    def forward(self, x_TD, cache):
        return self.c_proj(cache.attend(self._layer, *self.qkv(x_TD), None))

    def qkv(self, x_TD):
        """Each [..., T, heads * h]."""
        return self.c_attn(x_TD).split(self._sizes, -1)


class Gpt2MLP(nn.Module):
    def __init__(self, config):
        D, F, product = config.hidden_size, config.intermediate_size, Conv1D if config.turned else nn.Linear
        self.c_fc, self.c_proj, self._act = product(D, F), product(F, D), nn.activation(config.hidden_act)

    def forward(self, x_TD):
        return self.c_proj(self._act(self.c_fc(x_TD)))


class Gpt2Block(nn.Module):
    Attention = Gpt2Attention

    def __init__(self, config, layer):
        self.ln_1 = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = self.Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Gpt2MLP(config)

    def forward(self, x_TD, cache):
        x_TD = x_TD + self.attn(self.ln_1(x_TD), cache)
        return x_TD + self.mlp(self.ln_2(x_TD))


class Gpt2Model(nn.Module):
    Block, embed_tokens = Gpt2Block, property(lambda self: self.wte)

    def __init__(self, config):
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.n_positions, config.hidden_size)
        self.h = nn.ModuleList([self.Block(config, i) for i in range(config.num_hidden_layers)])
        self.ln_f = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids_T, cache, rotary):
        x_TD = self.wte(ids_T) + self.wpe(cache.positions(ids_T))
        for block in self.h:
            x_TD = block(x_TD, cache)
        return self.ln_f(x_TD)


class Gpt2LMHeadModel(llama.LlamaForCausalLM):
    Model, model, body = Gpt2Model, property(lambda self: self.transformer), "transformer"

    def __init__(self, config):
        super().__init__(config)
        self.transformer = vars(self).pop("model")

    def new_rotary(self, theta, scaling=None):
        """None: positions are learned."""


# ---- StarCoder -------------------------------------------------------------------------------------------------------


class GptBigCodeAttention(Gpt2Attention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self._heads, self._together = config.num_attention_heads, config.num_key_value_heads > 1

    def qkv(self, x_TD):
        """With as many heads of k and v as of q, these stand head by head."""
        if not self._together:
            return super().qkv(x_TD)
        return (x.flatten(-2) for x in self.c_attn(x_TD).unflatten(-1, (self._heads, -1)).chunk(3, -1))


class GptBigCodeBlock(Gpt2Block):
    Attention = GptBigCodeAttention


class GptBigCodeModel(Gpt2Model):
    Block = GptBigCodeBlock


class GptBigCodeForCausalLM(Gpt2LMHeadModel):
    Model = GptBigCodeModel
