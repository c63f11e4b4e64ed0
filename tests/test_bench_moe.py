"""bench.moe without llama.cpp: its workers' results are compared, and its table."""

import pytest

from bench import matvec, moe, ops

SMALL = {"experts": 6, "top_k": 2, "hidden": 64, "width": 32, "tokens": 5}


def test_workers_agree():
    pytest.importorskip("transformers")
    workers = [ops.Worker(peer, 1, "moe_worker.py") for peer in (matvec.OURS, moe.TORCH)]
    times = matvec.measure(moe.case_of("step", "f32") | SMALL, workers, 1, 0.001)
    assert times.keys() == {matvec.OURS, moe.TORCH} and all(t > 0 for some in times.values() for t in some)
    blocks = matvec.measure(moe.case_of("step", "q8_0") | SMALL, workers, 1, 0.001)
    assert blocks.keys() == {matvec.OURS}
    for worker in workers:
        worker.close()


def test_the_faster_peer_counts():
    times = {matvec.OURS: [0.002], moe.TORCH: [0.003], matvec.PLAIN: [0.008], matvec.REPACKED: [0.004]}
    lines = moe.table([(2, "qwen3", "f32", times), (2, "step", "q4_k", {matvec.OURS: [0.001]})])
    assert lines[0] == ["qwen3", "f32", 2, "2", "3", "4", "1.50", "2.00"]
    assert lines[1][-2:] == ["-", "-"]
