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
from tensorlib.ops import elementwise, index, lookup, moe, movement, reduce, softmax, sort

SCORES = {"softmax": lambda logits: softmax.softmax(logits, -1), "sigmoid": elementwise.sigmoid}


class MoE(Module):
    """Each token of x [..., hidden_size] goes through the gated MLPs of its top_k experts: [..., hidden_size].

    scoring: "softmax" of the router's logits over all experts (Mixtral, Qwen), or "sigmoid" of each (DeepSeek-V3, whose
    `correction_bias` is added where experts are chosen, not where they are weighed). normalize: the weights of a
    token's experts sum to 1; then they are multiplied by `scale`. shared_size: width of an MLP for all tokens, 0 for
    none; shared_gate: that is multiplied by a sigmoid of its own (Qwen2-MoE). groups: (how many groups the experts are
    in, of how many of them a token's are, by how many of its best experts a group is judged), DeepSeek's: 1 in V2, 2 in
    V3; None: any expert.

    Names of weights are those of Hugging Face's Qwen-MoE: gate.weight [E, D], experts.gate_up_proj [E, 2 I, D] (gate
    above up), experts.down_proj [E, D, I], shared_expert.*, shared_expert_gate.weight. The experts' may be QTensors,
    and in files one by one: experts.3.gate_proj.weight and so on, with `expert_names` for gate, up and down. Not
    `joined`: gate and up are weights of their own, experts.gate_proj and experts.up_proj, as GGUF has them.

    While training, `aux_loss` is `load_balancing_loss` of the last forward whose scores have a gradient: add some of it
    to the loss. ShapeError.
    """

    aux_loss, least = None, 0.0  # what is added to a sum of weights before it divides

    def __init__(
        self, hidden_size, intermediate_size, num_experts, top_k, scoring="softmax", normalize=True, scale=1.0,
        shared_size=0, shared_gate=False, correction_bias=False, dtype="f32", groups=None, joined=True,
        expert_names=("gate_proj", "up_proj", "down_proj"),
    ):  # fmt: skip
        if groups is not None and (num_experts % groups[0] or not 1 <= groups[1] <= groups[0]):
            raise ShapeError("MoE", f"groups {groups} of {num_experts} experts", "equal groups, 1 or more of them used")
        if scoring not in SCORES:
            raise ValueError(f"MoE: got scoring {scoring!r}; expected {' or '.join(SCORES)}")
        if not 1 <= top_k <= num_experts:
            raise ShapeError("MoE", f"top_k {top_k}", f"1 to {num_experts}", "choose as many experts as there are")
        self.num_experts, self.top_k, self.scoring = num_experts, top_k, scoring
        self.normalize, self.scale, self.groups = normalize, scale, groups
        self.gate = Linear(hidden_size, num_experts, bias=False, dtype=dtype)
        self.experts = Experts(hidden_size, intermediate_size, num_experts, dtype, joined, expert_names)
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
        if self.training and scores.requires_grad:
            self.__dict__["aux_loss"] = load_balancing_loss(scores, experts)
        return out.reshape(x.shape)

    def route(self, tokens):
        """(scores [T, E], weights [T, top_k], experts [T, top_k]) of tokens [T, D], in f32 or f64."""
        logits = self.gate(tokens)
        scores = SCORES[self.scoring](logits.to(logits.dtype.compute))
        ranks = scores if self.correction_bias is None else scores.detach() + self.correction_bias
        if self.groups is not None:
            ranks = _of_best_groups(ranks, *self.groups)
        weights, experts = sort.topk(ranks, self.top_k)
        if ranks is not scores:
            weights = index.gather(scores, 1, experts)
        if self.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + self.least)
        return scores, weights if self.scale == 1.0 else weights * self.scale, experts

    def extra_repr(self):
        return f"{self.num_experts} experts, top_k={self.top_k}, scoring={self.scoring!r}"


def _of_best_groups(ranks, groups, used, best):
    """ranks [T, E] with -inf outside the `used` groups whose `best` experts add up to most."""
    each = ranks.detach().reshape((ranks.shape[0], groups, -1))
    judged = reduce.sum(sort.topk(each, best)[0], -1)
    least = movement.narrow(sort.topk(judged, used)[0], 1, used - 1, 1)
    kept = movement.broadcast_to(movement.unsqueeze(judged >= least, -1), each.shape)
    return elementwise.where(movement.reshape(kept, ranks.shape), ranks, float("-inf"))


class Experts(Module):
    """The gated MLPs of all experts: x [T, D], weights and experts [T, top_k] -> [T, D]. See `MoE`."""

    def __init__(
        self, hidden_size, intermediate_size, num_experts, dtype="f32", joined=True,
        names=("gate_proj", "up_proj", "down_proj"),
    ):  # fmt: skip
        e, d, i = num_experts, hidden_size, intermediate_size
        gate, up, down = ([f"{n}.{name}.weight" for n in range(e)] for name in names)

        def stack(rows, columns, *parts):
            return Parameter(e, rows, columns, init=init.fan_uniform(columns), dtype=dtype, parts=list(zip(*parts)))

        self._joined = joined
        if joined:
            self.gate_up_proj = stack(2 * i, d, gate, up)
        else:
            self.gate_proj, self.up_proj = stack(i, d, gate), stack(i, d, up)
        self.down_proj = stack(d, i, down)

    def forward(self, x, weights, experts):
        ups = self.gate_up_proj if self._joined else (self.gate_proj, self.up_proj)
        return moe.mix(x, weights, experts, ups, self.down_proj)

    def extra_repr(self):
        return ", ".join(f"{name}={tuple(getattr(self, name).shape)}" for name in self._declared)


class GatedMLP(Module):
    """down(silu(gate(x)) * up(x)), arXiv:2002.05202."""

    def __init__(self, hidden_size, intermediate_size, dtype="f32"):
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=False, dtype=dtype)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=False, dtype=dtype)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=False, dtype=dtype)

    def forward(self, x):
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class StackedMoE(Module):
    """`tensorlib.moe` under Granite's names: each token of x [..., hidden_size] goes through the gated MLPs of the
    top_k experts of the largest logits, weighed by their softmax.

    router.layer.weight [E, D], input_linear.weight [E, 2 I, D] (gate above up), output_linear.weight [E, D, I]. Not
    `joined`: gate_linear and up_linear, as GGUF has them.
    """

    def __init__(self, hidden_size, intermediate_size, num_experts, top_k, joined=True):
        d, i, self._top_k, self._joined = hidden_size, intermediate_size, top_k, joined
        self.router = _Router(d, num_experts)
        for name, rows in {"input_linear": 2 * i}.items() if joined else {"gate_linear": i, "up_linear": i}.items():
            setattr(self, name, _Matrices(num_experts, rows, d))
        self.output_linear = _Matrices(num_experts, d, i)

    def forward(self, x):
        ups = self.input_linear.weight if self._joined else (self.gate_linear.weight, self.up_linear.weight)
        return moe.moe(x, self.router.layer(x), ups, self.output_linear.weight, self._top_k)


class _Router(Module):
    def __init__(self, hidden_size, num_experts):
        self.layer = Linear(hidden_size, num_experts, bias=False)


class _Matrices(Module):
    """[E, rows, columns], one per expert."""

    def __init__(self, *shape):
        self.weight = Parameter(*shape, init=init.fan_uniform(shape[-1]))


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
