"""State space layers: short causal convolutions, linear recurrences, and Mamba 2's mixer.

Sequences are [..., T, channels]. What came before them is a state, None for nothing; each function gives the state
after them as well. All are compositions of ops: gradients flow, and one token's are the same launches at every call.

>>> import tensorlib
>>> half = tensorlib.full((4, 1), 0.5)
>>> linear_scan(half, tensorlib.ones(4, 1), -2).tolist()
[[1.0], [1.5], [1.75], [1.875]]
"""

from tensorlib.errors import ShapeError
from tensorlib.nn import init
from tensorlib.nn.layers import Linear
from tensorlib.nn.module import Module, Parameter
from tensorlib.ops import elementwise, linalg, movement, reduce, scan
from tensorlib.tensor import arange, zeros

CHUNK = 64  # tokens between which `ssd` takes products of all pairs
WKV_CHUNK = 16  # `wkv`, whose pairs have a decay for each channel
WKV7_CHUNK = 8  # `wkv7`: numbers of ways between tokens, which cancel, stay below 2^6


def causal_conv(x, weight, bias=None, past=None):
    """(y, state): a convolution of each channel with its last K values. x and y [..., T, C]; weight [C, K] or
    [C, 1, K], bias [C]; past and state [..., K - 1, C]: the values before and after. ShapeError.

    >>> import tensorlib
    >>> causal_conv(tensorlib.ones(3, 1), tensorlib.ones(1, 2))[0].tolist()
    [[1.0], [2.0], [2.0]]
    """
    (*batch, t, channels), k = x.shape, weight.shape[-1]
    if weight.shape[0] != channels or weight.numel() != channels * k:
        got = f"weight {weight.shape} for x {x.shape}"
        raise ShapeError("causal_conv", got, f"({channels}, K) or ({channels}, 1, K)", "one kernel per channel")
    if past is None:
        past = zeros((*batch, k - 1, channels), dtype=x.dtype, device=x.device)
    rows, taps = movement.cat([past, x], -2), movement.transpose(movement.reshape(weight, (channels, k)), 0, 1)
    out = movement.narrow(rows, -2, 0, t) * taps[0]
    for i in range(1, k):
        out = out + movement.narrow(rows, -2, i, t) * taps[i]
    return out if bias is None else out + bias, movement.narrow(rows, -2, t, k - 1)


def linear_scan(a, b, dim, past=None):
    """h_t = a_t h_(t-1) + b_t along a dim: every h, of b's shape. `past`: the h before the first, without the dim.

    By doubling (Hillis and Steele, 1986): after step s an element stands for the last 2^s.
    """
    n = b.shape[dim]
    if past is not None:
        first = movement.narrow(a, dim, 0, 1) * movement.unsqueeze(past, dim) + movement.narrow(b, dim, 0, 1)
        b = first if n == 1 else movement.cat([first, movement.narrow(b, dim, 1, n - 1)], dim)
    step = 1
    while step < n:
        (a_old, a_new), (b_old, b_new) = (
            (movement.narrow(x, dim, 0, n - step), movement.narrow(x, dim, step, n - step)) for x in (a, b)
        )
        b = movement.cat([movement.narrow(b, dim, 0, step), a_new * b_old + b_new], dim)
        a = movement.cat([movement.narrow(a, dim, 0, step), a_new * a_old], dim)
        step *= 2
    return b


def ssd(x, log_a, b, c, past=None):
    """(y, state) of h_t = a_t h_(t-1) + x_t b_t^T, y_t = h_t c_t (arXiv:2405.21060, section 6): state space duality.

    x, y [..., T, H, P]; log_a [..., T, H], the logarithm of a, at most 0; b, c [..., T, G, N] for H / G heads each;
    past, state [..., H, P, N]. Within a chunk of tokens y is a product of all pairs, as attention is, decayed by what
    lies between them; chunks pass on the state. ShapeError.
    """
    *batch, t, heads, width = x.shape
    groups, n = b.shape[-2:]
    if heads % groups or log_a.shape != x.shape[:-1] or b.shape != c.shape or b.shape[:-2] != x.shape[:-2]:
        got = f"x {x.shape}, log_a {log_a.shape}, b {b.shape}, c {c.shape}"
        raise ShapeError("ssd", got, "[..., T, H, P], [..., T, H], [..., T, G, N] twice, G a divisor of H")
    split = (*batch, t, groups, heads // groups)
    # [..., G, H / G, T, P], [..., G, H / G, T], [..., G, 1, T, N]
    x = movement.movedim(movement.reshape(x, (*split, width)), -4, -2)
    log_a = movement.movedim(movement.reshape(log_a, split), -3, -1)
    b, c = (movement.unsqueeze(movement.movedim(each, -3, -2), -3) for each in (b, c))
    state = past if past is None else movement.reshape(past, (*batch, *split[-2:], width, n))
    found = []
    for start in range(0, t, CHUNK):
        size = min(CHUNK, t - start)
        y, state = _chunk(*(movement.narrow(each, -2, start, size) for each in (x, b, c)),
                          movement.narrow(log_a, -1, start, size), state)  # fmt: skip
        found.append(y)
    y = found[0] if len(found) == 1 else movement.cat(found, -2)
    return movement.reshape(movement.movedim(y, -2, -4), (*batch, t, heads, width)), movement.reshape(
        state, (*batch, heads, width, n)
    )


def _chunk(x, b, c, log_a, state):
    """(y, state) of a chunk of T tokens."""
    t, decays = x.shape[-2], movement.squeeze(_decays(movement.unsqueeze(log_a, -1)), -1)
    y = linalg.matmul(linalg.matmul(c, movement.transpose(b, -1, -2)) * decays, x)
    total = scan.cumsum(log_a, -1)
    last, to_end = movement.narrow(total, -1, t - 1, 1), movement.unsqueeze(movement.select(decays, -2, t - 1), -1)
    new = linalg.matmul(movement.transpose(x * to_end, -1, -2), b)
    if state is None:
        return y, new
    y = y + linalg.matmul(c, movement.transpose(state, -1, -2)) * movement.unsqueeze(elementwise.exp(total), -1)
    return y, state * movement.unsqueeze(elementwise.exp(last), -1) + new


def _decays(log_w):
    """[..., T, T, K]: the product of all w behind s up to t, 0 for s behind t. log_w [..., T, K].

    Sums begin at each s: differences of running sums would lose what comes after a large one.
    """
    t = log_w.shape[-2]
    at, places = arange(t, device=log_w.device), arange(t, device=log_w.device)
    at, places = movement.reshape(at, (t, 1, 1)), movement.reshape(places, (t, 1))
    sums = scan.cumsum(elementwise.where(at > places, movement.unsqueeze(log_w, -2), 0.0), -3)
    return elementwise.exp(elementwise.where(at >= places, sums, float("-inf")))


def _behind(x, dim):
    """x one place later along a dim, 0 at the first."""
    t, shape = x.shape[dim], list(x.shape)
    shape[dim] = 1
    none = zeros(shape, dtype=x.dtype, device=x.device)
    return none if t == 1 else movement.cat([none, movement.narrow(x, dim, 0, t - 1)], dim)


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

    r, k, log_w [..., T, H, K], log_w at most 0; v, y [..., T, H, V]; bonus [H, K]; past, state [..., H, K, V]. Within a
    chunk the decay between each two tokens is taken by itself, so that none is divided by. ShapeError.
    """
    if not r.shape == k.shape == log_w.shape or v.shape[:-1] != r.shape[:-1] or bonus.shape != r.shape[-2:]:
        got = f"r {r.shape}, log_w {log_w.shape}, k {k.shape}, v {v.shape}, bonus {bonus.shape}"
        raise ShapeError("wkv", got, "[..., T, H, K] thrice, [..., T, H, V], [H, K]")
    own = reduce.sum(r * k * bonus, -1, keepdim=True) * v
    r, log_w, k, values = (movement.transpose(x, -3, -2) for x in (r, log_w, k, v))
    found, state, t = [], past, r.shape[-2]
    for start in range(0, t, WKV_CHUNK):
        size = min(WKV_CHUNK, t - start)
        y, state = _wkv_chunk(*(movement.narrow(x, -2, start, size) for x in (r, log_w, k, values)), state)
        found.append(y)
    y = found[0] if len(found) == 1 else movement.cat(found, -2)
    return movement.transpose(y, -3, -2) + own, state


def _wkv_chunk(r, log_w, k, v, state):
    """(y without each token's own, state) of a chunk of T tokens, [..., H, T, K]."""
    t, total, decays = r.shape[-2], scan.cumsum(log_w, -2), _decays(log_w)
    y = linalg.matmul(_pairs(r, k, _behind(decays, -3)), v)
    last = movement.narrow(total, -2, t - 1, 1)
    new = linalg.matmul(movement.transpose(k * movement.select(decays, -3, t - 1), -1, -2), v)
    if state is None:
        return y, new
    y = y + linalg.matmul(r * elementwise.exp(_behind(total, -2)), state)
    return y, state * movement.transpose(elementwise.exp(last), -1, -2) + new


def wkv7(r, log_w, k, v, a, b, past=None):
    """(y, state) of S_t = diag(w_t) S_(t-1) + b_t (S_(t-1)^T a_t)^T + k_t v_t^T, y_t = S_t^T r_t (RWKV 7, a generalised
    delta rule, arXiv:2503.14456, section 4): what the state has at a_t is moved to b_t before a token is added.

    r, log_w, k, a, b [..., T, H, K], log_w at most 0; v, y [..., T, H, V]; past, state [..., H, K, V]. Within a chunk
    what is moved follows from a unit triangular system (arXiv:2406.06484, section 3). ShapeError.
    """
    if any(x.shape != r.shape for x in (log_w, k, a, b)) or v.shape[:-1] != r.shape[:-1]:
        got = f"r {r.shape}, log_w {log_w.shape}, k {k.shape}, v {v.shape}, a {a.shape}, b {b.shape}"
        raise ShapeError("wkv7", got, "[..., T, H, K], but for v [..., T, H, V]")
    rows = [movement.transpose(x, -3, -2) for x in (r, log_w, k, v, a, b)]
    found, state, t = [], past, r.shape[-3]
    for start in range(0, t, WKV7_CHUNK):
        size = min(WKV7_CHUNK, t - start)
        y, state = _wkv7_chunk(*(movement.narrow(x, -2, start, size) for x in rows), state)
        found.append(y)
    y = found[0] if len(found) == 1 else movement.cat(found, -2)
    return movement.transpose(y, -3, -2), state


def _pairs(x, y, decays):
    """sum_k x_tk y_sk decay_tsk: [..., T, T]."""
    return reduce.sum(movement.unsqueeze(x, -2) * movement.unsqueeze(y, -3) * decays, -1)


def _wkv7_chunk(r, log_w, k, v, a, b, state):
    """(y, state) of a chunk of T tokens, [..., H, T, K]. `moved`: S_(t-1)^T a_t."""
    t, total, upto = r.shape[-2], scan.cumsum(log_w, -2), _decays(log_w)
    earlier = _behind(upto, -3)
    moved, power, size = linalg.matmul(_pairs(a, k, earlier), v), _pairs(a, b, earlier), 1
    if state is not None:
        moved = moved + linalg.matmul(a * elementwise.exp(_behind(total, -2)), state)
    while size < t:  # (I - A)^-1 = (I + A) (I + A^2) (I + A^4) ..., since A^T is 0
        moved, size = moved + linalg.matmul(power, moved), 2 * size
        power = linalg.matmul(power, power) if size < t else None
    y = linalg.matmul(_pairs(r, k, upto), v) + linalg.matmul(_pairs(r, b, upto), moved)
    last = movement.narrow(total, -2, t - 1, 1)
    left = movement.select(upto, -3, t - 1)
    new = linalg.matmul(movement.transpose(k * left, -1, -2), v)
    new = new + linalg.matmul(movement.transpose(b * left, -1, -2), moved)
    if state is None:
        return y, new
    y = y + linalg.matmul(r * elementwise.exp(total), state)
    return y, state * movement.transpose(elementwise.exp(last), -1, -2) + new


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
        self.state_shapes = (kernel - 1, self._inner + 2 * self._bc), (heads, head_dim, state_size)
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
