"""Gemma 3, its text part (arXiv:2503.19786): Gemma 2 with norms of q and k in place of soft caps, five layers with a
window for one without (section 2), and frequencies of their own for each of the two kinds.
"""

from zoo import gemma2


class Gemma3Config(gemma2.Gemma2Config.plus(rope_local_base_freq=10000.0)):
    """`rope_theta` and `rope_scaling`: of layers that see all tokens."""

    every = 6

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        every, both = c("sliding_window_pattern", int, cls.every), c.sub("rope_parameters")
        found = super().from_hf(c)._replace(windows=c.windows(lambda i: (i + 1) % every))
        full = both.sub("full_attention") if "full_attention" in both else c
        local = c("rope_local_base_freq", float, 10000.0)
        return found._replace(
            rope_theta=full("rope_theta", float, c("rope_theta", float, 1e6)),
            rope_scaling=full.values if "factor" in full else c.rope_scaling() if full is c else None,
            rope_local_base_freq=both.sub("sliding_attention")("rope_theta", float, local),
        )


TINY = Gemma3Config(*gemma2.TINY)._replace(attn_logit_softcapping=0.0, final_logit_softcapping=0.0)


class Gemma3Attention(gemma2.Gemma2Attention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.q_norm = gemma2.gemma.GemmaRMSNorm(config.head_dim, config)
        self.k_norm = gemma2.gemma.GemmaRMSNorm(config.head_dim, config)

    def forward(self, x_TD, cache, rotary):
        everywhere, local = rotary
        return super().forward(x_TD, cache, local if "window" in self._options else everywhere)

    def prepared(self, q_TQ, k_TG, v_TG):
        """Norms over the channels of a head."""
        return self.per_head(self.q_norm, q_TQ), self.per_head(self.k_norm, k_TG), v_TG


class Gemma3DecoderLayer(gemma2.Gemma2DecoderLayer):
    Attention = Gemma3Attention


class Gemma3Model(gemma2.Gemma2Model):
    Layer = Gemma3DecoderLayer


class Gemma3ForCausalLM(gemma2.Gemma2ForCausalLM):
    Model = Gemma3Model

    def __init__(self, config):
        super().__init__(config)
        self.rotary = self.rotary, self.new_rotary(config.rope_local_base_freq)
