"""Based (arXiv:2402.18668): linear attention, attention to a short window, and gated convolutions, each in some layers.

Section 4.1: linear attention has 1 + x + x^2 / 2, the beginning of exp(x), in place of softmax's exponential of scores
x = q k / sqrt(F): a product of features 1, q / F^(1/4) and q q^T / sqrt(2 F), so that a state of fixed size stands for
all keys. The window gives what that does not: which token it was exactly. Section 4.2, the MLPs: SwiGLU.

Shapes: T tokens, D hidden, H heads, F features of q and k (few), h head dim, P = 1 + F + F^2; K taps, C channels.
"""

import tensorlib
from tensorlib import nn
from zoo import llama

LINEAR, WINDOW, CONV = "linear", "window", "conv"


class BasedConfig(
    llama.LlamaConfig.plus(kinds=(LINEAR, WINDOW, CONV), features=16, linear_heads=4, window=64, taps=3, expand=4)
):
    """`kinds`: of mixer, layer by layer. `window`: how many tokens before its own a token sees."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py), as of GPT-2."""
        hidden, heads, layers = c("n_embd", int), c("n_head", int), c("n_layer", int)
        linear, window, conv = c.sub("alt_mixer"), c.sub("alt_mixer_2"), c.sub("mixer")
        for name, value in {"rms_norm": True, "mlp_fc1_bias": False, "mlp_fc2_bias": False}.items():
            c.only(name, bool, value)
        c.only("activation_function", str, "swiglu")
        kinds = dict.fromkeys(c("alt_mixer_layers", list, []), LINEAR)
        kinds |= dict.fromkeys(c("alt_mixer_2_layers", list, []), WINDOW)
        part, words = c("rotary_emb_fraction", float, 1.0), c("vocab_size", int)
        return cls(
            vocab_size=words + -words % c("pad_vocab_size_multiple", int, 8),
            hidden_size=hidden,
            intermediate_size=c("n_inner", int, 2 * hidden),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=hidden // heads,
            rms_norm_eps=c("layer_norm_epsilon", float, 1e-5),
            rope_theta=c("rotary_emb_base", float, 10000.0),
            rope_scaling=None if part == 1.0 else {"partial_rotary_factor": part},
            rope_interleaved=c("rotary_emb_interleaved", bool, False),
            max_position_embeddings=c("n_positions", int, 2048),
            tie_word_embeddings=True,
            attention_bias=c("qkv_proj_bias", bool, False),
            kinds=tuple(kinds.get(i, CONV) for i in range(layers)),
            features=linear("feature_dim", int, 16),
            linear_heads=linear("num_heads", int, 16),
            window=window("window_size", int, 128) // 2,
            taps=conv("kernel_size", int, 3),
            expand=conv("expand_proj", int, 4),
        )


TINY = BasedConfig(*llama.TINY)._replace(num_key_value_heads=4, tie_word_embeddings=True, num_hidden_layers=3)
EPS = 1e-12  # of what is divided by


class LinearAttention(nn.Module):
    def __init__(self, config, layer):
        D, H, F, self._layer = config.hidden_size, config.linear_heads, config.features, layer
        self._heads, self._features, self.state_shapes = H, F, ((H, 1 + F + F * F, D // H + 1),)
        self.proj_q, self.proj_k = nn.Linear(D, H * F, bias=False), nn.Linear(D, H * F, bias=False)
        self.proj_v, self.out_proj = nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False)

    def expanded(self, x_HTF):
        """Features [H, T, P] whose products are those of the series."""
        F = self._features
        square = (x_HTF.unsqueeze(-1) * x_HTF.unsqueeze(-2)).flatten(-2) * (2 * F) ** -0.5
        return tensorlib.cat([tensorlib.ones_like(x_HTF.narrow(-1, 0, 1)), x_HTF * F**-0.25, square], -1)

    def forward(self, x_TD, cache, rotary):
        q, k, v = (x.unflatten(-1, (self._heads, -1)).transpose(-3, -2) for x in nn.linears(
            x_TD, self.proj_q, self.proj_k, self.proj_v))  # fmt: skip
        v = tensorlib.cat(
            [v, tensorlib.ones_like(v.narrow(-1, 0, 1))], -1
        )  # the last column sums up what is divided by
        scores = tensorlib.matmul(q, k.transpose(-1, -2)) * self._features**-0.5
        y, past = tensorlib.matmul((1.0 + scores + scores * scores * 0.5).tril(), v), cache.past(self._layer, 0)
        y = y if past is None else y + tensorlib.matmul(self.expanded(q), past)
        new = tensorlib.matmul(self.expanded(k).transpose(-1, -2), v)
        cache.keep(self._layer, 0, new if past is None else past + new)
        h = v.shape[-1] - 1
        y = y.narrow(-1, 0, h) / (y.narrow(-1, h, 1) + EPS)
        return self.out_proj(y.transpose(-3, -2).flatten(-2))


class WindowAttention(nn.Module):
    def __init__(self, config, layer):
        D, self._layer, self._window, bias = config.hidden_size, layer, config.window + 1, config.attention_bias
        self.Wqkv, self.out_proj = nn.Linear(D, 3 * D, bias), nn.Linear(D, D, bias)

    def forward(self, x_TD, cache, rotary):
        return self.out_proj(cache.attend(self._layer, *self.Wqkv(x_TD).chunk(3, -1), rotary, window=self._window))


class GatedConv(nn.Module):
    """silu(convolution of a) * b, of the halves a and b of what is projected."""

    def __init__(self, config, layer):
        D, C, K, self._layer = config.hidden_size, config.expand * config.hidden_size // 2, config.taps, layer
        self.in_proj, self.out_proj, self.state_shapes = nn.Linear(D, 2 * C), nn.Linear(C, D), ((K - 1, C),)
        self.conv = nn.ModuleDict({"conv": nn.ShortConv(C, K, bias=False)})

    def forward(self, x_TD, cache, rotary):
        a_TC, b_TC = self.in_proj(x_TD).chunk(2, -1)
        a_TC, last = self.conv["conv"](a_TC, cache.past(self._layer, 0))
        cache.keep(self._layer, 0, last)
        return self.out_proj(tensorlib.silu(a_TC) * b_TC)


class BasedMLP(nn.Module):
    """W_2 (a * silu(b)), a and b the halves of W_1 x (arXiv:2002.05202)."""

    def __init__(self, config):
        D, inner = config.hidden_size, config.intermediate_size
        self.fc1, self.fc2 = nn.Linear(D, 2 * inner, bias=False), nn.Linear(inner, D, bias=False)

    def forward(self, x_TD):
        a, b = self.fc1(x_TD).chunk(2, -1)
        return self.fc2(nn.swiglu(b, a))


class BasedLayer(nn.Module):
    Mixers = {LINEAR: LinearAttention, WINDOW: WindowAttention, CONV: GatedConv}

    def __init__(self, config, layer):
        self.mixer, self.mlp = self.Mixers[config.kinds[layer]](config, layer), BasedMLP(config)
        self.norm1, self.norm2 = (nn.RMSNorm(config.hidden_size, config.rms_norm_eps) for _ in range(2))

    def forward(self, x_TD, cache, rotary):
        x_TD = x_TD + self.mixer(self.norm1(x_TD), cache, rotary)
        return x_TD + self.mlp(self.norm2(x_TD))


class BasedModel(nn.Module):
    embed_tokens = property(lambda self: self.embeddings["word_embeddings"])

    def __init__(self, config):
        self.embeddings = nn.ModuleDict({"word_embeddings": nn.Embedding(config.vocab_size, config.hidden_size)})
        self.layers = nn.ModuleList([BasedLayer(config, i) for i in range(config.num_hidden_layers)])
        self.ln_f = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids_T, cache, rotary):
        x_TD = self.embed_tokens(ids_T)
        for layer in self.layers:
            x_TD = layer(x_TD, cache, rotary)
        return self.ln_f(x_TD)


class BasedForCausalLM(llama.LlamaForCausalLM):
    Model, model = BasedModel, property(lambda self: self.transformer)

    def __init__(self, config):
        super().__init__(config)
        self.transformer = vars(self).pop("model")
        self.lm_head = self.transformer.embed_tokens  # some files have the table under this name alone

    def new_cache(self, max_len, dtype="f16", device=None):
        """An empty cache for `max_len` tokens; states are f32 whatever `dtype` is."""
        c, mixers = self.config, [layer.mixer for layer in self.transformer.layers]
        states = {i: mixer.state_shapes for i, mixer in enumerate(mixers) if c.kinds[i] != WINDOW}
        attention = [i for i in range(len(mixers)) if i not in states]
        return nn.StateCache(states, max_len, attention, c.num_key_value_heads, c.head_dim, dtype, device)
