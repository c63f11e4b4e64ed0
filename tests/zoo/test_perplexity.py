"""Perplexity as transformers' losses give it, and what `tensorlib perplexity` says of a text."""

import math
import sys

import numpy as np
import pytest

from tests.zoo.serving import write_tiny
from zoo import auto, cli, perplexity
from zoo.generate import TextModel, load

torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2}
CONFIGS = {
    "llama": dict(SIZES, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.4),
    "mamba": dict(SIZES, state_size=8, initializer_range=0.4),
}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """(transformers' model, ours): one with a cache of keys and values, and one with a state."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(request.param, **CONFIGS[request.param])
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return theirs, TextModel(*auto.load(str(folder), 64), cache_dtype="f32")


def their_losses(theirs, ids, first):
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0]
    return torch.nn.functional.cross_entropy(logits[first - 1 : -1], torch.tensor(ids[first:]), reduction="none")


@pytest.mark.parametrize(("stride", "most"), [(None, 1 << 24), (8, 99 * 3)])
def test_losses_are_those_of_transformers(pair, monkeypatch, stride, most):
    """Whole windows and overlapping ones; as many rows of logits at once as memory allows, and three."""
    theirs, ours = pair
    monkeypatch.setattr(perplexity, "LOGITS", most)
    ids = np.random.default_rng(0).integers(0, 99, 110).tolist()
    parts, first = perplexity.windows(ids, 32, stride, bos=1), perplexity.first_counted(32, stride)
    assert len(parts) == (3 if stride is None else 10) and first == (17 if stride is None else 24)
    want = np.concatenate([their_losses(theirs, part, first) for part in parts]).astype(np.float64)
    told = []
    found = perplexity.measure(ours, parts, first, told.append)
    assert (found.tokens, found.windows) == (len(want), len(parts)) and told[-1] is found
    assert [each.windows for each in told] == list(range(1, len(parts) + 1))
    assert abs(found.value / math.exp(want.mean()) - 1) < 1e-5
    error = found.value * want.std(ddof=1) / math.sqrt(len(want))
    assert abs(found.error / error - 1) < 1e-4
    assert abs(perplexity.measure(ours, parts).value / whole(theirs, parts) - 1) < 1e-5  # all but the first token


def whole(theirs, parts):
    return math.exp(np.concatenate([their_losses(theirs, part, 1) for part in parts]).astype(np.float64).mean())


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny(tmp_path_factory.mktemp("perplexity") / "tiny.gguf"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\ufeffThe cat, é, <|im_end|> and thé rat. " * 9, encoding="utf-8")
    return path


def test_command(model, text, capsys):
    """Control tokens in a text are text; the number of windows is told, and nothing else where nobody looks on."""
    assert cli.main(["perplexity", "-m", model, str(text), "-c", "64"]) == 0
    out, err = capsys.readouterr()
    ours = load(model, context=64)
    ids = ours.tokenizer.encode(text.read_text("utf-8").removeprefix("\ufeff"), False, False)
    parts = [ids[i : i + 64] for i in range(0, len(ids) - 63, 64)]
    want = perplexity.measure(ours, parts, 33)
    assert (
        out == f"perplexity {want.value:.4f} +- {want.error:.4f} ({want.tokens} tokens in {len(parts)} windows of 64)\n"
    )
    assert err == "" and want.tokens == 31 * len(parts)
    assert cli.main(["perplexity", "-m", model, str(text), "-c", "64", "--stride", "16", "--chunks", "1"]) == 0
    assert capsys.readouterr().out.endswith(" (16 tokens in 1 window of 64)\n")


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        (b"", (), "a text of at least one window"),
        (b"short", (), "got a text of 5 tokens; expected at least one window of 256"),
        (b"caf\xe9 " * 99, (), "byte 0xe9 at 3; expected UTF-8"),
        (None, (), "No such file"),
        (b"x" * 999, ("-c", "1000"), "at most 256, the model's"),
        (b"x" * 999, ("-c", "2"), "at least 3"),
        (b"x" * 999, ("-c", "64", "--stride", "65"), "at most a window, 64"),
    ],
)
def test_bad_texts_are_one_line(model, tmp_path, capsys, data, options, says):
    path = tmp_path / "bad.txt"
    if data is not None:
        path.write_bytes(data)
    assert cli.main(["perplexity", "-m", model, str(path), *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("tensorlib: error: ") and err.count("\n") == 1 and says in err


def test_a_bar_on_a_terminal(model, text, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("tensorlib.bar.DELAY", 0)
    assert cli.main(["perplexity", "-m", model, str(text), "-c", "64"]) == 0
    assert "window/s" in capsys.readouterr().err
