"""The models of zoo/train_*.py as modules of torch, with the same names of weights, and a loop that trains them."""

import torch
from torch import nn
from torch.nn import functional as F


class MLP(nn.Module):
    """zoo.train_mnist.MLP."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def forward(self, x):
        return self.layers(x)


class CNN(nn.Module):
    """zoo.train_mnist.CNN."""

    def __init__(self, dropout=0.3):
        super().__init__()

        def pair(c_in, c_out):
            one, two = nn.Conv2d(c_in, c_out, 3, padding=1), nn.Conv2d(c_out, c_out, 3, padding=1)
            return [one, nn.ReLU(), two, nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2)]

        self.features = nn.Sequential(*pair(1, 16), *pair(16, 32))
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, 10)
        )

    def forward(self, x):
        return self.head(self.features(x))


class BasicBlock(nn.Module):
    """zoo.train_cifar.BasicBlock."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """zoo.train_cifar.ResNet."""

    def __init__(self, classes=10, width=64, blocks=(2, 2, 2, 2)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages, c_in = len(blocks), width
        for i, count in enumerate(blocks):
            c_out = width << i
            stage = [BasicBlock(c_out if j else c_in, c_out, 2 if i and not j else 1) for j in range(count)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
            c_in = c_out
        self.fc = nn.Linear(c_in, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):
    """zoo.train_gpt.Block."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = (split(y, self.heads) for y in self.qkv(self.ln_1(x)).chunk(3, -1))
        x = x + self.proj(merge(F.scaled_dot_product_attention(q, k, v, is_causal=True)))
        return x + self.out(F.gelu(self.fc(self.ln_2(x))))


class GPT(nn.Module):
    """zoo.train_gpt.GPT, without dropout."""

    def __init__(self, vocabulary, context=64, layers=4, heads=4, width=128, tied=True):
        super().__init__()
        self.tied = tied
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.ln_f = nn.LayerNorm(width)
        if not tied:
            self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[-1]]
        for block in self.blocks:
            x = block(x)
        x = self.ln_f(x)
        return F.linear(x, self.wte.weight) if self.tied else self.head(x)


class RMSNorm(nn.Module):
    """tensorlib.nn.RMSNorm."""

    def __init__(self, width, eps):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class LlamaLayer(nn.Module):
    """A decoder layer of zoo.llama."""

    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn, self.mlp, self.c = nn.Module(), nn.Module(), c
        q, kv = (n * c.head_dim for n in (c.num_attention_heads, c.num_key_value_heads))
        for name, size in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            setattr(self.self_attn, name, nn.Linear(c.hidden_size, size, bias=c.attention_bias))
        self.self_attn.o_proj = nn.Linear(q, c.hidden_size, bias=c.attention_bias)
        for name in ("gate_proj", "up_proj"):
            setattr(self.mlp, name, nn.Linear(c.hidden_size, c.intermediate_size, bias=False))
        self.mlp.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        h, a = self.input_layernorm(x), self.self_attn
        q, k = (rotated(split(p(h), n), cos, sin) for p, n in (
            (a.q_proj, self.c.num_attention_heads), (a.k_proj, self.c.num_key_value_heads)))  # fmt: skip
        v = split(a.v_proj(h), self.c.num_key_value_heads)
        x = x + a.o_proj(merge(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)))
        h = self.post_attention_layernorm(x)
        return x + self.mlp.down_proj(F.silu(self.mlp.gate_proj(h)) * self.mlp.up_proj(h))


def same(x):
    """x itself."""
    return x


class Llama(nn.Module):
    """zoo.llama.LlamaForCausalLM without a cache, the output layer tied; `before`: what that does to its input."""

    before = staticmethod(same)

    def __init__(self, c):
        super().__init__()
        self.c, self.model = c, nn.Module()
        self.model.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.model.layers = nn.ModuleList([LlamaLayer(c) for _ in range(c.num_hidden_layers)])
        self.model.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, ids):
        x, half = self.model.embed_tokens(ids), self.c.head_dim // 2
        frequencies = self.c.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(ids.shape[-1])[:, None] * frequencies
        cos, sin = (part.float().to(self.model.embed_tokens.weight.dtype) for part in (angles.cos(), angles.sin()))
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.before(self.model.norm(x)), self.model.embed_tokens.weight)


def rounded(x):
    """x in 8 bits per 32, as products with weights in blocks take it; gradients as if it were not."""
    parts = x.detach().unflatten(-1, (-1, 32))
    top = parts.abs().amax(-1, keepdim=True)
    eighth = torch.where(top > 0, 127 / top, 0.0)
    return ((parts * eighth).round() * (top * (1 / 127))).flatten(-2) + (x - x.detach())


class LoRALinear(nn.Linear):
    """tensorlib.nn.lora.LoRALinear over a weight in blocks."""

    def __init__(self, base, rank, alpha):
        super().__init__(base.in_features, base.out_features, bias=False)
        self.weight.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        self.scaling = alpha / rank

    def forward(self, x):
        return F.linear(rounded(x), self.weight) + self.lora_B(self.lora_A(x)) * self.scaling


class LoRALlama(Llama):
    """What zoo.train_lora makes of a Llama in blocks: those as what they stand for, frozen."""

    before = staticmethod(rounded)

    def __init__(self, c, rank=8, alpha=16):
        super().__init__(c)
        self.requires_grad_(False)
        for layer in self.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, linear in list(part.named_children()):
                    setattr(part, name, LoRALinear(linear, rank, alpha))


def rotated(x, cos, sin):
    """Rotary positions of x [B, H, T, D], halves as pairs, in x's dtype or more."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def split(x, heads):
    """[B, T, H D] as [B, H, T, D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge(x):
    """[B, H, T, D] as [B, T, H D]."""
    return x.transpose(1, 2).flatten(-2)


class ActorCritic(nn.Module):
    """zoo.train_cartpole.ActorCritic."""

    def __init__(self, width=64):
        super().__init__()

        def network(out):
            layers = nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out)
            return nn.Sequential(*layers)

        self.actor, self.critic = network(2), network(1)

    def forward(self, state):
        return self.actor(state), self.critic(state).squeeze(-1)


def lowered(forward):
    """`forward` with products in bf16; its results are f32."""

    def run(x):
        with torch.autocast("cpu", torch.bfloat16):
            out = forward(x)
        return tuple(part.float() for part in out) if isinstance(out, tuple) else out.float()

    return run


def cross_entropy(forward, x, y):
    """The loss of classifiers and language models."""
    logits = forward(x)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.flatten())


def ppo(forward, states, actions, log_probs, advantages, returns, clip=0.2, entropy=0.01):
    """zoo.train_cartpole.loss_of."""
    logits, values = forward(states)
    every = logits.log_softmax(-1)
    ratio = (every.gather(1, actions[:, None]).squeeze(1) - log_probs).exp()
    a = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    gain = torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a).mean()
    return 0.5 * F.mse_loss(values, returns) - gain + entropy * (every.exp() * every).sum(-1).mean()


def fit(model, batches, loss, optimizer, schedule, clip=None, low=False, states=None):
    """The losses of a step per batch; `schedule` steps after each, products in bf16 if `low`. `states`, a list, gets
    the trained weights before each step.
    """
    losses, forward = [], lowered(model) if low else model
    for batch in batches:
        if states is not None:
            states.append({k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad})
        optimizer.zero_grad()
        found = loss(forward, *batch)
        found.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step(), schedule.step()
        losses.append(found.item())
    return losses
