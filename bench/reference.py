"""An independent Llama in NumPy: what tensorlib's text is checked against. It shares no line with tensorlib.

Weights come from the `gguf` package's reader and its `dequantize`, in float32, and are computed with in `dtype`:
float64 by default, so that its own rounding is some 1e-12 and a difference is the other side's. No cache, no batches:
`logits(ids)` runs the whole sequence. Llama as in arXiv:2302.13971 with grouped-query attention; RoPE turns the
interleaved pairs (2i, 2i + 1), as GGUF files of this architecture store their heads.

    T tokens, D width, H query heads, K key heads, E width of a head, V words
"""

import numpy
from gguf import GGUFReader
from gguf.quants import dequantize


class Reference:
    """The model in a GGUF file of architecture `llama`. ValueError for another architecture or for scaled RoPE."""

    def __init__(self, path, dtype=numpy.float64):
        reader = GGUFReader(path)
        self.fields, self.dtype = reader.fields, dtype
        name = self.field("general.architecture")
        if name != "llama" or any("rope.scaling" in key for key in self.fields):
            raise ValueError(f"reference: got architecture {name} or scaled RoPE; expected a plain llama")
        self.layers = int(self.field("llama.block_count"))
        self.heads = int(self.field("llama.attention.head_count"))
        self.key_heads = int(self.field("llama.attention.head_count_kv", self.heads))
        self.epsilon = float(self.field("llama.attention.layer_norm_rms_epsilon"))
        self.base = float(self.field("llama.rope.freq_base", 10000.0))
        self.weights = {t.name: dequantize(t.data, t.tensor_type).astype(dtype) for t in reader.tensors}
        self.weights.setdefault("output.weight", self.weights["token_embd.weight"])

    def field(self, name, *default):
        """Value of a metadata key; the default if there is none and one is given."""
        return self.fields[name].contents() if name in self.fields or not default else default[0]

    def logits(self, ids):
        """Token ids -> logits [T, V] in `dtype`; row t predicts token t + 1."""
        x_TD = self.weights["token_embd.weight"][numpy.asarray(ids)]
        for layer in range(self.layers):
            w = {key: self.weights[f"blk.{layer}.{key}.weight"] for key in LAYER}
            x_TD = x_TD + self.attention(self.norm(x_TD, w["attn_norm"]), w)
            h_TD = self.norm(x_TD, w["ffn_norm"])
            gate_TF = h_TD @ w["ffn_gate"].T
            x_TD = x_TD + (gate_TF / (1 + numpy.exp(-gate_TF)) * (h_TD @ w["ffn_up"].T)) @ w["ffn_down"].T
        return self.norm(x_TD, self.weights["output_norm.weight"]) @ self.weights["output.weight"].T

    def norm(self, x_TD, weight_D):
        """RMSNorm, arXiv:1910.07467."""
        return x_TD / numpy.sqrt((x_TD * x_TD).mean(-1, keepdims=True) + self.dtype(self.epsilon)) * weight_D

    def attention(self, x_TD, w):
        """Causal attention; every H / K query heads share a key head."""
        tokens, group = len(x_TD), self.heads // self.key_heads
        q_THE = self.rope((x_TD @ w["attn_q"].T).reshape(tokens, self.heads, -1))
        k_TKE = self.rope((x_TD @ w["attn_k"].T).reshape(tokens, self.key_heads, -1))
        v_TKE = (x_TD @ w["attn_v"].T).reshape(tokens, self.key_heads, -1)
        future_TT = numpy.triu(numpy.ones((tokens, tokens), bool), 1)
        out_THE = numpy.empty_like(q_THE)
        for head in range(self.heads):
            score_TT = q_THE[:, head] @ k_TKE[:, head // group].T / self.dtype(q_THE.shape[-1] ** 0.5)
            score_TT[future_TT] = -numpy.inf
            score_TT = numpy.exp(score_TT - score_TT.max(-1, keepdims=True))
            out_THE[:, head] = (score_TT / score_TT.sum(-1, keepdims=True)) @ v_TKE[:, head // group]
        return out_THE.reshape(tokens, -1) @ w["attn_output"].T

    def rope(self, x_THE):
        """Rotary embedding, arXiv:2104.09864: pair i of token t turns by t / base^(2i / E). Angles in float64."""
        tokens, _, width = x_THE.shape
        angle_TE = numpy.outer(numpy.arange(tokens), self.base ** (-numpy.arange(0, width, 2) / width))
        cos, sin = (f(angle_TE).astype(self.dtype)[:, None] for f in (numpy.cos, numpy.sin))
        even, odd = x_THE[..., 0::2], x_THE[..., 1::2]
        return numpy.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x_THE.shape)


LAYER = "attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate ffn_up ffn_down".split()


def nll(logits, ids):
    """Sum of -log p(ids[t + 1] | ids[: t + 1]) over a window, in float64, from logits [T, V]."""
    logits = numpy.asarray(logits)[:-1].astype(numpy.float64)
    logits -= logits.max(-1, keepdims=True)
    logits -= numpy.log(numpy.exp(logits).sum(-1, keepdims=True))
    return -float(logits[numpy.arange(len(ids) - 1), numpy.asarray(ids)[1:]].sum())


def perplexity(logits, windows):
    """exp of the mean negative log-likelihood over windows of ids; `logits` is a function of one window."""
    total = sum(nll(logits(ids), ids) for ids in windows)
    return float(numpy.exp(total / sum(len(ids) - 1 for ids in windows)))


def flips(logits, prompt, continuation):
    """Where a greedy continuation is not the reference's choice: [(step, chosen, reference's, gap of their logits)].

    The reference reads the continuation itself (one pass). With no flip the two texts are identical; at the first flip
    the gap tells how near to a tie the reference was, and the steps after it are judged on the text as continued.
    """
    rows = numpy.asarray(logits([*prompt, *continuation]))[len(prompt) - 1 : -1]
    best = rows.argmax(-1)
    wrong = [step for step, token in enumerate(continuation) if best[step] != token]
    return [(s, continuation[s], int(best[s]), float(rows[s, best[s]] - rows[s, continuation[s]])) for s in wrong]
