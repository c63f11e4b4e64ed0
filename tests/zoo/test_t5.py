"""T5's decoder against transformers': whole sequences, padding, cached steps, one training step; its buckets."""

import json

import numpy as np
import pytest

import tensorlib
from zoo import auto
from zoo.t5 import T5ForConditionalGeneration, buckets

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

SIZES = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
SIZES |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
GATED = {"feed_forward_proj": "gated-gelu"}
SILU = {"feed_forward_proj": "gated-silu"}
# name -> (transformers' class, options, whether it is untied as published files are, names of the table of words there)
CASES = {
    "t5": ("T5", {}, False, ()),
    "1.1": ("T5", GATED, True, ("shared.weight",)),
    "ul2": ("T5", SILU, True, ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")),
    "madlad": ("T5", GATED, True, ("decoder.embed_tokens.weight",)),
    "mt5": ("MT5", GATED, True, ("shared.weight",)),
    "mt5 tied": ("MT5", GATED, False, ()),
}
TABLES = "shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"


def untie(theirs, folder, tables):
    """An output layer of its own, in a folder as published ones are."""
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn_like(theirs.lm_head.weight))
    state = {name: x.clone() for name, x in theirs.state_dict().items() if name not in TABLES or name in tables}
    tensorlib.save(folder / "model.safetensors", {name: tensorlib.tensor(x.numpy()) for name, x in state.items()})
    fields = json.loads((folder / "config.json").read_text())
    fields.pop("scale_decoder_outputs", None)
    (folder / "config.json").write_text(json.dumps(fields | {"tie_word_embeddings": False}))


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """(transformers' model, ours out of its file, ids of a text and of an answer with their masks)."""
    torch.manual_seed(0)
    kind, options, untied, tables = CASES[request.param]
    options = options | ({"tie_word_embeddings": False} if untied and kind == "T5" else {})
    config = getattr(transformers, f"{kind}Config")(**SIZES, **options, decoder_start_token_id=0)
    theirs = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight += torch.randn_like(weight) / (4 if weight.ndim == 1 else weight.shape[-1] ** 0.5)
    folder = tmp_path_factory.mktemp("t5")
    theirs.save_pretrained(folder)
    if untied:
        untie(theirs, folder, tables)
    ours = auto.load(folder)[1]
    assert type(ours) is T5ForConditionalGeneration
    rng = np.random.default_rng(0)
    ids, answer = rng.integers(3, 99, (2, 14)), rng.integers(3, 99, (2, 15))
    mask = (np.arange(14) < np.array([[14], [9]])).astype(np.int64)
    return theirs, ours, ids, mask, answer


def logits(theirs, ids, mask, answer):
    return theirs(torch.tensor(ids), attention_mask=torch.tensor(mask), decoder_input_ids=torch.tensor(answer)).logits


def close(got, want):
    assert got.shape == want.shape and np.abs(got - want).max() < 1e-4 * np.abs(want).max()


def test_logits(pair):
    theirs, ours, ids, mask, answer = pair
    with torch.no_grad():
        want = logits(theirs, ids, mask, answer).numpy()
    with tensorlib.no_grad():
        close(ours(*map(tensorlib.tensor, (ids, answer, mask))).numpy(), want)
        cache = ours.new_cache(tensorlib.tensor(ids[0]))
        parts = [
            ours.step(tensorlib.tensor(answer[0, a:b]), cache) for a, b in ((0, 4), *zip(range(4, 15), range(5, 16)))
        ]
        close(tensorlib.cat(parts, 0).numpy(), want[0])


def test_padding_on_the_left(pair):
    """What transformers gives."""
    theirs, ours, ids, mask, answer = pair
    left = np.ascontiguousarray(mask[:, ::-1])
    with torch.no_grad():
        want = logits(theirs, ids, left, answer).numpy()
    with tensorlib.no_grad():
        close(ours(*map(tensorlib.tensor, (ids, answer, left))).numpy(), want)


def test_training_step(pair):
    theirs, ours, ids, mask, answer = pair
    want = logits(theirs, ids, mask, answer)[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(want, torch.tensor(answer[:, 1:].flatten()))
    loss.backward()
    ours.requires_grad_()
    found = ours(*map(tensorlib.tensor, (ids, answer, mask)))[:, :-1].flatten(0, 1)
    found = tensorlib.nn.functional.cross_entropy(found, tensorlib.tensor(answer[:, 1:].flatten()))
    assert abs(found.item() - loss.item()) < 1e-5 * loss.item()
    found.backward()
    grads = {name: p.grad for name, p in ours.named_parameters()}
    assert all(grad is not None for grad in grads.values())
    for name, weight in theirs.named_parameters():
        difference = np.abs(grads[name].numpy() - weight.grad.numpy()).max()
        assert difference < 1e-3 * max(weight.grad.abs().max().item(), 1e-4), name


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("count, most", [(32, 128), (8, 12), (32, 256)])
def test_buckets(both, count, most):
    distance = np.arange(-300, 301)
    attention = transformers.models.t5.modeling_t5.T5Attention
    want = attention._relative_position_bucket(torch.tensor(distance), both, count, most).numpy()
    assert np.array_equal(buckets(tensorlib.tensor(distance), count, most, both).numpy(), want)
