"""`check`: a function against its reference over many drawn calls."""

from tensorlib.registry import SAME, Op
from tensorlib.testing import gradients, rows
from tensorlib.testing.sampler import drawn, strategies


def few(examples):
    """Hypothesis settings of so many examples, the same ones every time; failures print how they are brought back.

    A profile of 1000 examples or more ("deep" in tests/conftest.py) draws that many, and others in every run.
    """
    from hypothesis import HealthCheck, Phase, settings

    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    deep = settings.default.max_examples >= 1000
    phases = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
    options = {"deadline": None, "derandomize": not deep, "report_multiple_bugs": False, "print_blob": True}
    examples = settings.default.max_examples if deep else examples
    return settings(max_examples=examples, phases=phases, suppress_health_check=quiet, **options)


def check(function, ref, domain=None, dtypes=("f32", "f64"), gradient=False, examples=25, ulps=None, rule=SAME):
    """Draws calls to function(*Tensors) and holds its results to ref(numpy, *arrays in float64).

    domain: (low, high) of every operand, a list of one such pair (or None) per operand, or a function (s, dtype) ->
    (args, kwargs) that draws a whole call with a `Sampler`. dtypes: that operands have. gradient: hold gradients to
    central differences, too. rule: what dtypes the op takes (`tensorlib.registry`). ulps: units in the last place that
    are allowed, by default 2. Raises AssertionError for the smallest failing call that was found.
    """
    strategies()  # says what to install if it is missing
    from hypothesis import given
    from hypothesis import strategies as st

    arity = len(domain) if isinstance(domain, list) else 1
    name = getattr(function, "__name__", "function")
    bounds = (
        domain if callable(domain) else tuple(d or (None, None) for d in domain) if isinstance(domain, list) else domain
    )
    op = Op(name, "unary" if arity == 1 else "binary", arity, rule, ref, "", bounds, {})
    op = op._replace(kind="composite", domain=rows.domain_of(op))

    @given(data=st.data())
    @few(examples)
    def run(data, dtype):
        rows.check_op(op, "cpu", dtype, drawn(data, dtype), function, ulps)

    @given(data=st.data())
    @few(examples)
    def slopes(data):
        args, kwargs = rows.draw(op, drawn(data, "f64", smooth=True))
        gradients.gradcheck(lambda *xs: function(*xs, **kwargs), args)

    for dtype in dtypes:
        run(dtype=dtype)
    if gradient:
        slopes()
