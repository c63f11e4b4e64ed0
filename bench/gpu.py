"""Kernels and decoding on a GPU against PyTorch (cuBLAS, cuDNN, its attention) and llama.cpp: one table, one CSV file.

    python -m bench.gpu [FAMILY ...] [--quick] [--check] [--only TEXT]

Needs a GPU, and PyTorch built for it. Every case runs in turns, ours and the peer's, in one process: bursts of calls
between two CUDA events, over inputs that rotate through more memory than twice the L2, of random numbers, after a
warm-up; the table has medians. So what a GPU waits for Python is in the figures of small cases. The share is that of
the bandwidth of PyTorch's own copy, or of the best product of that dtype by either, measured in the same run.

A case that fails prints its error and the run goes on. `--check` fails where a target is missed; a failure is a miss.
"""

import argparse
import importlib.metadata
import importlib.util
import math
import os
import sys
import time

import numpy as np

from bench import gpu_cases, harness, models, peers

OURS, PEER = "tensorlib", "torch"
UNIQUE = 1 << 22  # elements beyond which random inputs repeat
SETS = 128  # of inputs at most
LLAMA_7B = (32_000, 4096, 11_008, 32, 32, 32, 128)  # LlamaConfig: vocabulary ... head_dim
ROOM = 10 << 30  # bytes that a GPU has free, for a model of that shape
HALVES = {"q4_0": (0,), "q8_0": (0,), "q4_k": (0, 2), "q6_k": (208,)}  # where a block's scales lie
# (family, text in the name, least size, least share of the reference, least geometric mean of ours over the peer's)
TARGETS = (
    ("elementwise", "", 0, 0.90, 0.0),
    ("transposed", "", 0, 0.75, 0.0),
    ("reductions", "", 0, 0.85, 0.0),
    ("softmax", "", 0, 0.85, 0.0),
    ("norms", "", 0, 0.85, 0.0),
    ("gathers", "", 0, 0.75, 0.0),
    ("matmul", "f16", 2048, 0.0, 0.90),
    ("matmul", "tf32", 2048, 0.0, 0.85),
    ("conv2d", "", 0, 0.0, 0.80),
    ("prefill", "", 0, 0.0, 0.60),
    ("decode", "", 0, 0.0, 1.0),
    ("matvec", "", 0, 0.65, 0.0),
    ("launches", "", 0, 0.0, 0.7),
    ("generation", "SmolLM2", 0, 0.0, 1.0),
)


# ---- both sides ------------------------------------------------------------------------------------------------------


def draw(seed, kind, *shape):
    """An input as a NumPy array; blocks of quantised weights as [n, bytes of a row]."""
    rng, count = np.random.default_rng(seed), math.prod(shape)
    if kind in gpu_cases.BLOCKS:
        elements, size = gpu_cases.BLOCKS[kind]
        data = np.resize(
            rng.integers(0, 256, (min(count // elements, UNIQUE // 32), size), np.uint8), (count // elements, size)
        )
        for at in HALVES[kind]:
            data[:, at : at + 2] = np.float16(0.01).reshape(1).view(np.uint8)
        return data
    some = min(count, UNIQUE)
    if kind.startswith("index"):
        values = rng.integers(0, int(kind.split()[1]), some)
    else:
        values = rng.random(some) < 0.5 if kind == "bool" else rng.standard_normal(some, np.float32)
    return np.resize(values, count).reshape(shape)


class Tensorlib:
    """Our side, on a device."""

    name = OURS

    def __init__(self, device="cuda:0"):
        import tensorlib

        self.device, self.scope, self.version = device, {"t": tensorlib}, peers.version(OURS, sys.executable)

    def make(self, seed, kind, *shape):
        """An input on the device."""
        data = draw(seed, kind, *shape)
        if kind in gpu_cases.BLOCKS:
            from tensorlib.quant.tensor import from_bytes

            return from_bytes(data, shape, kind).to(self.device)
        made = self.scope["t"].from_numpy(data).to(self.device)
        return made.to(kind) if kind in gpu_cases.TORCH and kind != "f32" else made

    def precise(self, how):
        """How products of f32 are computed."""
        self.scope["t"].set_float32_matmul_precision(how)

    def digest(self, out):
        """(shape, sum of the first elements' magnitudes)"""
        out = out[0] if isinstance(out, tuple) else out
        return tuple(out.shape), float(np.abs(out.reshape(-1)[:4096].cpu().to("f64").numpy()).sum())


class Torch:
    """PyTorch's."""

    name = PEER

    def __init__(self, device="cuda:0"):
        import torch

        self.torch, self.device, self.version = torch, device, torch.__version__
        self.scope = {"t": torch, "F": torch.nn.functional}
        torch.set_grad_enabled(False)

    def make(self, seed, kind, *shape):
        """An input on the device; quantised weights in f16, of numbers of their own."""
        dtype = getattr(self.torch, gpu_cases.TORCH.get(kind, "float16"))
        data = draw(seed, "f32" if kind in gpu_cases.BLOCKS else kind, *shape)
        made = self.torch.from_numpy(data).to(self.device)
        return made if kind == "bool" or kind.startswith("index") else made.to(dtype)

    def precise(self, how):
        """How products of f32 are computed."""
        self.torch.set_float32_matmul_precision("high" if how == "medium" else "highest")

    def digest(self, out):
        """See Tensorlib."""
        out = out[0] if isinstance(out, tuple) else out
        return tuple(out.shape), float(out.reshape(-1)[:4096].cpu().double().abs().sum())


class Clock:
    """Times bursts on the GPU: `clock(run, calls)` gives the seconds of `run(calls)`."""

    def __init__(self):
        import torch

        self.first, self.last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)

    def __call__(self, run, calls):
        self.first.record()
        run(calls)
        self.last.record()
        self.last.synchronize()
        return self.first.elapsed_time(self.last) / 1e3


# ---- measuring -------------------------------------------------------------------------------------------------------


def burst(case, side, sets):
    """(function of a number of calls that makes them over rotating inputs, the first result)."""
    code = compile(getattr(case, side.name), case.name, "eval")
    scopes = [side.scope | inputs for inputs in sets]

    def run(calls):
        for i in range(calls):
            eval(code, scopes[i % len(scopes)])

    side.precise(case.precision)
    return run, eval(code, scopes[0])


def inputs_of(case, side, cache):
    """As many sets of inputs as fill twice the cache."""
    count = min(SETS, 1 + 2 * cache // max(1, sum(gpu_cases.nbytes(*x) for x in case.inputs.values())))
    make = lambda i: {k: side.make(100 * i + ord(k), *x) for k, x in case.inputs.items()}  # noqa: E731
    return [make(i) for i in range(count)]


def differ(case, digests):
    """Whether the sides' results are of other shapes or values; quantised weights differ by themselves."""
    if len(digests) < 2 or any(x[0] in gpu_cases.BLOCKS for x in case.inputs.values()):
        return False
    (shape, value), (other, found) = digests.values()
    return shape != other or not math.isclose(value, found, rel_tol=2e-2, abs_tol=1e-3)


def failed(case, side, error):
    """Says on standard error that a case fails."""
    text = " ".join(str(error).split())[:300]
    print(f"FAILED {case.family} {case.name} {case.size}: {side}: {type(error).__name__}: {text}", file=sys.stderr)


def measure(case, sides, clock, rounds, seconds):
    """{side: [seconds per call, ...]} of the sides that can do it, in turns."""
    runs, digests, times = {}, {}, {}
    for side in sides:
        try:
            run, out = burst(case, side, inputs_of(case, side, clock.cache))
            digests[side.name] = side.digest(out)
            del out
            run(3)
            calls = max(1, min(10_000, int(seconds / max(1e-9, clock(run, 1)))))
            calls = max(1, min(10_000, int(seconds * calls / max(1e-9, clock(run, calls)))))
            runs[side.name], times[side.name] = (side, run, calls), []
        except Exception as e:  # whatever it is: the other cases are worth having
            failed(case, side.name, e)
    if differ(case, digests):
        failed(case, OURS, ValueError(f"results differ: {digests}"))
        runs.pop(OURS, None)
        times.pop(OURS, None)
    for turn in range(rounds):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            side, run, calls = runs[name]
            try:
                side.precise(case.precision)
                times[name].append(clock(run, calls) / calls)
            except Exception as e:
                failed(case, name, e)
                runs.pop(name)
                times.pop(name)
    return times


COPY = gpu_cases.Case("copy", "y.copy_(x)", "256 MB", {"x": ("f32", 1 << 26), "y": ("f32", 1 << 26)}, "", "y.copy_(x)",
                      2 * (1 << 28) / 1e9, "GB/s", "copy")  # fmt: skip


# ---- models ----------------------------------------------------------------------------------------------------------


class RandomWeights:
    """What a model is loaded from: random numbers of the shapes that it asks for, in q4_0; norms of ones."""

    def __init__(self, module):
        self.tensors = {path: tuple(spec.shape) for path, spec in module.named_parameters()}

    def tensor(self, name):
        """One of them."""
        import tensorlib
        from tensorlib.quant.tensor import from_bytes

        shape = self.tensors[name]
        if len(shape) == 1:
            return tensorlib.ones(shape)
        return from_bytes(draw(len(name), "q4_0", *shape), shape, "q4_0")


def random_llama(shape, context, device):
    """A model of that LlamaConfig with random weights, to be generated from."""
    from tensorlib.nn import VarBuilder
    from zoo.generate import TextModel
    from zoo.llama import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(*shape, max_position_embeddings=context, tie_word_embeddings=False)
    module = LlamaForCausalLM(config)
    weights = RandomWeights(module)
    return TextModel(None, VarBuilder(weights, device=device).load(module), device=device)


def speeds(model, ids, tokens, repeats):
    """Seconds per token after the first, of `repeats` greedy generations and one before them."""
    found = []
    for _ in range(repeats + 1):
        stream = model.generate(ids, tokens + 1)
        next(stream)
        began = time.perf_counter()
        for _ in stream:
            pass
        found.append((time.perf_counter() - began) / tokens)
    return found[1:]


def llama_cpp(tokens, repeats):
    """The same of llama.cpp as llama-cpp-python was built, in a process of its own; None where it is not installed."""
    python = peers.CACHE / "peers" / peers.LLAMA.name / "bin" / "python"
    python = str(python) if python.exists() else sys.executable if importlib.util.find_spec("llama_cpp") else None
    if python is None:
        return None
    job = {"task": "generate", "model": models.base(), "text": models.text(500), "threads": os.cpu_count()}
    job |= {"prompt": 32, "tokens": tokens, "repeats": repeats}
    answer = harness.work(peers.LLAMA, job, [(peers.LLAMA.name, python)])
    return [seconds / count for count, seconds in answer["generate"]]


def generation(quick):
    """[(case, times)] of decoding with the default model and, where it fits, with one of Llama-7B's shape."""
    import torch

    tokens, repeats = (32, 1) if quick else (128, 3)
    case = gpu_cases.Case("generation", "SmolLM2-135M q4_1", f"{tokens} tokens", {}, "", "", 1, "tokens/s")
    found = [(case, {})]

    def tried(case, name, times):
        try:
            value = times()
            return {} if value is None else {name: value}
        except Exception as e:
            failed(case, name, e)
            return {}

    def default():
        from zoo.generate import load

        model = load(context=1024, device="cuda:0")
        return speeds(model, model.tokenizer.encode(models.text(200))[:32], tokens, repeats)

    found[0][1].update(tried(case, OURS, default) | tried(case, "llama.cpp", lambda: llama_cpp(tokens, repeats)))
    if torch.cuda.mem_get_info(0)[0] > ROOM:
        case = case._replace(name="Llama-7B shape q4_0")
        large = lambda: speeds(random_llama(LLAMA_7B, 1024, "cuda:0"), list(range(32)), tokens, repeats)  # noqa: E731
        found.append((case, tried(case, OURS, large)))
    return found


# ---- the table -------------------------------------------------------------------------------------------------------


def speed(case, samples):
    """Median of what the case's unit counts."""
    return case.amount / harness.quantiles(samples)[1]


def references(results):
    """{reference: the best speed measured}: of the copy, and of products by dtype."""
    found = {}
    for case, times in results:
        if case.family in ("copy", "matmul") and times:
            best = max(speed(case, samples) for samples in times.values())
            found[case.reference] = max(best, found.get(case.reference, 0.0))
    return found


def compared(case, times):
    """Our speed over the peer's, or None."""
    other = next((samples for name, samples in times.items() if name != OURS), None)
    return speed(case, times[OURS]) / speed(case, other) if OURS in times and other else None


def share(case, times, known):
    """Our speed over the reference's, or None."""
    return speed(case, times[OURS]) / known[case.reference] if OURS in times and case.reference in known else None


def lines(results):
    """The table's lines."""
    known = references(results)
    for case, times in results:
        others = [samples for name, samples in times.items() if name != OURS]
        cells = [f"{speed(case, x):.4g}" if x else "-" for x in (times.get(OURS), *(others or [None])[:1])]
        ratio, part = compared(case, times), share(case, times, known)
        percent = "-" if part is None else f"{100 * part:.0f} % {case.reference}"
        yield case.family, case.name, case.size, case.unit, *cells, "-" if ratio is None else f"{ratio:.2f}", percent


def of_target(case, target):
    """Whether a target is for this case: sizes are those of square matrices."""
    family, text, least, *_ = target
    return case.family == family and text in case.name and (not case.size.isdigit() or int(case.size) >= least)


def judge(results):
    """(text, met) per target that has cases."""
    known = references(results)
    for target in TARGETS:
        here = [(case, times) for case, times in results if of_target(case, target)]
        if not here:
            continue
        lacking = sum(OURS not in times for _, times in here)
        text, met = f"{target[0]} {target[1]}".strip(), not lacking
        for least, word, values in (
            (target[3], "of the reference", [share(case, times, known) for case, times in here]),
            (target[4], "of the peer", [compared(case, times) for case, times in here]),
        ):
            values = [v for v in values if v]
            if least and values:
                mean = math.exp(sum(map(math.log, values)) / len(values))
                text, met = (
                    f"{text}: {mean:.2f} {word} (least {min(values):.2f}), wanted {least}",
                    met and mean >= least,
                )
        yield text + (f"; {lacking} cases fail" if lacking else ""), met


def records(host, results, versions):
    """CSV rows."""
    for case, times in results:
        for name, samples in times.items():
            values, where = [case.amount / s for s in samples], {"format": case.name.split()[-1], "amount": case.size}
            version = versions.get(name, "")
            yield harness.row(host, f"{case.family} {case.name}", name, version, values, case.unit, **where)


def machine():
    """Columns that describe this run, the GPU in place of the CPU."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    parts = [properties.name, f"sm_{properties.major}{properties.minor}", f"{properties.multi_processor_count} SMs"]
    parts += [f"CUDA {torch.version.cuda}", f"triton {importlib.metadata.version('triton')}"]
    return harness.machine() | {"machine": ", ".join(parts)}


def chosen(options):
    """The cases asked for."""
    unknown = set(options.families) - {*gpu_cases.FAMILIES, "generation"}
    if unknown:
        known = ", ".join((*gpu_cases.FAMILIES, "generation"))
        raise SystemExit(f"no family {', '.join(sorted(unknown))}; there are {known}")
    for name, make in gpu_cases.FAMILIES.items():
        if not options.families or name in options.families:
            yield from (c for c in make(options.quick) if options.only in f"{c.name} {c.size}")


def arguments(words=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    names = ", ".join((*gpu_cases.FAMILIES, "generation"))
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"{names}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases: a first look")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--only", default="", help="cases whose name and size contain this text")
    parser.add_argument("--csv", help="where to write the rows; default: bench/results/gpu.csv; '-' for nowhere")
    return parser.parse_args(words)


def main():
    """Command line of `python -m bench.gpu`."""
    import kernels_triton

    options, lacking = arguments(), kernels_triton.missing()
    if lacking:
        print(f"bench.gpu measures on a GPU: {lacking}", file=sys.stderr)
        sys.exit(2)
    cases, host, clock = list(chosen(options)), machine(), Clock()
    sides, (rounds, seconds) = (Tensorlib(), Torch()), (5, 0.02) if options.quick else (11, 0.05)
    results = []
    for i, case in enumerate([COPY, *cases]):
        if sys.stderr.isatty():
            print(f"\r\x1b[K{i} of {len(cases)}: {case.family} {case.name}", end="", file=sys.stderr, flush=True)
        own = sides if case is not COPY else sides[1:]
        results.append((case, measure(case, own, clock, rounds, seconds)))
    if not options.families or "generation" in options.families:
        results += generation(options.quick)
    harness.headline(host)
    header = ["family", "case", "size", "unit", OURS, "peer", "ours / peer", "share"]
    harness.show(header, lines(results))
    versions = {side.name: side.version for side in sides}
    harness.write(list(records(host, results, versions)), "gpu", options)
    verdicts = list(judge(results))
    for text, met in verdicts:
        print(f"{'met' if met else 'MISSED'}: {text}", file=sys.stderr)
    sys.exit(1 if options.check and not all(met for _, met in verdicts) else 0)


if __name__ == "__main__":
    main()
