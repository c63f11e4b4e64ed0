"""Integer arithmetic at its own width, which wraps; division that never traps; shifts that are always defined.

Numba would widen to 64 bits, and mixes of uint64 and int64 to float64.
"""

from llvmlite import ir
from numba.extending import register_jitable

from .scalar import _make, _same


def _integer(name, of_signed, of_unsigned=None):
    def lower(b, t, *x):
        return (of_signed if t[0].signed or of_unsigned is None else of_unsigned)(b, *x)

    return _make(name, _same, lower, of_signed.__code__.co_argcount - 1)


def _guarded(b, y, signed):
    """Divisor with 0 replaced by 1, and -1 too (the caller handles it): neither x / 0 nor INT_MIN / -1 may trap."""
    one = ir.Constant(y.type, 1)
    bad = b.icmp_unsigned("==", y, ir.Constant(y.type, 0))
    if signed:
        bad = b.or_(bad, b.icmp_unsigned("==", y, ir.Constant(y.type, -1)))
    return b.select(bad, one, y)


def _when(b, y, value, then, otherwise):
    return b.select(b.icmp_unsigned("==", y, ir.Constant(y.type, value)), then, otherwise)


def _floor_parts(b, x, y):
    """Quotient rounded down and remainder of the divisor's sign, for y other than 0 and -1."""
    zero, d = ir.Constant(x.type, 0), _guarded(b, y, True)
    q, r = b.sdiv(x, d), b.srem(x, d)
    wrong = b.and_(b.icmp_signed("!=", r, zero), b.icmp_signed("<", b.xor(r, d), zero))
    return b.sub(q, b.zext(wrong, x.type)), b.select(wrong, b.add(r, d), r)


def _idiv(b, x, y):
    zero = ir.Constant(x.type, 0)
    return _when(b, y, 0, zero, _when(b, y, -1, b.sub(zero, x), _floor_parts(b, x, y)[0]))


def _imod(b, x, y):
    zero = ir.Constant(x.type, 0)
    return _when(b, y, 0, zero, _when(b, y, -1, zero, _floor_parts(b, x, y)[1]))


def _imod_trunc(b, x, y):
    zero = ir.Constant(x.type, 0)
    return _when(b, y, 0, zero, _when(b, y, -1, zero, b.srem(x, _guarded(b, y, True))))


def _unsigned_parts(op):
    def lower(b, x, y):
        return _when(b, y, 0, ir.Constant(x.type, 0), getattr(b, op)(x, _guarded(b, y, False)))

    return lower


def _shift(op):
    """Shifts by the width or more (or by a negative count) give what shifting bit by bit would: 0, or the sign."""

    def lower(b, x, n):
        width = ir.Constant(x.type, x.type.width)
        inside = b.icmp_unsigned("<", n, width)
        value = getattr(b, op)(x, b.select(inside, n, ir.Constant(x.type, 0)))
        last = b.ashr(x, ir.Constant(x.type, x.type.width - 1)) if op == "ashr" else ir.Constant(x.type, 0)
        return b.select(inside, value, last)

    return lower


iadd, isub, imul = (_integer(n, f) for n, f in (
    ("iadd", lambda b, x, y: b.add(x, y)), ("isub", lambda b, x, y: b.sub(x, y)), ("imul", lambda b, x, y: b.mul(x, y)),
))  # fmt: skip
iand, ior, ixor = (_integer(n, f) for n, f in (
    ("iand", lambda b, x, y: b.and_(x, y)), ("ior", lambda b, x, y: b.or_(x, y)), ("ixor", lambda b, x, y: b.xor(x, y)),
))  # fmt: skip
ineg, inot = _integer("ineg", lambda b, x: b.neg(x)), _integer("inot", lambda b, x: b.not_(x))
idiv, imod = _integer("idiv", _idiv, _unsigned_parts("udiv")), _integer("imod", _imod, _unsigned_parts("urem"))
imod_trunc = _integer("imod_trunc", _imod_trunc, _unsigned_parts("urem"))
shl, shr = _integer("shl", _shift("shl")), _integer("shr", _shift("ashr"), _shift("lshr"))


def _choose(predicate):
    def choose(b, x, y):
        return b.select(b.icmp_signed(predicate, x, y), x, y)

    def choose_unsigned(b, x, y):
        return b.select(b.icmp_unsigned(predicate, x, y), x, y)

    return choose, choose_unsigned


imax, imin = _integer("imax", *_choose(">")), _integer("imin", *_choose("<"))


def _isign(b, x):
    zero, one = ir.Constant(x.type, 0), ir.Constant(x.type, 1)
    return b.select(b.icmp_signed(">", x, zero), one, b.ashr(x, ir.Constant(x.type, x.type.width - 1)))


def _usign(b, x):
    return b.zext(b.icmp_unsigned("!=", x, ir.Constant(x.type, 0)), x.type)


isign = _integer("isign", _isign, _usign)


def _iabs(b, x):
    return b.select(b.icmp_signed("<", x, ir.Constant(x.type, 0)), b.neg(x), x)


iabs = _integer("iabs", _iabs, lambda b, x: x)


def _one(b, x):
    return ir.Constant(x.type, 1)


one_of = _integer("one_of", _one)  # 1 in the type of x


@register_jitable
def ipow(x, n):
    """By squaring, wrapping. A negative power is 0, but for the bases 1 and -1."""
    one = one_of(x)
    if n < 0:
        unit = x == one or x == ineg(one)
        return (x if iand(n, one) != 0 else one) if unit else isub(x, x)
    result = one
    while n > 0:
        if iand(n, one) != 0:
            result = imul(result, x)
        x = imul(x, x)
        n = shr(n, one)
    return result
