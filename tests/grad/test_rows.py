"""Gradients of every op row against central differences in f64, first and second ones, with no code per op."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlib.testing import check_gradient, drawn, few
from tensorlib.testing.rows import missing, results, rows

ROWS = {
    name: op
    for name, op in rows().items()
    if not missing(op) and "f" in results(op) and (op.vjp or op.kind == "composite")
}


@pytest.mark.parametrize("name", ROWS)
@given(data=st.data())
@few(6)
def test_gradient(name, data):
    check_gradient(name, "cpu", drawn(data, "f64", smooth=True))


@pytest.mark.parametrize("name", ROWS)
@given(data=st.data())
@few(2)
def test_second_gradient(name, data):
    check_gradient(name, "cpu", drawn(data, "f64", smooth=True), order=2)
