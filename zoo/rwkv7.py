"""RWKV 7, Goose (arXiv:2503.14456): the matrix of state of each head follows a generalised delta rule.

Section 4: S_t = S_(t-1) (diag(w_t) - kappa_t^T (a_t * kappa_t)) + v_t^T k_t, y_t = r_t S_t: what the state has at the
removal key kappa is replaced at the in-context learning rate a. Decay, rate, gate, and how much of the first layer's
value a layer takes, come from x through ranks. Names of weights are those of fla-hub's files.

Shapes: T tokens, D hidden, H heads of h channels, F feed-forward, V vocabulary.
"""

from tensorlib import nn, normalize
from zoo import llama

RANKS = ("decay_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim")
LEAST_LOG_DECAY = -(2.718281828459045**-0.5)


class Rwkv7Config(
    llama.LlamaConfig.plus(
        decay_low_rank_dim=16, a_low_rank_dim=16, v_low_rank_dim=8, gate_low_rank_dim=16, converted=False
    )
):
    """`converted`: shapes are llama.cpp's."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        for name, value in {"norm_first": True, "norm_bias": True}.items():
            c.only(name, bool, value)
        c.only("hidden_act", str, "sqrelu")
        hidden, width = c("hidden_size", int), c("head_dim", int, 64)
        return cls(
            vocab_size=c("vocab_size", int),
            hidden_size=hidden,
            intermediate_size=c("intermediate_size", int, 4 * hidden),
            num_hidden_layers=c("num_hidden_layers", int),
            num_attention_heads=hidden // width,
            num_key_value_heads=hidden // width,
            head_dim=width,
            rms_norm_eps=c("norm_eps", float, 1e-5),
            max_position_embeddings=c("max_position_embeddings", int, 1 << 20),
            tie_word_embeddings=c("tie_word_embeddings", bool, False),
            **{name: c(name, int) for name in RANKS},
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        width = get("wkv.head_size", int)
        return self._replace(
            num_attention_heads=self.hidden_size // width,
            num_key_value_heads=self.hidden_size // width,
            head_dim=width,
            decay_low_rank_dim=get("attention.decay_lora_rank", int),
            a_low_rank_dim=get("attention.iclr_lora_rank", int),
            v_low_rank_dim=get("attention.value_residual_mix_lora_rank", int),
            gate_low_rank_dim=get("attention.gate_lora_rank", int),
            converted=True,
        )


TINY = Rwkv7Config(*llama.TINY)


class LowRank(nn.Module):
    """W_2 act(W_1 x) + b."""

    def __init__(self, D, rank, act=None, bias=True):
        self.lora = nn.Sequential(nn.Linear(D, rank, bias=False), act or nn.Identity(), nn.Linear(rank, D, bias))

    def forward(self, x_TD):
        return self.lora(x_TD)


class Rwkv7TimeMix(nn.Module):
    def __init__(self, config, layer):
        c, D, self._layer = config, config.hidden_size, layer
        self._heads, self._fused = (c.num_attention_heads, c.head_dim), c.converted
        for name in ["x_x"] if c.converted else [f"x_{x}" for x in "rwkvag"]:
            setattr(self, name, nn.Parameter(6, 1, 1, D) if c.converted else nn.Parameter(1, 1, D))
        self.k_k, self.k_a = nn.Parameter(D), nn.Parameter(D)
        self.r_k = nn.Parameter(D) if c.converted else nn.Parameter(*self._heads)
        self.r_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.w_lora = LowRank(D, c.decay_low_rank_dim, nn.Tanh())
        self.a_lora = LowRank(D, c.a_low_rank_dim)
        self.v_lora = LowRank(D, c.v_low_rank_dim) if layer else None
        self.g_lora = LowRank(D, c.gate_low_rank_dim, nn.Sigmoid(), bias=False)
        self.g_norm = nn.GroupNorm(c.num_attention_heads, D, c.head_dim * c.rms_norm_eps)
        self.state_shapes = (1, D), (c.num_attention_heads, c.head_dim, c.head_dim)

    def mixed(self, x_TD, before_TD):
        """The inputs of r, w, k, v, a, g: mixtures of a token and the one before it."""
        each = self.x_x.unbind(0) if self._fused else [getattr(self, f"x_{x}") for x in "rwkvag"]
        delta_TD = before_TD - x_TD
        return [x_TD + delta_TD * share.flatten() for share in each]

    def forward(self, x_TD, first_TD, cache):
        """(what is added to x, the value of the first layer)."""
        before_TD, last = nn.token_shift(x_TD, cache.past(self._layer, 0))
        r, w, k, v, a, g = self.mixed(x_TD, before_TD)
        cache.keep(self._layer, 0, last)
        r, k, value = self.r_proj(r), self.k_proj(k), self.v_proj(v)
        log_w, a, g = LEAST_LOG_DECAY * self.w_lora(w).sigmoid(), self.a_lora(a).sigmoid(), self.g_lora(g)
        first_TD = value if first_TD is None else first_TD
        if self.v_lora is not None:
            value = value + (first_TD - value) * self.v_lora(v).sigmoid()
        removed = (k * self.k_k).unflatten(-1, self._heads)
        removed = normalize(removed, dim=-1)
        k = k + k * (a - 1.0) * self.k_a
        r, log_w, k, value, a = (each.unflatten(-1, self._heads) for each in (r, log_w, k, value, a))
        y, state = nn.wkv7(r, log_w, k, value, -removed, removed * a, cache.past(self._layer, 1))
        cache.keep(self._layer, 1, state)
        y_TD = self.g_norm(y.reshape(-1, x_TD.shape[-1])).reshape(x_TD.shape)
        own = (r * k * self.r_k.reshape(self._heads)).sum(-1, keepdim=True) * value
        return self.o_proj((y_TD + own.flatten(-2)) * g), first_TD


class Rwkv7ChannelMix(nn.Module):
    def __init__(self, config, layer):
        D, F, self._layer = config.hidden_size, config.intermediate_size, layer
        self.x_k, self.key, self.value = nn.Parameter(D), nn.Linear(D, F, bias=False), nn.Linear(F, D, bias=False)

    def forward(self, x_TD, cache):
        before_TD, last = nn.token_shift(x_TD, cache.past(self._layer, 2))
        y_TD = self.value(self.key(x_TD + (before_TD - x_TD) * self.x_k).relu().square())
        cache.keep(self._layer, 2, last)
        return y_TD


class Rwkv7Block(nn.Module):
    def __init__(self, config, layer):
        for name in ("attn_norm", "ffn_norm") if layer else ("pre_norm", "attn_norm", "ffn_norm"):
            setattr(self, name, nn.LayerNorm(config.hidden_size, config.rms_norm_eps))
        self.attn, self.ffn = Rwkv7TimeMix(config, layer), Rwkv7ChannelMix(config, layer)

    def forward(self, x_TD, first_TD, cache):
        y_TD, first_TD = self.attn(self.attn_norm(x_TD), first_TD, cache)
        x_TD = x_TD + y_TD
        return x_TD + self.ffn(self.ffn_norm(x_TD), cache), first_TD


class Rwkv7Model(nn.Module):
    embed_tokens = property(lambda self: self.embeddings)

    def __init__(self, config):
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Rwkv7Block(config, i) for i in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids_T, cache, rotary):
        x_TD, first_TD = self.layers[0].pre_norm(self.embeddings(ids_T)), None
        for layer in self.layers:
            x_TD, first_TD = layer(x_TD, first_TD, cache)
        return self.norm(x_TD)


class Rwkv7ForCausalLM(llama.LlamaForCausalLM):
    Model = Rwkv7Model

    def new_rotary(self, theta, scaling=None):
        """None: a recurrence knows the order of its tokens."""

    def new_cache(self, max_len, dtype="f16", device=None):
        """An empty cache, of the same size for any `max_len`; states are f32 whatever `dtype` is."""
        D = self.config.hidden_size
        shapes = {i: (*layer.attn.state_shapes, (1, D)) for i, layer in enumerate(self.model.layers)}
        return nn.StateCache(shapes, max_len, device=device)
