"""Marks for functions that are compiled once per float type; `functions.scope` reads them in the source."""

INF, NAN = float("inf"), float("nan")  # in the type of the function that uses them
I0, I1, I2 = 0, 1, 2  # integers that stay integers there


def both(function):
    """For f32 and f64."""
    return function


def f32(function):
    """For f32."""
    return function


def f64(function):
    """For f64; f32 converts, unless it has a function of that name."""
    return function


def plain(function):
    """As it stands: literals are what Numba takes them for."""
    return function


def poly(x, *coefficients):
    """c0 + c1 x + c2 x^2 + ...: expanded into fused multiply-adds when the function is compiled."""
