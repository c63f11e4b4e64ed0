"""Pipelines that the package sentence-transformers builds and saves, and all-MiniLM-L6-v2: its vectors, scores and
sparse vectors equal ours.
"""

import json

import numpy as np
import pytest

from tensorlib.errors import FormatError, ShapeError
from tensorlib.io import folders
from zoo import tasks
from zoo.embed import DEFAULT_MODEL, load, max_sim

theirs = pytest.importorskip("sentence_transformers")
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
sparse = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
late = pytest.importorskip("sentence_transformers.multi_vector_encoder.modules")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *"the cat sat on a mat and dog ran far away . , Cat".split()]
LONG = "the dog ran far away and the cat sat on a mat , "
TEXTS = ["the cat sat", "a dog.", LONG * 4, "unknown words", "", "Cat", "THE CAT", "\u0301 é\x00 日本 [MASK] [SEP]"]
SIZES = {"vocab_size": len(WORDS), "max_position_embeddings": 40, "hidden_size": 32, "intermediate_size": 64}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Function: the folder of a tiny random BERT of a class of transformers."""

    def make(cls="BertModel", lower=False, **options):
        folder = tmp_path_factory.mktemp(cls)
        torch.manual_seed(0)
        model = getattr(transformers, cls)(transformers.BertConfig(**SIZES, **options))
        with torch.no_grad():
            for weight in model.parameters():
                weight += torch.randn_like(weight) / 4
        model.save_pretrained(folder)
        tokenizer = transformers.BertTokenizer(
            vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=30, do_lower_case=lower
        )
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def bert(made):
    return made()


def keep(model, folder):
    """Saves it, without a page about it."""
    model.save(str(folder), create_model_card=False)


def close(got, want, bound=1e-5):
    got, want = (np.asarray(x.numpy() if hasattr(x, "numpy") else x) for x in (got, want))
    assert got.shape == want.shape and np.abs(got - want).max() <= bound * np.abs(want).max()


def pool(*names, **options):
    return modules.Pooling(32, names[0] if len(names) == 1 else names, **options)


ACTS = "Identity Tanh Sigmoid ReLU GELU SiLU".split()
PIPELINES = {
    **{name: lambda name=name: [pool(name)] for name in modules.Pooling.POOLING_MODES},
    "several pools": lambda: [pool("lasttoken", "weightedmean", "cls")],
    "dense, norms": lambda: [pool("mean"), modules.Dense(32, 8), modules.LayerNorm(8), modules.Normalize()],
    "residual": lambda: [pool("cls"), modules.Dense(32, 32, use_residual=True, activation_function=None)],
    "residual, projected": lambda: [pool("cls"), modules.Dense(32, 6, use_residual=True), modules.Dropout(0.5)],
    "each token": lambda: [modules.Dense(32, 32, module_input_name="token_embeddings"), pool("max")],
    **{act: lambda act=act: [pool("mean"), modules.Dense(32, 6, False, getattr(torch.nn, act)())] for act in ACTS},
}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines(name, bert, tmp_path):
    """Vectors of a batch and of each text alone, cut where the tokenizer's config says."""
    torch.manual_seed(1)
    model = theirs.SentenceTransformer(modules=[modules.Transformer(bert), *PIPELINES[name]()], device="cpu")
    keep(model, tmp_path)
    ours, want = load(tmp_path), model.encode(TEXTS)
    assert ours.max_length == model.max_seq_length == 30
    close(ours.encode(TEXTS), want)
    close(np.stack([ours.encode(text).numpy() for text in TEXTS]), want)
    close(ours.encode(TEXTS, normalize=True), model.encode(TEXTS, normalize_embeddings=True))


def test_a_bare_encoder(bert):
    close(load(bert).encode(TEXTS), theirs.SentenceTransformer(bert, device="cpu").encode(TEXTS))


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("longest", [None, 8, 40])
def test_settings(lower, longest, bert, tmp_path):
    """Files of old: the most tokens of a text, over what the tokenizer says; lower case that the tokenizer has not."""
    model = theirs.SentenceTransformer(modules=[modules.Transformer(bert), pool("mean")], device="cpu")
    keep(model, tmp_path)
    said = {"max_seq_length": longest, "do_lower_case": lower}
    (tmp_path / "sentence_bert_config.json").unlink()
    (tmp_path / "sentence_roberta_config.json").write_text(json.dumps(said))
    model, ours = theirs.SentenceTransformer(str(tmp_path), device="cpu"), load(tmp_path)
    assert ours.max_length == model.max_seq_length == (longest or 30)
    close(ours.encode(TEXTS), model.encode(TEXTS))
    cats = ours.encode(["the cat", "THE CAT"]).numpy()
    assert np.array_equal(*cats) == lower


PROMPTS = {"query": "the dog , ", "document": "far away", "": " "}


@pytest.mark.parametrize("name", ["mean", "cls", "lasttoken", "max"])
@pytest.mark.parametrize("included", [True, False])
def test_prompts(name, included, bert, tmp_path):
    parts = [modules.Transformer(bert), pool(name, include_prompt=included)]
    model = theirs.SentenceTransformer(modules=parts, prompts=PROMPTS, default_prompt_name="document", device="cpu")
    keep(model, tmp_path)
    ours, texts = load(tmp_path), TEXTS
    close(ours.encode(texts), model.encode(texts))
    for prompt in ("query", "document"):
        close(ours.encode(texts, prompt=prompt), model.encode(texts, prompt_name=prompt))
    close(ours.encode(texts, prompt="on a "), model.encode(texts, prompt="on a "))
    close(ours.encode(texts, prompt=""), model.encode(texts, prompt=""))


@pytest.mark.parametrize("act", ["relu", "log1p_relu"])
@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_sparse(strategy, act, made, tmp_path):
    parts = [sparse.Transformer(made("BertForMaskedLM"), transformer_task="fill-mask")]
    model = theirs.SparseEncoder(modules=[*parts, sparse.SpladePooling(strategy, act)], device="cpu")
    keep(model, tmp_path)
    want = model.encode(TEXTS, convert_to_sparse_tensor=False)
    found = load(tmp_path).encode(TEXTS)
    close(found, want)
    assert found.shape == (len(TEXTS), len(WORDS)) and (want == 0).any()


def expanded(**options):
    return {"query_expansion": {"length": 9, **options}}


LATE = {
    "plain": ({}, {}),
    "lengths": ({"query_length": 5, "document_length": 12}, {}),
    "fixed": (expanded(strategy="fixed", attend=False), {"skiplist_words": [".", ",", "nowhere"]}),
    "fixed, seen": (expanded(strategy="fixed", attend=True, token="[SEP]"), {"skiplist_tasks": ["query", "document"]}),
    "at least": (expanded(strategy="min", attend=False), {"skiplist_words": ["the"], "skiplist_tasks": ["query"]}),
    "at least, seen": ({**expanded(strategy="min", attend=True), "query_length": 12}, {}),
}


def same_tokens(folder, model):
    """Queries and documents, each token's vector, and their scores: gives how many of each query there are."""
    ours = load(folder)
    want = model.encode_query(TEXTS), model.encode_document(TEXTS)
    found = ours.encode_tokens(TEXTS, query=True), ours.encode_tokens(TEXTS)
    for ones, others in zip(found, want):
        for one, other in zip(ones, others, strict=True):
            close(one, other)
    scores = [[max_sim(q, d).item() for d in found[1]] for q in found[0]]
    close(np.array(scores), model.similarity(*want))
    return [len(x) for x in found[0]]


@pytest.mark.parametrize("name", LATE)
def test_late_interaction(name, bert, tmp_path):
    options, mask = LATE[name]
    torch.manual_seed(2)
    dense = modules.Dense(32, 8, False, torch.nn.Identity(), module_input_name="token_embeddings")
    parts = [modules.Transformer(bert, **options), dense, late.MultiVectorMask(**mask)]
    parts += [modules.Normalize("token_embeddings")]
    prompts = {"query": "the dog ", "document": "cat , "}
    model = theirs.MultiVectorEncoder(modules=parts, prompts=prompts, device="cpu")
    keep(model, tmp_path)
    same_tokens(tmp_path, model)
    with pytest.raises(ShapeError, match="a model without a pool; expected one with; use encode_tokens"):
        load(tmp_path).encode("cat")
    with pytest.raises(ShapeError, match="a model with a pool; expected one without; use encode"):
        load(bert).encode_tokens(["cat"])


PYLATE = {  # settings -> how long queries are
    "all": ({"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 8, "document_length": 12,
             "attend_to_expansion_tokens": False, "do_query_expansion": True, "skiplist_words": [".", ","]}, {8}),
    "little": ({"query_prefix": "[Q] ", "document_prefix": "[MASK] "}, {32}),
    "seen": ({"document_prefix": "the ", "query_length": 6, "attend_to_expansion_tokens": True}, {6}),
    "not filled": ({"query_prefix": "[Q] ", "query_length": 6, "do_query_expansion": False,
                    "prompts": {"query": "a "}}, {4, 5, 6}),
}  # fmt: skip


@pytest.mark.parametrize("name", PYLATE)
def test_pylate(name, bert, tmp_path):
    """Folders that PyLate wrote, as the package reads them."""
    own, lengths = PYLATE[name]
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    if name != "little":  # a token with its space; in texts in lower case it was none
        tokenizer.add_tokens(["[Q] "])
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(2)
    model = transformers.BertModel.from_pretrained(bert)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path)
    (tmp_path / "1_Dense").mkdir()
    modules.Dense(32, 8, False, torch.nn.Identity()).save(str(tmp_path / "1_Dense"))
    fields = {"in_features": 32, "out_features": 8, "bias": False}
    fields["activation_function"] = "torch.nn.modules.linear.Identity"
    kinds = {"": "sentence_transformers.models.Transformer", "1_Dense": "pylate.models.Dense.Dense"}
    rows = [{"idx": i, "name": str(i), "path": path, "type": kinds[path]} for i, path in enumerate(kinds)]
    own = {"__version__": {}, "model_type": "ColBERT", **own}
    for file, values in (("1_Dense/config", fields), ("modules", rows), ("config_sentence_transformers", own)):
        (tmp_path / f"{file}.json").write_text(json.dumps(values))
    model = theirs.MultiVectorEncoder(str(tmp_path), device="cpu")
    assert set(same_tokens(tmp_path, model)) == lengths


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("act", [None, torch.nn.Identity()], ids=str)
def test_cross_encoders(labels, act, made, tmp_path):
    """Scores of pairs, as the package saves and reads what makes them of logits."""
    options = {} if act is None else {"activation_fn": act}
    model = theirs.CrossEncoder(made("BertForSequenceClassification", num_labels=labels), device="cpu", **options)
    keep(model, tmp_path)
    model, ours = theirs.CrossEncoder(str(tmp_path), device="cpu"), tasks.load(tmp_path)
    want = model.predict([(LONG, text) for text in TEXTS])
    if labels == 1:
        found = ours.rank(LONG, TEXTS)
        assert [one.index for one in found] == [row["corpus_id"] for row in model.rank(LONG, TEXTS)]
        close([one.score for one in sorted(found)], want)
    else:
        rows = [ours.classify(LONG, text) for text in TEXTS]
        found = np.array([[row[f"LABEL_{i}"] for i in range(3)] for row in rows])
        close(found, want)  # the package says in its file that they stay as they are


def test_more_than_a_model_that_scores(made, tmp_path):
    folder = made("BertForSequenceClassification", num_labels=1)
    for name, options, message in (
        ("prompt", {"prompts": {"a": "cat "}, "default_prompt_name": "a"}, "prompt 'a'; expected a Transformer alone"),
        ("act", {"activation_fn": torch.nn.Softplus()}, "activation_fn: got 'torch.nn.modules.activation.Softplus'"),
        ("module", {}, "got Transformer, Dense; prompt None"),
    ):
        model = theirs.CrossEncoder(folder, device="cpu", **options)
        if name == "module":
            model.append(modules.Dense(1, 1, module_input_name="scores"))
        keep(model, tmp_path / name)
        with pytest.raises(FormatError, match=message):
            tasks.load(tmp_path / name)


def test_what_is_not_here(bert, tmp_path):
    """What the package builds and this does not is named, before anything is loaded."""
    tokenizer = modules.Transformer(bert).tokenizer
    odd = {
        "StaticEmbedding": [modules.StaticEmbedding(tokenizer, embedding_dim=8)],
        "WeightedLayerPooling": [modules.Transformer(bert), modules.WeightedLayerPooling(32, 2, 1), pool("mean")],
        "CNN": [modules.Transformer(bert), modules.CNN(32, 8), modules.Pooling(24, "mean")],
        "Softplus": [modules.Transformer(bert), pool("mean"), modules.Dense(32, 8, True, torch.nn.Softplus())],
        "module_input_name: got 'token_embeddings'; expected sentence_embedding": [
            modules.Transformer(bert), pool("mean"), modules.Dense(32, 32, module_input_name="token_embeddings")],
        "include_prompt": [modules.Transformer(bert), pool("weightedmean", include_prompt=False)],
    }  # fmt: skip
    for i, (message, parts) in enumerate(odd.items()):
        folder = str(tmp_path / str(i))
        keep(theirs.SentenceTransformer(modules=parts, device="cpu"), folder)
        with pytest.raises(FormatError, match=message):
            load(folder)


HARD = [
    "A sentence", "", " ", "word " * 600, "x" * 150 + " a", "Größe naïve café 日本語の文 🙂👍🏽 \u200b \ufeff",
    "[MASK] [SEP] a [CLS]", "a\nb\tc\r\n", "İstanbul ß ẞ ŉ Å e\u0301 ﬁ", "\x00 null \x07", "수박이 हिन्दी ไทย العربية",
    "\u2028\u2029\u00a0x\u3000y", "the " * 254, "the " * 253 + "dogs are", "I'm can't http://www.example.com/?q=1&b=2",
]  # fmt: skip


def test_minilm():
    """Its published weights. The bound is on cosines: 0.99999; what is seen is rounding, a few 1e-7."""
    folder = folders.resolve(DEFAULT_MODEL)
    model, ours = theirs.SentenceTransformer(folder, device="cpu"), load(folder)
    assert ours.max_length == model.max_seq_length == 256
    want, found = model.encode(HARD), ours.encode(HARD).numpy()
    close(found, want)
    assert (found * want).sum(1).min() > 0.99999
    for text, row in zip(HARD, want):
        close(ours.encode(text), row)
    close(ours.encode(HARD[:3], prompt="query: "), model.encode(HARD[:3], prompt="query: "))
    close(found @ found.T, model.similarity(want, want))
