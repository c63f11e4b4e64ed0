"""bench.gpu without a GPU: its table of cases, its arithmetic, and some cases measured on other devices by a clock that
makes times up.
"""

import csv
import math
import subprocess
import sys
import types

import pytest

import kernels_triton
import zoo.generate
from bench import gpu, gpu_cases, harness

CASES = {quick: [c for make in gpu_cases.FAMILIES.values() for c in make(quick)] for quick in (True, False)}


class Fake:
    """A clock: a call takes a millisecond of ours, two of anybody else's; it makes one call of each burst."""

    cache = 0

    def __init__(self):
        self.asked = []

    def __call__(self, run, calls):
        self.asked.append(calls)
        run(1)
        return 1e-3 * calls


@pytest.fixture(scope="module")
def sides():
    torch = pytest.importorskip("torch")
    before = torch.is_grad_enabled(), torch.get_float32_matmul_precision()
    yield gpu.Tensorlib("cpu"), gpu.Torch("cpu")
    torch.set_grad_enabled(before[0])
    torch.set_float32_matmul_precision(before[1])


def smaller(case, most=16):
    """The case with dims of at most so many."""

    def shrunk(kind, *shape):
        word, _, size = kind.partition(" ")
        return (f"{word} {min(int(size), most)}" if size else kind, *(min(n, most) for n in shape))

    return case._replace(inputs={k: shrunk(*x) for k, x in case.inputs.items()})


@pytest.mark.parametrize("quick", [True, False])
def test_names_and_sizes_tell_cases_apart(quick):
    known = [(c.family, c.name, c.size) for c in CASES[quick]]
    assert len(set(known)) == len(known) > (30 if quick else 120)
    assert all(c.amount > 0 for c in CASES[quick])


def test_amounts():
    case = next(c for c in CASES[False] if c.name == "x @ y f16" and c.size == "4096")
    assert math.isclose(gpu.speed(case, [case.amount / 500]), 500)  # TFLOP/s
    case = next(c for c in CASES[False] if c.family == "matvec" and c.name == "q4_0")
    assert case.amount == 4096 * 4096 / 32 * 18 / 1e9


def test_every_target_has_cases():
    names = [*CASES[True], gpu_cases.Case("generation", "SmolLM2-135M q4_1", "", {}, "", "", 1, "tokens/s")]
    for target in gpu.TARGETS:
        assert any(gpu.of_target(case, target) for case in names), target


def test_expressions_run_and_agree(sides, capsys):
    """On the CPU, with small inputs; not quantised weights, which take f16 on GPUs alone."""
    for case in CASES[True]:
        if case.family not in ("matvec", "prompt"):
            times = gpu.measure(smaller(case), sides, Fake(), 1, 0.002)
            assert set(times) == {"tensorlib", "torch"} and len(times["torch"]) == 1, case
    assert "FAILED" not in capsys.readouterr().err


def test_cases_on_a_simulated_gpu(sides, capsys):
    """As they are measured on a real one: uploads, warm-up, turns, what the results are."""
    pytest.importorskip("triton")
    from tests.sim.host import install
    from tests.sim.simulated import Simulated

    ours, clock = gpu.Tensorlib("cuda:0"), Fake()
    install(Simulated(80))
    try:
        for family, name in (("elementwise", "add f32"), ("matvec", "q4_0")):
            case = smaller(next(c for c in CASES[True] if c.family == family and c.name == name), 256)
            times = gpu.measure(case, (ours, sides[1]), clock, 3, 0.02)
            assert times["tensorlib"] == pytest.approx([1e-3] * 3)
    finally:
        install(None)
    assert "FAILED" not in capsys.readouterr().err and clock.asked[:2] == [1, 20]


def test_a_failing_case_is_told_and_the_others_run(sides, capsys):
    case = smaller(CASES[True][0])._replace(tensorlib="t.nothing(x)")
    assert set(gpu.measure(case, sides, Fake(), 1, 0.001)) == {"torch"}
    assert "FAILED elementwise add f32" in capsys.readouterr().err
    case = case._replace(tensorlib="x - y - 7")
    assert set(gpu.measure(case, sides, Fake(), 1, 0.001)) == {"torch"}
    assert "results differ" in capsys.readouterr().err


def made_up(family, name, size, amount, unit, reference, ours, theirs):
    case = gpu_cases.Case(family, name, size, {}, "", "", amount, unit, reference)
    return case, {k: v for k, v in (("tensorlib", ours), ("torch", theirs)) if v}


def test_targets_and_the_table(tmp_path):
    results = [
        made_up("copy", "y.copy_(x)", "", 100.0, "GB/s", "copy", None, [0.1]),
        made_up("elementwise", "add f32", "", 95.0, "GB/s", "copy", [0.1], [0.1]),
        made_up("matmul", "x @ y f16", "2048", 40.0, "TFLOP/s", "f16", [0.11], [0.1]),
        made_up("matmul", "x @ y f16", "512", 40.0, "TFLOP/s", "f16", [9.0], [0.1]),
    ]
    rows = list(gpu.lines(results))
    assert rows[1][-2:] == ("1.00", "95 % copy") and rows[2][-2:] == ("0.91", "91 % f16")
    verdicts = dict(gpu.judge(results))
    assert list(verdicts.values()) == [True, True] and any("0.91 of the peer" in text for text in verdicts)
    results[2][1]["tensorlib"] = [0.2]
    results[1][1].pop("tensorlib")
    assert [met for _, met in gpu.judge(results)] == [False, False]
    host = harness.machine()
    written = list(gpu.records(host, results, {"tensorlib": "1", "torch": "2"}))
    assert {row["peer"]: row["p50"] for row in written if row["amount"] == "512"} == {
        "tensorlib": "4.444",
        "torch": "400",
    }
    assert set(written[0]) <= set(harness.COLUMNS)


def test_generations_are_timed_per_token():
    assert len(gpu.speeds(Writer(), [1], 4, 2)) == 2


class Writer:
    """A model that writes numbers."""

    tokenizer = types.SimpleNamespace(encode=lambda text: list(text.encode()))

    def generate(self, ids, count):
        return iter(range(count))


def test_the_whole_run(sides, monkeypatch, capsys, tmp_path):
    """From the command line to the table, the file and the verdicts; everything that needs a GPU replaced."""
    torch = pytest.importorskip("torch")
    random_llama, made = gpu.random_llama, []
    cases = [smaller(c) for c in CASES[True] if c.family in ("elementwise", "sorts")]
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--quick", "--csv", str(tmp_path / "gpu.csv")])
    for owner, name, value in (
        (kernels_triton, "missing", lambda: None), (gpu, "Clock", Fake), (gpu, "machine", harness.machine),
        (gpu, "Tensorlib", lambda: sides[0]), (gpu, "Torch", lambda: sides[1]), (gpu, "COPY", smaller(gpu.COPY)),
        (gpu_cases, "FAMILIES", {"elementwise": lambda quick: cases}), (zoo.generate, "load", lambda **_: Writer()),
        (torch.cuda, "mem_get_info", lambda i: (1 << 40, 0)), (gpu, "llama_cpp", lambda *_: [0.01]),
        (gpu, "random_llama", lambda *a: made.append(a) or random_llama((64, 256, 512, 2, 8, 8, 32), 128, "cpu")),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, value)
    with pytest.raises(SystemExit) as end:
        gpu.main()
    out, err = capsys.readouterr()
    assert end.value.code == 0 and made[0][0] == gpu.LLAMA_7B and "FAILED" not in err
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 1 + len(cases) + 2 and sum("generation" in line for line in table) == 2
    with open(tmp_path / "gpu.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["peer"] for row in rows} == {"tensorlib", "torch", "llama.cpp"} and len(rows) == 1 + 2 * len(cases) + 3


def test_a_model_of_random_weights():
    model = gpu.random_llama((64, 256, 512, 2, 8, 8, 32), 64, "cpu")
    assert len(list(model.generate([1, 2, 3], 4))) == 4


def test_without_a_gpu_one_line_says_so():
    code = "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''; from bench import gpu; gpu.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=harness.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "no GPU" in done.stderr
