"""bench.ops: its table of cases, its arithmetic, and one worker's round trip."""

import json
import subprocess
import sys

import pytest

from bench import harness, ops, ops_cases, peers

CASES = [case for make in ops_cases.FAMILIES.values() for case in make()]


def test_names_and_sizes_tell_cases_apart():
    known = [(case.family, case.name, case.size) for case in CASES]
    assert len(set(known)) == len(known) > 200


@pytest.mark.parametrize("library", ["tensorlib", "torch", "numpy"])
def test_expressions_use_only_the_inputs(library):
    for case in CASES:
        names = set(compile(getattr(case, library) or "t", "", "eval").co_names)
        assert {name for name in names if len(name) == 1} <= {"t", "F", "T", *case.inputs}, case


def _case(family):
    return ops_cases.case(family, "", {}, "", size="")


def test_targets_take_the_fastest_peer_and_the_medians():
    times = {"tensorlib": [2.0, 1.0, 9.0], "torch": [4.0], "numpy": [1.98]}
    (text, met), *others = ops.judge([(_case("sgemm"), times)])
    assert met and "0.99" in text and not others
    times["numpy"] = [1.0]
    assert not next(ops.judge([(_case("sgemm"), times)]))[1]


def test_a_case_that_fails_is_a_miss():
    both = {"tensorlib": [1.0], "torch": [3.0]}
    (_, met), *_ = ops.judge([(_case("sort"), both)])
    assert met
    (text, met), *_ = ops.judge([(_case("sort"), both), (_case("sort"), {"torch": [1.0]})])
    assert not met and text.endswith("1 cases fail")


def test_results_are_compared():
    assert not ops.differ([[2], 1.0], [[2], 1.0005])
    assert ops.differ([[2], 1.0], [[2], 1.01]) and ops.differ([[2], 1.0], [[2, 1], 1.0])


def test_a_worker_answers():
    case = ops_cases.case("sort", "sort", {"x": ("normal", 100)}, "t.sort(x)")._asdict()
    bad = {**case, "numpy": "t.none(x)"}
    messages = [{"prepare": case}, {"turn": 1e-3}, {"end": True}, {"prepare": bad}]
    command = [sys.executable, str(peers.WORKERS / "ops_worker.py"), json.dumps({"peer": "numpy", "threads": 1})]
    text = "".join(json.dumps(message) + "\n" for message in messages)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=harness.ROOT)
    _, prepared, turn, ended, failed = map(json.loads, done.stdout.splitlines())
    assert prepared["digest"][0] == [100] and min(turn["times"]) > 0
    assert ended == {} and failed["error"].startswith("AttributeError")
