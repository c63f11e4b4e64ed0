"""Planted faults: each is trapped, spoils the result, or stands in a list of what is redundant, with the reason."""

import re

import numpy as np
import pytest

from tests.sim import errors
from tests.sim import kernels_for_tests as kernels
from tests.sim import kernels_of_matmul as products
from tests.sim.compile_for_tests import launch

SIZE, LIMIT = 128, 300_000


def run_matmul(arch, edit=None, **changed):
    """Largest error of a pipelined float16 product, as a multiple of what rounding may make of it."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((SIZE, SIZE)).astype(np.float16) for _ in range(2))
    c = np.zeros((SIZE, SIZE), np.float32)
    sizes = {"a": a, "b": b, "c": c, "M": SIZE, "N": SIZE, "K": SIZE, "a_row": SIZE, "b_row": SIZE} | changed
    consts = {"a_column": 1, "b_column": 1, "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "PRECISION": "ieee"}
    args = list(sizes.values())
    launch(products.matmul, arch, args, consts, grid=(2, 2), num_stages=3, edit=edit, limit=LIMIT)
    return error_of(c, a, b, 2.0**-23)


def error_of(c, a, b, unit):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.nan_to_num(np.abs(c - a @ b) / (np.abs(a) @ np.abs(b)), nan=np.inf).max() / (SIZE * unit)


def run_descriptors(arch, edit=None):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((SIZE, SIZE)).astype(np.float16) for _ in range(2))
    c = np.zeros((SIZE, SIZE), np.float16)
    consts = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}
    args = [a, b, c, SIZE, SIZE, SIZE]
    launch(products.matmul_descriptors, arch, args, consts, grid=(2, 2), num_stages=3, edit=edit, limit=LIMIT)
    return error_of(c, a, b, 2.0**-17)  # float16 output: 2**-11 of one element, SIZE of them make up the bound


def run_softmax(arch, edit=None):
    x = np.random.default_rng(0).standard_normal((4, 250)).astype(np.float32)
    out = np.zeros_like(x)
    launch(kernels.softmax, arch, [x, out, 250, 250], {"BLOCK": 256}, grid=(4,), edit=edit)
    e = np.exp(x - x.max(1, keepdims=True).astype(np.float64))
    want = e / e.sum(1, keepdims=True)
    return np.nan_to_num(np.abs(out / want - 1), nan=np.inf).max() / (300 * 2.0**-24)


SYNCHRONISATION = {
    "bar.sync": r"bar\.sync\s+0;",
    "cp.async.wait_group": r"cp\.async\.wait_group\s+\S+;",
    "cp.async.commit_group": r"cp\.async\.commit_group;",
    "wgmma.wait_group": r"wgmma\.wait_group\S*\s+\d+;",
    "wgmma.commit_group": r"wgmma\.commit_group\S*;",
    "fence.proxy.async": r"fence\.proxy\.async\S*;",
    "mbarrier.init": r"(@%p\d+ )?mbarrier\.init[^;]*;",
    "mbarrier.arrive": r"(@%p\d+ )?mbarrier\.arrive[^;]*;",
    "mbarrier.try_wait": r"mbarrier\.try_wait[^;]*;\s*@!complete[^;]*;",
    "TMA": r"(@%p\d+ )?cp\.async\.bulk\.tensor[^;]*;",
    "bulk.commit_group": r"(@%p\d+ )?cp\.async\.bulk\.commit_group[^;]*;",
    "bulk.wait_group": r"(@%p\d+ )?cp\.async\.bulk\.wait_group[^;]*;",
}
RUNS = {"matmul": run_matmul, "descriptors": run_descriptors, "softmax": run_softmax}

# (kernel, arch): kind: (ordinals that may be missing, why)
REDUNDANT = {
    ("softmax", 80): {},
    ("matmul", 80): {
        "bar.sync": ([0], "nothing was read yet when the pipeline fills"),
        "cp.async.commit_group": ([0], "the copies join the next group, which is waited for as early"),
    },
    ("matmul", 90): {
        "bar.sync": ([0], "nothing was read yet when the pipeline fills"),
        "cp.async.commit_group": ([0], "the copies join the next group, which is waited for as early"),
    },
    ("descriptors", 90): {
        "bar.sync": ([*range(11), 12, 15], "others stand between the same accesses, or one warp makes all of them"),
        "bulk.commit_group": ([0, 1, 2], "no bulk copy is open where a tensor map is made"),
        "bulk.wait_group": ([0, 1, 2], "no bulk copy is open where a tensor map is made"),
    },
}


def ptx_of(run, arch):
    kept = []
    assert run(arch, edit=lambda ptx: kept.append(ptx) or ptx) <= 1
    return kept[0]


@pytest.mark.parametrize("name, arch", REDUNDANT)
def test_every_synchronisation_that_is_removed_shows(name, arch):
    run = RUNS[name]
    ptx = ptx_of(run, arch)
    harmless = {}
    for kind, pattern in SYNCHRONISATION.items():
        for ordinal, found in enumerate(re.finditer(pattern, ptx)):
            try:
                error = run(arch, edit=lambda text, at=found: text[: at.start()] + text[at.end() :])
            except errors.SimTrap as trap:
                assert not isinstance(trap, errors.Unsupported), trap
                continue
            if error <= 1:
                harmless.setdefault(kind, []).append(ordinal)
    assert harmless == {kind: ordinals for kind, (ordinals, _) in REDUNDANT[name, arch].items()}


@pytest.mark.parametrize("name, arch", REDUNDANT)
def test_no_kernel_works_without_any_barrier(name, arch):
    with pytest.raises((errors.SharedRace, errors.MissingFence, errors.NotWaited)):
        RUNS[name](arch, edit=lambda ptx: re.sub(SYNCHRONISATION["bar.sync"], "", ptx))


def test_what_a_trap_says():
    """The thread, the program, the buffer, the instruction."""
    x, out = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    with pytest.raises(errors.OutOfBounds) as caught:
        launch(kernels.unary, 80, [x, out, 1003], {"OP": "neg", "BLOCK": 256}, grid=(4,))
    message = str(caught.value)
    assert "thread 116 of program (3, 0, 0)" in message or "thread 58 of program (3, 0, 0)" in message, message
    assert "0 bytes past the end of buffer argument 0" in message
    assert re.search(r"in unary, line \d+ of the PTX: @%p\d+ ld\.global\.b32", message)


def test_wrong_stride_reads_out_of_bounds():
    with pytest.raises(errors.OutOfBounds, match="past the end of buffer argument 0"):
        run_matmul(80, a_row=SIZE + 8)


@pytest.mark.parametrize("name", "NK")
def test_wrong_mask_bound(name):
    with pytest.raises((errors.OutOfBounds, errors.GridRace)):
        run_matmul(80, **{name: SIZE + 1})


def test_misaligned_pointer():
    """Code compiled for pointers that 16 divides, launched on a view that begins at its second element."""
    whole = np.zeros(SIZE * SIZE + 8, np.float16)
    with pytest.raises(errors.Misaligned, match=r"cp\.async"):
        run_matmul(80, a=whole[1 : 1 + SIZE * SIZE].reshape(SIZE, SIZE))


@pytest.mark.parametrize("batch", (1, 2, 4))
def test_missing_atomics(batch):
    """Programs in one batch read all before they write, in batches of one each reads what the last one wrote."""
    x, out = np.ones(1000, np.float32), np.zeros(1, np.float32)
    with pytest.raises(errors.GridRace):
        launch(kernels.sum_without_atomics, 80, [x, out, 1000], {"BLOCK": 256}, grid=(4,), batch=batch)
    launch(kernels.sum_without_atomics, 80, [x, out, 1000], {"BLOCK": 1024}, grid=(1,))  # alone it is right


@pytest.mark.parametrize("batch", (1, 3))
def test_programs_that_write_the_same_place(batch):
    out = np.full(100, -1, np.int32)
    with pytest.raises(errors.GridRace):
        launch(kernels.write_everywhere, 80, [out, 100], {"BLOCK": 128}, grid=(3,), batch=batch)


def test_the_last_program_must_wait_for_the_others():
    """A relaxed counter orders nothing: the partial sums may not be there."""
    x, partial = np.ones(4 * 128, np.float32), np.zeros(4, np.float32)
    count, out = np.zeros(1, np.int32), np.zeros(1, np.float32)
    consts = {"BLOCK": 128, "PROGRAMS": 4}
    relaxed = lambda ptx: ptx.replace("acq_rel", "relaxed")  # noqa: E731
    with pytest.raises(errors.GridRace):
        launch(kernels.last_program_sums, 80, [x, partial, count, out, 4], consts, grid=(4,), edit=relaxed)


@pytest.mark.parametrize("batch", (1, 2, 4))
@pytest.mark.parametrize("early", (True, False))
def test_what_is_not_released_at_the_counter(early, batch):
    """Stored after the atomic, or released at another place: the last program may miss it."""
    x, partial = np.ones(4 * 128, np.float32), np.zeros(4, np.float32)
    count, out = np.zeros(5, np.int32), np.zeros(1, np.float32)
    consts = {"BLOCK": 128, "PROGRAMS": 4, "EARLY": early}
    with pytest.raises(errors.GridRace, match="reads what another program of the same launch wrote"):
        launch(kernels.last_program_errs, 80, [x, partial, count, out, 4], consts, grid=(4,), batch=batch)


def test_programs_that_shift_in_place():
    """Each program reads one element of its neighbour."""
    x = np.arange(1025, dtype=np.float32)
    with pytest.raises(errors.GridRace):
        launch(kernels.unary, 80, [x[1:], x[:-1], 1024], {"OP": "neg", "BLOCK": 256}, grid=(4,), aligned=False)


def test_outputs_that_are_never_written():
    x, out = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    memory = launch(kernels.unary, 80, [x, out, 990], {"OP": "neg", "BLOCK": 256}, grid=(4,))
    assert memory.unwritten(out.ctypes.data, 4).tolist() == list(range(990, 1000))
    assert len(memory.unwritten(x.ctypes.data, 4)) == 1000
    memory.poison(out.ctypes.data)
    assert (out.view(np.uint32) == 0xA5A5A5A5).all() and len(memory.unwritten(out.ctypes.data, 4)) == 1000


def test_store_to_a_read_only_buffer():
    x, out = np.zeros(256, np.float32), np.zeros(256, np.float32)
    with pytest.raises(errors.ReadOnly, match="buffer argument 1"):
        launch(kernels.unary, 80, [x, out, 256], {"OP": "neg", "BLOCK": 256}, readonly=(1,))


def test_too_little_shared_memory():
    with pytest.raises(errors.OutOfBounds, match="shared"):
        run_softmax(80, edit=lambda ptx: re.sub(r"global_smem;", "global_smem+4096;", ptx))


def test_a_loop_without_end():
    x, out = np.array([7], np.int32), np.zeros(1, np.int32)
    forever = lambda ptx: re.sub(r"setp\.(ne|eq)\.b32(\s+%p\d+, %r\d+), 1;", r"setp.\1.b32\2, -5;", ptx)  # noqa: E731
    with pytest.raises(errors.EndlessLoop):
        launch(kernels.steps_until_one, 80, [x, out, 1], {}, edit=forever, limit=20_000)


def test_an_instruction_that_is_not_modelled():
    frob = lambda ptx: re.sub(r"mov\.u32(\s+%r\d+), %tid.x;", r"frobnicate.u32\1, %tid.x;", ptx)  # noqa: E731
    with pytest.raises(errors.Unsupported, match=r"frobnicate.u32 %r\d+, %tid.x"):
        run_softmax(80, edit=frob)


def test_a_failed_assertion_of_the_kernel():
    x, out = np.array([-1.0], np.float32), np.zeros(1, np.float32)
    with pytest.raises(errors.DeviceAssert, match="thread 0 of program"):
        launch(kernels.asserting, 80, [x, out], {"BLOCK": 1}, debug=True)
    x[0] = 1
    launch(kernels.asserting, 80, [x, out], {"BLOCK": 1}, debug=True)
    assert out[0] == 1


def test_reads_of_a_large_launch_are_kept_in_less_memory(monkeypatch):
    """The same checks where the reads are noted byte by byte instead of in a list."""
    monkeypatch.setattr("tests.sim.memory.READ_LOG", 0)
    with pytest.raises(errors.GridRace, match="one program reads what another one writes"):
        x, out = np.ones(1000, np.float32), np.zeros(1, np.float32)
        launch(kernels.sum_without_atomics, 80, [x, out, 1000], {"BLOCK": 256}, grid=(4,), batch=4, edit=one_writes)
    assert run_matmul(80) <= 1
    assert run_softmax(80) <= 1


def one_writes(ptx):
    """Only program 0 stores, so that all stores agree."""
    return re.sub(r"(@%p\d+) (st\.global\.b32)", r"mov.u32 %r1, %ctaid.x; setp.eq.b32 %p1, %r1, 0; @%p1 \2", ptx)
