"""NV-Embed (arXiv:2405.17428): vectors of texts by Mistral's layers, whose attention goes both ways (section 3.1), and
a latent attention layer: each token is looked up in a table of trained vectors before a mean is taken (section 3.2).

Shapes: N tokens of all sequences, D hidden, L latents, H heads of the latent attention, h their width.
"""

from tensorlib import nn
from tensorlib.nn import functional as F
from zoo import llama


class NVEmbedConfig(llama.LlamaConfig.plus(num_latents=512, num_cross_heads=8, cross_dim_head=4096)):
    """The fields of its Mistral, and `num_latents`: L; `num_cross_heads`: H; `cross_dim_head`: h."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        text, latent = c.sub("text_config"), c.sub("latent_attention_config")
        for name in ("latent_dim", "hidden_dim"):
            latent.only(name, int, text("hidden_size", int))
        return (
            super()
            .from_hf(text)
            ._replace(
                num_latents=latent("num_latents_value", int, 512),
                num_cross_heads=latent("num_cross_heads", int, 8),
                cross_dim_head=latent("cross_dim_head", int, 4096),
            )
        )


TINY = NVEmbedConfig(*llama.TINY)._replace(num_latents=5, num_cross_heads=2, cross_dim_head=16)


class CrossAttention(nn.Module):
    """softmax(q k^T / sqrt(h)) v of the tokens' q and the latents' k and v."""

    def __init__(self, config):
        D, Q, self._heads = config.hidden_size, config.num_cross_heads * config.cross_dim_head, config.num_cross_heads
        self.to_q, self.to_kv, self.to_out = (nn.Linear(*n, bias=False) for n in ((D, Q), (D, 2 * Q), (Q, D)))

    def forward(self, x_ND, latents_LD):
        parts = self.to_q(x_ND), *self.to_kv(latents_LD).chunk(2, -1)
        q_HNh, k_HLh, v_HLh = (x.unflatten(-1, (self._heads, -1)).transpose(0, 1) for x in parts)
        return self.to_out(F.scaled_dot_product_attention(q_HNh, k_HLh, v_HLh).transpose(0, 1).flatten(-2))


class FeedForward(nn.Module):
    """W_2 (a * gelu(b)), a and b the halves of W_0 x (arXiv:2002.05202)."""

    def __init__(self, config):
        D = config.hidden_size
        self.net = nn.ModuleDict({"0": nn.Linear(D, 8 * D), "2": nn.Linear(4 * D, D)})

    def forward(self, x_ND):
        a, b = self.net["0"](x_ND).chunk(2, -1)
        return self.net["2"](a * b.gelu())


class PreNorm(nn.Module):
    """x + fn(norm(x), ...), what it looks at normed, too."""

    def __init__(self, config, fn, context=False):
        self.fn, self.norm = fn, nn.LayerNorm(config.hidden_size)
        if context:
            self.norm_context = nn.LayerNorm(config.hidden_size)

    def forward(self, x_ND, *context):
        return x_ND + self.fn(self.norm(x_ND), *(self.norm_context(c) for c in context))


class LatentAttention(nn.Module):
    def __init__(self, config):
        self.latents = nn.Parameter(config.num_latents, config.hidden_size, init=nn.init.normal_)
        blocks = [PreNorm(config, CrossAttention(config), context=True), PreNorm(config, FeedForward(config))]
        self.cross_attend_blocks = nn.ModuleList(blocks)

    def forward(self, x_ND):
        attention, dense = self.cross_attend_blocks
        return dense(attention(x_ND, self.latents))


class NVEmbedModel(nn.Module):
    """`forward(ids, attention_mask)`: ids i64 [T] or [B, T], or `nn.Sequences` -> what the mean is taken of, a vector
    per token, as BertModel's.
    """

    def __init__(self, config):
        self.config, self.max_length = config, config.max_position_embeddings
        self.embedding_model = llama.LlamaModel(config)
        self.latent_attention_model = LatentAttention(config)
        self._rotary = nn.RotaryEmbedding(config.head_dim, config.max_position_embeddings, config.rope_theta)

    def forward(self, ids, attention_mask=None):
        tokens = nn.Sequences.of(ids, attention_mask)
        attention = nn.PackedAttention(tokens, self.config.head_dim, causal=False)
        return tokens.unpack(self.latent_attention_model(self.embedding_model(tokens.ids, attention, self._rotary)))
