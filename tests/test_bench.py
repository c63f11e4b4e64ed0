"""The bench's own arithmetic: quantiles, rows, negative log-likelihood, flips. No peer and no model."""

import csv
import math
import types

import numpy
import pytest

from bench import generate, harness, models, reference


def test_quantiles_interpolate():
    assert harness.quantiles([5.0]) == (5.0, 5.0, 5.0)
    assert harness.quantiles(list(range(11))) == (2.0, 5.0, 8.0)


def test_rows_hold_the_columns(tmp_path):
    host = harness.machine()
    rows = [harness.row(host, "prompt", "tensorlib", "0.1.0", [1.0, 2.0, 3.0], "tokens/s", threads=2, format="q4_1")]
    harness.write(rows, "x", types.SimpleNamespace(csv=str(tmp_path / "x.csv")))
    with open(tmp_path / "x.csv", newline="") as file:
        (found,) = csv.DictReader(file)
    assert (found["p50"], found["samples"], found["threads"], found["machine"]) == ("2", "3", "2", host["machine"])


def test_targets_are_judged_by_medians():
    speed = {
        "tensorlib": {"prompt": [30.0, 41.0, 50.0], "generate": [14.0]},
        "llama.cpp": {"prompt": [10.0], "generate": [10.0]},
    }
    assert list(generate.misses(speed, "q4_1", 2)) == []
    speed["tensorlib"]["prompt"] = [39.0]
    assert list(generate.misses(speed, "q4_1", 2)) == ["prompt q4_1 2 threads: 3.90x llama.cpp, target 4.0x"]


def test_agreement_counts_the_common_prefix():
    assert generate.agreement({"a": [1, 2, 3], "b": [1, 2, 3], "c": [1, 5, 3]}).endswith("a: b all, c 1")


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    windows = [[0, 3, 2], [1, 1, 1, 6]]
    assert math.isclose(reference.perplexity(lambda ids: numpy.zeros((len(ids), 7), numpy.float32), windows), 7.0)


def test_flips_name_step_and_gap():
    table = numpy.array([[0.0, 2.0, 1.5], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])

    def logits(ids):
        return table[ids]

    assert reference.flips(logits, [0], [1, 0, 1]) == []  # 0 -> 1, 1 -> 0, 0 -> 1
    assert reference.flips(logits, [0], [2, 2, 2]) == [(0, 2, 1, 0.5)]


def test_text_is_long_enough_for_the_perplexity():
    assert len(models.text()) == 60_000


@pytest.mark.parametrize("count", [1, 3])
def test_tables_are_markdown(count, capsys):
    harness.show(["a", "long header"], [("1", "2")] * count)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == count + 2 and len({len(line) for line in out}) == 1 and out[1].startswith("| - | ----")
