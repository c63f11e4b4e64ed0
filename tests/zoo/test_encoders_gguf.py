"""Encoders through GGUF: weights of a Hugging Face folder under llama.cpp's names and metadata, read back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import FormatError
from tensorlib.io import gguf
from tensorlib.io.tokenizer import Tokenizer
from tests.io import build_pieces
from tests.zoo import decoders, test_decoders, test_decoders_gguf
from tests.zoo import test_encoders as whole
from tests.zoo import test_jina_bert as jina
from tests.zoo import test_t5 as published
from zoo import embed, gguf_encoders

names = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

T5 = {**whole.T5, "relative_attention_max_distance": 128}  # which llama.cpp has for all


def metadata(arch, c, **more):
    """llama.cpp's keys, as its converter writes them of a config (a dict)."""
    keys = {
        "embedding_length": "hidden_size d_model dim",
        "feed_forward_length": "intermediate_size d_ff hidden_dim",
        "block_count": "num_hidden_layers num_layers n_layers",
        "attention.head_count": "num_attention_heads num_heads n_heads",
    }
    found = {key: next(c[name] for name in names.split() if name in c) for key, names in keys.items()}
    found |= {"context_length": c.get("max_position_embeddings", 512), "attention.causal": False, **more}
    return {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in found.items()}


def parts(name, x, arch, positions):
    """The tensors that llama.cpp's converter makes of one: gates apart, RoBERTa's positions from the first one used."""
    if "gated_layer" in name:  # gate and rest, which lie the other way round in models for code
        order = (
            ("gated_layers_v", "gated_layers_w") if "up_gated_layer" in name else ("gated_layers_w", "gated_layers_v")
        )
        for part, half in zip(order, np.split(x, 2)):
            yield name.replace("up_gated_layer", part).replace("gated_layers.", f"{part}."), half
    elif "position_embeddings" in name:
        yield name, x[positions:]
    elif not name.startswith("pooler"):
        yield name, x


def write(path, folder, fields, layers, positions=0):
    """The GGUF file of a folder's weights."""
    kind = {name: key for key, name in names.MODEL_ARCH_NAMES.items()}[fields["general.architecture"]]
    table, tensors, source = names.get_tensor_name_map(kind, layers), {}, tensorlib.load(folder)
    for name in source.tensors:
        x = source.tensor(name).numpy()
        for part, value in parts(name, x, fields["general.architecture"], positions):
            found = table.get_name(part, try_suffixes=(".weight", ".bias"))
            assert found is not None, part
            tensors[found] = np.ascontiguousarray(value)
    gguf.write(path, fields, tensors)


def compare(path, want):
    """Hidden states of a batch with padding."""
    _, ours = gguf_encoders.load(path)
    with tensorlib.no_grad():
        whole.close(ours(*map(tensorlib.tensor, whole.batch())).numpy(), want)


# name of a case of test_encoders -> (architecture, what its metadata has beside the sizes, first position)
EPS = "attention.layer_norm_epsilon"
MODERN = {EPS: 1e-5, "rope.freq_base": 160000.0, "rope.freq_base_swa": 10000.0, "rope.scaling.type": "none"}
MODERN |= {"attention.sliding_window": 8, "attention.sliding_window_pattern": 3, "hidden_activation": "gelu"}
CASES = {
    "bert": ("bert", {EPS: 1e-12}, 0),
    "roberta": ("bert", {EPS: 1e-12}, 2),
    "xlm-roberta": ("bert", {EPS: 1e-12}, 2),
    "distilbert": ("bert", {EPS: 1e-12}, 0),
    "modernbert": ("modern-bert", MODERN, 0),
    "nomic_bert": ("nomic-bert", {EPS: 1e-12, "rope.freq_base": 1000.0}, 0),
}


OTHERS = "jina_bert", "t5", "mt5"  # which have tests of their own below


@pytest.mark.parametrize("name", CASES)
def test_bert_and_its_kin(name, tmp_path):
    arch, more, positions = CASES[name]
    theirs = whole.made(name, tmp_path)
    ids, mask = whole.batch()
    with torch.no_grad():
        want = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    fields = metadata(arch, whole.CASES[name][2], **more)
    write(tmp_path / "model.gguf", tmp_path, fields, fields[f"{arch}.block_count"], positions)
    compare(tmp_path / "model.gguf", want * mask[..., None])


@pytest.mark.parametrize("name", ["text", "code"])
def test_jina_bert(name, tmp_path):
    theirs = jina.made(name, tmp_path)
    with torch.no_grad():
        want = theirs(*whole.batch()).numpy()
    fields = metadata("jina-bert-v2", {**jina.SIZES, **jina.CASES[name]}, **{EPS: 1e-12})
    write(tmp_path / "model.gguf", tmp_path, fields, jina.LAYERS)
    compare(tmp_path / "model.gguf", want)


def t5(cls, folder, **more):
    """transformers' model, saved to a folder."""
    torch.manual_seed(0)
    config = transformers.MT5Config if cls.startswith("MT5") else transformers.T5Config
    theirs = getattr(transformers, cls)(config(**{**T5, **more}, decoder_start_token_id=0)).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight += torch.randn_like(weight) / (4 if weight.ndim == 1 else weight.shape[-1] ** 0.5)
    theirs.save_pretrained(folder)
    return theirs


def t5_metadata(arch):
    more = {"attention.key_length": 8, "attention.relative_buckets_count": 8, "decoder_start_token_id": 0}
    more |= {"decoder_block_count": 2} if arch == "t5" else {}
    found = metadata(arch, T5, **{"attention.layer_norm_rms_epsilon": 1e-6, EPS: 1e-6}, **more)
    del found[f"{arch}.attention.causal"]
    return found


@pytest.mark.parametrize("projection", ["relu", "gated-gelu"])
def test_t5_encoder(projection, tmp_path):
    theirs = t5("T5EncoderModel", tmp_path, feed_forward_proj=projection)
    ids, mask = whole.batch()
    with torch.no_grad():
        want = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    write(tmp_path / "model.gguf", tmp_path, t5_metadata("t5encoder"), 2)
    compare(tmp_path / "model.gguf", want * mask[..., None])


SEQ2SEQ = {"T5": {}, "MT5": {"feed_forward_proj": "gated-gelu"}}


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_t5(name, tmp_path):
    """Logits, and the text that they make."""
    theirs = t5(f"{name}ForConditionalGeneration", tmp_path, is_encoder_decoder=True, **SEQ2SEQ[name])
    if name == "MT5":
        published.untie(theirs, tmp_path, ("shared.weight",))
    ids, answer = np.arange(3, 15)[None], np.arange(20, 30)[None]
    with torch.no_grad():
        want = theirs(torch.tensor(ids), decoder_input_ids=torch.tensor(answer)).logits.numpy()
        text = theirs.generate(torch.tensor(ids), max_new_tokens=6, num_beams=1, do_sample=False)[0, 1:].tolist()
    write(tmp_path / "model.gguf", tmp_path, t5_metadata("t5"), 2)
    _, ours = gguf_encoders.load(tmp_path / "model.gguf")
    with tensorlib.no_grad():
        whole.close(ours(tensorlib.tensor(ids), tensorlib.tensor(answer)).numpy(), want)
    text = text[: text.index(1)] if 1 in text else text
    assert list(ours.answer(tensorlib.tensor(ids[0]), 6)) == text


def test_unknown(tmp_path):
    gguf.write(tmp_path / "m.gguf", {"general.architecture": "llama"}, {"x": np.zeros(2, np.float32)})
    with pytest.raises(FormatError, match="'llama'; expected one of bert, "):
        gguf_encoders.load(tmp_path / "m.gguf")


# ---- whole pipelines: a vocabulary, a pool ---------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"the cat sat on a mat and dog ran far away ##s ##ing , .".split()]
TEXTS = ["the cats sat", "A dög, running.", "the dog ran far away and the cat sat on a mat", "unknown words [SEP] a"]


def vocabulary(**more):
    """llama.cpp's keys of a WordPiece vocabulary: pieces that begin words are marked, those inside are not."""
    control, spelt = WORDS[:4], [w.removeprefix("##") if w.startswith("##") else f"▁{w}" for w in WORDS[4:]]
    found = {"model": "bert", "tokens": [*control, *spelt], "token_type": [3] * 4 + [1] * len(spelt)}
    found |= {"bos_token_id": 2, "seperator_token_id": 3, "unknown_token_id": 1, "padding_token_id": 0}
    found |= {"token_type_count": 2, **more}
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()}


def wordpieces(lower=True):
    """The same as a library's tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    library.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower)
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    library.add_special_tokens(WORDS[:4])
    library.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return library


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
def test_vectors_of_texts(pool, tmp_path, monkeypatch):
    """Out of one file; texts of a length that comes again are recorded."""
    sizes = {**whole.SIZES, "vocab_size": len(WORDS), "max_position_embeddings": 16}
    monkeypatch.setitem(whole.CASES, "small", ("BertConfig", "BertModel", sizes))
    theirs, library = whole.made("small", tmp_path), wordpieces()
    number = {"mean": 1, "cls": 2, "last": 3}[pool]
    fields = metadata("bert", sizes, **{EPS: 1e-12, "pooling_type": number}) | vocabulary()
    write(tmp_path / "model.gguf", tmp_path, fields, 2)
    model, want = embed.load(tmp_path / "model.gguf"), []
    for text in TEXTS:
        with torch.no_grad():
            x = theirs(torch.tensor([library.encode(text).ids])).last_hidden_state[0].numpy()
        x = {"mean": x.mean(0), "cls": x[0], "last": x[-1]}[pool]
        want.append(x / np.linalg.norm(x))
    for _ in range(3):
        whole.close(model.encode(TEXTS).numpy(), np.stack(want), 1e-5)
    ids = model.tokenizer.encode("the cat " * 20)
    assert len(ids) == 16 and ids[-1] == 3, "texts are cut to what the model takes"


def test_vectors_of_pieces(tmp_path):
    """XLM-RoBERTa's kind of file, as BGE-M3's: pieces with scores, an end on either side, positions from 2 on."""
    theirs = whole.made("xlm-roberta", tmp_path)
    own = [("<s>", 0.0, 3), ("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]
    tokens, scores, types = zip(*own, *build_pieces.PIECES[3:])
    fields = {"model": "t5", "tokens": list(tokens), "scores": list(scores), "token_type": list(types)}
    fields |= {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "unknown_token_id": 3,
        "add_bos_token": True,
        "add_eos_token": True,
        "add_space_prefix": True,
    }
    fields = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    fields |= metadata("bert", whole.CASES["xlm-roberta"][2], **{EPS: 1e-12, "pooling_type": 2})
    write(tmp_path / "model.gguf", tmp_path, fields, 2, 2)
    model, ids = embed.load(tmp_path / "model.gguf"), [tokens.index(p) for p in ("<s>", "▁the", "▁cat", "s", "</s>")]
    assert model.tokenizer.encode("the cats") == ids
    with torch.no_grad():
        x = theirs(torch.tensor([ids])).last_hidden_state[0, 0].numpy()
    whole.close(model.encode("the cats").numpy(), x / np.linalg.norm(x), 1e-5)


@pytest.mark.parametrize("lower", [True, False])
@given(text=st.text(st.sampled_from("the catsingA ,.é日[]\t\u0301"), max_size=40))
def test_word_pieces(lower, text, tmp_path_factory):
    file = {"general.architecture": "bert"} | vocabulary(**({} if lower else {"normalizer.lowercase": False}))
    path = tmp_path_factory.mktemp("vocabulary") / "v.gguf"
    gguf.write(path, file, {"x": np.zeros(1, np.float32)})
    ours = Tokenizer.from_gguf(gguf.open(path))
    assert ours.encode(text) == wordpieces(lower).encode(text).ids
    assert ours.decode(ours.encode("the cats, sat")) == "the cats , sat"


def test_no_such_pool(tmp_path):
    whole.made("bert", tmp_path)
    fields = metadata("bert", whole.CASES["bert"][2], **{EPS: 1e-12, "pooling_type": 4}) | vocabulary()
    write(tmp_path / "model.gguf", tmp_path, fields, 2)
    with pytest.raises(FormatError, match=r"pooling_type: got 4; expected one of 1 \(mean\)"):
        embed.load(tmp_path / "model.gguf")
    fields |= {"tokenizer.ggml.bos_token_id": 99, "bert.pooling_type": 1}
    write(tmp_path / "model.gguf", tmp_path, fields, 2)
    with pytest.raises(FormatError, match="bos: got token 99; expected an id from 0 to"):
        embed.load(tmp_path / "model.gguf")


def test_a_decoder(tmp_path):
    """Qwen2 out of GGUF, attention both ways: vectors are those of its hidden states."""
    case = next(case for case in decoders.CASES if case.id == "qwen2-everywhere")
    theirs = test_decoders.torch_model(case)
    test_decoders_gguf.write(tmp_path / "d.gguf", case, theirs)
    with gguf.open(tmp_path / "d.gguf") as file:
        fields = dict(file.metadata) | {"qwen2.attention.causal": False, "qwen2.pooling_type": 3}
        tensors = {name: file.tensor(name).numpy().copy() for name in file.tensors}
    gguf.write(tmp_path / "e.gguf", fields | vocabulary(), tensors)
    theirs.config.is_causal = False
    with torch.no_grad():
        x = theirs.model(torch.tensor([[2, 4, 5, 3]])).last_hidden_state[0, -1].numpy()
    found = embed.load(tmp_path / "e.gguf").encode("the cat").numpy()
    whole.close(found, x / np.linalg.norm(x), 1e-5)
