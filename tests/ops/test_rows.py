"""Every op row on every device: forward against its reference, memory, strides and threads, with no code per op.

A row is found by being there. What it is checked with is its `domain`, `ref`, `rule` and `vjp`; tests/grad/test_rows.py
does the gradients. A failure prints the call and the line that reproduces it.
"""

import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlib import tape
from tensorlib.device import Array
from tensorlib.errors import DTypeError, NoKernel
from tensorlib.registry import FUNCTIONS
from tensorlib.testing import check_op, drawn, few, missing, seeded
from tensorlib.testing.memory import bits, guarded, threads, watched
from tensorlib.testing.rows import ELEMENTWISE, call, cases, draw, rows, writes

ROWS = rows()
READY = [name for name, op in ROWS.items() if not missing(op)]


def ids(case):
    return "-".join(case) if isinstance(case, tuple) else None


# rows whose meaning takes more than a few lines of NumPy, and where it is tested instead
ELSEWHERE = {
    "affine_grid": "test_vision.py", "grid_sample": "test_vision.py", "ctc_loss": "test_derived.py",
    "fold": "test_arrange.py", "gumbel_softmax": "test_loss.py", "mode": "test_statistics.py",
    "stft": "test_fft.py", "istft": "test_fft.py",
}  # fmt: skip


def test_rows_are_complete():
    lacking = {name: missing(op) for name, op in ROWS.items() if missing(op) and name not in ELSEWHERE}
    assert not lacking, "\n".join(f"{name} lacks {', '.join(what)}" for name, what in lacking.items())
    for name, file in ELSEWHERE.items():
        assert missing(ROWS[name]) and f"{name}(" in (pathlib.Path(__file__).parent / file).read_text(), name


CASES = [c for c in cases() if c[0] in READY]


@pytest.mark.parametrize("case", [c for c in CASES if c[2] == "f32" or "f" not in ROWS[c[0]].rule.accepts], ids=ids)
@pytest.mark.quick
@given(data=st.data())
@few(15)
def test_forward(case, data):
    check_op(*case, drawn(data, case[2]))


@pytest.mark.parametrize("case", [c for c in CASES if c[2] != "f32" and "f" in ROWS[c[0]].rule.accepts], ids=ids)
@given(data=st.data())
@few(8)
def test_forward_in_other_dtypes(case, data):
    check_op(*case, drawn(data, case[2]))


def dtype_of(name):
    return next(c[2] for c in CASES if c[0] == name)


def redrawn(name, choices, **options):
    """The call that a list of choices stands for: the same every time, in other memory."""
    left = iter(choices)
    s = seeded(0, dtype_of(name), **options)
    s._draw = lambda low, high: next(left)
    return draw(ROWS[name], s)


def recorded(name, data, **options):
    """A drawn call, and the choices that made it."""
    made, s = [], drawn(data, dtype_of(name), **options)
    inner = s._draw
    s._draw = lambda low, high: made.append(inner(low, high)) or made[-1]
    return draw(ROWS[name], s), made


def dense(x):
    if isinstance(x, (list, tuple)):
        return type(x)(dense(v) for v in x)
    return x.copy(order="C") if isinstance(x, np.ndarray) else x


@pytest.mark.parametrize("name", READY)
@given(data=st.data())
@few(6)
def test_memory(name, data):
    """Operands end at pages that must not be touched; fresh memory is poisoned, twice; nothing beside it is written.

    Elementwise ops and those that move elements give the bits that contiguous operands do.
    """
    op, end = ROWS[name], data.draw(st.booleans())
    (args, kwargs), made = recorded(name, data, place=lambda row: guarded(row, end))
    found = []
    for poison in (0xA5, 0x3C):
        with watched(poison):
            found.append(bits(call(op, args, kwargs)))
        if writes(name):
            args, kwargs = redrawn(name, made)
    assert found[0] == found[1], "what was in fresh memory shows in the result"
    if op.kind not in (*ELEMENTWISE, "movement"):
        return  # sums are taken in an order that fits the strides
    args, kwargs = redrawn(name, made)
    with watched(0x3C):
        assert bits(call(op, dense(args), dense(kwargs))) == found[0], "strides change the result"


THREADED = [n for n in READY if ROWS[n].kind != "composite"]


@pytest.mark.parametrize("name", THREADED)
@given(data=st.data())
@few(3)
def test_results_do_not_depend_on_threads(name, data):
    made = recorded(name, data)[1]
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(bits(call(ROWS[name], *redrawn(name, made))))
    assert found[0] == found[1] == found[2]


def takes_out(name):
    return "out" in tape.parameters(FUNCTIONS[name].__wrapped__)[0]


INTO = [n for n in READY if ROWS[n].kind in ELEMENTWISE and n != "where" and takes_out(n)]


@pytest.mark.parametrize("name", INTO)
@given(data=st.data())
@few(4)
def test_in_place(name, data):
    """An op into its first operand, or into one that overlaps it, reads everything before it writes it."""
    op, s = ROWS[name], drawn(data, dtype_of(name))
    n = s.pick([1, 2, 7, 33, 130])
    low, high = op.domain[0] if op.domain and isinstance(op.domain[0], tuple) else (op.domain or (None, None))
    rng = np.random.default_rng(s.integer(0, 999))
    base = rng.uniform(low or -9, high or 9, n + 2).astype(_numpy(name))
    others = [rng.uniform(1, 7, n).astype(_numpy(name)) for _ in range(op.arity - 1)]
    for start in (1, 0, 2):  # itself, and shifted by one either way
        x = _tensor(base.copy())
        try:
            want = FUNCTIONS[name](x.narrow(0, 1, n), *map(_tensor, others))
            out = x.narrow(0, start, n)
            FUNCTIONS[name](x.narrow(0, 1, n), *map(_tensor, others), out=out)
        except (NoKernel, DTypeError) as e:
            assert out.dtype.kind != want.dtype.kind, e
            return
        assert np.array_equal(out.numpy(), want.to(out.dtype).numpy(), equal_nan=True)


def _numpy(name):
    return {"f32": np.float32, "i64": np.int64, "u8": np.uint8}[dtype_of(name)]


def _tensor(array):
    import tensorlib

    return tensorlib.from_numpy(array)


def test_arrays_that_overlap_themselves_are_not_written_to():
    import tensorlib
    from tensorlib.errors import ShapeError

    x = tensorlib.zeros(1).expand(3)
    assert isinstance(x, Array)
    for name in INTO:
        if ROWS[name].arity == 1 and "f" in ROWS[name].rule.accepts:
            with pytest.raises(ShapeError, match="share memory"):
                FUNCTIONS[name](tensorlib.ones(3), out=x)
