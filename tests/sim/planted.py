"""Faults planted in our GPU kernels: do the interpreter and the simulator notice?

`TRITON_INTERPRET=1 python -m tests.sim.planted` tries those of the interpreted device, without TRITON_INTERPRET those
of the simulated one. Each fault is another text in a copy of kernels_triton, imported by a forked process, in which a
short check must then fail. Without a fault the check must pass. Prints a line per fault and the share noticed.
"""

import os
import pathlib
import shutil
import sys
import tempfile
import traceback
from collections import namedtuple

import numpy as np
import triton.compiler  # noqa: F401, before the forks, as the library: imports take longer than checks

import tensorlib
from tensorlib.errors import ShapeError
from tensorlib.ops import fused
from tensorlib.testing.rows import rows
from tests.sim import quant_cases

ROOT = pathlib.Path(__file__).resolve().parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NOTICED, UNNOTICED, BROKEN = 1, 0, 2
MISTAKES = (NameError, SyntaxError, AttributeError, ImportError, TypeError)  # of the fault itself
SHORT = 2.0**-11  # half a unit of f16
Fault = namedtuple("Fault", "name files old new check")


def rng():
    return np.random.default_rng(5)


def there(x):
    return tensorlib.from_numpy(np.ascontiguousarray(x)).to("cuda:0")


def back(x):
    return x.cpu().to("f64").numpy() if x.dtype.kind == "f" else x.cpu().numpy()


def close(found, want, bound):
    found = back(found)
    assert found.shape == want.shape and (np.abs(found - want) <= bound).all(), "wrong numbers"


# ---- checks ----------------------------------------------------------------------------------------------------------


def sums_of_pairs():
    """Of sizes around a block."""
    for n in (1, 5, 1024, 1031):
        x, y = (rng().standard_normal(n).astype(np.float32) for _ in range(2))
        assert (back(there(x) + there(y)) == (x + y)).all(), "wrong numbers"


def turned_sums():
    """Of a matrix and a transposed one."""
    x, y = rng().standard_normal((37, 70)).astype(np.float32), rng().standard_normal((70, 37)).astype(np.float32)
    assert (back(there(x) + there(y).T) == x + y.T).all(), "wrong numbers"


def row_sums():
    x = rng().standard_normal((3, 37)).astype(np.float32)
    close(there(x).sum(1), x.sum(1, dtype=np.float64), 2.0**-18)
    close(there(x).sum(0), x.sum(0, dtype=np.float64), 2.0**-18)


def maxima_with_nan():
    x = rng().standard_normal((4, 37)).astype(np.float32)
    x[1, 5] = x[3, 36] = np.nan
    assert np.isnan(back(there(x).amax(1))).tolist() == [False, True, False, True], "NaN is lost"


def matrices():
    """Positive ones, so that what sums lose is not hidden by what they cancel: one rounding to f16, and f32 sums."""
    for m, n, k in ((70, 130, 1060), (37, 70, 45)):
        x, y = (rng().uniform(0.5, 1.5, s).astype(np.float16) for s in ((m, k), (k, n)))
        want = x.astype(np.float64) @ y.astype(np.float64)
        close(there(x) @ there(y), want, want * (SHORT + k * 2.0**-24))


def parts_of_k():
    """Few tiles and a long K: sums in parts."""
    x, y = (rng().uniform(0.5, 1.5, s).astype(np.float16) for s in ((40, 2100), (2100, 64)))
    want = x.astype(np.float64) @ y.astype(np.float64)
    close(there(x) @ there(y), want, want * (SHORT + 2100 * 2.0**-24))


def activations():
    x = rng().standard_normal(100).astype(np.float32)
    x[[3, 99]] = np.nan
    found = back(tensorlib.relu(there(x)))
    assert np.array_equal(found, np.where(x < 0, 0, x), equal_nan=True), "NaN is lost"


def attended(t, keys, causal):
    """Attention of t queries, the last of `keys` positions, in f32."""
    q, k, v = (rng().standard_normal(s).astype(np.float32) for s in ((t, 2, 32), (1, keys, 32), (1, keys, 32)))
    found = fused.attention(there(q), there(k), there(v), keys - t, None, causal)
    s = np.einsum("thd,nd->htn", q.astype(np.float64), k[0].astype(np.float64)) * 32**-0.5
    if causal:
        s[:, np.arange(keys) > np.arange(t)[:, None] + keys - t] = -np.inf
    w = np.exp(s - s.max(-1, keepdims=True))
    want = np.einsum("htn,nd->thd", w / w.sum(-1, keepdims=True), v[0].astype(np.float64))
    close(found, want, 2.0**-14)  # weights add up to 1, scores are below 2^5: 2^-24 2^5 twice, and sums of 32 terms


def causal_attention():
    attended(20, 33, True)
    attended(70, 70, True)


def decoding():
    attended(1, 600, True)


def running_sums():
    x = rng().standard_normal((8, 5000)).astype(np.float32)
    want = np.cumsum(x.astype(np.float64), 1)
    close(there(x).cumsum(1), want, 2.0**-22 * np.abs(want).max())


def softmaxes():
    for n in (37, 70_000):
        x = (rng().standard_normal((2, n)) * 4).astype(np.float32)
        e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
        want = e / e.sum(1, keepdims=True)
        close(tensorlib.softmax(there(x), -1), want, 2.0**-17 * want)


def norms():
    x, w = (rng().standard_normal(s).astype(np.float32) for s in ((5, 37), (37,)))
    wide = x.astype(np.float64) * 1e-3
    want = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * w
    close(tensorlib.rms_norm(there((x * 1e-3).astype(np.float32)), there(w), 1e-5), want, 2.0**-18 * np.abs(want).max())


def quantised():
    quant_cases.check_linear("q4_0", 6, 256, 1)


def gathers():
    x, i = rng().standard_normal((9, 20)).astype(np.float32), np.array([3, -1, 8, -9, 0])
    assert (back(tensorlib.index_select(there(x), 0, there(i))) == x[i]).all(), "wrong rows"
    try:
        tensorlib.index_select(there(x), 0, there(np.array([2, 4000]))).to("cpu")
    except ShapeError:
        return
    raise AssertionError("an index outside is no error")


def convolutions():
    """Of more channels than a block of terms has, and not of a multiple of it."""
    x, w = (rng().standard_normal(s).astype(np.float32) for s in ((1, 40, 5, 5), (5, 40, 3, 3)))
    want = tensorlib.conv2d(tensorlib.from_numpy(x).to("f64"), tensorlib.from_numpy(w).to("f64"), None, 1, 1).numpy()
    close(tensorlib.conv2d(there(x), there(w), None, 1, 1), want, 360 * 2.0**-24 * 360 * 4)


# ---- faults ----------------------------------------------------------------------------------------------------------

# (name, files, text, another text, check); BOTH: also compiled, in the simulator
BOTH = (
    Fault("a mask up to n", "elementwise", '"start + some < rest")', '"start + some <= rest")', sums_of_pairs),
    Fault("tiles out of order", "matmul", "high = tl.minimum(rows - first, GROUP)", "high = GROUP", matrices),
    Fault("an index outside", "index dims", "((at < -size) | (at >= size)) & mask", "(at < -size) & mask", gathers),
    Fault("NaN is no maximum", "tiles", "tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)", "tl.maximum(a, b)",
          maxima_with_nan),
)  # fmt: skip
FAULTS = (
    *BOTH,
    Fault("no mask of the tail", "reduce", "(full + r < end)[None, :]", "(full + r >= 0)[None, :]", row_sums),
    Fault("a wrong stride", "elementwise", 'f" + I * {k}_i"', 'f" + I"', turned_sums),
    Fault("a wrong stride of A", "matmul", "m_at[:, None] * a_m +", "m_at[:, None] * a_k +", matrices),
    Fault("sums in f16", "matmul", "PRECISION, out_dtype=SUM)", "PRECISION, out_dtype=SUM).to(tl.float16).to(SUM)",
          matrices),
    Fault("no last block of K", "matmul", "range(tl.cdiv(steps, BLOCK_K))", "range(steps // BLOCK_K)", matrices),
    Fault("a part of K is left out", "epilogue", "range(1, parts)", "range(2, parts)", parts_of_k),
    Fault("NaN is no activation", "functions", "(x, 0.0, propagate_nan=tl.PropagateNan.ALL)", "(x, 0.0)", activations),
    Fault("no query sees itself", "flash", "found &= n <= at + right", "found &= n < at + right", causal_attention),
    Fault("queries see the next", "flash", "found &= n <= at + right", "found &= n <= at + right + 1",
          causal_attention),
    Fault("edges are no edges", "flash", "outer = tl.maximum(0, tl.minimum(keys, first + right + 1))", "outer = keys",
          causal_attention),
    Fault("old sums keep their scale", "flash", "total = total * alpha + tl.sum(p, 1)", "total = total + tl.sum(p, 1)",
          causal_attention),
    Fault("joined without scales", "attention_decode", "mask=known, other=LOWEST) - top)",
          "mask=known, other=LOWEST) * 0)", decoding),
    Fault("a scan's carry is lost", "scan", "carry = step(carry, over(v, 1, OP), OP)", "carry = over(v, 1, OP)",
          running_sums),
    Fault("softmax keeps old scales", "softmax", "total * decay(top - shift, ACCURATE, ASM) +", "total +", softmaxes),
    Fault("a norm without eps", "norm", "* share + eps)", "* share)", norms),
    Fault("the neighbour's scale", "quant", "tl.max_contiguous(at, [1, 1]), super_at", "at ^ 1, super_at", quantised),
    Fault("negative indices", "index dims", "tl.where(at < 0, at + size, at)", "tl.maximum(at, 0)", gathers),
    Fault("channels behind the last", "conv", "known = first + k < channels", "known = first + k >= 0", convolutions),
)  # fmt: skip


# ---- planting --------------------------------------------------------------------------------------------------------


def copied(folder, fault):
    """A copy of kernels_triton in which `fault` (None: nothing) is planted."""
    to = pathlib.Path(folder) / "kernels_triton"
    shutil.copytree(ROOT / "kernels_triton", to)
    if fault is not None:
        texts = {path: path.read_text(encoding="utf-8") for path in (to / f"{f}.py" for f in fault.files.split())}
        if not any(fault.old in text for text in texts.values()):
            raise LookupError(f"{fault.old!r} is in none of kernels_triton's files {fault.files}: write the fault anew")
        for path, text in texts.items():
            path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


def tried(fault, check):
    """What this process, which never returns from here, finds: its exit status says it."""
    with tempfile.TemporaryDirectory() as folder:
        status, why = UNNOTICED, ""
        try:
            copied(folder, fault)
            sys.path.insert(0, folder)
            device = installed()
            assert sys.modules["kernels_triton"].__file__.startswith(folder)
            check()
            device.check()
        except BaseException as e:
            while e.__cause__ is not None:
                e = e.__cause__
            status = BROKEN if isinstance(e, (LookupError, *MISTAKES)) and not isinstance(e, IndexError) else NOTICED
            why = f"{type(e).__name__}: {' '.join(str(e).split())[:100]}"
            if os.environ.get("PLANTED_TRACE"):
                traceback.print_exc()
    print(f"  {why}" if why else "", flush=True)
    os._exit(status)


def installed():
    """The device of this process; imports kernels_triton."""
    from tests.sim import host, interpreter

    if INTERPRETED:
        interpreter.repair()
        gpu = host.Interpreted(80)
        interpreter.watch(gpu.ranges)
    else:
        from tests.sim.simulated import Simulated

        gpu = Simulated(80)
    host.install(gpu)
    return gpu


def status_of(fault, check):
    """The exit status of a process of its own."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        tried(fault, check)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(words):
    """Faults whose names contain one of `words`. 1 if a check fails without a fault, or a fault is broken; else 0."""
    faults = [f for f in (FAULTS if INTERPRETED else BOTH) if not words or any(w in f.name for w in words)]
    rows()  # all ops are imported
    assert "kernels_triton" not in sys.modules
    wrong = 0
    for check in dict.fromkeys(f.check for f in faults):
        print(f"control {check.__name__}", end="", flush=True)
        wrong += status_of(None, check) != UNNOTICED
    seen = 0
    for fault in faults:
        print(f"{fault.name}", end="", flush=True)
        status = status_of(fault, fault.check)
        print(f"    -> {['UNNOTICED', 'noticed', 'BROKEN'][min(max(status, 1 if status < 0 else 0), 2)]}")
        seen += status == NOTICED or status < 0
        wrong += status == BROKEN
    print(f"SHARE {seen} of {len(faults)}; {wrong} wrong", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
