"""The thread pool: scales, sleeps, survives fork, never runs more threads than there are cores."""

import os
import threading
import time

import pytest

from tensorlib import backend
from tensorlib.device import Array

linux = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")


def spin(pool, seconds):
    """Empty lists, one after the other; how many."""
    end, n = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        pool.play(0, 0)
        n += 1
    return n


def test_an_idle_pool_uses_no_cpu():
    pool = backend.backend().pool
    spin(pool, 0.05)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    # a spinning worker would use 0.5 s
    assert time.process_time() - before < 0.1


def test_wakes_after_sleep():
    pool = backend.backend().pool
    for _ in range(20):
        pool.play(0, 0)
        time.sleep(0.005)


@linux
def test_survives_fork():
    pool = backend.backend().pool
    spin(pool, 0.02)
    child = os.fork()
    if child == 0:
        try:
            cell = Array.empty((1,), "i64")
            backend.launch(backend.kernel("counter", "store"), (cell.ptr, 5), work=1 << 20, writes=(cell,))
            spin(backend.backend().pool, 0.02)
            os._exit(0)
        finally:
            os._exit(1)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        pytest.fail("the child hangs")
    assert status == 0
    spin(pool, 0.02)


def test_callers_at_once_share_without_deadlock():
    pool, counts = backend.backend().pool, []
    threads = [threading.Thread(target=lambda: counts.append(spin(pool, 0.2))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(counts) == 4 and min(counts) > 0
    assert pool._active == 0


@linux
def test_pinning_is_undone():
    pool, before = backend.backend().pool, os.sched_getaffinity(0)
    with pool.pinned():
        pool.play(0, 0)
    assert os.sched_getaffinity(0) == before
    with pytest.raises(KeyError), pool.pinned():
        raise KeyError
    assert os.sched_getaffinity(0) == before


@linux
def test_only_one_caller_is_pinned():
    """Two pinned callers would share the first core, and leave another idle."""
    pool, everywhere, seen = backend.backend().pool, os.sched_getaffinity(0), []

    def other():
        os.sched_setaffinity(0, everywhere)  # a new thread inherits its maker's
        with pool.pinned():
            seen.append(os.sched_getaffinity(0))

    for _ in range(2):  # and again: the first let go of it
        with pool.pinned():
            mine = os.sched_getaffinity(0)
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        assert mine == ({pool._cpus[0]} if pool._cpus else everywhere)
    assert seen == [everywhere] * 2


def test_number_of_threads_can_change():
    try:
        for n in (1, 3, 2):
            backend.set_num_threads(n)
            assert backend.threads() == n
            spin(backend.backend().pool, 0.01)
    finally:
        backend.set_num_threads(None)


def test_quota_of_cgroups(monkeypatch):
    from kernels_numba import driver

    files = {
        "/proc/self/cgroup": "0::/user/job\n",
        "/sys/fs/cgroup/user/job/cpu.max": "max 100000\n",
        "/sys/fs/cgroup/user/cpu.max": "150000 100000\n",
    }
    monkeypatch.setattr(driver, "_read", lambda path: files.get(path, "").split())
    assert driver._quota() == 1.5
    assert driver.cpu_count() == 1
    files["/proc/self/cgroup"] = "4:cpu,cpuacct:/job\n"
    files["/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us"] = "-1\n"
    files["/sys/fs/cgroup/cpu/job/cpu.cfs_period_us"] = "100000\n"
    assert driver._quota() is None
    files["/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us"] = "400000\n"
    assert driver._quota() == 4
