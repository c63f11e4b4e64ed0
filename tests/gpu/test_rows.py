"""Every op row on the GPU against its reference, as tests/sim/interpreted/test_rows.py does it with fewer draws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlib.testing import check_op, drawn, few, missing
from tensorlib.testing.rows import cases, rows

ROWS = rows()
DTYPES = ("f32", "f16", "bf16", "i64")
CASES = [c for c in cases(DTYPES, ("cuda:0",)) if not missing(ROWS[c[0]])]


@pytest.mark.parametrize("case", CASES, ids="-".join)
@given(data=st.data())
@few(8)
def test_forward(case, data, device):
    check_op(*case, drawn(data, case[2]))
    device.check()
