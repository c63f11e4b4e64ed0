"""Mamba (arXiv:2312.00752): no attention; a state space per channel whose step and projections depend on the token.

Section 3.2, algorithm 2: h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t, y_t = C_t h_t + D x_t, with dt, B, C linear in x. A
block (section 3.4) is that behind a short causal convolution and times a gate, in place of attention and MLP both.

Mamba 2 (arXiv:2405.21060): A is one number per head, so that the recurrence is a product of matrices within chunks of
tokens (section 6); dt, B, C come from the block's input, and a norm stands behind the gate (section 7).

Shapes: T tokens, D hidden, E inner channels, N state size, R rank of the time step, V vocabulary.
"""

import tensorlib
from tensorlib import nn
from zoo import llama

POSITIONS = 1 << 20  # there is no limit; llama.cpp's converter writes this one

WITHOUT_ATTENTION = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 1}


class MambaConfig(
    llama.LlamaConfig.plus(
        state_size=16, conv_kernel=4, time_step_rank=4, use_bias=False, use_conv_bias=True, converted=False,
        mixer_rms_eps=0.0,
    )
):  # fmt: skip
    """`intermediate_size` is E. `converted`: shapes are llama.cpp's, and A itself stands in the file, not log(-A).
    `mixer_rms_eps`: that of norms of dt, B and C, which FalconMamba (arXiv:2410.05355) has; 0 for none.
    """

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        c.only("hidden_act", str, "silu")
        hidden, rank = c("hidden_size", int), c.values.get("time_step_rank")
        return cls(
            **WITHOUT_ATTENTION,
            vocab_size=c("vocab_size", int),
            hidden_size=hidden,
            intermediate_size=c("intermediate_size", int, c("expand", int, 2) * hidden),
            num_hidden_layers=c("num_hidden_layers", int),
            rms_norm_eps=c("layer_norm_epsilon", float, 1e-5),
            max_position_embeddings=c("max_position_embeddings", int, POSITIONS),
            tie_word_embeddings=c("tie_word_embeddings", bool, True),
            state_size=c("state_size", int, 16),
            conv_kernel=c("conv_kernel", int, 4),
            time_step_rank=-(-hidden // 16) if rank in (None, "auto") else c("time_step_rank", int),
            use_bias=c("use_bias", bool, False),
            use_conv_bias=c("use_conv_bias", bool, True),
            mixer_rms_eps=c("mixer_rms_eps", float, 1e-6 if c("model_type", str, "") == "falcon_mamba" else 0.0),
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        return self._replace(
            **WITHOUT_ATTENTION,
            intermediate_size=get("ssm.inner_size", int),
            state_size=get("ssm.state_size", int),
            conv_kernel=get("ssm.conv_kernel", int),
            time_step_rank=get("ssm.time_step_rank", int),
            use_bias="blk.0.ssm_in.bias" in file.tensors,
            use_conv_bias="blk.0.ssm_conv1d.bias" in file.tensors,
            converted=True,
            mixer_rms_eps=1e-6 if get("ssm.dt_b_c_rms", bool, False) else 0.0,
        )


TINY = MambaConfig(*llama.TINY)._replace(tie_word_embeddings=True)


class MambaMixer(nn.Module):
    def __init__(self, config):
        D, E, N, R = config.hidden_size, config.intermediate_size, config.state_size, config.time_step_rank
        self._sizes, self.state_shapes = (R, N, N), ((config.conv_kernel - 1, E), (N, E))
        self.in_proj = nn.Linear(D, 2 * E, config.use_bias)
        self.conv1d = nn.ShortConv(E, config.conv_kernel, config.use_conv_bias, config.converted)
        self.x_proj, self.dt_proj = nn.Linear(E, R + 2 * N, bias=False), nn.Linear(R, E)
        setattr(self, "A" if config.converted else "A_log", nn.Parameter(E, N, init=nn.init.ones_))
        self.D, self._converted = nn.Parameter(E, init=nn.init.ones_), config.converted
        self._eps = config.mixer_rms_eps
        self.out_proj = nn.Linear(E, D, config.use_bias)

    def forward(self, x_TD, cache, layer):
        x_TE, z_TE = self.in_proj(x_TD).chunk(2, -1)
        x_TE, last = self.conv1d(x_TE, cache.past(layer, 0))
        cache.keep(layer, 0, last)
        x_TE = tensorlib.silu(x_TE)
        y_TE = self.state_space(x_TE, cache, layer) + x_TE * self.D
        return self.out_proj(y_TE * tensorlib.silu(z_TE))

    def state_space(self, x_TE, cache, layer):
        """C_t h_t, with the state h [N, E] at every token."""
        dt_TR, B_TN, C_TN = map(self.normed, self.x_proj(x_TE).split(self._sizes, -1))
        dt_TE = tensorlib.softplus(self.dt_proj(dt_TR))
        A_EN = self.A if self._converted else -tensorlib.exp(self.A_log)
        y_TE, h_NE = nn.selective_scan(x_TE, dt_TE, A_EN, B_TN, C_TN, cache.past(layer, 1))
        cache.keep(layer, 1, h_NE)
        return y_TE

    def normed(self, x):
        """x, in FalconMamba of size 1."""
        return tensorlib.rms_norm(x, None, self._eps) if self._eps else x


class MambaBlock(nn.Module):
    Mixer = MambaMixer

    def __init__(self, config):
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mixer = self.Mixer(config)

    def forward(self, x_TD, cache, layer):
        return x_TD + self.mixer(self.norm(x_TD), cache, layer)


class MambaModel(nn.Module):
    Block, embed_tokens = MambaBlock, property(lambda self: self.embeddings)

    def __init__(self, config):
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([self.Block(config) for _ in range(config.num_hidden_layers)])
        self.norm_f = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids_T, cache, rotary):
        x_TD = self.embeddings(ids_T)
        for i, block in enumerate(self.layers):
            x_TD = block(x_TD, cache, i)
        return self.norm_f(x_TD)


class MambaForCausalLM(llama.LlamaForCausalLM):
    Model, model, body = MambaModel, property(lambda self: self.backbone), "backbone"

    def __init__(self, config):
        super().__init__(config)
        self.backbone = vars(self).pop("model")

    def new_rotary(self, theta, scaling=None):
        """None: a recurrence knows the order of its tokens."""

    def new_cache(self, max_len, dtype="f16", device=None):
        """An empty cache, of the same size for any `max_len`; states are f32 whatever `dtype` is."""
        shapes = {i: block.mixer.state_shapes for i, block in enumerate(self.backbone.layers)}
        return nn.StateCache(shapes, max_len, device=device)


# ---- Mamba 2 ---------------------------------------------------------------------------------------------------------


class Mamba2Config(MambaConfig.plus(num_heads=4, mamba_head_dim=32, n_groups=1, time_step_limit=(0.0, float("inf")))):
    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        heads, width = c("num_heads", int, 128), c("head_dim", int, 64)
        return (
            super()
            .from_hf(c)
            ._replace(
                intermediate_size=heads * width,
                tie_word_embeddings=c("tie_word_embeddings", bool, False),
                state_size=c("state_size", int, 128),
                num_heads=heads,
                mamba_head_dim=width,
                n_groups=c("n_groups", int, 8),
                time_step_limit=c.floats("time_step_limit", (0.0, float("inf"))),
            )
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        found, heads = super().with_gguf(get, file), get("ssm.time_step_rank", int)
        width, groups = found.intermediate_size // heads, get("ssm.group_count", int, 1)
        return found._replace(num_heads=heads, mamba_head_dim=width, n_groups=groups)


TINY_2 = Mamba2Config(*TINY)


class Mamba2Mixer(nn.Mamba2Mixer):
    def __init__(self, config):
        c = config
        super().__init__(
            c.hidden_size, c.num_heads, c.mamba_head_dim, c.state_size, c.n_groups, c.conv_kernel, c.use_bias,
            c.use_conv_bias, c.rms_norm_eps, c.time_step_limit, c.converted,
        )  # fmt: skip


class Mamba2Block(MambaBlock):
    Mixer = Mamba2Mixer


class Mamba2Model(MambaModel):
    Block = Mamba2Block


class Mamba2ForCausalLM(MambaForCausalLM):
    Model = Mamba2Model
