"""Every op row on the GPU backend as Triton compiles it: the real dispatch, and the PTX in the simulator.

sm_80 sees all rows, sm_90 and sm_120 those whose code differs there (matrix products, attention) and one of each kind.
The simulator traps races, accesses outside of memory, misalignment and unwritten results' bytes are poison.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlib.testing import check_op, drawn, few, missing
from tensorlib.testing.rows import cases, rows
from tests.sim.host import install
from tests.sim.simulated import Simulated

ROWS = rows()
KINDS = "add where exp cast sum argmax softmax cumsum sort gather scatter_add cat rms_norm conv2d max_pool2d rope"
LATER = frozenset(f"{KINDS} matmul linear bmm attention scaled_dot_product_attention".split())
DTYPES = ("f32", "f16", "i64")
CASES = [c for c in cases(DTYPES, ("cuda:0",)) if not missing(ROWS[c[0]])]


@pytest.fixture(scope="module")
def device(request):
    """A device "cuda:0" of the architecture."""
    gpu = GPUS.setdefault(request.param, Simulated(request.param))
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


GPUS: dict = {}  # compiled programs are kept


def ids(case):
    return "-".join(case) if isinstance(case, tuple) else None


def check(case, data, device):
    check_op(*case, drawn(data, case[2]))
    device.check()


@pytest.mark.parametrize("device", [80], indirect=True)
@pytest.mark.parametrize("case", CASES, ids=ids)
@given(data=st.data())
@few(1)
def test_forward(case, data, device):
    check(case, data, device)


@pytest.mark.parametrize("device", [90, 120], indirect=True)
@pytest.mark.parametrize("case", [c for c in CASES if c[0] in LATER], ids=ids)
@given(data=st.data())
@few(2)
def test_forward_on_later_architectures(case, data, device):
    check(case, data, device)
