"""Attention with several heads: torch.nn's `MultiheadAttention`, its weights and masks.

>>> import tensorlib
>>> from tensorlib import nn
>>> x = tensorlib.zeros(7, 2, 8)
>>> out, weights = nn.MultiheadAttention(8, 4)(x, x, x)
>>> out.shape, weights.shape
((7, 2, 8), (2, 7, 7))
"""

from tensorlib.errors import DTypeError, ShapeError
from tensorlib.nn import init
from tensorlib.nn.layers import Linear
from tensorlib.nn.module import Module, Parameter
from tensorlib.ops import linalg, movement
from tensorlib.ops.attention import attention_weights, scaled_dot_product_attention
from tensorlib.random import dropout as drop
from tensorlib.tensor import full, ones, zeros


class MultiheadAttention(Module):
    """softmax(q k^T / sqrt(head_dim)) v per head, between projections (Vaswani et al., arXiv:1706.03762).

    query (L, N, E), key (S, N, kdim), value (S, N, vdim); with batch_first (N, L, E) and so on; or without N. Weights
    begin as torch's: xavier_uniform_ for the projections, biases 0. Gives (output like query, weights or None).

    >>> import tensorlib
    >>> x = tensorlib.zeros(2, 5, 8)
    >>> layer = MultiheadAttention(8, 2, batch_first=True)
    >>> layer(x, x, x, need_weights=False, is_causal=True)[0].shape
    (2, 5, 8)
    """

    def __init__(
        self, embed_dim, num_heads, dropout=0.0, bias=True, add_bias_kv=False, add_zero_attn=False, kdim=None,
        vdim=None, batch_first=False, dtype="f32",
    ):  # fmt: skip
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            got = f"{num_heads} heads of a width of {embed_dim} together"
            raise ShapeError("MultiheadAttention", got, "heads of one width", "make num_heads a divisor of embed_dim")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim, self.vdim = kdim or embed_dim, vdim or embed_dim
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        begin = {"init": init.xavier_uniform_, "dtype": dtype}
        self.together = self.kdim == self.vdim == embed_dim
        if self.together:
            self.in_proj_weight = Parameter(3 * embed_dim, embed_dim, **begin)
        else:
            self.q_proj_weight = Parameter(embed_dim, embed_dim, **begin)
            self.k_proj_weight = Parameter(embed_dim, self.kdim, **begin)
            self.v_proj_weight = Parameter(embed_dim, self.vdim, **begin)
        self.in_proj_bias = Parameter(3 * embed_dim, dtype=dtype) if bias else None
        begin["init"] = init.xavier_normal_
        self.bias_k = Parameter(1, 1, embed_dim, **begin) if add_bias_kv else None
        self.bias_v = Parameter(1, 1, embed_dim, **begin) if add_bias_kv else None
        self.out_proj = Linear(embed_dim, embed_dim, bias, dtype)
        if bias:
            self.out_proj.bias = Parameter(embed_dim, dtype=dtype)

    def forward(
        self, query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None, average_attn_weights=True,
        is_causal=False,
    ):  # fmt: skip
        """Masks hide where they are True, or are numbers to add: key_padding_mask (N, S) or (S), attn_mask (L, S) or
        (N * heads, L, S). is_causal: query l sees keys 0 to l; a mask given with it has to say the same, as in torch.

        Weights are (N, L, S), means over heads, or (N, heads, L, S); without them, flash attention may be used. A
        query that sees nothing gives zeros, where torch gives NaN. ShapeError, DTypeError.
        """
        q, k, v, alone = self._projected(query, key, value)
        sizes = (q.shape[0], self.num_heads, q.shape[2], k.shape[2])
        extra = (self.bias_k is not None) + self.add_zero_attn
        k, v = self._extended(k, v)
        if is_causal and key_padding_mask is None and not extra and not need_weights:
            attn_mask = None  # is_causal says the same
        else:
            attn_mask = _causal(sizes, q.device) if is_causal and attn_mask is None else attn_mask
            is_causal = False
        mask = _merged(attn_mask, key_padding_mask, sizes, alone, q.dtype)
        if mask is not None and extra:
            mask = movement.cat([mask, zeros((*mask.shape[:-1], extra), dtype=mask.dtype, device=mask.device)], -1)
        p, weights = (self.dropout if self.training else 0.0), None
        if need_weights:
            weights = drop(attention_weights(q, k, mask, is_causal), p)
            out = linalg.matmul(weights, v)
        else:
            out = scaled_dot_product_attention(q, k, v, mask, p, is_causal)
        out = out.permute((0, 2, 1, 3) if self.batch_first or alone else (2, 0, 1, 3)).flatten(-2)
        out = self.out_proj(out.squeeze(0) if alone else out)
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights.squeeze(0) if alone else weights
        return out, weights

    def _projected(self, query, key, value):
        """(q, k, v as (N, heads, L or S, head_dim), whether there was no batch)."""
        alone, widths = query.ndim == 2, (self.embed_dim, self.kdim, self.vdim)
        given = (query, key, value)
        fits = all(x.ndim == query.ndim and x.shape[-1] == n for x, n in zip(given, widths)) and query.ndim in (2, 3)
        if not fits or key.shape[:-1] != value.shape[:-1]:
            got = f"query {query.shape}, key {key.shape}, value {value.shape}"
            order = "(N, L, width)" if self.batch_first else "(L, N, width)"
            expected = f"{order} or (L, width), of widths {widths}, as many keys as values"
            raise ShapeError("MultiheadAttention", got, expected, "see batch_first, kdim and vdim")
        if query is key is value and self.together:
            found = linalg.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            found = [linalg.linear(x, *self._projection(i)) for i, x in enumerate(given)]
        if alone:
            found = [x.unsqueeze(0) for x in found]
        order = (0, 2, 1, 3) if self.batch_first or alone else (1, 2, 0, 3)
        return *(x.unflatten(-1, (self.num_heads, self.head_dim)).permute(order) for x in found), alone

    def _projection(self, i):
        """Weight and bias of queries, keys or values."""
        e = self.embed_dim
        weight = self.in_proj_weight[i * e : i * e + e] if self.together else getattr(self, f"{'qkv'[i]}_proj_weight")
        return weight, None if self.in_proj_bias is None else self.in_proj_bias[i * e : i * e + e]

    def _extended(self, k, v):
        """Keys and values with what add_bias_kv and add_zero_attn put behind them."""
        n, heads, _, width = k.shape
        if self.bias_k is not None:
            more = [b.reshape(1, heads, 1, width).expand((n, heads, 1, width)) for b in (self.bias_k, self.bias_v)]
            k, v = (movement.cat([x, bias], 2) for x, bias in zip((k, v), more))
        if self.add_zero_attn:
            none = zeros((n, heads, 1, width), dtype=k.dtype, device=k.device)
            k, v = (movement.cat([x, none], 2) for x in (k, v))
        return k, v

    def extra_repr(self):
        return f"{self.embed_dim}, {self.num_heads}, batch_first={self.batch_first}"


def _causal(sizes, device):
    return ones(sizes[2:], dtype="bool", device=device).triu(1)


def _merged(attn_mask, padding, sizes, alone, dtype):
    """The two masks as one to add, (N or 1, heads or 1, L or 1, S), or None."""
    (n, heads, queries, keys), found = sizes, None
    if attn_mask is not None:
        shapes = {(queries, keys): (1, 1, queries, keys), (n * heads, queries, keys): sizes}
        found = _added("attn_mask", attn_mask, shapes, dtype)
    if padding is not None:
        shape = (keys,) if alone else (n, keys)
        other = _added("key_padding_mask", padding, {shape: (n, 1, 1, keys)}, dtype)
        found = other if found is None else found + other
    return found


def _added(name, mask, shapes, dtype):
    if mask.shape not in shapes:
        expected = " or ".join(map(str, shapes))
        raise ShapeError("MultiheadAttention", f"{name} of shape {mask.shape}", expected, "reshape it")
    if mask.dtype.kind not in "bf":
        fix = "convert it with .to('bool'): True hides"
        raise DTypeError("MultiheadAttention", f"{name} of {mask.dtype}", "bool or a float", fix)
    mask = mask.reshape(shapes[mask.shape])
    if mask.dtype.kind == "f":
        return mask.to(dtype)
    none = zeros(mask.shape, dtype=dtype, device=mask.device)
    return none.where(~mask, full((), float("-inf"), dtype=dtype, device=mask.device))
