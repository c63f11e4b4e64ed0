"""PyTorch's database of operations as an oracle: its sample inputs through our functions of the same names.

A result is held to PyTorch's in float64, on the inputs as they are rounded. It may be off by the rounding of its dtype,
by 8 times what moves when every input moves by one rounding, and by twice the largest error that PyTorch itself makes
in that dtype. Integers, bools, shapes and dtypes are equal.

`python -m tests.ops.opdb [SAMPLES OF EACH OP]` runs all of it and prints what does not agree, and why.
"""

import collections
import inspect
import itertools
import re
import sys
import warnings
from collections import namedtuple

import numpy as np
import torch

import tensorlib
from tensorlib.errors import TensorlibError
from tensorlib.testing.noise import UNIT

SHAKES = 4
Outcome = namedtuple("Outcome", "kind text")  # kind: passed, skipped, error, differs


def resolve(name):
    """Our function of a PyTorch name: tensorlib.NAME (nn.functional and special are flat here), or Tensor's method."""
    name = name.removeprefix("nn.functional.").removeprefix("special.")
    found = tensorlib
    for part in name.split("."):
        found = getattr(found, part, None)
        if found is None or (inspect.ismodule(found) and part == name.rsplit(".")[-1]):
            found = None
            break
    return found if callable(found) else getattr(tensorlib.Tensor, name, None)


def ours(x):
    """A sample's argument in our types."""
    if isinstance(x, torch.Tensor):
        return tensorlib.from_torch(x.detach().resolve_conj().clone() if x.is_conj() else x.detach())
    if isinstance(x, torch.dtype):
        return str(x).removeprefix("torch.")
    if isinstance(x, torch.device):
        return str(x)
    if isinstance(x, torch.Size):
        return tuple(x)
    if isinstance(x, (list, tuple)):
        return type(x)(ours(v) for v in x)
    return {k: ours(v) for k, v in x.items()} if isinstance(x, dict) else x


def mapped(x, function):
    """function of every tensor in an argument."""
    if isinstance(x, torch.Tensor):
        return function(x)
    if isinstance(x, (list, tuple)) and not isinstance(x, torch.Size):
        return (
            type(x)(mapped(v, function) for v in x) if not hasattr(x, "_fields") else [mapped(v, function) for v in x]
        )
    return {k: mapped(v, function) for k, v in x.items()} if isinstance(x, dict) else x


def flat(x):
    """Results as a list of tensors and plain values."""
    if isinstance(x, (list, tuple)) and not isinstance(x, torch.Size):
        return [v for part in x for v in flat(part)]
    return [x]


def wide(t):
    return t.double() if t.is_floating_point() else t.clone()


def shaken(generator, unit):
    def move(t):
        if not t.is_floating_point():
            return t.clone()
        noise = torch.rand(t.shape, generator=generator, dtype=torch.float64) * 2 - 1
        return t.double() * (1 + unit * noise)

    return move


def call(op, sample, change):
    """PyTorch's results on changed inputs, as NumPy arrays in float64 where they are floats."""
    args = mapped([sample.input, *sample.args], change)
    kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in mapped(sample.kwargs, change).items()}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return [plain(x) for x in flat(op.op(*args, **(kwargs if change is not torch.clone else sample.kwargs)))]


def plain(x):
    if isinstance(x, torch.Tensor):
        return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).detach().numpy()
    return np.asarray(x) if isinstance(x, (bool, int, float)) else x


def run(op, sample, function):
    """The Outcome of one sample: our function against PyTorch."""
    everything = flat([sample.input, *sample.args, *sample.kwargs.values()])
    if any(isinstance(x, torch.Tensor) and (x.is_complex() or x.layout != torch.strided) for x in everything):
        return Outcome("skipped", "complex or sparse")
    try:
        same = call(op, sample, torch.clone)
        exact = call(op, sample, wide)
    except Exception as e:
        return Outcome("skipped", f"PyTorch raises {type(e).__name__}")
    if any(np.iscomplexobj(x) for x in same):
        return Outcome("skipped", "a complex result")
    try:
        found = flat(function(ours(sample.input), *ours(list(sample.args)), **ours(dict(sample.kwargs))))
    except Exception as e:
        return Outcome("error", f"{type(e).__name__}: {e}"[:200])
    if len(found) != len(same):
        return Outcome("differs", f"{len(found)} results, PyTorch gives {len(same)}")
    spread = None
    for i, (f, s, e) in enumerate(zip(found, same, exact)):
        if not isinstance(s, np.ndarray):
            continue
        f = f.numpy() if hasattr(f, "numpy") else np.asarray(f)
        text = compare(f, s, e, 0)
        if text:
            spread = spreads(op, sample, exact) if spread is None else spread
            text = compare(f, s, e, spread[i])
        if text:
            return Outcome("differs", text + (", with dropout_p" if sample.kwargs.get("dropout_p") else ""))
    return Outcome("passed", "")


def spreads(op, sample, exact):
    """How far results move when inputs do by one rounding."""
    unit = 2.0**-24
    found = [np.zeros(np.shape(e)) if isinstance(e, np.ndarray) else 0 for e in exact]
    for seed in range(SHAKES):
        moved = call(op, sample, shaken(torch.Generator().manual_seed(seed), unit))
        for i, (m, e) in enumerate(zip(moved, exact)):
            if isinstance(e, np.ndarray) and e.dtype.kind == "f" and m.shape == e.shape:
                with np.errstate(all="ignore"):
                    found[i] = np.fmax(found[i], np.abs(m - e))
    return found


def compare(found, same, exact, spread):
    """What is wrong with a result, or ""."""
    if found.shape != same.shape:
        return f"shape {found.shape}, PyTorch {same.shape}"
    want = str(same.dtype)
    if str(found.dtype) != want and not (found.dtype.itemsize == 2 and want == "float32"):
        return f"dtype {found.dtype}, PyTorch {want}"
    if found.dtype.kind in "biu":
        return "" if np.array_equal(found, same) else "other integers"
    with np.errstate(all="ignore"):
        f, s, e = (x.astype(np.float64) for x in (found, same, exact))
        unit = UNIT[{"float64": "f64", "float32": "f32", "float16": "f16"}.get(str(found.dtype), "bf16")]
        own = np.max(np.abs(s - e), initial=0.0, where=np.isfinite(s) & np.isfinite(e))
        top = np.max(np.abs(e), initial=0.0, where=np.isfinite(e))
        bound = 8 * unit * np.abs(e) + 8 * spread + 2 * own + 2 * unit * top + 2.0**-140
        fine = (np.abs(f - e) <= bound) | (f == s) | (np.isnan(f) & np.isnan(s))
    if np.all(fine):
        return ""
    i = np.unravel_index(np.argmin(fine), fine.shape)
    return f"{(~fine).sum()} of {fine.size}: {f[i]!s}, PyTorch {s[i]!s}, {e[i]!s} in f64"


def errors(op, function):
    """[(Outcome, text)] of the inputs that PyTorch refuses."""
    found = []
    for case in op.error_inputs("cpu"):
        sample = case.sample_input
        try:
            function(ours(sample.input), *ours(list(sample.args)), **ours(dict(sample.kwargs)))
            found.append(Outcome("error", f"no error, PyTorch: {case.error_type.__name__} {case.error_regex[:80]}"))
        except TensorlibError:
            found.append(Outcome("passed", ""))
        except Exception as e:
            found.append(Outcome("error", f"{type(e).__name__}: {e}"[:160]))
    return found


# functions whose operands PyTorch's samples give in another order
ADAPT = {
    "nn.functional.embedding": lambda f: lambda weight, ids, **options: f(ids, weight, **options),
    "nn.functional.embedding_bag": lambda f: lambda weight, ids, *rest, **options: f(ids, weight, *rest, **options),
    "where": lambda f: lambda x, condition, y: f(condition, x, y),
    "einsum": lambda f: lambda operands, equation: f(equation, *operands),
    "T": lambda f: lambda x: x.T,
    "mT": lambda f: lambda x: x.mT,
}


def function_of(op):
    """Our function of an entry, with operands in the order of its samples; None if we have none of the name."""
    found = resolve(op.name)
    return ADAPT[op.name](found) if op.name in ADAPT else found


def full_name(op):
    """ "norm.nuc" of the entry norm with variant nuc."""
    return op.name + (f".{op.variant_test_name}" if op.variant_test_name else "")


def samples(op, most, everything=False):
    """(dtype name, sample): f32, and what takes none in i64 or bool; `everything`: all of the three dtypes."""
    names = [n for n in ("float32", "int64", "bool") if getattr(torch, n) in op.supported_dtypes("cpu")]
    for name in names if everything else names[:1]:
        torch.manual_seed(0)
        yield from ((name, s) for s in itertools.islice(op.sample_inputs("cpu", getattr(torch, name)), most))


def reason(rows, op, text):
    """Why a difference is listed, or None."""
    for name, pattern, why in rows:
        if name in ("*", full_name(op), op.name) and re.search(pattern, text):
            return why
    return None


def main(most=None):
    """Runs every sample of every dtype (`most` of each op, if given) and prints a table in Markdown."""
    from torch.testing._internal.common_methods_invocations import op_db

    from tests.ops.opdb_listed import ERRORS, LISTED

    count, lines = collections.Counter(), []
    for op in op_db:
        function = function_of(op)
        count["ops" if function else "ops without a function of ours"] += 1
        if function is None:
            continue
        own, texts = collections.Counter(), {}
        for name, sample in samples(op, most, True):
            outcome = run(op, sample, function)
            listed = outcome.kind in ("error", "differs") and reason(LISTED, op, outcome.text)
            own["listed" if listed else outcome.kind] += 1
            if outcome.kind in ("error", "differs"):
                texts.setdefault(listed or f"NOT LISTED, {name}: {outcome.text[:90]}", None)
        for outcome in errors(op, function) if op.error_inputs_func is not None else ():
            known = outcome.kind == "passed" or reason(ERRORS, op, outcome.text)
            count[
                "inputs refused" if outcome.kind == "passed" else "refusals listed" if known else "refusals missing"
            ] += 1
        count.update(own)
        if texts:
            lines.append(f"| {full_name(op)} | {own['passed']} | {sum(own.values())} | {'; '.join(texts)} |")
    print("| op | passed | samples | why not |\n|---|---|---|---|", *sorted(lines), sep="\n")
    print("\n" + ", ".join(f"{n} {k}" for k, n in count.items()))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
