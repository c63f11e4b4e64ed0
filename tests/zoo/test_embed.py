"""Text encoders as folders of sentence-transformers: pools, what follows them, recorded shapes, the command."""

import io
import json
import shutil

import numpy as np
import pytest

import tensorlib
from tensorlib.errors import FormatError
from tensorlib.io import folders, hub
from tests.io import servers
from zoo import cli
from zoo.embed import load, max_sim

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"the cat sat on a mat and dog ran far away".split()]
TEXTS = ["the cat sat", "a dog", "the dog ran far away and the cat sat on a mat", "unknown words", "cat", "the cat sat"]
LONGEST = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT with a tokenizer that pads and cuts by itself, as published ones do."""
    path = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)
    transformers.BertModel(config).save_pretrained(path)
    library = tokenizers.Tokenizer(tokenizers.models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    library.enable_padding(length=24)
    library.enable_truncation(5)
    library.save(str(path / "tokenizer.json"))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LONGEST}))
    return path


def describe(folder, *kinds, **pooling):
    """Writes modules.json and the pool's config."""
    paths = ["", "1_Pooling", "2_Dense", "3_Normalize"]
    rows = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in zip(kinds, paths)]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def hidden(folder):
    """transformers' hidden states of each text, [T, D]."""
    model, found = transformers.BertModel.from_pretrained(folder).eval(), []
    for text in TEXTS:
        ids = [WORDS.index(w) if w in WORDS else 1 for w in text.split()][: LONGEST - 2]
        with torch.no_grad():
            found.append(model(torch.tensor([[2, *ids, 3]])).last_hidden_state[0].numpy())
    return found


def close(got, want):
    assert got.shape == want.shape and np.abs(got - want).max() < 1e-5 * np.abs(want).max()


POOLS = {
    "mean_tokens": lambda x: x.mean(0),
    "cls_token": lambda x: x[0],
    "max_tokens": lambda x: x.max(0),
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
    "lasttoken": lambda x: x[-1],
}


@pytest.mark.parametrize("pool", POOLS)
def test_pools(folder, pool):
    describe(folder, "Transformer", "Pooling", **{f"pooling_mode_{pool}": True, "word_embedding_dimension": 32})
    want = np.stack([POOLS[pool](x) for x in hidden(folder)])
    model = load(folder)
    close(model.encode(TEXTS).numpy(), want)
    close(model.encode(TEXTS[0]).numpy(), want[0])
    close(model.encode(TEXTS, normalize=True).numpy(), want / np.linalg.norm(want, axis=1, keepdims=True))


def test_dense_and_normalize(folder):
    describe(folder, "Transformer", "Pooling", "Dense", "Normalize", pooling_mode_cls_token=True, pooling_mode="cls")
    rng, dense = np.random.default_rng(0), folder / "2_Dense"
    w, b = rng.standard_normal((6, 32)).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    dense.mkdir()
    act = "torch.nn.modules.activation.Tanh"
    fields = {"in_features": 32, "out_features": 6, "bias": True, "activation_function": act}
    (dense / "config.json").write_text(json.dumps(fields))
    weights = {"linear.weight": tensorlib.tensor(w), "linear.bias": tensorlib.tensor(b)}
    tensorlib.save(dense / "model.safetensors", weights)
    want = np.tanh(np.stack([x[0] for x in hidden(folder)]) @ w.T + b)
    assert repr(load(folder)).startswith("TextEncoder(BertModel, cls, dense, normalize, ")
    close(load(folder).encode(TEXTS).numpy(), want / np.linalg.norm(want, axis=1, keepdims=True))


def test_late_interaction(folder):
    """A projection of every token, no pool; the score by its definition."""
    (folder / "1_Dense").mkdir(exist_ok=True)
    w = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    act = "torch.nn.modules.linear.Identity"
    fields = {"in_features": 32, "out_features": 6, "bias": False, "activation_function": act}
    (folder / "1_Dense" / "config.json").write_text(json.dumps(fields))
    tensorlib.save(folder / "1_Dense" / "model.safetensors", {"linear.weight": tensorlib.tensor(w)})
    rows = [{"type": "Transformer", "path": ""}, {"type": "pylate.models.Dense.Dense", "path": "1_Dense"}]
    (folder / "modules.json").write_text(json.dumps(rows))
    found = load(folder).encode_tokens(TEXTS)
    want = [x @ w.T for x in hidden(folder)]
    want = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in want]
    for got, x in zip(found, want):
        close(got.numpy(), x)
    assert abs(max_sim(found[0], found[2]).item() - (want[0] @ want[2].T).max(1).sum()) < 1e-4


@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_splade(folder, strategy, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    torch.manual_seed(1)
    config = transformers.BertConfig.from_pretrained(folder)
    theirs = transformers.BertForMaskedLM(config).eval()
    theirs.save_pretrained(tmp_path / "m")
    describe(tmp_path / "m", "MLMTransformer", "SpladePooling", pooling_strategy=strategy)
    rows = [[2, *(WORDS.index(w) if w in WORDS else 1 for w in text.split()), 3] for text in TEXTS[:2]]
    with torch.no_grad():
        x = [np.log1p(theirs(torch.tensor([ids])).logits[0].relu().numpy()) for ids in rows]
    want = np.stack([v.max(0) if strategy == "max" else v.sum(0) for v in x])
    close(load(tmp_path / "m").encode(TEXTS[:2]).numpy(), want)


def test_recorded_shapes(folder):
    """A shape that comes again is recorded, and replayed with other ids: all give what the first gave."""
    describe(folder, "Transformer", "Pooling", pooling_mode_mean_tokens=True)
    model = load(folder)
    first = [model.encode(text).numpy().copy() for text in TEXTS]
    again = [[model.encode(text).numpy() for text in TEXTS] for _ in range(3)]
    for x, y in zip(again[0], first):
        close(x, y)  # of few tokens, products with weights in panels are summed in another order
    assert all(np.array_equal(x, y) for later in again[1:] for x, y in zip(later[:-1], again[2]))
    assert len(model._graphs) == len({len(x) for x in hidden(folder)})


def test_what_is_not_here(folder):
    describe(folder, "Transformer", "Pooling", pooling_mode_attention=True)
    with pytest.raises(FormatError, match=r"pooling_mode: got .*'attention'"):
        load(folder)
    (folder / "modules.json").write_text("{}")
    with pytest.raises(FormatError, match=r"modules\.json: file: got a JSON dict; expected a list"):
        load(folder)
    describe(folder, "Transformer", "LSTM")
    with pytest.raises(FormatError, match="'LSTM'; expected one of Transformer, "):
        load(folder)


def test_command(folder, capsysbinary, monkeypatch):
    describe(folder, "Transformer", "Pooling", pooling_mode_mean_tokens=True)
    want = load(folder).encode(TEXTS).numpy()
    assert cli.main(["embed", "-m", str(folder), *TEXTS]) == 0
    lines = capsysbinary.readouterr().out.decode().splitlines()
    close(np.array([json.loads(line) for line in lines], dtype=np.float32), want)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(TEXTS).encode() + b"\n")))
    assert cli.main(["embed", "-m", str(folder), "--format", "npy"]) == 0
    close(np.load(io.BytesIO(capsysbinary.readouterr().out)), want)


def test_quantized(folder):
    """Blocks of 8 bits: a rounding of at most 1/254 of a block's largest, which sums over a row average out."""
    describe(folder, "Transformer", "Pooling", "Normalize", pooling_mode_mean_tokens=True)
    (folder / "modules.json").write_text(
        json.dumps([{"type": "Transformer"}, {"type": "Pooling", "path": "1_Pooling"}])
    )
    exact = load(folder).encode(TEXTS, normalize=True).numpy()
    rounded = load(folder, quantize="q8_0").encode(TEXTS, normalize=True).numpy()
    assert not np.array_equal(exact, rounded) and (exact * rounded).sum(1).min() > 0.999


def test_a_folder_of_a_wheel(tmp_path, monkeypatch):
    """All files below the folder come with one download; a second time nobody is asked."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    path = servers.make_wheel(tmp_path, member="tiny_model/m/1_Pooling/config.json")
    monkeypatch.setattr("tensorlib.io.wheel._locate", lambda wanted: (path.as_uri(), None))
    found = folders.resolve("pypi:tiny-model==1.0/tiny_model/m/")
    assert found.startswith(str(tmp_path / "cache"))
    with open(f"{found}/1_Pooling/config.json", "rb") as file:
        assert file.read() == servers.CONTENT
    monkeypatch.setattr("tensorlib.io.wheel._locate", None)
    assert folders.resolve("pypi:tiny-model==1.0/tiny_model/m", offline=True) == found
    assert hub.WheelFile("pypi:tiny-model==1.0/tiny_model/m").noted()


def test_no_such_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    path = servers.make_wheel(tmp_path)
    monkeypatch.setattr("tensorlib.io.wheel._locate", lambda wanted: (path.as_uri(), None))
    with pytest.raises(
        tensorlib.errors.DownloadError, match="no such folder in the wheel; expected one of: tiny_model"
    ):
        folders.resolve("pypi:tiny-model==1.0/other")
    with pytest.raises(tensorlib.errors.DownloadError, match="no m of tiny-model"):
        folders.resolve("pypi:tiny-model==2.0/m", offline=True)
    (tmp_path / "x").write_text("")
    with pytest.raises(tensorlib.errors.DownloadError, match="expected a folder"):
        folders.resolve(tmp_path / "x")


@pytest.mark.parametrize("included", [True, False])
def test_prompts(folder, included, tmp_path, capsys):
    """What stands before texts: by name, by default, as it is; its tokens, [CLS] among them, are pooled or not."""
    path = tmp_path / "m"
    shutil.copytree(folder, path)
    describe(path, "Transformer", "Pooling", pooling_mode_mean_tokens=True, include_prompt=included)
    fields = {"prompts": {"query": "the dog and ", "document": ""}, "default_prompt_name": "query"}
    (path / "config_sentence_transformers.json").write_text(json.dumps(fields))
    model, theirs, texts = load(path), transformers.BertModel.from_pretrained(path).eval(), TEXTS[:2]

    def want(prompt):
        found = []
        for text in texts:
            ids = [2, *(WORDS.index(w) for w in (prompt + text).split()), 3]
            with torch.no_grad():
                x = theirs(torch.tensor([ids])).last_hidden_state[0].numpy()
            skipped = 0 if included or not prompt else 1 + len(prompt.split())
            found.append(x[skipped:].mean(0))
        return np.stack(found)

    for _ in range(3):
        close(model.encode(texts).numpy(), want("the dog and "))
    close(model.encode(texts, prompt="query").numpy(), want("the dog and "))
    close(model.encode(texts, prompt="document").numpy(), want(""))
    close(model.encode(texts, prompt="far ").numpy(), want("far "))
    assert cli.main(["embed", "-m", str(path), "--prompt", "far ", *texts]) == 0
    lines = capsys.readouterr().out.splitlines()
    close(np.array([json.loads(line) for line in lines], dtype=np.float32), want("far "))
