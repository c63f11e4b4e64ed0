"""What Candle, PyTorch and tensorlib call the same thing; `python -m tensorlib.names` prints the table in Markdown.

A row is Candle's name, then ours; then PyTorch's where it is not ours. After these come all op rows that Candle lacks,
from `tensorlib.registry`. Names of the three: `Tensor.x` is a method, `x` a function of the package (for PyTorch also
`nn.functional.x`).

>>> from tensorlib.names import lookup
>>> lookup("affine"), lookup("where_cond")
('x * mul + add', 'where')
"""

import importlib
import pkgutil

# candle | tensorlib | torch (where it differs); `...` stands for the arguments that all three take
CANDLE = """
zeros | zeros
ones | ones
zeros_like | zeros_like
ones_like | ones_like
full | full
empty | empty
empty_like | empty_like
new, from_vec, from_slice, from_iter | tensor
arange, arange_step | arange
rand | rand
randn | randn
rand_like | rand_like
randn_like | randn_like
eye | eye
tril2 | Tensor.tril
triu2 | Tensor.triu
meshgrid | meshgrid
const_set, zero_set, one_set | Tensor.fill_
dims, shape | Tensor.shape
dim, dims0 .. dims5 | Tensor.size
rank | Tensor.ndim
elem_count | Tensor.numel
stride | Tensor.stride
dtype | Tensor.dtype
device | Tensor.device
is_contiguous | Tensor.is_contiguous
is_variable, track_op | Tensor.requires_grad
to_scalar, to_vec0 | Tensor.item
to_vec1, to_vec2, to_vec3 | Tensor.tolist
to_dtype | Tensor.to
to_device | Tensor.to
reshape | Tensor.reshape
flatten, flatten_to, flatten_from, flatten_all | Tensor.flatten
squeeze | Tensor.squeeze
unsqueeze | Tensor.unsqueeze
t | Tensor.t
transpose | Tensor.transpose
permute | Tensor.permute
expand, broadcast_as, broadcast_left | Tensor.expand
narrow | Tensor.narrow
chunk | Tensor.chunk
get, get_on_dim | Tensor.select
i, slice_assign, slice_set | Tensor.__getitem__
cat | cat
stack | stack
repeat | Tensor.repeat
roll | Tensor.roll
flip | Tensor.flip
unfold | Tensor.unfold
pad_with_zeros, pad_with_same, replication_pad2d | pad | nn.functional.pad
contiguous, force_contiguous | Tensor.contiguous
copy | Tensor.clone
detach | Tensor.detach
add, broadcast_add | add
sub, broadcast_sub | sub
mul, broadcast_mul | mul
div, broadcast_div | div
maximum, broadcast_maximum | maximum
minimum, broadcast_minimum | minimum
pow, powf, broadcast_pow | pow
recip | reciprocal
neg | neg
exp | exp
log | log
sin | sin
cos | cos
tanh | tanh
abs | abs
sqr | square
sqrt | sqrt
erf | erf
ceil | ceil
floor | floor
round, round_to | round
sign | sign
affine | x * mul + add | x * mul + add
clamp | clamp
relu | relu
gelu, gelu_erf | gelu | nn.functional.gelu
silu, swish | silu | nn.functional.silu
elu | elu | nn.functional.elu
sigmoid | sigmoid
hard_sigmoid | hardsigmoid | nn.functional.hardsigmoid
mish | mish | nn.functional.mish
leaky_relu | leaky_relu | nn.functional.leaky_relu
selu | selu
prelu | prelu
eq, broadcast_eq | eq
ne, broadcast_ne | ne
lt, broadcast_lt | lt
le, broadcast_le | le
gt, broadcast_gt | gt
ge, broadcast_ge | ge
sum, sum_keepdim, sum_all | sum
mean, mean_keepdim, mean_all | mean
var, var_keepdim | var
max, max_keepdim, max_all | amax
min, min_keepdim, min_all | amin
argmax, argmax_keepdim | argmax
argmin, argmin_keepdim | argmin
norm | norm
log_sum_exp | logsumexp
cumsum | cumsum
matmul, broadcast_matmul | matmul
mv | mv
dot | dot
conv1d | conv1d
conv2d | conv2d
conv_transpose1d | conv_transpose1d
conv_transpose2d | conv_transpose2d
avg_pool2d, avg_pool2d_with_stride | avg_pool2d | nn.functional.avg_pool2d
max_pool2d, max_pool2d_with_stride | max_pool2d | nn.functional.max_pool2d
interpolate1d, upsample_nearest1d, interpolate2d, upsample_nearest2d | interpolate | nn.functional.interpolate
upsample_bilinear2d, upsample_bilinear2d_with_scale | interpolate | nn.functional.interpolate
embedding | embedding | nn.functional.embedding
index_select | index_select
gather | gather
scatter | scatter
scatter_set | Tensor.scatter_
scatter_add | scatter_add
scatter_add_set | Tensor.scatter_add_
index_add | index_add
where_cond | where
slice_scatter, slice_scatter0 | slice_scatter
arg_sort_last_dim | argsort
sort_last_dim | sort
backward | Tensor.backward
apply_op1, apply_op2, apply_op3, custom_op | custom.elementwise | autograd.Function
inplace_op1, inplace_op2, inplace_op3 | custom.elementwise | autograd.Function
softmax, softmax_last_dim | softmax
log_softmax | log_softmax
swiglu | swiglu | -
dropout | dropout
rms_norm, rms_norm_slow | rms_norm | nn.functional.rms_norm
layer_norm, layer_norm_slow | layer_norm | nn.functional.layer_norm
group_norm | group_norm
batch_norm | batch_norm
pixel_shuffle | pixel_shuffle
pixel_unshuffle | pixel_unshuffle
one_hot | one_hot | nn.functional.one_hot
gumbel_softmax | gumbel_softmax | nn.functional.gumbel_softmax
rope, rope_i, rope_thd | rope | -
sdpa, flash_attn, run_flash_attn_cpu | scaled_dot_product_attention | nn.functional.scaled_dot_product_attention
flash_attn_varlen, flash_attn_varlen_windowed, flash_attn_varlen_alibi | varlen_attn | nn.attention.varlen.varlen_attn
nll | nll_loss | nn.functional.nll_loss
cross_entropy | cross_entropy | nn.functional.cross_entropy
mse | mse_loss | nn.functional.mse_loss
binary_cross_entropy_with_logit | binary_cross_entropy_with_logits | nn.functional.binary_cross_entropy_with_logits
huber | huber_loss | nn.functional.huber_loss
set_seed | manual_seed
"""


def rows():
    """[(Candle's names, ours, PyTorch's)] of `CANDLE`."""
    found = []
    for line in CANDLE.strip().splitlines():
        candle, ours, *theirs = (part.strip() for part in line.split("|"))
        found.append((candle, ours, theirs[0] if theirs else ours))
    return found


def lookup(candle):
    """What we call what Candle calls `candle`. KeyError if it is not in the table."""
    return next(ours for names, ours, _ in rows() if candle in names.split(", "))


def own_rows():
    """All op rows, by kind: {kind: [Op]}."""
    from tensorlib import ops
    from tensorlib.registry import OPS

    for module in pkgutil.iter_modules(ops.__path__):
        importlib.import_module(f"tensorlib.ops.{module.name}")
    kinds = {}
    for op in sorted(OPS.values(), key=lambda op: op.name):
        kinds.setdefault(op.kind, []).append(op)
    return kinds


def _gradient(op):
    if op.kind == "composite":
        return "of its body"
    return "yes" if op.vjp else "none"


def markdown():
    """The tables as Markdown: Candle's names, then every op row with its dtype rule and gradient."""
    lines = ["# Names", "", "Made by `python -m tensorlib.names`; a test holds this file to it.", ""]
    lines += ["| Candle | tensorlib | PyTorch |", "| --- | --- | --- |"]
    lines += [f"| {candle} | `{ours}` | {f'`{theirs}`' if theirs != '-' else ''} |" for candle, ours, theirs in rows()]
    for kind, ops in own_rows().items():
        lines += [
            "",
            f"## Rows: {kind}",
            "",
            "| op | result's dtype | gradient | meaning |",
            "| --- | --- | --- | --- |",
        ]
        lines += [f"| `{op.name}` | {op.rule.text} | {_gradient(op)} | {_escaped(op.doc)} |" for op in ops]
    return "\n".join(lines) + "\n"


def _escaped(text):
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(markdown(), end="")
