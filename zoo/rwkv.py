"""RWKV 5 and 6, Eagle and Finch (arXiv:2404.05892): per head a matrix of state in place of attention.

Section 4: S_t = diag(w_t) S_(t-1) + k_t v_t^T, y_t = (S_(t-1) + diag(u) k_t v_t^T)^T r_t, normed per head, times a
gate. Each input is a mixture of a token and the one before it. In Finch mixtures and decay w depend on the token,
through products of low rank; in Eagle they do not.

Shapes: T tokens, D hidden, H heads of h channels, F feed-forward, V vocabulary, R ranks.
"""

import tensorlib
from tensorlib import nn
from zoo import llama


class Rwkv6Config(llama.LlamaConfig.plus(head_size_divisor=8, rescale_every=0, converted=False)):
    """`rescale_every`: after so many layers the residual stream is halved; 0: never. `converted`: shapes and halves of
    weights are llama.cpp's.
    """

    version = 6

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py). Weights in its file are whole: none is rescaled."""
        hidden, width = c("hidden_size", int), c("head_size", int, 64)
        c.only("attention_hidden_size", int, hidden)
        return cls(
            vocab_size=c("vocab_size", int),
            hidden_size=hidden,
            intermediate_size=c("intermediate_size", int, int(3.5 * hidden) // 32 * 32),
            num_hidden_layers=c("num_hidden_layers", int),
            num_attention_heads=hidden // width,
            num_key_value_heads=hidden // width,
            head_dim=width,
            rms_norm_eps=c("layer_norm_epsilon", float, 1e-5),
            max_position_embeddings=c("max_position_embeddings", int, 1 << 20),
            tie_word_embeddings=c("tie_word_embeddings", bool, False),
            head_size_divisor=c("head_size_divisor", int, 8),
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        width = get("wkv.head_size", int)
        heads, every = self.hidden_size // width, get("rescale_every_n_layers", int, 0)
        found = self._replace(num_attention_heads=heads, num_key_value_heads=heads, head_dim=width)
        return found._replace(rescale_every=every, converted=True)


class Rwkv5Config(Rwkv6Config):
    version = 5


TINY, TINY_5 = Rwkv6Config(*llama.TINY), Rwkv5Config(*llama.TINY)


class TimeMix(nn.Module):
    """What both have. `mixed` gives the inputs of r, k, v, g and the logarithm of the decay w."""

    def __init__(self, config, layer):
        D, (H, h), self._layer = config.hidden_size, (config.num_attention_heads, config.head_dim), layer
        for name in ("receptance", "key", "value", "gate", "output"):
            setattr(self, name, nn.Linear(D, D, bias=False))
        self.time_faaaa, self._heads = nn.Parameter(H, h), (H, h)
        self.ln_x = nn.GroupNorm(H, D, 1e-5 * config.head_size_divisor**2)
        self.state_shapes = (1, D), (H, h, h)

    def forward(self, x_TD, cache):
        before_TD, last = nn.token_shift(x_TD, cache.past(self._layer, 0))
        r, k, v, g, log_w = self.mixed(x_TD, before_TD)
        cache.keep(self._layer, 0, last)
        r, k, v = self.receptance(r), self.key(k), self.value(v)
        r, k, v, log_w = (x.unflatten(-1, self._heads) for x in (r, k, v, log_w))
        y, state = nn.wkv(r, log_w, k, v, self.time_faaaa, cache.past(self._layer, 1))
        cache.keep(self._layer, 1, state)
        y_TD = self.ln_x(y.reshape(-1, x_TD.shape[-1])).reshape(x_TD.shape)
        return self.output(y_TD * tensorlib.silu(self.gate(g)))


class TimeMix6(TimeMix):
    """Finch: the shares are those of the weights plus what x gives through ranks R."""

    low_rank = "time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2"

    def __init__(self, config, layer):
        super().__init__(config, layer)
        D = config.hidden_size
        R, S = (64, 128) if D == 4096 else (32, 64)
        names = ["x", "wkvrg"] if config.converted else "xwkvrg"
        vector, shapes = (1, 1, D), ((D, 5 * R), (5, R, D), (D, S), (S, D))
        if config.converted:
            vector, shapes = (D,), ((5 * R, D), (5, D, R), (S, D), (D, S))
        for name in names:
            setattr(self, f"time_maa_{name}", nn.Parameter(5, 1, 1, D) if len(name) > 1 else nn.Parameter(*vector))
        self.time_decay, self._names, self._turned = nn.Parameter(*vector), names, config.converted
        for name, shape in zip(self.low_rank, shapes):
            setattr(self, name, nn.Parameter(*shape))

    def mixed(self, x_TD, before_TD):
        x, before = (each.reshape(-1, each.shape[-1]) for each in (x_TD, before_TD))
        base = [row for name in self._names for row in getattr(self, f"time_maa_{name}").reshape(-1, x.shape[-1])]
        w1, w2, decay_w1, decay_w2 = (getattr(self, name) for name in self.low_rank)
        if self._turned:
            w1, w2, decay_w1, decay_w2 = (each.transpose(-1, -2) for each in (w1, w2, decay_w1, decay_w2))
        low = tensorlib.tanh(tensorlib.matmul(tensorlib.lerp(x, before, base[0]), w1))
        shares = tensorlib.matmul(low.unflatten(-1, (5, -1)).transpose(0, 1), w2)
        w, k, v, r, g = (tensorlib.lerp(x, before, shares[i] + base[i + 1]) for i in range(5))
        w = tensorlib.matmul(tensorlib.tanh(tensorlib.matmul(w, decay_w1)), decay_w2)
        log_w = -tensorlib.exp(w + self.time_decay.flatten())
        return [each.reshape(x_TD.shape) for each in (r, k, v, g, log_w)]


class TimeMix5(TimeMix):
    """Eagle: shares and decay are weights."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        for name in ("receptance", "key", "value", "gate"):
            setattr(self, f"time_mix_{name}", nn.Parameter(1, 1, config.hidden_size))
        self.time_decay = nn.Parameter(*self._heads)

    def mixed(self, x_TD, before_TD):
        shares = (getattr(self, f"time_mix_{name}").flatten() for name in ("receptance", "key", "value", "gate"))
        log_w = -tensorlib.exp(self.time_decay).flatten()
        return [*(tensorlib.lerp(before_TD, x_TD, share) for share in shares), log_w.broadcast_to(x_TD.shape)]


class ChannelMix(nn.Module):
    """sigmoid(W_r x) * W_v relu(W_k x)^2, of mixtures with the token before."""

    names, swapped = ("time_maa_k", "time_maa_r"), False

    def __init__(self, config, layer):
        D, F, self._layer = config.hidden_size, config.intermediate_size, layer
        for name in self.names:
            setattr(self, name, nn.Parameter(*((D,) if config.converted else (1, 1, D))))
        self.key, self.receptance, self.value = (nn.Linear(*n, bias=False) for n in ((D, F), (D, D), (F, D)))

    def forward(self, x_TD, cache):
        before_TD, last = nn.token_shift(x_TD, cache.past(self._layer, 2))
        pair = (before_TD, x_TD) if self.swapped else (x_TD, before_TD)
        k, r = (tensorlib.lerp(*pair, getattr(self, name).flatten()) for name in self.names)
        y_TD = self.receptance(r).sigmoid() * self.value(self.key(k).relu().square())
        cache.keep(self._layer, 2, last)
        return y_TD


class ChannelMix5(ChannelMix):
    """Shares are of the token itself."""

    names, swapped = ("time_mix_key", "time_mix_receptance"), True


class RwkvBlock(nn.Module):
    kinds = {5: (TimeMix5, ChannelMix5), 6: (TimeMix6, ChannelMix)}

    def __init__(self, config, layer):
        for name in ["ln1", "ln2"] if layer else ["pre_ln", "ln1", "ln2"]:
            setattr(self, name, nn.LayerNorm(config.hidden_size, config.rms_norm_eps))
        self.attention, self.feed_forward = (kind(config, layer) for kind in self.kinds[config.version])

    def forward(self, x_TD, cache):
        x_TD = x_TD + self.attention(self.ln1(x_TD), cache)
        return x_TD + self.feed_forward(self.ln2(x_TD), cache)


class RwkvModel(nn.Module):
    embed_tokens = property(lambda self: self.embeddings)

    def __init__(self, config):
        self.embeddings, self._every = nn.Embedding(config.vocab_size, config.hidden_size), config.rescale_every
        self.blocks = nn.ModuleList([RwkvBlock(config, i) for i in range(config.num_hidden_layers)])
        self.ln_out = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids_T, cache, rotary):
        x_TD = self.blocks[0].pre_ln(self.embeddings(ids_T))
        for i, block in enumerate(self.blocks):
            x_TD = block(x_TD, cache)
            if self._every and (i + 1) % self._every == 0:
                x_TD = x_TD * 0.5
        return self.ln_out(x_TD)


class RwkvForCausalLM(llama.LlamaForCausalLM):
    Model, model, lm_head = RwkvModel, property(lambda self: self.rwkv), property(lambda self: self.head)

    def __init__(self, config):
        super().__init__(config)
        self.rwkv = vars(self).pop("model")
        if not config.tie_word_embeddings:
            self.head = vars(self).pop("lm_head")

    def new_rotary(self, theta, scaling=None):
        """None: a recurrence knows the order of its tokens."""

    def new_cache(self, max_len, dtype="f16", device=None):
        """An empty cache, of the same size for any `max_len`; states are f32 whatever `dtype` is."""
        D = self.config.hidden_size
        shapes = {i: (*block.attention.state_shapes, (1, D)) for i, block in enumerate(self.rwkv.blocks)}
        return nn.StateCache(shapes, max_len, device=device)
