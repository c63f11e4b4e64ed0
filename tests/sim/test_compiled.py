"""The committed table of compiled kernels (bench/results/compiled.csv): it is that of these kernels, and within limits.

What a kernel is compiled from has a hash in the table. Where that is another one now, the kernel is compiled here and
must give the row that is committed: `python -m bench.compiled` writes the table anew. The limits are what a good kernel
of its family reaches: no spills, wide loads, matrix instructions where there is a product, few instructions per item.
"""

import functools
import random
import re

import pytest

from bench import compiled
from kernels_triton import report
from kernels_triton.launch import SHARED

TABLE = compiled.read()
CHECKED = 12  # kernels that are compiled here although their hash is the committed one
FEW = 40  # changed kernels that are compiled here at most; more take too long for a test
NVIDIA = ("80", "89", "90", "100", "120")

# (rooms, kernels, architectures, {column: (largest value, or a pattern that the text must have)})
LIMITS = [
    ("elementwise", "add (f32|bf16)(, a number)?", NVIDIA, {"per_item": 8, "registers": 42, "loads": "128"}),
    ("elementwise", "(where|lt|copy) [^,]*", NVIDIA, {"per_item": 8, "registers": 42}),
    ("elementwise", ".*(rows|bias|column|4 dims).*", NVIDIA, {"per_item": 14, "registers": 48, "loads": "128"}),
    ("elementwise", ".*any strides", NVIDIA, {"per_item": 72, "registers": 64}),
    ("elementwise|reduce|index|softmax", ".*", NVIDIA, {"stack": 0}),
    ("norm", "(rms|layer)_norm of.*", NVIDIA, {"stack": 0, "loads": "128", "registers": 64, "per_item": 12}),
    ("softmax", "softmax rows.*", NVIDIA, {"loads": "128", "registers": 64, "per_item": 12}),
    ("matmul", "f16 128x(128|256)x.*", ("80",), {"stack": 0, "mma": "HMMA", "per_mma": 3.2, "loads": r"^\d+x128"}),
    ("matmul", "f16 128x256x64", ("90",), {"stack": 0, "mma": "HGMMA", "per_mma": 35, "loads": "128|tma"}),
    ("matmul", "(f16|bf16).*128x256.*", ("100",), {"stack": 0, "mma": "UTC"}),
    ("matmul", "tf32 128.*", ("80", "89", "120"), {"stack": 0, "mma": "HMMA"}),
    ("matmul", "f64.*", ("80", "90"), {"stack": 0, "mma": "DMMA"}),
    ("conv", "conv f16 .*channels last", ("80", "90"), {"stack": 0, "mma": "HG?MMA", "loads": "128"}),
    ("attention", "f16 f16 (64|128)", ("80", "90"), {"stack": 0, "mma": "HG?MMA", "loads": "128", "compares": 6}),
    ("attention", "f16 f16 (64|128)", ("80",), {"per_mma": 8}),
    ("attention", "decode f(16|32) f16 (64|128)", ("80", "90"), {"stack": 0, "registers": 128, "loads": "128"}),
    ("attention_vjp", "(keys|queries|delta) (b?f16) (64|128)", ("80", "90"), {"stack": 64}),
    ("quant", "matvec q4_(0|k)", ("80", "89", "90"), {"per_item": 2.5, "registers": 64, "stack": 0, "loads": "128"}),
    ("quant_matmul", "matmul q4_k 128", ("80",), {"stack": 0, "mma": "HMMA", "per_mma": 8.5}),
    ("moe_quant", ".* (16|64) rows", NVIDIA, {"stack": 0, "mma": "HG?MMA|UTC"}),
    ("sort", "(f16|f32) .*", NVIDIA, {"stack": 0, "registers": 128}),
    ("lapack|householder|jacobi|optim|scan_state", ".*", NVIDIA, {"stack": 0}),
    ("scan_state_vjp", ".*", NVIDIA, {"stack": 16}),
]

# what is not within them, all of it, and what it is at worst: a better kernel takes its line away
LISTED = {
    # no instruction before sm_89: five, and two more to put bytes together
    ("elementwise", "copy f8e4m3 f32", "per_item"): "80",  # 9.38
    # what lies behind a row's end in its tile, more than a third of it: every element is set and selected anew
    ("norm", "layer_norm of 5000 bf16", "per_item"): "80 89 90 100 120",  # 14.06
    ("norm", "layer_norm of 5000 f32", "per_item"): "80 89 90 100 120",  # 13.12
    ("softmax", "softmax rows of 5000 f32", "per_item"): "80 89 90 100 120",  # 13.31
    # two stages of adding up between 16 warps, of two reductions
    ("softmax", "softmax rows of 16384 f32", "per_item"): "120",  # 12.31
    # the last program joins the segments in the same launch; within 5 % of cuDNN's time on an H200
    ("attention", "decode f16 f16 64", "registers"): "80 90",  # 255
    ("attention", "decode f16 f16 128", "registers"): "80 90",  # 212
    ("attention", "decode f32 f16 64", "registers"): "80 90",  # 255
    ("attention", "decode f32 f16 128", "registers"): "80 90",  # 251
    # a warp has a row: 14.3 us where 4 warps on 4 rows take 18.6 (H200, 14336 x 4096)
    ("quant", "matvec q4_0", "registers"): "90",  # 80
    ("quant", "matvec q4_k", "registers"): "90",  # 88
    # 4 warps: 0.8 ms for 4096 rows where 8 take 1.2 (H200)
    ("sort", "f32 4096", "registers"): "80 89 90 100 120",  # 228
    ("sort", "f32 4096", "stack"): "120",  # 8
}
MISSES = {(room, kernel, arch, column) for (room, kernel, column), some in LISTED.items() for arch in some.split()}


@functools.cache
def current():
    """The hashes of the kernels there are."""
    return compiled.wanted_anew()


def beyond(value, limit):
    """Whether a cell is not within its limit."""
    if isinstance(limit, str):
        return not re.search(limit, value)
    return value == "" or float(value) > limit


def test_every_kernel_is_in_the_table():
    lacking, gone = current().keys() - TABLE.keys(), TABLE.keys() - current().keys()
    assert not lacking and not gone, (
        f"python -m bench.compiled: {sorted(lacking)[:5]} lack, {sorted(gone)[:5]} are gone"
    )


def test_the_table_is_that_of_these_kernels():
    """Those that have changed, and some that have not, are compiled: the same registers, widths and instructions."""
    hashes = current()
    changed = [key for key in hashes if TABLE.get(key, {}).get("hash") != hashes[key]]
    assert len(changed) <= FEW, f"{len(changed)} kernels have changed, {changed[:5]} ...: python -m bench.compiled"
    light = [key for key in hashes if not key[0].startswith(("attention", "matmul", "moe", "persistent"))]
    for key in [*changed, *random.Random(len(hashes)).sample(sorted(light), CHECKED)]:
        found = {column: str(value) for column, value in compiled.measured(key).items()}
        committed = {column: TABLE[key][column] for column in found}
        assert found == committed, f"{' '.join(key)}: run python -m bench.compiled"


def misses(limit):
    """{(room, kernel, arch, column): what it is} of all that is not within one limit."""
    rooms, kernels, architectures, columns = limit
    rows = [
        row
        for (room, kernel, arch), row in TABLE.items()
        if re.fullmatch(rooms, room) and re.fullmatch(kernels, kernel) and arch in architectures
    ]
    assert rows, "no kernel of that name"
    return {
        (row["room"], row["kernel"], row["arch"], column): f"{row[column]!r}, limit {bound}"
        for row in rows
        for column, bound in columns.items()
        if beyond(row[column], bound)
    }


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: f"{limit[0]} {limit[1]}")
def test_limits(limit):
    bad = misses(limit)
    new = bad.keys() - MISSES
    assert not new, "\n".join(f"{' '.join(key)} {bad[key]}" for key in new)


def test_known_misses_are_misses():
    """None of those that are listed stands there for nothing."""
    assert {key for limit in LIMITS for key in misses(limit)} == MISSES


def test_shared_memory_fits():
    bad = [key for key, row in TABLE.items() if key[2].isdigit() and int(row["shared"]) > SHARED[int(key[2])]]
    assert not bad


def test_what_a_fault_does_to_the_table():
    """A changed kernel has another hash, so the table notices it."""
    kernel = report.variants("elementwise", 80)["add f32"]
    before, warps = report.digest(kernel, 80), kernel.warps
    try:
        kernel.warps = 2 * warps
        assert report.digest(kernel, 80) != before
    finally:
        kernel.warps = warps


SASS = """
        /*0000*/                   UISETP.GE.AND UP0, UPT, UR8, UR4, UPT ;
        /*0010*/                   BRA.U UP0, `(.L_x_0) ;
        /*0020*/                   LDG.E.128 R4, desc[UR8][R2.64] ;
        /*0030*/                   STG.E.128 desc[UR8][R2.64], R4 ;
        /*0040*/                   EXIT ;
.L_x_0:
        /*0050*/                   ISETP.GE.AND P0, PT, R2, 0x1, PT ;
        /*0060*/              @!P0 EXIT ;
.L_x_1:
        /*0070*/                   LDG.E R4, desc[UR8][R2.64] ;
        /*0080*/                   STG.E desc[UR8][R2.64], R4 ;
        /*0090*/               @P0 BRA `(.L_x_1) ;
        /*00a0*/                   EXIT ;
"""


@pytest.mark.parametrize(
    "text, length", [(SASS, 5), (SASS.replace("STG.E.128", "STG.E"), 5), (SASS.replace("@P0 BRA `(.L_x_1)", "NOP"), 5)]
)
def test_the_way_of_whole_blocks(text, length):
    """Neither the ragged end's loop nor its straight code is counted; a branch by a uniform predicate is one."""
    assert report._wide_path(*report._instructions(text)) == length
