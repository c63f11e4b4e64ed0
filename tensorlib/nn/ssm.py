"""State space layers: recurrences under the names that papers give them, short causal convolutions, Mamba 2's mixer.

Sequences are [..., T, channels]. What came before them is a state, None for nothing; each function gives the state
after them as well, in f32 (f64 for f64). All are `state_scan`, one kernel: gradients flow, and one token's are the same
launches at every call.

>>> import tensorlib
>>> one, log_half = tensorlib.ones(3, 1, 1), tensorlib.full((3, 1), 0.5).log()
>>> ssd(one, log_half, one, one)[0].flatten()
tensor([1.0000, 1.5000, 1.7500])
"""

from tensorlib.errors import ShapeError
from tensorlib.nn import init
from tensorlib.nn.layers import Linear
from tensorlib.nn.module import Module, Parameter
from tensorlib.ops import elementwise, movement, reduce
from tensorlib.ops.scan_lines import causal_conv, linear_scan
from tensorlib.ops.scan_state import state_scan
from tensorlib.tensor import zeros

__all__ = [
    "GatedRMSNorm", "Mamba2Mixer", "ShortConv", "causal_conv", "linear_scan", "selective_scan", "ssd", "token_shift",
    "wkv", "wkv7",
]  # fmt: skip


def selective_scan(x, dt, a, b, c, past=None):
    """(y, state) of h_t = e^(dt_t a) h_(t-1) + dt_t x_t b_t, y_t = c_t h_t, per channel (Mamba, arXiv:2312.00752).

    x, y, dt [..., T, E]; a [E, N]; b, c [..., T, N]; past, state [..., N, E]. ShapeError.
    """
    if (
        x.shape != dt.shape
        or b.shape != c.shape
        or b.shape[:-1] != x.shape[:-1]
        or a.shape != (x.shape[-1], b.shape[-1])
    ):
        got = f"x {x.shape}, dt {dt.shape}, a {a.shape}, b {b.shape}, c {c.shape}"
        raise ShapeError("selective_scan", got, "[..., T, E] twice, [E, N], [..., T, N] twice")
    x, dt, b, c = (movement.unsqueeze(each, -2) for each in (dt * x, dt, b, c))
    rates = movement.unsqueeze(movement.transpose(a, 0, 1), 0)
    past = past if past is None else movement.unsqueeze(past, -3)
    y, state = state_scan(c, b, x, dt, past, rates)
    return movement.squeeze(y, -2), movement.squeeze(state, -3)


def ssd(x, log_a, b, c, past=None):
    """(y, state) of h_t = a_t h_(t-1) + b_t x_t^T, y_t = c_t h_t (arXiv:2405.21060, section 6): state space duality.

    x, y [..., T, H, P]; log_a [..., T, H], the logarithm of a, at most 0; b, c [..., T, G, N] for H / G heads each;
    past, state [..., H, N, P]. ShapeError.
    """
    heads, groups = x.shape[-2], b.shape[-2]
    if heads % groups or log_a.shape != x.shape[:-1] or b.shape != c.shape or b.shape[:-2] != x.shape[:-2]:
        got = f"x {x.shape}, log_a {log_a.shape}, b {b.shape}, c {c.shape}"
        raise ShapeError("ssd", got, "[..., T, H, P], [..., T, H], [..., T, G, N] twice, G a divisor of H")
    return state_scan(c, b, x, log_a, past)


def token_shift(x, past=None):
    """(before, state): what stood one token earlier. x, before [..., T, C]; past, state [..., 1, C].

    >>> import tensorlib
    >>> token_shift(tensorlib.tensor([[1.0], [2.0]]))[0].tolist()
    [[0.0], [1.0]]
    """
    if past is None:
        past = zeros((*x.shape[:-2], 1, x.shape[-1]), dtype=x.dtype, device=x.device)
    t = x.shape[-2]
    last = movement.narrow(x, -2, t - 1, 1)
    return past if t == 1 else movement.cat([past, movement.narrow(x, -2, 0, t - 1)], -2), last


def wkv(r, log_w, k, v, bonus, past=None):
    """(y, state) of S_t = diag(w_t) S_(t-1) + k_t v_t^T, y_t = (S_(t-1) + diag(bonus) k_t v_t^T)^T r_t (RWKV 5 and 6,
    arXiv:2404.05892, section 4.1.2): a decay for each row of the state, which sees a token after the token's output.

    r, k, log_w [..., T, H, K], log_w at most 0; v, y [..., T, H, V]; bonus [H, K]; past, state [..., H, K, V].
    ShapeError.
    """
    if not r.shape == k.shape == log_w.shape or v.shape[:-1] != r.shape[:-1] or bonus.shape != r.shape[-2:]:
        got = f"r {r.shape}, log_w {log_w.shape}, k {k.shape}, v {v.shape}, bonus {bonus.shape}"
        raise ShapeError("wkv", got, "[..., T, H, K] thrice, [..., T, H, V], [H, K]")
    y, state = state_scan(r, k, v, log_w, past, before=True)
    return y + reduce.sum(r * k * bonus, -1, keepdim=True) * v, state


def wkv7(r, log_w, k, v, a, b, past=None):
    """(y, state) of S_t = diag(w_t) S_(t-1) + b_t (S_(t-1)^T a_t)^T + k_t v_t^T, y_t = S_t^T r_t (RWKV 7, a generalised
    delta rule, arXiv:2503.14456, section 4): what the state has at a_t is moved to b_t before a token is added.

    r, log_w, k, a, b [..., T, H, K], log_w at most 0; v, y [..., T, H, V]; past, state [..., H, K, V]. ShapeError.
    """
    if any(x.shape != r.shape for x in (log_w, k, a, b)) or v.shape[:-1] != r.shape[:-1]:
        got = f"r {r.shape}, log_w {log_w.shape}, k {k.shape}, v {v.shape}, a {a.shape}, b {b.shape}"
        raise ShapeError("wkv7", got, "[..., T, H, K], but for v [..., T, H, V]")
    return state_scan(r, k, v, log_w, past, a=a, b=b)


class GatedRMSNorm(Module):
    """RMSNorm of x * silu(gate), each of `groups` of channels by itself. `grouped`: the weight is [groups, ...]."""

    def __init__(self, dim, groups, eps, grouped=False):
        self.groups, self.eps = groups, eps
        self.weight = Parameter(*((groups, dim // groups) if grouped else (dim,)), init=init.ones_)

    def forward(self, x, gate):
        x = movement.unflatten(x * elementwise.silu(gate), -1, (self.groups, -1))
        x = x * elementwise.rsqrt(reduce.mean(x * x, -1, keepdim=True) + self.eps)
        return movement.flatten(x * movement.reshape(self.weight, x.shape[-2:]), -2)


class ShortConv(Module):
    """The weights of `causal_conv`, under Conv1d's names: weight [C, 1, K], or [C, K] if `flat`."""

    def __init__(self, channels, kernel, bias=True, flat=False):
        self.weight = Parameter(*((channels, kernel) if flat else (channels, 1, kernel)), init=init.fan_uniform(kernel))
        self.bias = Parameter(channels) if bias else None

    def forward(self, x, past=None):
        return causal_conv(x, self.weight, self.bias, past)


class Mamba2Mixer(Module):
    """Mamba 2's layer (arXiv:2405.21060, section 7): [..., T, hidden_size] to the same. See `ssd`.

    heads of head_dim channels; state_size: N; groups: of heads with one b and c; limits: of time steps. Names of
    weights are Hugging Face's. `converted`: shapes are llama.cpp's, and A itself stands there, not log(-A).
    `state_shapes`: of what `forward` keeps in a cache, of the convolution and of the recurrence.
    """

    def __init__(
        self, hidden_size, heads, head_dim, state_size, groups=1, kernel=4, bias=False, conv_bias=True, eps=1e-5,
        limits=(0.0, float("inf")), converted=False,
    ):  # fmt: skip
        self._inner, self._bc = heads * head_dim, groups * state_size
        self._heads, self._groups, self._limits, self._converted = (heads, head_dim), groups, tuple(limits), converted
        self.state_shapes = (kernel - 1, self._inner + 2 * self._bc), (heads, state_size, head_dim)
        self.in_proj = Linear(hidden_size, 2 * self._inner + 2 * self._bc + heads, bias)
        self.conv1d = ShortConv(self._inner + 2 * self._bc, kernel, conv_bias, converted)
        each = (heads, 1) if converted else (heads,)
        setattr(self, "A" if converted else "A_log", Parameter(*each, init=init.ones_))
        self.D, self.dt_bias = Parameter(*each, init=init.ones_), Parameter(heads)
        self.norm = GatedRMSNorm(self._inner, groups, eps, converted)
        self.out_proj = Linear(self._inner, hidden_size, bias)

    def forward(self, x, cache, layer):
        gate, x, dt = movement.split(self.in_proj(x), (self._inner, self._inner + 2 * self._bc, self._heads[0]), -1)
        x, last = self.conv1d(x, cache.past(layer, 0))
        cache.keep(layer, 0, last)
        x, b, c = movement.split(elementwise.silu(x), (self._inner, self._bc, self._bc), -1)
        x = movement.unflatten(x, -1, self._heads)
        b, c = (movement.unflatten(each, -1, (self._groups, -1)) for each in (b, c))
        dt = elementwise.softplus(dt + self.dt_bias)
        if self._limits != (0.0, float("inf")):
            dt = elementwise.clamp(dt, *self._limits)
        a = movement.flatten(self.A, 0) if self._converted else -elementwise.exp(self.A_log)
        y, state = ssd(x * movement.unsqueeze(dt, -1), dt * a, b, c, cache.past(layer, 1))
        cache.keep(layer, 1, state)
        y = y + x * movement.reshape(self.D, (-1, 1))
        return self.out_proj(self.norm(movement.flatten(y, -2), gate))
