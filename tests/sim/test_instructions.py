"""Single PTX instructions against Python's integers and fractions, and small programs that no compiler would write."""

import fractions
import math
import struct

import numpy as np
import pytest

from tests.sim import errors
from tests.sim.machine import Program
from tests.sim.memory import Global

THREADS = 64
BITS = {"b8": "u1", "b16": "u2", "b32": "u4", "b64": "u8", "f32": "f4", "f64": "f8"}
HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n.extern .shared .align 16 .b8 global_smem[];\n"


def program(body, pointers, threads=THREADS, declarations=""):
    """A kernel with `pointers` parameters in %rd1 and on, %r1 the thread; more registers than anyone needs."""
    params = ",\n".join(f".param .u64 k_param_{i}" for i in range(pointers))
    loads = "\n".join(f"ld.param.b64 %rd{i + 1}, [k_param_{i}];" for i in range(pointers))
    return f"""{HEADER}.visible .entry k(
{params}
)
.reqntid {threads}
{{
.reg .pred %p<20>;
.reg .b16 %rs<20>;
.reg .b32 %r<60>;
.reg .b64 %rd<60>;
{declarations}
{loads}
mov.u32 %r1, %tid.x;
{body}
ret;
}}
"""


def run(body, arrays, grid=(1,), threads=THREADS, shared=0, declarations="", **options):
    memory = Global()
    for i, array in enumerate(arrays):
        memory.add(array.ctypes.data, array.nbytes, f"array {i}")
    text = program(body, len(arrays), threads, declarations)
    addresses = [array.ctypes.data for array in arrays]
    Program(text).run(memory, grid, threads // 32, shared, addresses, arch=90, **options)
    return memory


def one(instruction, kinds, *operands):
    """The results of one instruction on arrays of THREADS operands: "op d, a, b" with the types of d and of each."""
    names = {"b8": "%rs", "b16": "%rs", "b32": "%r", "f32": "%r", "b64": "%rd", "f64": "%rd"}
    arrays = [np.ascontiguousarray(array) for array in operands]
    out = np.zeros(THREADS, BITS[kinds[0]])
    body = ""
    for i, kind in enumerate(kinds):
        size = np.dtype(BITS[kind]).itemsize
        body += f"mad.wide.u32 %rd{30 + i}, %r1, {size}, %rd{i + 1};\n"
        if i:
            body += f"ld.global.b{8 * size} {names[kind]}{10 + i}, [%rd{30 + i}];\n"
    registers = [f"{names[kind]}{10 + i}" for i, kind in enumerate(kinds)]
    body += instruction.format(*registers) + ";\n"
    body += f"st.global.b{8 * out.itemsize} [%rd30], {registers[0]};"
    run(body, [out, *arrays])
    return out


def bits(seed, kind):
    dtype = np.dtype(BITS[kind])
    values = np.random.default_rng(seed).integers(0, 2 ** (8 * dtype.itemsize), THREADS, dtype=f"u{dtype.itemsize}")
    values[:4] = (0, 1, 2 ** (8 * dtype.itemsize) - 1, 2 ** (8 * dtype.itemsize - 1))
    return values.view(dtype)


def permuted(a, b, selector):
    data = list((a | b << 32).to_bytes(8, "little"))
    out = 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = data[nibble & 7]
        out |= (255 * (byte >> 7) if nibble & 8 else byte) << 8 * i
    return out


def table_of_three(table):
    return lambda a, b, c: sum(
        (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1) << i for i in range(32)
    )


def signed(value, width=32):
    return value - (1 << width) if value >> width - 1 & 1 else value


def field(a, start, count):
    start, count = start & 255, count & 255
    return (a >> start & ((1 << count) - 1)) & 0xFFFFFFFF if start < 32 else 0


def signed_field(a, start, count):
    """PTX: bits beyond the word, and above the field, are its sign: that of the field's last bit or the word's."""
    start, count = start & 255, count & 255
    if count == 0:
        return 0
    top = a >> min(start + count - 1, 31) & 1
    low = sum((a >> start + i & 1 if start + i < 32 else top) << i for i in range(min(count, 32)))
    return (low | -top << min(count, 32)) & 0xFFFFFFFF


def inserted(new, old, start, count):
    mask = ((1 << count) - 1) << start & 0xFFFFFFFF
    return new << start & mask | old & ~mask & 0xFFFFFFFF


def dot(a, b, c):
    pieces = [v.to_bytes(4, "little") for v in (a, b)]
    return (c + sum(signed(x, 8) * signed(y, 8) for x, y in zip(*pieces))) & 0xFFFFFFFF


LOW = 0xFFFFFFFF
INTEGER = {
    "prmt.b32 {}, {}, {}, {}": permuted,
    "lop3.b32 {}, {}, {}, {}, 0x6a": table_of_three(0x6A),
    "lop3.b32 {}, {}, {}, {}, 0xe8": table_of_three(0xE8),
    "shf.l.wrap.b32 {}, {}, {}, {}": lambda a, b, n: ((a | b << 32) << (n & 31)) >> 32 & LOW,
    "shf.r.clamp.b32 {}, {}, {}, {}": lambda a, b, n: (a | b << 32) >> min(n, 32) & LOW,
    "shl.b32 {}, {}, {}": lambda a, n: a << n & LOW if n < 32 else 0,
    "shr.u32 {}, {}, {}": lambda a, n: a >> n if n < 32 else 0,
    "shr.s32 {}, {}, {}": lambda a, n: signed(a) >> min(n, 31) & LOW,
    "mul.hi.u32 {}, {}, {}": lambda a, b: a * b >> 32,
    "mul.hi.s32 {}, {}, {}": lambda a, b: signed(a) * signed(b) >> 32 & LOW,
    "mad.lo.s32 {}, {}, {}, {}": lambda a, b, c: a * b + c & LOW,
    "mad.hi.u32 {}, {}, {}, {}": lambda a, b, c: (a * b >> 32) + c & LOW,
    "min.s32 {}, {}, {}": lambda a, b: min(a, b, key=signed),
    "max.u32 {}, {}, {}": max,
    "div.u32 {}, {}, {}": lambda a, b: a // b if b else LOW,
    "div.s32 {}, {}, {}": lambda a, b: int(fractions.Fraction(signed(a), signed(b))) & LOW if b else LOW,
    "rem.s32 {}, {}, {}": lambda a, b: int(math.copysign(abs(signed(a)) % abs(signed(b)), signed(a))) & LOW if b else a,
    "bfind.u32 {}, {}": lambda a: a.bit_length() - 1 & LOW,
    "clz.b32 {}, {}": lambda a: 32 - a.bit_length(),
    "popc.b32 {}, {}": int.bit_count,
    "brev.b32 {}, {}": lambda a: int(f"{a:032b}"[::-1], 2),
    "dp4a.s32.s32 {}, {}, {}, {}": dot,
    "cvt.s32.s8 {}, {}": lambda a: signed(a & 255, 8) & LOW,
    "cvt.u32.u16 {}, {}": lambda a: a & 0xFFFF,
    "cnot.b32 {}, {}": lambda a: int(a == 0),
    "add.sat.s32 {}, {}, {}": lambda a, b: min(max(signed(a) + signed(b), -(2**31)), 2**31 - 1) & LOW,
}  # fmt: skip


@pytest.mark.parametrize("instruction", INTEGER)
def test_words(instruction):
    count = instruction.count("{}")
    operands = [bits(i, "b32") for i in range(count - 1)]
    if instruction.startswith(("shf", "shl", "shr")):
        operands[-1] = operands[-1] % np.uint32(40)
    got = one(instruction, ["b32"] * count, *operands)
    assert got.tolist() == [INTEGER[instruction](*map(int, row)) for row in zip(*operands)]


@pytest.mark.parametrize("instruction, function", (("bfe.u32", field), ("bfe.s32", signed_field)))
def test_fields(instruction, function):
    rng = np.random.default_rng(5)
    start, count = rng.integers(0, 34, THREADS).astype("u4"), rng.integers(0, 34, THREADS).astype("u4")
    value = bits(1, "b32")
    got = one(instruction + " {}, {}, {}, {}", ["b32"] * 4, value, start, count)
    assert got.tolist() == [function(*map(int, row)) for row in zip(value, start, count)]


def test_inserted_fields():
    rng = np.random.default_rng(6)
    start, count = rng.integers(0, 32, THREADS).astype("u4"), rng.integers(0, 33, THREADS).astype("u4")
    new, old = bits(1, "b32"), bits(2, "b32")
    got = one("bfi.b32 {}, {}, {}, {}, {}", ["b32"] * 5, new, old, start, count)
    assert got.tolist() == [inserted(*map(int, row)) for row in zip(new, old, start, count)]


WIDE = 2**64 - 1
LONG = {
    "mul.hi.u64 {}, {}, {}": lambda a, b: a * b >> 64,
    "mul.hi.s64 {}, {}, {}": lambda a, b: signed(a, 64) * signed(b, 64) >> 64 & WIDE,
    "mul.lo.s64 {}, {}, {}": lambda a, b: a * b & WIDE,
    "mad.lo.u64 {}, {}, {}, {}": lambda a, b, c: a * b + c & WIDE,
    "div.u64 {}, {}, {}": lambda a, b: a // b if b else WIDE,
    "rem.u64 {}, {}, {}": lambda a, b: a % b if b else a,
    "clz.b64 {}, {}": lambda a: 64 - a.bit_length(),
}  # fmt: skip


@pytest.mark.parametrize("instruction", LONG)
def test_long_words(instruction):
    count = instruction.count("{}")
    operands = [bits(i, "b64") for i in range(count - 1)]
    got = one(instruction, ["b32" if instruction[0] == "c" else "b64"] + ["b64"] * (count - 1), *operands)
    assert got.tolist() == [LONG[instruction](*map(int, row)) for row in zip(*operands)]


def test_sums_of_three_words_through_the_carry():
    """A 96-bit sum, and the difference back."""
    a, b = bits(1, "b64"), bits(2, "b64")
    text = """
{{ .reg .b32 x<2>; .reg .b32 y<2>; .reg .b32 z<3>;
mov.b64 {{x0, x1}}, {1}; mov.b64 {{y0, y1}}, {2};
add.cc.u32 z0, x0, y0; addc.cc.u32 z1, x1, y1; addc.u32 z2, 0, 0;
sub.cc.u32 z0, z0, y0; subc.cc.u32 z1, z1, y1; subc.u32 z2, z2, 0;
mov.b64 {0}, {{z0, z1}}; add.u64 {0}, {0}, {3}; cvt.u64.u32 {3}, z2; sub.u64 {0}, {0}, {3}; }}"""
    zero = np.zeros(THREADS, "u8")
    assert (one(text.strip(), ["b64"] * 4, a, b, zero) == a).all()


def test_products_of_three_words_through_the_carry():
    a, b = bits(3, "b64"), bits(4, "b32")
    text = """
{{ .reg .b32 x<2>; .reg .b32 z<3>; mov.b64 {{x0, x1}}, {1};
mad.lo.cc.u32 z0, x0, {2}, 0; madc.hi.u32 z1, x0, {2}, 0;
mad.lo.cc.u32 z1, x1, {2}, z1; madc.hi.u32 z2, x1, {2}, 0; mov.b64 {0}, {{z1, z2}}; }}"""
    got = one(text.strip(), ["b64", "b64", "b32"], a, b)
    assert got.tolist() == [int(x) * int(y) >> 32 for x, y in zip(a, b)]


def nearest(value, dtype):
    """A fraction rounded once, to nearest even."""
    near = dtype(float(value))  # maybe off by one where float() rounded before
    around = [np.nextafter(near, dtype(-np.inf)), near, np.nextafter(near, dtype(np.inf))]
    return min(around, key=lambda v: (abs(fractions.Fraction(float(v)) - value), v.view(f"u{v.itemsize}") & 1))


@pytest.mark.parametrize("kind", ("f32", "f64"))
def test_fma_rounds_once(kind):
    """Operands whose product lies close to a tie, so that a second rounding would show."""
    dtype = np.dtype(BITS[kind]).type
    rng = np.random.default_rng(7)
    half = 12 if kind == "f32" else 26
    a = (1 + rng.integers(0, 2**half, THREADS) * 2.0**-half).astype(dtype)
    b = (1 + rng.integers(0, 2**half, THREADS) * 2.0**-half).astype(dtype)
    c = (rng.choice([-1, 1], THREADS) * np.exp2(-rng.integers(0, 60, THREADS))).astype(dtype)
    got = one(f"fma.rn.{kind} {{}}, {{}}, {{}}, {{}}", [kind] * 4, a, b, c)
    want = [nearest(fractions.Fraction(float(x)) * fractions.Fraction(float(y)) + fractions.Fraction(float(z)), dtype)
            for x, y, z in zip(a, b, c)]  # fmt: skip
    assert got.tolist() == [float(v) for v in want]


def test_zeros_have_an_order():
    zeros = np.resize(np.array([0.0, -0.0, 0.0, -0.0], "f4"), THREADS)
    other = np.resize(np.array([0.0, 0.0, -0.0, -0.0], "f4"), THREADS)
    least, most = (one(f"{name}.f32 {{}}, {{}}, {{}}", ["f32"] * 3, zeros, other) for name in ("min", "max"))
    assert (np.signbit(least) == np.signbit(zeros) | np.signbit(other)).all()
    assert (np.signbit(most) == np.signbit(zeros) & np.signbit(other)).all()


def bf16(values):
    """Bits of numbers that bfloat16 holds."""
    return (np.asarray(values, "f4").view("u4") >> np.uint32(16)).astype("u2")


def test_fma_of_bfloat16_rounds_once():
    """Products halfway between two bfloat16, and a little more: by way of float32 they would go to the even one."""
    pairs = [(a, b) for a in range(128, 256) for b in range(a, 256) if halfway_to_even(a * b)][:THREADS]
    a, b = np.resize(np.array(pairs, "f4"), (THREADS, 2)).T
    got = one("fma.rn.bf16 {}, {}, {}, {}", ["b16"] * 4, bf16(a), bf16(b), bf16(np.full(THREADS, 2.0**-20)))
    product = (a * b).astype(int)
    shift = np.array([int(p).bit_length() - 8 for p in product])
    assert (got == bf16(((product >> shift) + 1) << shift)).all()


def halfway_to_even(product):
    shift = product.bit_length() - 8
    return product & ((1 << shift) - 1) == 1 << (shift - 1) and (product >> shift) % 2 == 0


def test_flushed_subnormals():
    a, b = np.full(THREADS, 1e-39, "f4"), np.full(THREADS, 1e30, "f4")
    assert (one("mul.ftz.f32 {}, {}, {}", ["f32"] * 3, a, b) == 0).all()
    assert (one("mul.f32 {}, {}, {}", ["f32"] * 3, a, b) == a * b).all()


@pytest.mark.parametrize("direction, towards", (("rz", 0), ("rm", -np.inf), ("rp", np.inf)))
def test_directed_rounding(direction, towards):
    a, b = np.float32(1) + bits(1, "b32") % 1000 * np.float32(2**-23), np.full(THREADS, -(2.0**-30), "f4")
    exact = a.astype("f8") + b
    near = exact.astype("f4")
    beyond = np.abs(near) > np.abs(exact) if towards == 0 else (near > exact if towards < 0 else near < exact)
    want = np.where(beyond, np.nextafter(near, np.float32(towards)), near)
    assert (one(f"add.{direction}.f32 {{}}, {{}}, {{}}", ["f32"] * 3, a.astype("f4"), b) == want).all()


def test_conversions_to_integers_saturate():
    x = np.resize(np.array([1e20, -1e20, np.nan, 300.7, -0.5, 2.5, 3.5], "f4"), THREADS)
    assert one("cvt.rni.s32.f32 {}, {}", ["b32", "f32"], x).view("i4")[:7].tolist() == [
        2**31 - 1, -(2**31), 0, 301, 0, 2, 4
    ]  # fmt: skip
    assert one("cvt.rzi.u32.f32 {}, {}", ["b32", "f32"], x)[:5].tolist() == [2**32 - 1, 0, 0, 300, 0]


def test_tf32_ties_go_away_from_zero():
    x = np.full(THREADS, struct.unpack("<f", struct.pack("<I", 0x3F801000))[0], "f4")
    assert (one("cvt.rna.tf32.f32 {}, {}", ["b32", "f32"], x) == 0x3F802000).all()


def test_segments_of_a_shuffle():
    """shfl down by 3 within segments of 8: lanes beyond their segment keep their own value."""
    value = bits(1, "b32")
    got = one("shfl.sync.down.b32 {}, {}, 3, 0x1807, -1", ["b32"] * 2, value)
    want = [value[t + 3] if t % 8 + 3 < 8 else value[t] for t in range(THREADS)]
    assert got.tolist() == want


VALUE = "mad.wide.u32 %rd20, %r1, 4, %rd1; ld.global.b32 %r10, [%rd20]; mad.wide.u32 %rd21, %r1, 4, %rd2;"


def test_branches_that_part_and_meet():
    """Even threads count up to their number, odd ones take another way; all meet at a barrier and share a value."""
    body = f"""{VALUE}
and.b32 %r2, %r1, 1; setp.eq.b32 %p1, %r2, 1; mov.b32 %r3, 0;
@%p1 bra $odd;
$loop: setp.ge.u32 %p2, %r3, %r1; @%p2 bra $meet; add.u32 %r3, %r3, 1; bra.uni $loop;
$odd: mov.b32 %r3, 1000; bra.uni $meet;
$meet: mov.b32 %r4, global_smem; mad.lo.u32 %r5, %r1, 4, %r4; st.shared.b32 [%r5], %r3; bar.sync 0;
xor.b32 %r6, %r1, 63; mad.lo.u32 %r5, %r6, 4, %r4; ld.shared.b32 %r7, [%r5]; st.global.b32 [%rd21], %r7;"""
    x, out = np.zeros(THREADS, "u4"), np.zeros(THREADS, "u4")
    run(body, [x, out], shared=256)
    assert out.tolist() == [(1000 if (63 - t) % 2 else 63 - t) for t in range(THREADS)]


def test_local_memory_is_of_each_thread():
    body = f"""{VALUE} mov.b64 %rd5, depot; cvta.local.u64 %rd6, %rd5; cvt.u32.u64 %r2, %rd5;
st.local.b32 [%r2+4], %r10; ld.b32 %r3, [%rd6+4]; st.global.b32 [%rd21], %r3;"""
    x, out = bits(1, "b32"), np.zeros(THREADS, "u4")
    run(body, [x, out], declarations=".local .align 8 .b8 depot[16];")
    assert (out == x).all()


FAULTS = {
    "a barrier in a branch": (
        errors.Divergence, "setp.lt.u32 %p1, %r1, 5; @%p1 bra $a; bar.sync 0; bra.uni $b; $a: bar.sync 0; $b:"
    ),
    "a shuffle of a part of a warp": (
        errors.Divergence, "setp.lt.u32 %p1, %r1, 5; @%p1 shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1;"
    ),
    "a read of shared memory nobody wrote": (errors.UnwrittenRead, "ld.shared.b32 %r3, [global_smem];"),
    "shared memory beyond its end": (errors.OutOfBounds, "mov.b32 %r2, 0; st.shared.b32 [global_smem+256], %r2;"),
    "misaligned shared memory": (errors.Misaligned, "mov.b32 %r2, 0; st.shared.b32 [global_smem+2], %r2;"),
    "a write that other warps read": (
        errors.SharedRace,
        "mov.b32 %r2, global_smem; mad.lo.u32 %r3, %r1, 4, %r2; st.shared.b32 [%r3], %r1; bar.sync 0;"
        "ld.shared.b32 %r4, [%r2]; setp.eq.b32 %p1, %r1, 0; @%p1 st.shared.b32 [%r2], %r1;",
    ),
    "two warps that write one word": (errors.SharedRace, "mov.b32 %r2, global_smem; st.shared.b32 [%r2], %r1;"),
    "an mbarrier nobody arrives at": (
        errors.Deadlock,
        "setp.eq.b32 %p1, %r1, 0; @%p1 mbarrier.init.shared::cta.b64 [global_smem], 1; bar.sync 0;"
        "$wait: mbarrier.try_wait.parity.shared::cta.b64 %p2, [global_smem], 0; @!%p2 bra $wait;",
    ),
    "an mbarrier used before its initialisation is seen": (
        errors.SharedRace,
        "setp.eq.b32 %p1, %r1, 0; @%p1 mbarrier.init.shared::cta.b64 [global_smem], 1;"
        "mbarrier.arrive.shared::cta.b64 _, [global_smem], 1;",
    ),
    "a copy that is read before its wait": (
        errors.NotWaited,
        f"{VALUE} mov.b32 %r2, global_smem; mad.lo.u32 %r3, %r1, 4, %r2;"
        "cp.async.ca.shared.global [%r3], [%rd20], 4; cp.async.commit_group; ld.shared.b32 %r4, [%r3];",
    ),
    "a null pointer": (errors.OutOfBounds, "mov.b64 %rd9, 0; ld.global.b32 %r2, [%rd9];"),
    "a register that nobody wrote as a pointer": (errors.OutOfBounds, "ld.global.b8 %rs2, [%rd9];"),
    "different values in one place": (errors.GridRace, "st.global.b32 [%rd1], %r1;"),
    "a loop": (errors.EndlessLoop, "$again: bra.uni $again;"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name):
    kind, body = FAULTS[name]
    with pytest.raises(kind):
        run(body, [np.zeros(THREADS, "u4"), np.zeros(THREADS, "u4")], shared=256, limit=10_000)


def test_a_copy_may_be_read_after_its_wait():
    body = f"""{VALUE} mov.b32 %r2, global_smem; mad.lo.u32 %r3, %r1, 4, %r2;
cp.async.ca.shared.global [%r3], [%rd20], 4; cp.async.commit_group; cp.async.wait_group 0; ld.shared.b32 %r4, [%r3];
st.global.b32 [%rd21], %r4;"""
    x, out = bits(1, "b32"), np.zeros(THREADS, "u4")
    run(body, [x, out], shared=256)
    assert (out == x).all()


def test_a_program_that_waits_for_another_one_of_its_batch():
    """Program 1 spins on a flag that program 0 sets: no order of whole programs would do but the right one."""
    body = """mov.u32 %r2, %ctaid.x; setp.eq.b32 %p1, %r2, 1; @%p1 bra $wait;
atom.global.release.gpu.exch.b32 %r3, [%rd2], 1; bra.uni $end;
$wait: atom.global.acquire.gpu.or.b32 %r4, [%rd2], 0; setp.eq.b32 %p2, %r4, 0; @%p2 bra $wait;
$end:"""
    x, flag = np.zeros(THREADS, "u4"), np.zeros(1, "u4")
    run(body, [x, flag], grid=(2,), limit=1_000_000)
    assert flag[0] == 1
