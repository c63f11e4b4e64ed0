"""PyTorch's op_db: its sample inputs give PyTorch's results, what it refuses is refused by an error of ours.

Of each op a few samples, in f32 (integers where it takes no floats); `python -m tests.ops.opdb` runs all of them.
"""

import warnings

import pytest

pytest.importorskip("expecttest", reason="pip install expecttest: torch.testing's op_db needs it")

from tests.ops import opdb
from tests.ops.opdb_listed import ERRORS, LISTED

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

SAMPLES = 4
OPS = [op for op in op_db if opdb.function_of(op) is not None]
REFUSING = [op for op in OPS if op.error_inputs_func is not None]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", OPS, ids=opdb.full_name)
def test_samples(op):
    function, wrong = opdb.function_of(op), []
    for dtype, sample in opdb.samples(op, SAMPLES):
        outcome = opdb.run(op, sample, function)
        if outcome.kind in ("error", "differs") and not opdb.reason(LISTED, op, outcome.text):
            wrong.append(f"{dtype} {outcome.kind}: {outcome.text}\n  {str(sample)[:300]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", REFUSING, ids=opdb.full_name)
def test_errors(op):
    found = opdb.errors(op, opdb.function_of(op))
    wrong = [e.text for e in found if e.kind != "passed" and not opdb.reason(ERRORS, op, e.text)]
    assert not wrong, "\n".join(wrong)


def test_names_in_the_table_exist():
    known = {opdb.full_name(op) for op in OPS} | {op.name for op in OPS} | {"*"}
    assert not {name for name, _, _ in (*LISTED, *ERRORS)} - known
