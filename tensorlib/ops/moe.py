"""Mixtures of experts: each token goes through the few gated MLPs that a router chose for it."""

from tensorlib import backend, tape
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import elementwise, exchange, grouped, index, linalg, movement, norm, reduce, softmax, sort
from tensorlib.ops.precision import get_float32_matmul_precision
from tensorlib.registry import FLOAT_ONLY, define

BLOCK_ROWS = (16, 64, 128)  # kernels_triton/matmul_configs.py
MOST_EXPERTS = 512
# On the CPU, up to so many choices per expert: more are faster as one product per expert, whose weights are packed
# (128 experts of 1024 x 384, one thread: 4 choices in f32 37 and 38 ms, 8 63 and 52; 32 in q8_0 55 and 54)
CHOICES, CHOICES_OF_BLOCKS = 4, 32


def _ref(np, x, router_logits, w_gate_up, w_down, top_k, normalize=True):
    """Token by token."""
    p = np.exp(router_logits - router_logits.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    out = np.zeros_like(x)
    for at in np.ndindex(*x.shape[:-1]):
        chosen = np.argsort(-p[at], kind="stable")[:top_k]
        share = p[at][chosen] / (p[at][chosen].sum() if normalize else 1)
        for e, weight in zip(chosen, share):
            gate, up = np.split(w_gate_up[e] @ x[at], 2)
            out[at] += weight * (w_down[e] @ (gate / (1 + np.exp(-gate)) * up))
    return out


def _domain(s, dtype):
    import numpy as np

    tokens, experts, inner, d = s.integer(1, 5), s.integer(1, 5), s.integer(1, 4), s.integer(1, 5)
    ranks = np.argsort(s.array((tokens, experts)), -1)  # apart from each other: which are the largest is no question
    logits = (0.5 * ranks).astype(s.array((), dtype).dtype)
    weights = s.array((experts, 2 * inner, d), dtype, -2, 2), s.array((experts, d, inner), dtype, -2, 2)
    return (s.array((tokens, d), dtype, -2, 2), logits, *weights, s.integer(1, experts)), {"normalize": s.boolean()}


@define("composite", FLOAT_ONLY, _ref, arity=4, domain=_domain)
def moe(x, router_logits, w_gate_up, w_down, top_k, normalize=True):
    """Mixture of experts: the sum over a token's top_k experts of weight * down(silu(gate(x)) * up(x)).

    x (..., D); router_logits (..., E); w_gate_up (E, 2 I, D), gate above up, or a pair of the two, (E, I, D) each;
    w_down (E, D, I); result (..., D). Weights may be QTensors, which stay in blocks. The
    experts' shares are the softmax of the logits over all of them, in f32 or f64; `normalize` makes those of a token's
    experts sum to 1 (Mixtral, Qwen; Shazeer et al. 2017). Which launches do not depend on who is chosen: see `mix`.
    Raises ShapeError, DTypeError.

    >>> from tensorlib.device import Array
    >>> moe(Array.empty((3, 8)), Array.empty((3, 4)), Array.empty((4, 12, 8)), Array.empty((4, 8, 6)), 2).shape
    (3, 8)
    """
    _check(x, router_logits, w_gate_up, w_down, top_k)
    logits = movement.reshape(router_logits, (-1, router_logits.shape[-1]))
    weights, experts = sort.topk(softmax.softmax(elementwise.cast(logits, logits.dtype.compute), -1), top_k)
    if normalize:
        weights = elementwise.div(weights, reduce.sum(weights, -1, keepdim=True))
    return mix(x, weights, experts, w_gate_up, w_down)


def mix(x, weights, experts, w_gate_up, w_down):
    """`moe` of experts that were chosen before: x (..., D); weights and experts (T, top_k), a row per row of x.

    w_gate_up may be a pair instead: gate and up, (E, I, D) each. Without a gradient launches do not depend on what was
    chosen, nor wait for it, where these are recorded; on the CPU for up to `CHOICES` per expert; on a GPU for floats of
    one dtype and for blocks that are in planes there.
    """
    tokens = movement.reshape(x, (-1, x.shape[-1]))
    ups = w_gate_up if isinstance(w_gate_up, tuple) else (w_gate_up,)
    recorded = tape.used and tape.mode.recording and any(map(tape.live, (tokens, weights, *ups, w_down)))
    kinds = {"blocks" if hasattr(a, "format") else a.dtype.name for a in (x, *ups, w_down)}
    fused = not recorded and tokens.shape[0] and kinds <= {"f16", "bf16", "f32", "blocks"}
    fused = fused and weights.dtype.name == "f32"
    if fused and x.device.type != "cpu" and w_down.shape[0] <= MOST_EXPERTS:
        if kinds == {x.dtype.name}:
            return movement.reshape(_grouped(tokens, weights, experts, ups, w_down), x.shape)
        if all(getattr(w, "halves", False) for w in (*ups, w_down)):
            return movement.reshape(w_down.mixed(tokens, weights, experts, ups), x.shape)
    few = experts.numel() <= w_down.shape[0] * (CHOICES_OF_BLOCKS if hasattr(w_down, "format") else CHOICES)
    few = few if x.device.type == "cpu" else tokens.shape[0] == 1
    few = few or backend.recorder() is not None  # who is chosen when it is replayed is not known
    form = _few if fused and few else _by_expert
    return movement.reshape(form(tokens, weights, experts, w_gate_up, w_down), x.shape)


def _check(x, router_logits, w_gate_up, w_down, top_k):
    if isinstance(w_gate_up, tuple):  # of half as many rows, each
        for w in w_gate_up:
            _check_one(x, router_logits, w, w_down, top_k, 1)
    else:
        _check_one(x, router_logits, w_gate_up, w_down, top_k, 2)


def _check_one(x, router_logits, w_gate_up, w_down, top_k, halves):
    if w_gate_up.ndim != 3 or w_down.ndim != 3 or not x.ndim or not router_logits.ndim:
        shapes = [a.shape for a in (x, router_logits, w_gate_up, w_down)]
        raise ShapeError("moe", f"shapes {shapes}", "(..., D), (..., E), (E, 2 I, D), (E, D, I)", "reshape them")
    experts, d, inner = w_down.shape
    wanted = [(*x.shape[:-1], experts), (experts, halves * inner, d), (experts, d, inner)]
    shapes = [a.shape for a in (router_logits, w_gate_up, w_down)]
    if shapes != wanted or x.shape[-1] != d:
        got = f"x {x.shape}, router_logits {shapes[0]}, w_gate_up {shapes[1]}, w_down {shapes[2]}"
        raise ShapeError("moe", got, "(..., D), (..., E), (E, 2 I, D), (E, D, I)", "transpose or reshape them")
    if not 1 <= top_k <= experts:
        raise ShapeError("moe", f"top_k {top_k}", f"1 to {experts}", "choose as many experts as there are, or fewer")
    plain = [a for a in (x, router_logits, w_gate_up, w_down) if not hasattr(a, "format")]
    if any(a.dtype.kind != "f" for a in plain):
        dtypes = ", ".join(a.dtype.name for a in plain)
        raise DTypeError("moe", dtypes, "floats", "convert them with .to(dtype)")


def _gated(x, w_gate_up, product):
    """silu(gate) * up of x, by a function for the product with a weight."""
    if isinstance(w_gate_up, tuple):
        return norm.swiglu(*(product(x, w) for w in w_gate_up))
    hidden = product(x, w_gate_up)
    return norm.swiglu(*movement.chunk(hidden, 2, -1))


def _by_expert(x, weights, experts, w_gate_up, w_down):
    """The choices by expert, which is read; then one product per expert and weight."""
    (tokens, top_k), ids = weights.shape, movement.reshape(experts, -1)
    order = sort.argsort(ids, stable=True)
    ends, total = [], 0
    for count in exchange.tolist(sort.bincount(ids, minlength=w_down.shape[0])):
        total += count
        ends.append(total)

    def product(some, w):
        if hasattr(w, "format"):
            return w.grouped(some, ends)
        return grouped.grouped_mm(some, movement.transpose(w, 1, 2), ends)

    rows = index.index_select(x, 0, elementwise.floor_divide(order, top_k))
    y = index.index_select(product(_gated(rows, w_gate_up, product), w_down), 0, sort.argsort(order))
    y = movement.reshape(elementwise.cast(y, "f64" if x.dtype.name == "f64" else "f32"), (tokens, top_k, x.shape[1]))
    return elementwise.cast(reduce.sum(elementwise.mul(y, movement.unsqueeze(weights, -1)), 1), x.dtype)


def _few(x, weights, experts, w_gate_up, w_down):
    """The same by choice, in f32: kernels read which expert it is. Of several tokens the choices of one expert follow
    one another, so that its weights are read once.
    """
    (tokens, top_k), ids, rows, places = weights.shape, movement.reshape(experts, -1), elementwise.cast(x, "f32"), None
    if tokens > 1:
        order = sort.argsort(ids, stable=True)
        ids, places = index.index_select(ids, 0, order), sort.argsort(order)
        rows = index.index_select(rows, 0, elementwise.floor_divide(order, top_k))
    per = ids.numel() // rows.shape[0]
    if x.device.type == "cpu":
        hidden = _gated_choices(rows, ids, w_gate_up, per)
        return elementwise.cast(chosen(hidden, ids, w_down, 1, shares=weights, places=places), x.dtype)
    y = chosen(_gated(rows, w_gate_up, lambda some, w: chosen(some, ids, w, per)), ids, w_down, 1)
    y = movement.reshape(y if places is None else index.index_select(y, 0, places), (tokens, top_k, x.shape[1]))
    return elementwise.cast(reduce.sum(elementwise.mul(y, movement.unsqueeze(weights, -1)), 1), x.dtype)


def _gated_choices(x, ids, w_gate_up, per):
    """silu(gate) * up of every choice on the CPU: one launch, unless gate and up differ in kind."""
    if not isinstance(w_gate_up, tuple):
        return chosen(x, ids, w_gate_up, per, gated=True)
    gate, up = w_gate_up
    if getattr(gate, "format", gate.dtype) is getattr(up, "format", up.dtype):
        return chosen(x, ids, gate, per, gated=True, up=up)
    return norm.swiglu(chosen(x, ids, gate, per), chosen(x, ids, up, per))


def chosen(x, ids, w, per, gated=False, up=None, shares=None, places=None):
    """Row i // per of x [R, K] f32 times matrix ids[i] (i64) of w [E, N, K], transposed: [R per, N] f32.

    ids are read when the kernel runs; on the CPU one that is no matrix's gives NaN. There alone: `gated`, silu(gate) *
    up of such products, of w and up, or of the halves of w [E, 2 N, K]; with `shares` [T, top_k] the sums [T, N] over a
    token's choices, which are rows `places` (i64; None: in order) of the products. ShapeError.
    """
    if x.device.type != "cpu":
        w = w.gathered(ids) if hasattr(w, "format") else elementwise.cast(index.index_select(w, 0, ids), "f32")
        rows = movement.unsqueeze(movement.repeat_interleave(x, per, 0), -1)
        return movement.squeeze(linalg.matmul(w, rows), -1)
    x, ids, cls = movement.contiguous(x), movement.contiguous(ids), type(x)
    (many, height, k), rows = w.shape, ids.numel()
    if x.shape != (rows // per, k):
        raise ShapeError("chosen", f"x {x.shape}, {rows} ids, weight {w.shape}", "x [R, K], an id per row and choice")
    kernel, y, w, up = by_choice(w, x, up)
    n = height // 2 if gated and up is None else height
    out = more = cls.empty((rows, n), "f32", x.device)
    where, top_k, reads = [0, out.ptr, 0, 0], 1, [w, y, ids]
    if gated:
        more = cls.empty((rows, n), "f32", x.device)
        where[:2] = 1 if up is None else up.ptr, more.ptr
        reads += [] if up is None else [up]
    elif shares is not None:
        shares, top_k = movement.contiguous(shares), shares.shape[1]
        more = cls.empty((shares.shape[0], n), "f32", x.device)
        where[1:] = more.ptr, shares.ptr, 0 if places is None else places.ptr
        reads += [shares] if places is None else [shares, places]
    words = (w.ptr, y.ptr, out.ptr, n, k, ids.ptr, rows, per, many, height, top_k, *where)
    backend.launch(kernel, words, 2 * rows * height * k, reads, (out, more))
    return out if shares is None else more


def by_choice(w, x, up=None):
    """(the kernel of `chosen`, contiguous x as it reads that, w and up)."""
    if hasattr(w, "format"):
        return w.by_choice(x, up)
    kernel = backend.kernel("moe", "experts", w.dtype.name)
    return kernel, x, movement.contiguous(w), up if up is None else movement.contiguous(up)


def sorted_choices(experts, many):
    """(choices by expert, experts of blocks, rows of a block, how many blocks): see kernels_triton/moe.py."""
    experts = movement.contiguous(experts)
    n, device, cls = experts.numel(), experts.device, type(experts)
    rows = next((r for r in BLOCK_ROWS[:-1] if n <= r * many), BLOCK_ROWS[-1])
    # at most: each has a choice, each expert's last may be part-filled
    blocks = min(n, (n + many * (rows - 1)) // rows)
    ids, of_blocks = cls.empty((blocks * rows,), "i32", device), cls.empty((blocks,), "i32", device)
    places = cls.empty((-(-n // 64) * max(16, 1 << (many - 1).bit_length()),), "i32", device)
    words = [experts.ptr, ids.ptr, of_blocks.ptr, places.ptr, n, many, rows, blocks]
    kernel = backend.kernel("moe", "sort", device=device.type)
    backend.launch(kernel, words, n, (experts,), (ids, of_blocks, places))
    return ids, of_blocks, rows, blocks


def summed(parts, dtype):
    """Parts [top_k, T, D] f32 added up in their order: [T, D]."""
    top_k, tokens, d = parts.shape
    out = type(parts).empty((tokens, d), dtype, parts.device)
    kernel = backend.kernel("moe", "sum", out.dtype.name, device=out.device.type)
    backend.launch(kernel, [parts.ptr, out.ptr, tokens, d, top_k], top_k * tokens * d, (parts,), (out,))
    return out


def _grouped(x, weights, experts, ups, down):
    """The same on a GPU: choices by expert, both products for all experts at once, the sum over choices."""
    x, weights, down, *ups = map(movement.contiguous, (x, weights, down, *ups))
    (tokens, d), top_k, (many, _, inner) = x.shape, weights.shape[1], down.shape
    n, device, cls = tokens * top_k, x.device, type(x)
    ids, of_blocks, rows, blocks = sorted_choices(experts, many)
    hidden, parts = cls.empty((n, inner), x.dtype, device), cls.empty((top_k, tokens, d), "f32", device)
    params = (x.dtype.name, get_float32_matmul_precision() if x.dtype.name == "f32" else "highest")
    kernel = backend.kernel("moe", "gate_up", *params, device=device.type)
    stride = ups[0].numel() // many  # elements from an expert's gate to the next one's, and where the first up begins
    up = ups[1].ptr if len(ups) > 1 else ups[0].ptr + inner * d * x.dtype.itemsize
    words = [x.ptr, ups[0].ptr, up, hidden.ptr, ids.ptr, of_blocks.ptr]
    words += [n, top_k, many, inner, d, stride, rows, blocks]
    backend.launch(kernel, words, 2 * n * inner * d, (x, *ups, ids, of_blocks), (hidden,))
    kernel = backend.kernel("moe", "down", *params, device=device.type)
    words = [hidden.ptr, down.ptr, weights.ptr, parts.ptr, ids.ptr, of_blocks.ptr]
    words += [n, top_k, many, d, inner, d * inner, rows, blocks]
    backend.launch(kernel, words, n * inner * d, (hidden, down, ids, of_blocks, weights), (parts,))
    return summed(parts, x.dtype)
