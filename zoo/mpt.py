"""MPT (the MPT-7B and MPT-30B reports, 2023) and Replit Code: no positions but a penalty on scores that grows with
distance (ALiBi, arXiv:2108.12409), LayerNorm, GELU, no biases. q, k, v are one product.
"""

from tensorlib import nn
from zoo import llama


class MptConfig(llama.LlamaConfig.plus(clip_qkv=None, alibi_bias_max=8, softmax_scale=None)):
    """`head_dim` is that of the model; in a cache, heads are as wide as `nn.Alibi` makes them."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        hidden, heads, a = c("d_model", int), c("n_heads", int), c.sub("attn_config")
        a.only("attn_type", str, "multihead_attention")
        a.only("alibi", bool, True)
        for name in ("prefix_lm", "qk_ln", "attn_uses_sequence_id"):
            a.only(name, bool, False)
        c.only("no_bias", bool, True)
        c.only("logit_scale", float, None)
        return cls(
            vocab_size=c("vocab_size", int),
            hidden_size=hidden,
            intermediate_size=c("expansion_ratio", int, 4) * hidden,
            num_hidden_layers=c("n_layers", int),
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=hidden // heads,
            rms_norm_eps=c("layer_norm_epsilon", float, 1e-5),
            max_position_embeddings=c("max_seq_len", int, 2048),
            tie_word_embeddings=c("tie_word_embeddings", bool, True),
            clip_qkv=a("clip_qkv", float, None),
            alibi_bias_max=a("alibi_bias_max", int, 8),
            softmax_scale=a("softmax_scale", float, None),
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        most, clip = get("attention.max_alibi_bias", float, 8.0), get("attention.clamp_kqv", float, 0.0)
        return self._replace(alibi_bias_max=most, clip_qkv=clip or None)


TINY = MptConfig(*llama.TINY)._replace(num_key_value_heads=4, tie_word_embeddings=True)


class MptAttention(nn.Module):
    def __init__(self, config, layer):
        D, H, self._layer, self._clip = config.hidden_size, config.num_attention_heads, layer, config.clip_qkv
        self.Wqkv, self.out_proj = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.alibi = nn.Alibi(H, D // H, config.alibi_bias_max, config.softmax_scale)

    def forward(self, x_TD, cache, positions_T):
        qkv = self.Wqkv(x_TD)
        qkv = qkv if self._clip is None else qkv.clamp(-self._clip, self._clip)
        q, k, v = self.alibi(*qkv.chunk(3, -1), positions_T)
        return self.out_proj(self.alibi.values(cache.attend(self._layer, q, k, v, None, scale=self.alibi.scale)))


class MptMLP(nn.Module):
    def __init__(self, config):
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_TD):
        return self.down_proj(self.up_proj(x_TD).gelu())


class MptBlock(nn.Module):
    def __init__(self, config, layer):
        self.norm_1 = self.norm(config)
        self.attn = MptAttention(config, layer)
        self.norm_2 = self.norm(config)
        self.ffn = MptMLP(config)

    @staticmethod
    def norm(config):
        """A norm of the residual stream."""
        return nn.LayerNorm(config.hidden_size, config.rms_norm_eps, bias=False)

    def forward(self, x_TD, cache, positions_T):
        x_TD = x_TD + self.attn(self.norm_1(x_TD), cache, positions_T)
        return x_TD + self.ffn(self.norm_2(x_TD))


class MptModel(nn.Module):
    embed_tokens = property(lambda self: self.wte)

    def __init__(self, config):
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList([MptBlock(config, i) for i in range(config.num_hidden_layers)])
        self.norm_f = MptBlock.norm(config)

    def forward(self, ids_T, cache, rotary):
        x_TD, positions_T = self.wte(ids_T), cache.positions(ids_T)
        for block in self.blocks:
            x_TD = block(x_TD, cache, positions_T)
        return self.norm_f(x_TD)


class MptForCausalLM(llama.LlamaForCausalLM):
    Model, model = MptModel, property(lambda self: self.transformer)

    def __init__(self, config):
        super().__init__(config)
        self.transformer = vars(self).pop("model")
        self.config = config._replace(head_dim=self.transformer.blocks[0].attn.alibi.wide)

    def new_rotary(self, theta, scaling=None):
        """None: there are no positions."""
