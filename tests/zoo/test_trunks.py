"""Decoders as encoders of texts against transformers' trunks: hidden states, one training step, whole pipelines."""

import json

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tests.zoo.test_encoders import LENGTHS, SIZES, batch, close
from zoo import config, embed, trunk

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")

SIZES = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}
REMOTE = {"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}, "is_causal": None}  # GTE-Qwen2's and Stella's
# (model_type, fields for transformers, fields that its config.json gets instead, whether the file has a head)
CASES = {
    "llama": ("llama", {}, {}, True),
    "mistral": ("mistral", {"sliding_window": 8}, {}, False),
    "qwen2": ("qwen2", {"is_causal": False}, {}, False),
    "qwen2 remote": ("qwen2", {"is_causal": False}, REMOTE, True),
    "qwen3": ("qwen3", {"head_dim": 16}, {}, False),
}
WORDS = ["<unk>", "<s>", "</s>", *"the cat sat on a mat and dog ran far away".split()]
TEXTS = ["the cat sat", "a dog", "the dog ran far away and the cat sat on a mat", "the cat sat"]


def randomised(theirs):
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight += torch.randn_like(weight) / (4 if weight.ndim == 1 else weight.shape[-1] ** 0.5)
    return theirs.eval()


def saved(name, folder, **more):
    """transformers' trunk, saved to a folder."""
    kind, fields, instead, head = CASES[name]
    made = transformers.AutoConfig.for_model(kind, **{**SIZES, **fields, **more})
    made._attn_implementation = "eager"
    cls = transformers.AutoModelForCausalLM if head else transformers.AutoModel
    theirs = randomised(cls.from_config(made))
    theirs.save_pretrained(folder)
    change(folder, instead)
    return theirs.model if head else theirs


def change(folder, fields):
    """Fields of a config.json, None for none."""
    found = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trunk")
    theirs = saved(request.param, folder)
    return theirs, trunk.load(folder, config.read(folder))


def hidden(theirs, ids, mask):
    found = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state
    return found * torch.tensor(mask)[..., None]


def test_hidden_states(pair):
    theirs, ours = pair
    ids, mask = batch()
    with torch.no_grad():
        want = hidden(theirs, ids, mask).numpy()
    with tensorlib.no_grad():
        close(ours(tensorlib.tensor(ids), tensorlib.tensor(mask)).numpy(), want)
        rows = [row[:n].tolist() for row, n in zip(ids, LENGTHS)]
        close(ours(nn.Sequences(rows)).numpy(), np.concatenate([w[:n] for w, n in zip(want, LENGTHS)]))
        close(ours(tensorlib.tensor(rows[0])).numpy(), want[0, : LENGTHS[0]])


def test_training_step(pair):
    theirs, ours = pair
    check_step(theirs, lambda *given: hidden(theirs, *given), ours, "decoder.model.")


def check_step(theirs, forward, ours, prefix):
    """Loss and gradients of all weights after one backward pass."""
    ids, mask = batch()
    theirs.zero_grad()
    want = forward(ids, mask).square().mean()
    want.backward()
    ours.requires_grad_()
    found = ours(tensorlib.tensor(ids), tensorlib.tensor(mask)).square().mean()
    assert abs(found.item() - want.item()) < 1e-5 * abs(want.item())
    found.backward()
    grads = {name: p.grad for name, p in ours.named_parameters()}
    expected = {prefix + name: p.grad for name, p in theirs.named_parameters()}
    assert grads.keys() == expected.keys()
    for name, grad in expected.items():
        assert np.abs(grads[name].numpy() - grad.numpy()).max() < 1e-3 * max(grad.abs().max().item(), 1e-4), name
    ours.requires_grad_(False)


# ---- pipelines: modules.json, a pool, a projection -------------------------------------------------------------------


def describe(folder, pool, dense=None):
    """A tokenizer that ends texts with </s>, and the files of sentence-transformers."""
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, "<unk>"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    library.save(str(folder / "tokenizer.json"))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pool}": True}))
    rows = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    if dense is not None:
        w, b = dense
        rows[2] = ("2_Dense_6", "Dense")
        (folder / "2_Dense_6").mkdir()
        fields = {"in_features": 32, "out_features": 6, "bias": True}
        fields["activation_function"] = "torch.nn.modules.linear.Identity"
        (folder / "2_Dense_6" / "config.json").write_text(json.dumps(fields))
        torch.save(
            {"linear.weight": torch.tensor(w), "linear.bias": torch.tensor(b)}, folder / "2_Dense_6/pytorch_model.bin"
        )
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for path, kind in rows]
    (folder / "modules.json").write_text(json.dumps(modules))


def vectors(forward):
    """What a trunk makes of each text, [T, D]."""
    rows = [[*map(WORDS.index, text.split()), 2] for text in TEXTS]
    with torch.no_grad():
        return [forward(np.array([row]), np.ones((1, len(row)), np.int64))[0].numpy() for row in rows]


def normal(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_gte_qwen2(tmp_path):
    """Attention both ways, the last token's vector."""
    theirs = saved("qwen2 remote", tmp_path, vocab_size=len(WORDS))
    describe(tmp_path, "lasttoken")
    found = vectors(lambda *given: hidden(theirs, *given))
    want = normal(np.stack([x[-1] for x in found]))
    model = embed.load(tmp_path)
    assert not model.model.causal
    for _ in range(3):  # the shape is recorded, and replayed
        close(model.encode(TEXTS).numpy(), want, 1e-5)
    close(model.encode(TEXTS[1]).numpy(), want[1], 1e-5)


def test_stella(tmp_path):
    """A mean of tokens, a projection to the size that is asked for."""
    theirs = saved("qwen2 remote", tmp_path, vocab_size=len(WORDS))
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((6, 32)).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    describe(tmp_path, "mean_tokens", (w, b))
    want = np.stack([x.mean(0) for x in vectors(lambda *given: hidden(theirs, *given))]) @ w.T + b
    close(embed.load(tmp_path).encode(TEXTS).numpy(), want, 1e-5)


def test_attention_by_default(tmp_path):
    """A decoder with neither is_causal nor code of its own sees back only, as Qwen3's embedders do."""
    saved("qwen3", tmp_path)
    assert trunk.load(tmp_path, config.read(tmp_path)).causal
    change(tmp_path, {"use_bidirectional_attention": True})
    assert not trunk.load(tmp_path, config.read(tmp_path)).causal
