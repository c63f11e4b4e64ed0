"""Every op row on the GPU backend as Triton compiles it: the real dispatch, and the PTX in the simulator.

sm_80 sees all rows, sm_90 and sm_120 those whose code differs there (matrix products, attention) and one of each kind.
The simulator traps races, accesses outside of memory, misalignment and unwritten results' bytes are poison.
"""

import pytest

from tensorlib.testing import check_op, missing, seeded
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


def check(case, device, seeds):
    """Calls of seeds: Hypothesis's first is the simplest that there is, and a second one costs another compilation."""
    for seed in seeds:
        check_op(*case, seeded(seed, case[2]))
        device.check()


@pytest.mark.parametrize("device", [80], indirect=True)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_forward(case, device):
    check(case, device, [1])


@pytest.mark.parametrize("device", [90, 120], indirect=True)
@pytest.mark.parametrize("case", [c for c in CASES if c[0] in LATER], ids=ids)
def test_forward_on_later_architectures(case, device):
    check(case, device, [1, 2])
