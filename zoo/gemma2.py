"""Gemma 2 (arXiv:2408.00118): Gemma with a window in every second layer, norms behind sub-layers as well as before
them, and soft caps c tanh(x / c) of scores and logits (section 2).
"""

from zoo import gemma


class Gemma2Config(
    gemma.GemmaConfig.plus(query_pre_attn_scalar=256.0, attn_logit_softcapping=0.0, final_logit_softcapping=0.0)
):
    """Soft caps of 0 are none."""

    every = 2  # of so many layers the last sees all tokens

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        return (
            super()
            .from_hf(c)
            ._replace(
                windows=c.windows(lambda i: (i + 1) % cls.every),
                query_pre_attn_scalar=c("query_pre_attn_scalar", float, 256.0),
                attn_logit_softcapping=c("attn_logit_softcapping", float, 0.0),
                final_logit_softcapping=c("final_logit_softcapping", float, 0.0),
            )
        )


TINY = Gemma2Config(*gemma.TINY, 16.0, 50.0, 30.0)._replace(windows=(8, 0))


class Gemma2Attention(gemma.mistral.MistralAttention):
    def __init__(self, config, layer, **options):
        options["scale"] = config.query_pre_attn_scalar**-0.5
        if config.attn_logit_softcapping:
            options["softcap"] = config.attn_logit_softcapping
        super().__init__(config, layer, **options)


class Gemma2DecoderLayer(gemma.GemmaDecoderLayer):
    Attention = Gemma2Attention

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.pre_feedforward_layernorm = self.norm(config)
        self.post_feedforward_layernorm = self.norm(config)

    def forward(self, x_TD, h_TD, cache, rotary, next_norm):
        """h is the norm of x, as of what is returned."""
        o_TQ = self.self_attn(h_TD, cache, rotary)
        x_TD = x_TD + self.post_attention_layernorm(self.self_attn.o_proj(o_TQ))
        h_TF = self.mlp(self.pre_feedforward_layernorm(x_TD))
        x_TD = x_TD + self.post_feedforward_layernorm(self.mlp.down_proj(h_TF))
        return x_TD, next_norm(x_TD)


class Gemma2Model(gemma.GemmaModel):
    Layer = Gemma2DecoderLayer


class Gemma2ForCausalLM(gemma.GemmaForCausalLM):
    Model = Gemma2Model

    def logits(self, h_TD):
        """Scores [..., V] of what follows, less than the cap."""
        cap, found = self.config.final_logit_softcapping, super().logits(h_TD)
        return (found / cap).tanh() * cap if cap else found
