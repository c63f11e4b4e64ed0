"""Every op row on the GPU backend, through the real dispatch, its Triton kernels interpreted: against its reference."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlib.testing import check_op, drawn, few, missing
from tensorlib.testing.rows import cases, rows

ROWS = rows()
CASES = [c for c in cases(devices=("cuda:0",)) if not missing(ROWS[c[0]])]


def ids(case):
    return "-".join(case) if isinstance(case, tuple) else None


@pytest.mark.parametrize("case", CASES, ids=ids)
@given(data=st.data())
@few(3)
def test_forward(case, data, device):
    check_op(*case, drawn(data, case[2]))
    device.check()
