"""`tensorlib generate`, `chat` and `bench` on a tiny model of random weights that has a tokenizer."""

import csv
import io
import json

import numpy as np
import pytest

import tensorlib
from tests.zoo.serving import TOKENS, write_tiny
from zoo import cli, speed
from zoo.beam import beam_search
from zoo.generate import load
from zoo.processors import log_softmax

PROMPT = "the cat and the"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny(tmp_path_factory.mktemp("commands") / "tiny.gguf"))


@pytest.fixture
def run(model, capsys):
    """Function: (standard output, standard error) of a command on the tiny model; it must succeed unless told so."""

    def run(command, *words, status=0):
        assert cli.main([command, "-m", model, *map(str, words)]) == status
        return capsys.readouterr()

    return run


@pytest.mark.parametrize("sampling", [(), ("--temperature", 0.8, "--top-k", 20, "--seed", 5)])
def test_guesses_change_no_text(run, model, sampling):
    want, _ = run("generate", PROMPT, "-n", 24, *sampling)
    assert len(want) > 5
    for words in (("--draft", model), ("--ngram", 2), ("--ngram", 1, "--guesses", 2)):
        out, err = run("generate", PROMPT, "-n", 24, *sampling, *words, "-v")
        assert out == want and "steps of guesses" in err
    steps = int(run("generate", PROMPT, "-n", 21, "--draft", model, "-v")[1].rpartition("; ")[2].split()[0])
    assert steps == 4  # the same model guesses: 20 tokens behind the first, in rounds of 5


def test_the_best_of_beams(run, model):
    ours = load(model)
    ids = ours.tokenizer.encode(PROMPT)
    best = beam_search(ours, ids, 3, 12, stop_ids=ours.tokenizer.eos_ids)[0].ids
    assert run("generate", PROMPT, "-n", 12, "--beams", 3) == (ours.tokenizer.decode(best) + "\n", "")
    for words in (("--temperature", 1), ("--ngram", 2), ("--regex", "a"), ("--logprobs", 0)):
        _, err = run("generate", PROMPT, "--beams", 3, *words, status=2)
        assert err.startswith(f"tensorlib: error: --beams: options: got it with {words[0]}") and err.count("\n") == 1


def test_forms(run, tmp_path):
    pytest.importorskip("llguidance")
    assert run("generate", PROMPT, "--regex", "[0-9]{3}", "--ngram", 2)[0].strip().isdigit()
    assert run("generate", PROMPT, "--grammar", 'start: "yes" | "no"')[0] in ("yes\n", "no\n")
    grammar, schema = tmp_path / "a.lark", tmp_path / "a.json"
    grammar.write_text('start: "maybe"')
    schema.write_text('{"enum": ["é"]}')
    assert run("generate", PROMPT, "--grammar", grammar)[0] == "maybe\n"
    assert json.loads(run("generate", PROMPT, "--json-schema", schema)[0]) == "é"
    for words, says in (
        (("--regex", "("), "what llguidance reads"),
        (("--json-schema", "{"), "--json-schema"),
        (("--json-schema", "3"), "expected an object"),
        (("--json-schema", tmp_path / "none.json"), "--json-schema"),
    ):
        out, err = run("generate", PROMPT, *words, status=2)
        assert out == "" and says in err and err.count("\n") == 1


def test_log_probabilities(run, model):
    """Of each token, as the logits of the whole text have them, and the likeliest first."""
    out, err = run("generate", PROMPT, "-n", 6, "--logprobs", 2)
    ours = load(model)
    ids = ours.tokenizer.encode(PROMPT)
    drawn = list(ours.generate(ids, 6))
    rows = [log_softmax(row) for row in ours.logits(ids + drawn)[len(ids) - 1 : -1]]
    lines = err.splitlines()
    assert len(lines) == 6 and out.strip("\n") == ours.tokenizer.decode(drawn).strip("\n")
    for line, token, row in zip(lines, drawn, rows):
        piece = json.dumps(ours.tokenizer.piece(token).decode("utf-8", "replace"), ensure_ascii=False)
        assert abs(float(line.split()[0]) - row[token]) < 2e-2  # keys and values are f16, and rounded otherwise
        first, second = np.argsort(-row)[:2]
        assert first == token and line[11:].startswith(f"{piece}  of {piece} ")
        assert abs(float(line.split()[-1]) - row[second]) < 2e-2
    assert all("of" not in line for line in run("generate", PROMPT, "-n", 2, "--logprobs", 0)[1].splitlines())


def test_chat_with_guesses(run, monkeypatch):
    lines = iter(["Hi", "again", None] * 2)
    monkeypatch.setattr("zoo.commands._ask", lambda: next(lines))
    said = [run("chat", "--system", "S", "--temperature", 0, "-n", 9, *words)[0] for words in ((), ("--ngram", 2))]
    assert said[0] == said[1] and said[0].count("\n") >= 2


@pytest.mark.parametrize("words", [("--draft", "x", "--ngram", "2"), ("--regex", "a", "--grammar", "b")])
def test_one_of_two(words, capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "x", *words])
    assert "not allowed with" in capsys.readouterr().err


# ---- bench -----------------------------------------------------------------------------------------------------------

SMALL = ("--prompt", 20, "--tokens", 4, "--repeats", 3)


def test_bench(run):
    """A row for each measure, number of threads and batch; figures in order, and the same names in every form."""
    out, _ = run("bench", *SMALL, "--threads", "1,2", "--batch", "1,3", "--no-start", "--json")
    rows = json.loads(out)
    where = [(row["measure"], row["tokens"], row["threads"], row["batch"]) for row in rows]
    assert where == [(m, n, t, b) for t in (1, 2) for b in (1, 3) for m, n in (("prompt", 20), ("generate", 4))]
    for row in rows:
        assert 0 < row["p20"] <= row["p50"] <= row["p80"] and row["unit"] == "tokens/s" and row["repeats"] == 3
        assert (row["model"], row["format"], row["device"], row["version"]) == (
            "tiny.gguf",
            "f32",
            "cpu",
            tensorlib.__version__,
        )
        assert row["cores"] >= 1 and row["cpu"] and row["python"]
    text, _ = run("bench", *SMALL, "--threads", "1", "--no-start", "--csv")
    found = list(csv.DictReader(io.StringIO(text)))
    assert [row["measure"] for row in found] == ["prompt", "generate"] and set(found[0]) == set(rows[0])


def test_bench_in_processes(run):
    """Start and memory are those of processes of their own, and the table has a line for each."""
    out, _ = run("bench", "--prompt", 20, "--tokens", 4, "--repeats", 1, "--threads", "1")
    lines = [line.split() for line in out.splitlines()]
    assert "tiny.gguf" in out and [line[0] for line in lines[-4:]] == ["prompt", "generate", "start", "memory"]
    start, memory = (float(line[4]) for line in lines[-2:])
    assert 10 < start < 60_000 and 10 < memory < 2000


def test_bench_of_nothing(run):
    assert "at most" in run("bench", "--prompt", 300, status=2)[1]
    with pytest.raises(SystemExit):
        cli.main(["bench", "--threads", "0"])


def test_prompts_of_a_batch_begin_otherwise(model):
    """Texts that begin alike share pages, which would be no measurement."""
    prompts = [speed.ids(load(model), 20, seed) for seed in range(8)]
    assert len({tuple(ids[:2]) for ids in prompts}) == 8 and max(map(max, prompts)) < len(TOKENS)
