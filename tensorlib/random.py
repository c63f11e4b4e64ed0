"""Random tensors from a counter (Philox 4x32-10): the same numbers for one seed on any number of threads.

A Generator is a seed and a counter of draws. Block b of draw d is Philox with the seed as its 64-bit key and
(b, d) as the low and high half of its 128-bit counter: four u32, the words 4 b to 4 b + 3 of the draw. Element i, in
row-major order whatever the strides, depends on (seed, d, i) alone. With w its word (words 2 i and 2 i + 1, the lower
first, where 64 bits are needed: f64, randint, randperm, multinomial; B is 32 or 64):

    uniform      the upper 24 bits of w as a number in [0, 1); 53 in f64, 11 in f16, 8 in bf16: never 1
    exponential  -log(1 - u), u = (w + 1/2) / 2**B; computed from the nearer of u and 1 - u: never 0 in f32 and f64
    normal       Box and Muller's transform (1958): elements 2 j and 2 j + 1 are r cos(t) and r sin(t),
                 r = sqrt(2 E) with E the exponential of word 2 j, t = 2 pi w / 2**B with w word 2 j + 1
    randint      low + floor(w (high - low) / 2**64): no division, a bias of (high - low) / 2**64 at most
    bernoulli    w / 2**32 < p; dropout keeps an element where w / 2**32 < 1 - p
    randperm     the indices of the n words w in stable ascending order
    multinomial  the first category whose cumulative weight exceeds uniform (53 bits) times the sum of the weights;
                 without replacement, the categories of the smallest exponential / weight, in order

Integers and uniforms are the same bits everywhere. Logarithms, sines and cosines are within 3 ulp, so that normals and
exponentials may differ in the last bits between processors with and without fused multiply-add.

`cls` is the class to make (Tensor's own functions, `tensorlib.rand` and so on, pass it). What a capture recorded draws
the same numbers at each replay.

>>> import tensorlib
>>> tensorlib.manual_seed(0)
>>> a, b = tensorlib.rand(3), tensorlib.rand(3)
>>> tensorlib.manual_seed(0)
>>> (tensorlib.rand(3) == a).all().item(), (a == b).any().item()
(True, False)
"""

from functools import reduce as fold
from math import prod

from tensorlib import backend, tape
from tensorlib import dtype as _dtype
from tensorlib.device import CPU, Array, Device
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import broadcast_shapes
from tensorlib.ops import create, elementwise, exchange, movement, reduce
from tensorlib.ops._launch import copy_into, writable
from tensorlib.ops.generator import COST, Generator, default, integer, manual_seed, signed
from tensorlib.ops.movement import sizes
from tensorlib.registry import SAME, Op

__all__ = [
    "Generator", "bernoulli", "bernoulli_", "default", "dropout", "exponential", "exponential_", "get_rng_state",
    "initial_seed", "manual_seed", "multinomial", "normal", "normal_", "rand", "randint", "randn", "randperm", "seed",
    "set_rng_state", "uniform", "uniform_",
]  # fmt: skip

seed, initial_seed = default.seed, default.initial_seed
get_rng_state, set_rng_state = default.get_state, default.set_state

SCRATCH = 4096  # bytes per thread, kernels_numba/distributions.py
_PRECISION = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}


# ---- one launch ------------------------------------------------------------------------------------------------------


def _draw(name, out, generator, arguments=(), params=(), reads=(), writes=()):
    """Fills a contiguous `out` with one draw (of a generator, or that a tuple (seed, counter) names); returns it."""
    seed, draw = generator if type(generator) is tuple else (generator or default).take()
    if out.numel():
        scratch = Array.empty((backend.threads(out.device.type) * SCRATCH,), "u8", out.device)
        words = [out.ptr, out.numel(), seed, draw, scratch.ptr, *arguments]
        _run((name, out.dtype.name, *params), words, out.numel() * COST, reads, (out, scratch, *writes))
    return out


def _recorded(vjp, writes=False):
    """Decorator: what is drawn does not depend on the operands, but for what `vjp` says (see `tensorlib.tape`)."""

    def decorate(function):
        op = Op(function.__name__.strip("_"), "random", 1, SAME, None, function.__doc__, None, vjp)
        return tape.recorded(op, function, writes)

    return decorate


_NOTHING = {"x": lambda g: None, "input": lambda g: None, "p": lambda g: None}
_fill = _recorded(_NOTHING, writes=True)


def _run(kernel, words, work, reads, writes):
    found = backend.kernel("distributions", *kernel, device=writes[0].device.type)
    backend.launch(found, words, work, reads, writes)


def _new(op, cls, shape, dtype, device, kinds="f"):
    shape, dtype = sizes(shape), _dtype.get(dtype or _dtype.f32)
    _require(op, min(shape, default=0) >= 0, f"shape {shape}", "sizes of 0 or more", "remove the negative size")
    if dtype.kind not in kinds:
        expected, fix = ("a float", "use randint") if kinds == "f" else ("an integer", "use rand")
        raise DTypeError(op, f"dtype {dtype}", expected, f"{fix}, or convert with .to(dtype)")
    return cls.empty(shape, dtype, CPU if device is None else Device(device))


def _in_place(op, x, draw):
    """Writes `draw(out)` for a contiguous `out` like x into x, a float tensor of any strides; returns x."""
    if x.dtype.kind != "f":
        raise DTypeError(op, f"a tensor of {x.dtype}", "a float tensor", "convert it with .to(dtype)")
    writable(op, x)
    if x.is_contiguous():
        return draw(x)
    return copy_into(x, draw(type(x).empty(x.shape, x.dtype, x.device)))


def _require(op, condition, got, expected, fix):
    if not condition:
        raise ShapeError(op, got, expected, fix)


# ---- floats ----------------------------------------------------------------------------------------------------------


def _fill_uniform(op, out, low, high, generator):
    low, high = _dtype.unpack(_dtype.pack([float(low), float(high)], out.dtype), out.dtype)
    limit = _dtype.info(out.dtype)[1]
    fine = low <= high and high - low <= limit
    _require(op, fine, f"low {low}, high {high}", f"low <= high, at most {limit} apart", "give a smaller range")
    top = _below(high, out.dtype) if low < high else high
    return _draw("uniform", out, generator, (low, high - low, top))


def _below(value, dtype):
    """The largest number of `dtype` below `value`, which is one."""
    bits = int.from_bytes(_dtype.pack([value or -0.0], dtype), "little") + (-1 if value > 0 else 1)
    return _dtype.unpack(bits.to_bytes(dtype.itemsize, "little"), dtype)[0]


def rand(cls, *shape, dtype=None, device=None, generator=None):
    """Uniform in [0, 1), never 1, in f32 unless dtype is another float. ShapeError, DTypeError."""
    return _fill_uniform("rand", _new("rand", cls, shape, dtype, device), 0.0, 1.0, generator)


def uniform(cls, low=0.0, high=1.0, size=(), dtype=None, device=None, generator=None):
    """Uniform in [low, high), of shape `size`, in f32 unless dtype is another float. ShapeError, DTypeError."""
    return _fill_uniform("uniform", _new("uniform", cls, (size,), dtype, device), low, high, generator)


@_fill
def uniform_(x, low=0.0, high=1.0, *, generator=None):
    """Fills x with numbers uniform in [low, high); returns it. ShapeError, DTypeError."""
    return _in_place("uniform_", x, lambda out: _fill_uniform("uniform_", out, low, high, generator))


def randn(cls, *shape, dtype=None, device=None, generator=None):
    """Normal with mean 0 and variance 1, in f32 unless dtype is another float. ShapeError, DTypeError."""
    return _fill_normal("randn", _new("randn", cls, shape, dtype, device), 0.0, 1.0, generator)


def _fill_normal(op, out, mean, std, generator):
    _require(op, std >= 0, f"std {std}", "0 or more", "give a standard deviation, not a variance or its sign")
    return _draw("normal", out, generator, (float(mean), float(std)))


def normal(cls, mean=0.0, std=1.0, size=None, dtype=None, device=None, generator=None):
    """Normal. `mean` and `std` are numbers, with a shape `size`, or float tensors that broadcast, or one of each.

    f32 unless dtype is another float; the promoted dtype of tensors. ShapeError (also for a negative std), DTypeError.

    >>> import tensorlib
    >>> means = tensorlib.arange(3, dtype="f32") * 100
    >>> normal(tensorlib.Tensor, means, 0.5, generator=Generator(1)).div(100).round()
    tensor([0., 1., 2.])
    """
    given = [v for v in (mean, std) if isinstance(v, Array)]
    if not given:
        out = _new("normal", cls, (() if size is None else size,), dtype, device)
        return _fill_normal("normal", out, mean, std, generator)
    _require("normal", size is None, f"tensors and size {size}", "one of them", "leave the size out")
    shape = broadcast_shapes("normal", *(v.shape for v in given))
    out = _new("normal", cls, shape, dtype or fold(_dtype.promote, (v.dtype for v in given)), given[0].device)
    least = exchange.item(reduce.amin(std)) if isinstance(std, Array) and std.numel() else std
    _require("normal", isinstance(least, Array) or least >= 0, f"std {least}", "0 or more", "give standard deviations")
    out = _fill_normal("normal", out, 0.0, 1.0, generator)
    return elementwise.cast(elementwise.add(elementwise.mul(out, std), mean), out.dtype)


@_fill
def normal_(x, mean=0.0, std=1.0, *, generator=None):
    """Fills x with normal numbers; returns it. ShapeError for a negative std, DTypeError."""
    return _in_place("normal_", x, lambda out: _fill_normal("normal_", out, mean, std, generator))


def exponential(cls, rate=1.0, size=(), dtype=None, device=None, generator=None):
    """Exponential with the given rate (mean 1 / rate), in f32 unless dtype is another float. ShapeError, DTypeError."""
    return _fill_exponential("exponential", _new("exponential", cls, (size,), dtype, device), rate, generator)


@_fill
def exponential_(x, lambd=1.0, *, generator=None):
    """Fills x with exponential numbers of rate `lambd`; returns it. ShapeError, DTypeError."""
    return _in_place("exponential_", x, lambda out: _fill_exponential("exponential_", out, lambd, generator))


def _fill_exponential(op, out, rate, generator):
    _require(op, rate > 0, f"a rate of {rate}", "more than 0", "give 1 / mean")
    return _draw("exponential", out, generator, (float(rate),))


# ---- integers --------------------------------------------------------------------------------------------------------


def randint(cls, low, high=None, size=(), dtype=None, device=None, generator=None):
    """Integers in [low, high), or in [0, low) if high is None; i64 unless dtype says otherwise (floats hold them too).
    ShapeError, DTypeError.

    >>> import tensorlib
    >>> tensorlib.randint(5, 6, (3,))
    tensor([5, 5, 5])
    """
    low, high = (0, low) if high is None else (low, high)
    low, high = (integer("randint", "a bound", v) for v in (low, high))
    dtype = _dtype.get(dtype or _dtype.i64)
    out = _new("randint", cls, (size,), dtype, device, "buif")
    exact = 1 << _PRECISION.get(dtype.name, 3)  # up to here a float holds every integer
    least, most = (-exact, exact) if dtype.kind == "f" else _dtype.info(dtype)
    expected = f"low < high within {dtype}: {least} to {most}"
    fine = least <= low < high <= most + 1
    _require("randint", fine, f"low {low}, high {high}", expected, "swap them or use a wider dtype")
    return _draw("randint", out, generator, (signed(low), signed((high - low) % (1 << 64))))


def randperm(cls, n, dtype=None, device=None, generator=None):
    """0 to n - 1 in random order, each order equally likely; i64 unless dtype is another integer.
    ShapeError for a negative n or one that the dtype cannot hold, DTypeError.

    >>> import tensorlib
    >>> sorted(randperm(tensorlib.Tensor, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    n, dtype = integer("randperm", "a count", n), _dtype.get(dtype or _dtype.i64)
    out = _new("randperm", cls, (n,), dtype, device, "ui")
    _require("randperm", n <= _dtype.info(dtype)[1] + 1, f"{n} numbers in {dtype}", "fewer", "use a wider dtype")
    keys = (generator or default).words(Array, 2 * n, out.device)
    if n:
        bits = max(1, n.bit_length() - 3)
        starts, ordered, ids = (Array.empty((m,), "u64", out.device) for m in ((1 << bits) + 1, n, n))
        words = [out.ptr, n, keys.ptr, bits, starts.ptr, ordered.ptr, ids.ptr]
        _run(("permutation", dtype.name), words, 0, (keys,), (out, starts, ordered, ids))
    return out


# ---- choices ---------------------------------------------------------------------------------------------------------


@_recorded(_NOTHING)
def bernoulli(input, p=None, *, generator=None):
    """1 with the probability that each element of `input` gives (or with `p` for all), else 0; of input's shape and
    dtype. ShapeError for probabilities outside [0, 1], DTypeError where they are not floats.

    >>> import tensorlib
    >>> tensorlib.bernoulli(tensorlib.tensor([0.0, 1.0]))
    tensor([0., 1.])
    """
    out = type(input).empty(input.shape, input.dtype, input.device)
    return _fill_bernoulli("bernoulli", out, input if p is None else p, generator)


@_fill
def bernoulli_(x, p=0.5, *, generator=None):
    """Fills x, of any dtype, with 1 (with probability p, a number or a tensor that broadcasts) and 0; returns it."""
    writable("bernoulli_", x)
    out = type(x).empty(x.shape, x.dtype, x.device)
    return copy_into(x, _fill_bernoulli("bernoulli_", out, p, generator))


def _fill_bernoulli(op, out, p, generator):
    if isinstance(p, Array):
        if p.dtype.kind != "f":
            raise DTypeError(op, f"probabilities of {p.dtype}", "floats", "convert them with .to('f32')")
        p, step = movement.contiguous(movement.expand(p, out.shape)), 1
        p = p if p.dtype in (_dtype.f32, _dtype.f64) else elementwise.cast(p, _dtype.f32)
    else:
        p, step = create.full(Array, (1,), float(p), "f64", out.device), 0
    flag = create.zeros(Array, 1, dtype="i64", device=out.device)
    _draw("bernoulli", out, generator, (p.ptr, step, flag.ptr), (p.dtype.name,), (p,), (flag,))
    _require(op, not exchange.item(flag), "a probability outside [0, 1]", "0 <= p <= 1", "clamp it")
    return out


def dropout(input, p=0.5, training=True, *, generator=None):
    """Each element 0 with probability p, else divided by 1 - p; `input` itself if not training or p is 0.

    Its gradient is dropout, of the same elements, of the gradient. ShapeError for a p outside [0, 1], DTypeError for
    what is not a float tensor.
    """
    _require("dropout", 0 <= p <= 1, f"p = {p}", "0 <= p <= 1", "give the probability of an element to become 0")
    if input.dtype.kind != "f":
        raise DTypeError("dropout", f"a tensor of {input.dtype}", "a float tensor", "convert it with .to(dtype)")
    return _dropped(input, p, (generator or default).take()) if training and p else input


@_recorded({"x": lambda g, p, draw: _dropped(g, p, draw)})
def _dropped(x, p, draw):
    x = movement.contiguous(x)
    out = type(x).empty(x.shape, x.dtype, x.device)
    arguments = (x.ptr, 1.0 - p, 1 / (1 - p) if p < 1 else 0.0)
    return _draw("dropout", out, draw, arguments, (x.dtype.name,), (x,))


@_recorded({})
def multinomial(input, num_samples, replacement=False, *, generator=None):
    """Indices of categories by their weights: input (C,) or (B, C), floats of 0 or more -> i64 (num_samples,) or
    (B, num_samples). Weights need not add up to 1. Without replacement no category comes twice.

    ShapeError for other shapes, for negative, infinite or NaN weights, for fewer weights above 0 than are needed;
    DTypeError for what is not a float.

    >>> import tensorlib
    >>> multinomial(tensorlib.tensor([0.0, 2.0, 0.0]), 3, replacement=True)
    tensor([1, 1, 1])
    """
    op, count = "multinomial", integer("multinomial", "num_samples", num_samples)
    if input.dtype.kind != "f":
        raise DTypeError(op, f"weights of {input.dtype}", "floats", "convert them with .to('f32')")
    fits = input.ndim in (1, 2) and input.shape[-1] > 0
    _require(op, fits, f"shape {input.shape}", "(categories,) or (batch, categories)", "reshape the weights")
    _require(op, count > 0, f"num_samples {count}", "1 or more", "ask for a sample")
    rows, n = prod(input.shape[:-1]), input.shape[-1]
    weights = movement.contiguous(elementwise.cast(input, "f64"))
    sums, counts = Array.empty((rows, n), "f64", input.device), Array.empty((rows,), "i64", input.device)
    _run(("cumulate",), [weights.ptr, rows, n, sums.ptr, counts.ptr], rows * n, (weights,), (sums, counts))
    found = exchange.tolist(counts)
    _require(op, -1 not in found, "a negative, infinite or NaN weight", "0 or more, finite", "clamp the weights")
    needed = 1 if replacement else count
    fewest, fix = min(found, default=needed), "ask for fewer samples, or sample with replacement"
    _require(op, fewest >= needed, f"{fewest} weights above 0", f"at least {needed} in every row", fix)
    out = type(input).empty((*input.shape[:-1], count), _dtype.i64, input.device)
    if replacement:
        return _draw(op, out, generator, (sums.ptr, n, count), (), (sums,))
    keys = _draw("race", Array.empty((rows, n), "f64", input.device), generator, (weights.ptr,), (), (weights,))
    _run(("first",), [keys.ptr, rows, n, count, out.ptr], rows * n, (keys,), (out,))
    return out
