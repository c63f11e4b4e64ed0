"""Encoders against transformers' own, of tiny random configs: hidden states, padding, one training step."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from zoo import auto, published

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

SIZES = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
DEBERTA = {**SIZES, "relative_attention": True, "max_relative_positions": -1, "position_buckets": 4}
DEBERTA |= {"pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_biased_input": False}
DEBERTA |= {"norm_rel_ebd": "layer_norm", "max_position_embeddings": 20}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
T5 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "is_encoder_decoder": False}
# model_type -> (transformers' names of config and model, options); of each, one row
CASES = {
    "bert": ("BertConfig", "BertModel", {**SIZES, "max_position_embeddings": 64}),
    "deberta-v2": ("DebertaV2Config", "DebertaV2Model", DEBERTA),
    "deberta-v2 plain": (
        "DebertaV2Config",
        "DebertaV2Model",
        {
            **DEBERTA,
            "position_buckets": -1,
            "share_att_key": False,
            "position_biased_input": True,
            "norm_rel_ebd": "none",
        }
        | {"type_vocab_size": 2, "conv_kernel_size": 3, "pos_att_type": "C2P | p2p"},
    ),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertModel",
        {"vocab_size": 99, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
    ),
    "gte": ("GteConfig", "GteModel", {**SIZES, "max_position_embeddings": 64, "type_vocab_size": 0}),
    "modernbert": (
        "ModernBertConfig",
        "ModernBertModel",
        {**SIZES, "num_hidden_layers": 4, "local_attention": 8, "pad_token_id": 0, "max_position_embeddings": 64},
    ),
    "nomic_bert": ("NomicBertConfig", "NomicBertModel", {**SIZES, "max_position_embeddings": 64}),
    "roberta": ("RobertaConfig", "RobertaModel", {**SIZES, "max_position_embeddings": 64, "type_vocab_size": 1}),
    "t5": ("T5Config", "T5EncoderModel", T5),
    "t5 gated": ("T5Config", "T5EncoderModel", {**T5, "feed_forward_proj": "gated-gelu"}),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel", {**SIZES, "max_position_embeddings": 64}),
}
MODERN = {"classifier_pooling": "mean", "classifier_bias": True, "norm_bias": True, "decoder_bias": False}
LABELS = {"id2label": {0: "O", 1: "PER", 2: "LOC"}, "label2id": {"O": 0, "PER": 1, "LOC": 2}}
TASKS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
# (row of CASES, transformers' class, options, whether the model has two sentences)
HEADS = {
    f"{name} {task}": (name, cls + task, {} if task == TASKS[0] else LABELS, name == "bert")
    for task in TASKS
    for name, cls in (
        ("bert", "Bert"),
        ("deberta-v2", "DebertaV2"),
        ("distilbert", "DistilBert"),
        ("modernbert", "ModernBert"),
        ("roberta", "Roberta"),
        ("xlm-roberta", "XLMRoberta"),
    )
} | {
    "modernbert mean": ("modernbert", "ModernBertForSequenceClassification", {**MODERN, "num_labels": 1}, False),
    "modernbert biases": ("modernbert", "ModernBertForMaskedLM", MODERN, False),
    "deberta-v2 masked": ("deberta-v2", "DebertaV2ForMaskedLM", {"legacy": False}, False),
    "deberta-v2 types": ("deberta-v2", "DebertaV2ForSequenceClassification", {"type_vocab_size": 2}, True),
    "bert relu": ("bert", "BertForMaskedLM", {"hidden_act": "relu"}, True),
    "bert untied": ("bert", "BertForMaskedLM", {"tie_word_embeddings": False}, True),
    "distilbert untied": ("distilbert", "DistilBertForMaskedLM", {"tie_word_embeddings": False}, False),
}
LENGTHS = (11, 5, 16)


def made(name, folder, cls=None, **more):
    """transformers' model with weights of a seed that move every output, saved to `folder`."""
    config, model, options = CASES[name]
    torch.manual_seed(0)
    theirs = getattr(transformers, cls or model)(getattr(transformers, config)(**{**options, **more})).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight += torch.randn_like(weight) / (4 if weight.ndim == 1 else weight.shape[-1] ** 0.5)
    theirs.save_pretrained(folder)
    return theirs


def batch():
    """(ids, mask) of three sequences, padded behind."""
    rng = np.random.default_rng(1)
    ids = rng.integers(3, 99, (len(LENGTHS), max(LENGTHS)))
    mask = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int64)
    return np.where(mask, ids, 1), mask


def close(got, want, tolerance=1e-4):
    assert np.abs(got - want).max() < tolerance * np.abs(want).max()


@pytest.fixture(scope="module")
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return made(request.param, folder), auto.load(folder)[1]


@pytest.mark.parametrize("pair", CASES, indirect=True)
def test_hidden_states(pair):
    """A batch with padding, the same as lists, and one sequence alone."""
    theirs, ours = pair
    ids, mask = batch()
    with torch.no_grad():
        want = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    want = want * mask[..., None]
    with tensorlib.no_grad():
        close(ours(tensorlib.tensor(ids), tensorlib.tensor(mask)).numpy(), want)
        rows = [row[:n].tolist() for row, n in zip(ids, LENGTHS)]
        close(ours(nn.Sequences(rows)).numpy(), np.concatenate([w[:n] for w, n in zip(want, LENGTHS)]))
        close(ours(tensorlib.tensor(rows[0])).numpy(), want[0, : LENGTHS[0]])


def gradients(theirs, folder):
    """Those there are of transformers' model, by the names of its files, which it saves as if they were the weights."""
    kept = [(p, p.data) for p in theirs.parameters()]
    for p, data in kept:
        p.data = torch.full_like(data, float("nan")) if p.grad is None else p.grad
    theirs.save_pretrained(folder)
    for p, data in kept:
        p.data = data
    found = {name: x.numpy() for name, x in safetensors.load_file(folder / "model.safetensors").items()}
    return {name: x for name, x in found.items() if not np.isnan(x).any()}


@pytest.mark.parametrize("pair", CASES, indirect=True)
def test_training_step(pair, tmp_path):
    """Loss and gradients of all weights after one backward pass."""
    theirs, ours = pair
    ids, mask = batch()
    want = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state
    want = (want * torch.tensor(mask)[..., None]).square().mean()
    theirs.zero_grad()
    want.backward()
    ours.requires_grad_()
    found = ours(tensorlib.tensor(ids), tensorlib.tensor(mask)).square().mean()
    assert abs(found.item() - want.item()) < 1e-5 * abs(want.item())
    found.backward()
    grads, expected = {name: p.grad for name, p in ours.named_parameters()}, gradients(theirs, tmp_path)
    assert {name for name, grad in grads.items() if grad is not None} == expected.keys()
    for name, gradient in expected.items():
        difference = np.abs(grads[name].numpy() - gradient).max()
        assert difference < 1e-3 * max(np.abs(gradient).max(), 1e-4), name


@pytest.fixture(scope="module", params=HEADS)
def headed(request, tmp_path_factory):
    """(transformers' model, ours, the folder, what both are given)."""
    name, cls, options, types = HEADS[request.param]
    folder = tmp_path_factory.mktemp("head")
    ids, mask = batch()
    given = {"ids": ids, "attention_mask": mask}
    if types:
        given["token_type_ids"] = (np.arange(ids.shape[1]) > 3).astype(np.int64) * mask
    return made(name, folder, cls, **options), auto.load(folder)[1], folder, given


def logits(theirs, ids, **given):
    """Theirs, 0 for padding."""
    found = theirs(torch.tensor(ids), **{name: torch.tensor(x) for name, x in given.items()}).logits
    return found * torch.tensor(given["attention_mask"])[..., None] if found.ndim == 3 else found


def test_heads(headed):
    """Logits of the model that `architectures` says, of one text alone, and the encoder alone out of its file."""
    theirs, ours, folder, given = headed
    with torch.no_grad():
        want = logits(theirs, **given).numpy()
    with tensorlib.no_grad():
        close(ours(**{name: tensorlib.tensor(x) for name, x in given.items()}).numpy(), want)
        one = {name: x[1, : LENGTHS[1]] for name, x in given.items() if name != "attention_mask"}
        found = ours(**{name: tensorlib.tensor(x) for name, x in one.items()}).numpy()
        close(found, want[1, : LENGTHS[1]] if want.ndim == 3 else want[1:2])
        kind = auto.classes(auto.type_of(published.read(folder)), "", "")[0]
        encoder = auto.load(folder, head=kind.__name__)[1]
        assert type(encoder) is kind
        given = {name: tensorlib.tensor(x) for name, x in given.items()}
        hidden = encoder(given.pop("ids"), **given).numpy()
    ids, mask = batch()
    types = {"token_type_ids": torch.tensor(given["token_type_ids"].numpy())} if "token_type_ids" in given else {}
    with torch.no_grad():
        want = theirs.base_model(torch.tensor(ids), attention_mask=torch.tensor(mask), **types).last_hidden_state
    close(hidden, want.numpy() * mask[..., None])


def test_training_step_of_heads(headed):
    """Loss and gradients of all weights."""
    theirs, ours, _, given = headed
    theirs.zero_grad()
    want = logits(theirs, **given).square().mean()
    want.backward()
    ours.requires_grad_()
    found = ours(**{name: tensorlib.tensor(x) for name, x in given.items()}).square().mean()
    assert abs(found.item() - want.item()) < 1e-5 * abs(want.item())
    found.backward()
    grads = {name: p.grad for name, p in ours.named_parameters()}
    every = dict(theirs.named_parameters(remove_duplicate=False))  # what is tied has several names
    assert {id(every[name]) for name in grads} == {id(p) for p in every.values() if p.grad is not None}
    for name, grad in grads.items():
        want = every[name].grad
        assert np.abs(grad.numpy() - want.numpy()).max() < 1e-3 * max(want.abs().max().item(), 1e-4), name
