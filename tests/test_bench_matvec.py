"""bench.matvec without its peer: cases, weights, comparison, tables; and a worker that answers."""

import argparse
import sys

import numpy as np
import pytest

from bench import matvec, ops, peers
from tensorlib.quant import decode, formats


@pytest.fixture(scope="module")
def worker_module():
    sys.path.insert(0, str(peers.WORKERS))
    try:
        import matvec_worker

        yield matvec_worker
    finally:
        sys.path.remove(str(peers.WORKERS))


@pytest.mark.parametrize("name", [*matvec.NAMES, *matvec.OTHERS])
def test_weights_are_numbers(name, worker_module):
    row = formats.get(name)
    case = matvec.case_of("cache", row) | {"n": 3}
    data = worker_module.blocks(case)
    assert data.shape == (3, row.row_bytes(case["k"]))
    w = decode.dequantize(np.ascontiguousarray(data).reshape(-1), row)
    assert np.isfinite(w).all() and 1e-4 < np.abs(w).mean() < 1000


def test_streams_do_not_fit_in_a_cache():
    for name in matvec.NAMES:
        case = matvec.case_of("memory", formats.get(name))
        assert case["copies"] * case["n"] * formats.get(name).row_bytes(case["k"]) >= 96 << 20


def test_the_faster_peer_counts():
    times = {matvec.OURS: [1.0], matvec.PLAIN: [3.0], matvec.REPACKED: [2.0]}
    alone = {matvec.OURS: [1.0]}
    lines, ratios = matvec.table([(1, "cache", "q4_0", times), (1, "cache", "q8_k", alone)], "cache")
    assert ratios == {("q4_0", 1): 2.0} and [line[-1] for line in lines] == ["2.00", "-"]


def test_results_are_compared():
    assert matvec.differ([1.0, 2.0], [1.0, 2.0]) == 0 and matvec.differ([1.0, 2.1], [1.0, 2.0]) > matvec.TOLERANCE


def test_dense_weights_are_the_peer_of_what_llama_cpp_has_not():
    options = argparse.Namespace(formats="nf4_64,f8_128")
    assert matvec.sides(options, "folder") == (matvec.OURS, *matvec.DENSE)
    values = {}
    for peer in (matvec.OURS, "tensorlib bf16"):
        worker = ops.Worker(peer, 1, "matvec_worker.py")
        case = matvec.case_of("cache", formats.get("nf4_64")) | {"n": 16, "k": 256, "copies": 2}
        values[peer] = worker.ask(prepare=case)["values"]
        worker.close()
    assert 0 < matvec.differ(*values.values()) < matvec.TOLERANCE


def test_a_worker_answers():
    worker = ops.Worker(matvec.OURS, 1, "matvec_worker.py")
    case = matvec.case_of("cache", formats.get("q4_0")) | {"n": 16, "k": 256, "copies": 2}
    values = worker.ask(prepare=case)["values"]
    assert len(values) == 16 and all(map(np.isfinite, values))
    assert all(t > 0 for t in worker.ask(turn=0.001)["times"])
    assert worker.ask(end=True) == {}
    worker.close()
