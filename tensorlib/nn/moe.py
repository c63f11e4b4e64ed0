"""A mixture of experts as a layer: router, experts, shared expert, the loss that balances their load.

>>> import tensorlib
>>> from tensorlib import nn
>>> layer = nn.MoE(8, 16, num_experts=4, top_k=2, shared_size=16)
>>> layer(tensorlib.randn(5, 8)).shape, layer.aux_loss.item() > 0
((5, 8), True)
"""

from tensorlib.errors import ShapeError
from tensorlib.nn import init
from tensorlib.nn.layers import Linear, swiglu
from tensorlib.nn.module import Buffer, Module, Parameter
from tensorlib.ops import elementwise, index, lookup, moe, reduce, softmax, sort

SCORES = {"softmax": lambda logits: softmax.softmax(logits, -1), "sigmoid": elementwise.sigmoid}


class MoE(Module):
    """Each token of x [..., hidden_size] goes through the gated MLPs of its top_k experts: [..., hidden_size].

    scoring: "softmax" of the router's logits over all experts (Mixtral, Qwen), or "sigmoid" of each (DeepSeek-V3, whose
    `correction_bias` is added where experts are chosen, not where they are weighed). normalize: the weights of a
    token's experts sum to 1; then they are multiplied by `scale`. shared_size: width of an MLP for all tokens, 0 for
    none; shared_gate: that is multiplied by a sigmoid of its own (Qwen2-MoE).

    Names of weights are those of Hugging Face's Qwen-MoE: gate.weight [E, D], experts.gate_up_proj [E, 2 I, D] (gate
    above up), experts.down_proj [E, D, I], shared_expert.*, shared_expert_gate.weight. The experts' may be QTensors.

    While training, `aux_loss` is `load_balancing_loss` of the last forward: add some of it to the loss. ShapeError.
    """

    aux_loss = None

    def __init__(
        self, hidden_size, intermediate_size, num_experts, top_k, scoring="softmax", normalize=True, scale=1.0,
        shared_size=0, shared_gate=False, correction_bias=False, dtype="f32",
    ):  # fmt: skip
        if scoring not in SCORES:
            raise ValueError(f"MoE: got scoring {scoring!r}; expected {' or '.join(SCORES)}")
        if not 1 <= top_k <= num_experts:
            raise ShapeError("MoE", f"top_k {top_k}", f"1 to {num_experts}", "choose as many experts as there are")
        self.num_experts, self.top_k, self.scoring = num_experts, top_k, scoring
        self.normalize, self.scale = normalize, scale
        self.gate = Linear(hidden_size, num_experts, bias=False, dtype=dtype)
        self.experts = Experts(hidden_size, intermediate_size, num_experts, dtype)
        self.shared_expert = GatedMLP(hidden_size, shared_size, dtype) if shared_size else None
        self.shared_expert_gate = Linear(hidden_size, 1, bias=False, dtype=dtype) if shared_gate else None
        self.correction_bias = Buffer(num_experts, dtype=dtype) if correction_bias else None

    def forward(self, x):
        tokens = x.reshape((-1, x.shape[-1]))
        scores, weights, experts = self.route(tokens)
        out = self.experts(tokens, weights, experts)
        if self.shared_expert is not None:
            shared = self.shared_expert(tokens)
            out = out + (
                shared if self.shared_expert_gate is None else self.shared_expert_gate(tokens).sigmoid() * shared
            )
        if self.training:
            self.__dict__["aux_loss"] = load_balancing_loss(scores, experts)
        return out.reshape(x.shape)

    def route(self, tokens):
        """(scores [T, E], weights [T, top_k], experts [T, top_k]) of tokens [T, D], in f32 or f64."""
        logits = self.gate(tokens)
        scores = SCORES[self.scoring](logits.to(logits.dtype.compute))
        if self.correction_bias is None:
            weights, experts = sort.topk(scores, self.top_k)
        else:
            experts = sort.topk(scores.detach() + self.correction_bias, self.top_k)[1]
            weights = index.gather(scores, 1, experts)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return scores, weights if self.scale == 1.0 else weights * self.scale, experts

    def extra_repr(self):
        return f"{self.num_experts} experts, top_k={self.top_k}, scoring={self.scoring!r}"


class Experts(Module):
    """The gated MLPs of all experts: x [T, D], weights and experts [T, top_k] -> [T, D]."""

    def __init__(self, hidden_size, intermediate_size, num_experts, dtype="f32"):
        e, d, i = num_experts, hidden_size, intermediate_size
        self.gate_up_proj = Parameter(e, 2 * i, d, init=init.fan_uniform(d), dtype=dtype)
        self.down_proj = Parameter(e, d, i, init=init.fan_uniform(i), dtype=dtype)

    def forward(self, x, weights, experts):
        return moe.mix(x, weights, experts, self.gate_up_proj, self.down_proj)

    def extra_repr(self):
        return f"gate_up_proj={tuple(self.gate_up_proj.shape)}, down_proj={tuple(self.down_proj.shape)}"


class GatedMLP(Module):
    """down(silu(gate(x)) * up(x)), arXiv:2002.05202."""

    def __init__(self, hidden_size, intermediate_size, dtype="f32"):
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=False, dtype=dtype)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=False, dtype=dtype)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=False, dtype=dtype)

    def forward(self, x):
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


def load_balancing_loss(scores, experts):
    """E * sum over experts of (tokens that chose it / tokens) * (its mean share of the scores): top_k if all are alike.

    scores [T, E] (each row divided by its sum), experts [T, top_k]. Only the scores are differentiated (Switch
    Transformers, arXiv:2101.03961; as Hugging Face sums over top_k).

    >>> import tensorlib
    >>> load_balancing_loss(tensorlib.ones(4, 2) / 2, tensorlib.tensor([[0], [1], [0], [1]]))
    tensor(1.)
    """
    count = scores.shape[-1]
    shares = reduce.mean(scores / scores.sum(-1, keepdim=True), 0)
    chosen = reduce.sum(reduce.mean(lookup.one_hot(experts, count).to(scores.dtype), 0), 0)
    return (shares * chosen).sum() * count
