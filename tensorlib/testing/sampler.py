"""What the checks draw: shapes, strides, offsets, values of every dtype with the special ones among them.

A Sampler turns one source of integers, `draw(low, high)`, into everything else, so that a case can be replayed: from
Hypothesis, which shrinks it, or from a seed. Rows use it to say what their arguments are:

    def domain(s, dtype):
        x = s.array(s.shape(min_dims=1))
        return (x, s.integer(-x.ndim, x.ndim - 1)), {"keepdim": s.boolean()}

>>> s = seeded(3, "f32")
>>> x = s.array((2, 3), low=0, high=1)
>>> x.shape, x.dtype.name, bool((x >= 0).all())
((2, 3), 'float32', True)
"""

import numpy as np

from tensorlib import dtype as _dtype

SIZES = (0, 1, 1, 2, 3, 5, 7, 17, 40)
# around the widths of vectors, of blocks of elements and of tiles in the kernels, and their odd remainders
EDGES = (15, 16, 31, 33, 63, 64, 65, 127, 129, 255, 257, 511, 512, 513, 1023, 1025, 4099)
LIMIT = 5000  # elements of an array at most
STRIDES = "plain plain transposed stepped reversed transposed stepped offset expanded windows".split()
VALUES = ("wide", "wide", "near zero", "halves", "equal")
SPECIAL = (0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan"), 1e-40, -1e-45, 0.5, -1.5, 2.5, 2.0, 1e5)


class Sampler:
    """Draws arguments for one call.

    draw: function (low, high) -> an integer in between, both included. dtype: of the arrays that name none.
    smooth: for gradients: few elements, bounded, none of the special values. place: function (row of values) -> the
    same in memory of one's own choice, see `tensorlib.testing.memory`.
    """

    def __init__(self, draw, dtype="f32", smooth=False, place=None):
        self._draw, self.dtype, self.smooth = draw, _dtype.get(dtype).name, smooth
        self._place, self._seeds = place or (lambda row: row), 0

    # ---- numbers and choices -----------------------------------------------------------------------------------------

    def integer(self, low, high):
        """An integer in [low, high]."""
        return self._draw(low, high) if low < high else low

    def boolean(self):
        """True or False."""
        return bool(self._draw(0, 1))

    def pick(self, sequence):
        """One element of a sequence."""
        sequence = tuple(sequence)
        return sequence[self.integer(0, len(sequence) - 1)]

    def order(self, sequence):
        """The elements of a sequence in a drawn order."""
        left = list(sequence)
        return [left.pop(self.integer(0, len(left) - 1)) for _ in range(len(left))]

    def generator(self):
        """A NumPy generator with a drawn seed, for many values at once."""
        self._seeds += 1  # the simplest draw gives every array a seed of 0: they shall differ all the same
        return np.random.default_rng((self._draw(0, 2**32 - 1), self._seeds))

    # ---- shapes ------------------------------------------------------------------------------------------------------

    def shape(self, min_dims=0, max_dims=4, empty=True):
        """0-d, empty, odd shapes and edges of blocks, of a few thousand elements at most; empty=False: no size of 0."""
        sizes = (1, 2, 2, 3) if self.smooth else SIZES
        limit, shape = (12 if self.smooth else LIMIT), []
        for _ in range(self.integer(min_dims, max(min_dims, min(max_dims, 3) if self.smooth else max_dims))):
            fit = [n for n in sizes if n * int(np.prod(shape)) <= limit and (n or empty)]
            shape.append(self.pick(fit or [1]))
        if shape and not self.smooth and not self.integer(0, 3):
            at = self.integer(0, len(shape) - 1)
            rest = int(np.prod(shape[:at] + shape[at + 1 :]))
            shape[at] = self.pick([n for n in EDGES if n * rest <= LIMIT] or [shape[at]])
        return tuple(shape)

    def long(self):
        """A shape of one long dim, over several blocks of most kernels, and at most two short ones."""
        return tuple(self.order([self.pick(EDGES[4:]), *(self.pick((1, 2, 3)) for _ in range(self.integer(0, 2)))]))

    def broadcastable(self, count, max_dims=4):
        """Shapes that broadcast with each other: the first whole, of the others leading dims dropped and sizes of 1."""
        whole, out = self.shape(0, max_dims), []
        for i in range(count):
            own = whole
            if (i and self.boolean()) or (count > 1 and not self.integer(0, 4)):
                own = tuple(1 if self.boolean() else n for n in whole[self.integer(0, len(whole)) :])
            out.append(own)
        return out

    def dims(self, ndim, several=True):
        """A reduction's `dim`: None, one dim (negative ones too), or some of them in any order."""
        if not ndim:
            return None
        some = self.order(range(ndim))[: self.integer(1, ndim)]
        choices = [None, some[0], some[0] - ndim]
        return self.pick([*choices, tuple(d - ndim * self.boolean() for d in some)] if several else choices)

    # ---- arrays ------------------------------------------------------------------------------------------------------

    def array(self, shape, dtype=None, low=None, high=None):
        """A NumPy array of a shape, strided in any way, with values of a dtype in [low, high].

        Without bounds, special values are among them: NaN, infinities, both zeros, denormals, the largest.
        """
        dtype = self.dtype if dtype is None else _dtype.get(dtype).name
        special = low is None and high is None and not self.smooth and not self.integer(0, 2)
        return self.within(shape, dtype, (low, high), special)

    def within(self, shape, dtype, bounds, special):
        """`array` that says for itself whether special values are wanted."""
        row = values(self.generator(), self.pick(VALUES), dtype, bounds, special, self.smooth)
        kind = self.pick(STRIDES[:5] if self.smooth else STRIDES)
        array = self.strided(kind, lambda n: self._place(row(n)), tuple(shape))
        masked = special and array.ndim and array.size and _dtype.get(dtype).is_float and dtype != "f8e4m3"
        if masked and array.flags.writeable and not self.integer(0, 3):  # a row of a mask in which nothing is seen
            array[self.integer(0, array.shape[0] - 1)] = -np.inf
        return array

    def strided(self, kind, row, shape):
        """An array of a shape over memory that `row(n)` gives, strided in one of the ways of STRIDES."""
        n, wanted = int(np.prod(shape)), row
        row = lambda count: wanted(int(count))  # noqa: E731
        if kind == "transposed" and len(shape) > 1:
            order = self.order(range(len(shape)))
            return row(n).reshape([shape[i] for i in order]).transpose(np.argsort(order))
        if kind == "stepped" and shape:
            step = self.integer(2, 3)
            return row(n * step).reshape(*shape[:-1], shape[-1] * step)[..., ::step]
        if kind == "reversed" and shape:
            return np.flip(row(n).reshape(shape), self.integer(0, len(shape) - 1))
        if kind == "offset":  # an odd address
            start = self.pick((1, 3))
            return row(n + start + 2)[start : n + start].reshape(shape)
        if kind == "expanded" and shape:
            dim = self.integer(0, len(shape) - 1)
            small = shape[:dim] + (1,) + shape[dim + 1 :]
            return np.broadcast_to(row(np.prod(small)).reshape(small), shape)
        if kind == "windows" and len(shape) > 1 and n:  # rows that overlap
            base = row(sum(shape[-2:]))
            size = base.itemsize
            strides = (*(0,) * (len(shape) - 2), size, size)
            found = np.ndarray(shape, base.dtype, base.view(np.uint8), 0, strides)
            found.flags.writeable = False
            return found
        return row(n).reshape(shape)


def values(rng, kind, dtype, bounds, special, smooth):
    """Function n -> a row of n values of a dtype: uniform in the bounds, small, multiples of a half, or all equal."""
    d = _dtype.get(dtype)
    make = _floats if d.kind == "f" else _integers

    def row(n):
        found = make(rng, kind, d, bounds, n, smooth)
        if special and n and d.kind == "f":
            odd = rng.random(n) < 0.1
            top = min(_dtype.info(d)[1], 1e150)  # of f64 the reference itself would overflow inside
            found[odd] = rng.choice(np.array([*SPECIAL, top, -top]), int(odd.sum()))
        with np.errstate(all="ignore"):
            return found.astype(d.numpy_dtype())

    return row


def _floats(rng, kind, d, bounds, n, smooth):
    low, high = (-1e3 if bounds[0] is None else bounds[0]), (1e3 if bounds[1] is None else bounds[1])
    limit = min(_dtype.info(d)[1], 1e300)
    low, high = max(low, -limit), min(high, limit)
    if smooth:  # a few units wide, inside the bounds: differences see nothing of what happens at their ends
        low, high = (max(low, -2.0), min(high, 2.0)) if low < 1.9 and high > -1.9 else (low, min(high, low + 4))
        low, high = low + 0.02 * (high - low), high - 0.02 * (high - low)
        return rng.uniform(low, high, n)
    out = rng.uniform(low, high, n)
    if kind == "near zero":
        small = out * np.exp(rng.uniform(-20, 0, n))
        out = np.where((small >= low) & (small <= high), small, out)
    elif kind == "halves":  # ties, integers and exact halves
        halves = np.round(2 * np.clip(out, max(low, -40), min(high, 40))) / 2
        out = np.where((halves >= low) & (halves <= high), halves, out)
    elif kind == "equal":
        out[:] = out[:1]
    return out


def _integers(rng, kind, d, bounds, n, smooth):
    least, most = (0, 1) if d.kind == "b" else _dtype.info(d)
    low, high = (least if bounds[0] is None else int(bounds[0])), (most if bounds[1] is None else int(bounds[1]))
    low, high = max(low, least), min(high, most)
    near = (max(low, -9), min(high, 9)) if low <= 9 and high >= -9 else (low, high)
    wide = rng.integers(low, high, n, dtype=np.uint64 if d.kind == "u" else np.int64, endpoint=True).astype(object)
    close = rng.integers(*near, n, endpoint=True).astype(object)
    out = close if kind in ("halves", "near zero") else np.where(rng.random(n) < 0.5, wide, close)
    if kind == "equal":
        out[:] = out[:1]
    ends = rng.random(n) < 0.05
    out[ends] = rng.choice(np.array([low, high], object), int(ends.sum()))
    return out


def seeded(seed, dtype="f32", **options):
    """A Sampler whose choices follow from a seed, without Hypothesis."""
    rng = np.random.default_rng(seed)
    return Sampler(lambda low, high: int(rng.integers(low, high, endpoint=True)), dtype, **options)


def drawn(data, dtype="f32", **options):
    """A Sampler backed by Hypothesis: `data` is what `st.data()` gives, or the `draw` of a composite strategy."""
    st = strategies()
    draw = getattr(data, "draw", data)
    return Sampler(lambda low, high: draw(st.integers(low, high)), dtype, **options)


def strategies():
    """hypothesis.strategies. ImportError that says what to install if it is missing."""
    try:
        from hypothesis import strategies as found
    except ImportError as e:
        raise ImportError('tensorlib.testing: got no package hypothesis; pip install "tensorlib[test]"') from e
    return found
