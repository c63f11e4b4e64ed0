"""Gemma (arXiv:2403.08295): Llama with GeGLU, embeddings times sqrt(D) that are the output layer too, and norms whose
weights are stored less 1.
"""

import tensorlib
from tensorlib import nn
from zoo import mistral


class GemmaConfig(mistral.MistralConfig.plus(norm_offset=1.0)):
    """`norm_offset`, a property of the file: what is added to weights of norms. GGUF has them with it."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py). Its "gelu" means the form with tanh."""
        found = super().from_hf(c)
        hidden_act = "gelu_pytorch_tanh" if found.hidden_act in ("gelu", "silu") else found.hidden_act
        tied = c("tie_word_embeddings", bool, True)
        return found._replace(hidden_act=hidden_act, tie_word_embeddings=tied)


TINY = GemmaConfig(*mistral.TINY)._replace(hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True)


class GemmaRMSNorm(nn.RMSNorm):
    def __init__(self, dim, config):
        super().__init__(dim, config.rms_norm_eps)
        self._offset = config.norm_offset

    def forward(self, x):
        return tensorlib.rms_norm(x, self.weight, self.eps, offset=self._offset)


class GemmaDecoderLayer(mistral.MistralDecoderLayer):
    @staticmethod
    def norm(config):
        """A norm of the residual stream."""
        return GemmaRMSNorm(config.hidden_size, config)


class GemmaModel(mistral.MistralModel):
    Layer = GemmaDecoderLayer

    def embed(self, ids_T):
        """Embeddings, as large as what the layers add to them."""
        x_TD = self.embed_tokens(ids_T)
        return x_TD * x_TD.shape[-1] ** 0.5


class GemmaForCausalLM(mistral.MistralForCausalLM):
    Model = GemmaModel
