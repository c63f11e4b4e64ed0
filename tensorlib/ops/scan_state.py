"""Recurrences along tokens with matrices of state, each one kernel; scan_lines.py has diagonal ones and convolutions.

States of Mamba 1 and 2 and of RWKV 5, 6 and 7 are all `state_scan`; `tensorlib.nn.ssm` gives it those names. What came
before a sequence is its `past`, None for nothing. States are f32 (f64 for f64) whatever the operands are.

>>> import tensorlib
>>> one, log_half = tensorlib.ones(3, 1, 1), tensorlib.full((3, 1), 0.5).log()
>>> state_scan(one, one, one, log_half)[0].tolist()
[[[1.0]], [[1.5]], [[1.75]]]
"""

from math import prod

from tensorlib import backend, tape
from tensorlib.device import Array
from tensorlib.errors import ShapeError
from tensorlib.ops import create, elementwise, movement, reduce
from tensorlib.ops.elementwise import cast
from tensorlib.registry import FLOAT_ONLY, define

COLUMNS = {"f32": 64, "f64": 32}  # of a state that a thread has at a time: those of kernels_numba/scan_state.py
CHUNK = 16  # tokens between states that the gradient keeps


def _compute(*operands):
    for x in operands:
        if x is not None:
            FLOAT_ONLY.apply("state_scan", x.dtype)
    return "f64" if any(x is not None and x.dtype.name == "f64" for x in operands) else "f32"


def _as(x, dtype):
    return x if x is None or x.dtype.name == dtype else cast(x, dtype)


def _ptr(x):
    return 0 if x is None else x.ptr


def _shape(x):
    return None if x is None else x.shape


def _dense(x, dtype):
    return x if x is None else movement.contiguous(_as(x, dtype))


def _tokens(x, dtype, inner):
    """(x as [N, T, ...] whose last `inner` dims are dense, strides of N and T)."""
    x = _as(x, dtype)
    lead = x.ndim - inner
    x = movement.reshape(x, (prod(x.shape[: lead - 1]), x.shape[lead - 1], prod(x.shape[lead:])))
    x = x if x.shape[2] < 2 or x.strides[2] == 1 else movement.contiguous(x)
    return x, x.strides[:2]


def _scratch(per_thread, device):
    threads = backend.threads(device.type)
    return Array.empty((threads * per_thread,), "u8", device), threads


def _columns(dtype, rows, device):
    """Columns of a state that a thread or a GPU's program has at a time (kernels_triton/scan_state.py `shape`)."""
    if device.type == "cpu":
        return COLUMNS[dtype]
    return min(64, max(16, 1024 >> max(0, rows - 1).bit_length()))


# ---- a matrix of state -----------------------------------------------------------------------------------------------


def _kind(q, log_w, rates):
    """What W_t depends on."""
    return "outer" if rates is not None else "head" if log_w.ndim == q.ndim - 1 else "row"


def _check(q, k, v, log_w, past, rates, a, b):
    fix = "give [..., T, G, K], [..., T, G, K], [..., T, H, V] with G a divisor of H, and log_w of one of three shapes"
    if min(q.ndim, v.ndim) < 3 or q.shape != k.shape or v.shape[:-2] != q.shape[:-2] or v.shape[-2] % q.shape[-2]:
        raise ShapeError("state_scan", f"q {q.shape}, k {k.shape}, v {v.shape}", "those of one sequence", fix)
    lead, (heads, width), rows = v.shape[:-2], v.shape[-2:], q.shape[-1]
    wide = {"head": (*lead, heads), "row": (*lead, heads, rows), "outer": v.shape}[_kind(q, log_w, rates)]
    wanted = [("log_w", log_w, wide), ("past", past, (*lead[:-1], heads, rows, width))]
    wanted += [("rates", rates, (heads, rows, width)), ("a", a, (*lead, heads, rows)), ("b", b, (*lead, heads, rows))]
    for name, x, shape in wanted:
        if x is not None and x.shape != shape:
            raise ShapeError("state_scan", f"{name} {x.shape}", f"{shape} for q {q.shape} and v {v.shape}", fix)
    if (a is None) != (b is None):
        raise ShapeError("state_scan", "one of a and b", "both or none", "give the other")


class _Call:
    """What the two kernels have in common: operands in what is computed in, the words of their arguments."""

    def __init__(self, q, k, v, log_w, past, rates, a, b, before):
        self.dtype = _compute(q, k, v, log_w, past, rates, a, b)
        *lead, self.t, self.heads, self.width = v.shape
        (self.groups, self.rows), self.n = q.shape[-2:], prod(lead)
        kind = _kind(q, log_w, rates)
        self.params = [self.dtype, kind, *(["before"] if before else []), *(["delta"] if a is not None else [])]
        inner = (2, 2, 2, 1 if kind == "head" else 2, 2, 2)
        some = [(None, (0, 0)) if x is None else _tokens(x, self.dtype, i)
                for x, i in zip((q, k, v, log_w, a, b), inner, strict=True)]  # fmt: skip
        self.past, self.rates, self.type, self.device = (
            _dense(past, self.dtype),
            _as(rates, self.dtype),
            type(v),
            v.device,
        )
        self.words = [*(_ptr(x) for x, _ in some), *(s for _, pair in some for s in pair)]
        self.words += [self.n, self.t, self.heads, self.groups, self.rows, self.width, _ptr(self.rates)]
        self.words += self.rates.strides if rates is not None else (0, 0, 0)
        self.reads = [x for x in (*(x for x, _ in some), self.past, self.rates) if x is not None]
        self.columns = _columns(self.dtype, self.rows, self.device)
        self.work = 4 * self.n * self.t * self.heads * self.rows * self.width

    def empty(self, *shape):
        """A result."""
        return self.type.empty(shape, self.dtype, self.device)

    def state(self):
        """Memory for a state."""
        return self.empty(self.n, self.heads, self.rows, self.width)

    def launch(self, room, first, more, tables, writes, work, parts=0):
        """Runs the kernel; `tables`: matrices of a thread's columns that it needs at a time; `parts`: vectors."""
        row = self.columns * (8 if self.dtype == "f64" else 4)
        tables = tables if self.device.type == "cpu" else 0  # a GPU's plan knows what it needs
        scratch, threads = _scratch((tables * self.rows + 1) * row + parts * row // 4, self.device)
        words = [*first, *self.words, scratch.ptr, scratch.numel() // threads, threads, *more]
        kernel = backend.kernel(room, "state_scan", *self.params, device=self.device.type)
        backend.launch(kernel, words, work, self.reads, [*writes, scratch])


def _state_vjp(g, q, k, v, log_w, past, rates, a, b, before, needs):
    """Gradients of q, k, v, log_w, past, rates, a and b."""
    if tape.mode.recording or 0 in v.shape or 0 in q.shape:
        return _composed_vjp(*g, q, k, v, log_w, past, rates, a, b, before)
    call = _Call(q, k, v, log_w, past, rates, a, b, before)
    gy, gs = _dense(g[0], call.dtype), _dense(g[1], call.dtype)
    blocks, kind = -(-call.width // call.columns), call.params[1]
    each = (blocks, call.n, call.t, call.heads)
    dq, dk, dv = call.empty(*each, call.rows), call.empty(*each, call.rows), call.empty(*each[1:], call.width)
    dw = call.empty(*{"head": each, "row": (*each, call.rows), "outer": (*each[1:], call.width)}[kind])
    drates, dpast = (call.state() if x is not None else None for x in (rates, past))
    da, db = (call.empty(*each, call.rows) if x is not None else None for x in (a, b))
    found = [dq, dk, dv, dw, drates, da, db, dpast]
    call.reads += [gy, gs]
    first, chunks = [gy.ptr, gs.ptr, _ptr(call.past)], -(-call.t // CHUNK)
    more, writes = [_ptr(x) for x in found], [x for x in found if x is not None]
    parts = 5 * -(-call.rows // 16) * 16  # vectors whose sums are gradients
    call.launch("scan_state_vjp", first, more, 6 + CHUNK + chunks, writes, 4 * call.work, parts)

    def whole(x, like):
        """Added up over blocks of columns, and over the heads of a group."""
        if x is None:
            return None
        x = movement.select(x, 0, 0) if blocks == 1 else reduce.sum(x, 0)
        if like.shape[-2:] == (call.groups, call.rows) and call.groups < call.heads:
            x = reduce.sum(movement.unflatten(x, 2, (call.groups, -1)), 3)
        return movement.reshape(x, like.shape)

    dw = movement.reshape(dw, log_w.shape) if kind == "outer" else whole(dw, log_w)
    drates = drates if rates is None else reduce.sum(drates, 0)
    dpast = dpast if past is None else movement.reshape(dpast, past.shape)
    return whole(dq, q), whole(dk, k), movement.reshape(dv, v.shape), dw, dpast, drates, whole(da, a), whole(db, b)


def _per_token(x, inner, heads=None):
    """The tokens of x, its last `inner` dims behind; of groups, those of every head."""
    if heads is not None and x.shape[-2] < heads:
        x = movement.repeat_interleave(x, heads // x.shape[-2], x.ndim - 2)
    return [movement.select(x, -inner - 1, t) for t in range(x.shape[-inner - 1])]


def _composed_vjp(gy, gs, q, k, v, log_w, past, rates, a, b, before):
    """The same of other ops, token by token, to be differentiated again."""
    heads, groups, kind, t_dim = v.shape[-2], q.shape[-2], _kind(q, log_w, rates), v.ndim - 3
    down, across = (lambda x: movement.unsqueeze(x, -1)), (lambda x: movement.unsqueeze(x, -2))
    over_rows, over_columns = (lambda x: reduce.sum(x, -2)), (lambda x: reduce.sum(x, -1))
    qs, ks = (list(map(down, _per_token(x, 2, heads))) for x in (q, k))
    vs, gys = (list(map(across, _per_token(x, 2))) for x in (v, gy))
    more = [None if x is None else list(map(down, _per_token(x, 2))) for x in (a, b)]
    ws = _per_token(log_w, 1 if kind == "head" else 2)
    ws = [across(w) if kind == "outer" else down(down(w)) if kind == "head" else down(w) for w in ws]
    decays = [elementwise.exp(w if rates is None else w * rates) for w in ws]
    state = create.zeros(type(v), gs.shape, dtype=gs.dtype, device=gs.device) if past is None else past
    states = [state]
    for t, w in enumerate(decays):
        new = w * state + ks[t] * vs[t]
        state = new if a is None else new + more[1][t] * across(over_rows(more[0][t] * state))
        states.append(state)
    found = {name: [] for name in ("q", "k", "v", "w", "a", "b")}
    drates, big = None, gs
    for t in range(len(decays) - 1, -1, -1):
        p, w = states[t], decays[t]
        big = big if before else big + qs[t] * gys[t]
        found["q"].append(over_columns(gys[t] * (p if before else states[t + 1])))
        found["k"].append(over_columns(big * vs[t]))
        found["v"].append(over_rows(big * ks[t]))
        dw = big * p * w
        if kind == "outer":
            found["w"].append(over_rows(dw * rates))
            drates = dw * ws[t] if drates is None else drates + dw * ws[t]
        else:
            found["w"].append(over_columns(dw) if kind == "row" else over_columns(over_columns(dw)))
        new = w * big
        if a is not None:
            m, dm = across(over_rows(more[0][t] * p)), across(over_rows(more[1][t] * big))
            found["a"].append(over_columns(p * dm))
            found["b"].append(over_columns(big * m))
            new = new + more[0][t] * dm
        big = new + qs[t] * gys[t] if before else new
    if drates is not None and drates.ndim > 3:
        drates = reduce.sum(drates, tuple(range(drates.ndim - 3)))
    dq, dk, dv, dw, da, db = (movement.stack(x[::-1], t_dim) if x else None for x in found.values())
    if groups < heads and dq is not None:
        dq, dk = (reduce.sum(movement.unflatten(x, -2, (groups, -1)), -2) for x in (dq, dk))
    return dq, dk, dv, dw, big, drates, da, db


def _state_ref(np, q, k, v, log_w, past=None, rates=None, a=None, b=None, before=False):
    *lead, t, heads, width = v.shape
    rows, at = q.shape[-1], np.arange(heads) // (heads // q.shape[-2])
    q, k = q[..., at, :, None], k[..., at, :, None]
    kind, state = _kind(q[..., 0], log_w, rates), np.zeros((*lead, heads, rows, width)) if past is None else past
    y = np.zeros(v.shape)
    for i in range(t):
        w = log_w[..., i, :, None, None] if kind == "head" else log_w[..., i, :, :, None]
        w = w if kind != "outer" else log_w[..., i, :, None, :] * rates
        new = np.exp(w) * state + k[..., i, :, :, :] * v[..., i, :, None, :]
        if a is not None:
            new = new + b[..., i, :, :, None] * (a[..., i, :, :, None] * state).sum(-2)[..., None, :]
        y[..., i, :, :] = (q[..., i, :, :, :] * (state if before else new)).sum(-2)
        state = new
    return y, state


def _state_domain(s, dtype):
    batch = s.shape(max_dims=1, empty=False) if s.smooth else s.pick([(), (), (2,), (3, 1)])
    t = s.pick([1, 2, 3] if s.smooth else [0, 1, 2, 5, 17, 40])
    rows, width = (s.pick([1, 2]), s.pick([1, 2])) if s.smooth else (s.pick([1, 3, 8, 16]), s.pick([1, 5, 16, 33, 70]))
    groups, each = s.pick([1, 2]), s.pick([1, 2])
    kind, features = s.pick([("head", ""), ("row", "before"), ("row", "delta"), ("outer", "")])
    groups, each = (groups * each, 1) if kind == "row" else (groups, each)
    heads, lead = groups * each, (*batch, t)
    shape = {"head": (*lead, heads), "row": (*lead, heads, rows), "outer": (*lead, heads, width)}[kind]
    small = {"low": -2.0, "high": 2.0}
    q, k = (s.array((*lead, groups, rows), **small) for _ in range(2))
    v = s.array((*lead, heads, width), **small)
    given = {"past": s.array((*batch, heads, rows, width), **small)} if s.boolean() else {}
    if kind == "outer":
        given["rates"] = s.array((heads, rows, width), low=-3.0, high=-0.1)
    if features == "delta":
        given |= {name: s.array((*lead, heads, rows), low=-0.3, high=0.3) for name in "ab"}
    w = s.array(shape, low=0.0, high=2.0) if kind == "outer" else s.array(shape, low=-4.0, high=0.0)
    return (q, k, v, w), given | ({"before": True} if features == "before" else {})


_OPERANDS = ("q", "k", "v", "log_w", "past", "rates", "a", "b")


@define("fused", FLOAT_ONLY, _state_ref, arity=4, domain=_state_domain, vjp={_OPERANDS: _state_vjp})
def state_scan(q, k, v, log_w, past=None, rates=None, a=None, b=None, before=False):
    """(y, last S) of S_t = W_t * S_(t-1) + b_t (a_t S_(t-1)) + k_t v_t, y_t = q_t S_t, token by token.

    q, k [..., T, G, K]; v, y [..., T, H, V], G a divisor of H; S, past [..., H, K, V], zeros by default; W_t = e^log_w
    with log_w [..., T, H], or a number per row [..., T, H, K], or e^(log_w rates) of log_w [..., T, H, V] and rates
    [H, K, V]. a, b [..., T, H, K] or None. `before`: y_t = q_t S_(t-1). f16, bf16, f32, f64; y has v's dtype, S is f32
    or f64. Mamba (arXiv:2312.00752, 2405.21060) and RWKV (2404.05892, 2503.14456). ShapeError, DTypeError.

    >>> import tensorlib
    >>> one = tensorlib.ones(3, 1, 1)
    >>> state_scan(one, one, one, tensorlib.zeros(3, 1))[0].flatten()
    tensor([1., 2., 3.])
    """
    _check(q, k, v, log_w, past, rates, a, b)
    call = _Call(q, k, v, log_w, past, rates, a, b, before)
    y, last = call.empty(call.n, call.t, call.heads, call.width), call.state()
    if last.numel():
        call.launch("scan_state", [y.ptr, last.ptr, _ptr(call.past)], [], 3, (y, last), call.work)
    elif y.numel():
        y = create.zeros(type(v), y.shape, dtype=y.dtype, device=v.device)
    y = movement.reshape(_as(y, v.dtype.name), v.shape)
    return y, movement.reshape(last, (*v.shape[:-3], *last.shape[1:]))
