"""Gemma (arXiv:2403.08295): Llama with GeGLU, embeddings times sqrt(D) that are the output layer too, and norms whose
weights are stored less 1.

Gemma 2 (arXiv:2408.00118, section 2): a window in every second layer, norms behind sub-layers as well as before them,
and soft caps c tanh(x / c) of scores and logits. Gemma 3, its text part (arXiv:2503.19786, section 2): norms of q and k
in place of the caps, five layers with a window for one without, and frequencies of their own for each of the two kinds.
"""

import tensorlib
from tensorlib import nn
from zoo import llama


class GemmaConfig(llama.LlamaConfig.plus(norm_offset=1.0)):
    """`norm_offset`, a property of the file: what is added to weights of norms. GGUF has them with it."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py). Its "gelu" means the form with tanh."""
        c.only("use_bidirectional_attention", bool, False)
        act = c.act("hidden_activation" if "hidden_activation" in c else "hidden_act", "gelu")
        tied = c("tie_word_embeddings", bool, True)
        act = "gelu_pytorch_tanh" if act == "gelu" else act
        return super().from_hf(c)._replace(hidden_act=act, tie_word_embeddings=tied)

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        return self._replace(hidden_act="gelu_pytorch_tanh", norm_offset=0.0)


TINY = GemmaConfig(*llama.TINY)._replace(hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True)


class GemmaRMSNorm(nn.RMSNorm):
    def __init__(self, dim, config):
        super().__init__(dim, config.rms_norm_eps)
        self._offset = config.norm_offset

    def forward(self, x):
        return tensorlib.rms_norm(x, self.weight, self.eps, offset=self._offset)


class GemmaDecoderLayer(llama.LlamaDecoderLayer):
    @staticmethod
    def norm(config):
        """A norm of the residual stream."""
        return GemmaRMSNorm(config.hidden_size, config)


class GemmaModel(llama.LlamaModel):
    Layer = GemmaDecoderLayer

    def embed(self, ids_T):
        """Embeddings, as large as what the layers add to them."""
        x_TD = self.embed_tokens(ids_T)
        return x_TD * x_TD.shape[-1] ** 0.5


class GemmaForCausalLM(llama.LlamaForCausalLM):
    Model = GemmaModel


# ---- Gemma 2 ---------------------------------------------------------------------------------------------------------


class Gemma2Config(
    GemmaConfig.plus(query_pre_attn_scalar=256.0, attn_logit_softcapping=0.0, final_logit_softcapping=0.0)
):
    """Soft caps of 0 are none."""

    every = 2  # of so many layers the last sees all tokens

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        found = super().from_hf(c)
        return found._replace(
            windows=c.windows(lambda i: (i + 1) % cls.every),
            query_pre_attn_scalar=c("query_pre_attn_scalar", float, 256.0),
            attn_logit_softcapping=c("attn_logit_softcapping", float, 0.0),
            final_logit_softcapping=c("final_logit_softcapping", float, 0.0),
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        layers, window = self.num_hidden_layers, get("attention.sliding_window", int, {2: 4096, 6: 0}[self.every])
        every = get("attention.sliding_window_pattern", int, self.every)
        largest = layers == {2: 46, 6: 62}[self.every]  # the 27B models, whose scale the files do not have
        return (
            super()
            .with_gguf(get, file)
            ._replace(
                windows=tuple(window if (i + 1) % every else 0 for i in range(layers)),
                query_pre_attn_scalar=float(self.hidden_size // self.num_attention_heads if largest else self.head_dim),
                attn_logit_softcapping=get("attn_logit_softcapping", float, 0.0),
                final_logit_softcapping=get("final_logit_softcapping", float, 0.0),
            )
        )


TINY_2 = Gemma2Config(*TINY, 16.0, 50.0, 30.0)._replace(windows=(8, 0))


class Gemma2Attention(llama.LlamaAttention):
    def __init__(self, config, layer, **options):
        options["scale"] = config.query_pre_attn_scalar**-0.5
        if config.attn_logit_softcapping:
            options["softcap"] = config.attn_logit_softcapping
        super().__init__(config, layer, **options)


class Gemma2DecoderLayer(GemmaDecoderLayer):
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


class Gemma2Model(GemmaModel):
    Layer = Gemma2DecoderLayer


class Gemma2ForCausalLM(GemmaForCausalLM):
    Model = Gemma2Model

    def logits(self, h_TD):
        """Scores [..., V] of what follows, less than the cap."""
        cap, found = self.config.final_logit_softcapping, super().logits(h_TD)
        return (found / cap).tanh() * cap if cap else found


# ---- Gemma 3 ---------------------------------------------------------------------------------------------------------


class Gemma3Config(Gemma2Config.plus(rope_local_base_freq=10000.0, rope_local_scaling=None)):
    """`rope_theta` and `rope_scaling`: of layers that see all tokens."""

    every = 6

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        every, local = c("sliding_window_pattern", int, cls.every), c.sub("rope_parameters").sub("sliding_attention")
        found = super().from_hf(c)
        return found._replace(
            windows=c.windows(lambda i: (i + 1) % every),
            rope_theta=c.rope_theta(1e6),
            rope_local_base_freq=local("rope_theta", float, c("rope_local_base_freq", float, 10000.0)),
            rope_local_scaling=c.rope_scaling(kind="sliding_attention"),
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        return super().with_gguf(get, file)._replace(rope_local_base_freq=get("rope.freq_base_swa", float, 10000.0))


TINY_3 = Gemma3Config(*TINY_2)._replace(attn_logit_softcapping=0.0, final_logit_softcapping=0.0)


class Gemma3Attention(Gemma2Attention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.q_norm = GemmaRMSNorm(config.head_dim, config)
        self.k_norm = GemmaRMSNorm(config.head_dim, config)

    def forward(self, x_TD, cache, rotary):
        everywhere, local = rotary
        return super().forward(x_TD, cache, local if "window" in self._options else everywhere)

    def prepared(self, q_TQ, k_TG, v_TG):
        """Norms over the channels of a head."""
        return self.per_head(self.q_norm, q_TQ), self.per_head(self.k_norm, k_TG), v_TG


class Gemma3DecoderLayer(Gemma2DecoderLayer):
    Attention = Gemma3Attention


class Gemma3Model(Gemma2Model):
    Layer = Gemma3DecoderLayer


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    Model = Gemma3Model

    def __init__(self, config):
        super().__init__(config)
        self.rotary = self.rotary, self.new_rotary(config.rope_local_base_freq, config.rope_local_scaling)
