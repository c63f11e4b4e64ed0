"""Fields of config.json with other values than the tests of models have, and in the spelling of older files: what they
give is what transformers makes of the same file. What is refused is in test_config.py.
"""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest

import tensorlib
from tensorlib.errors import ContextError
from tensorlib.io import gguf
from tensorlib.nn import rope_frequencies
from tests.zoo.conftest import write_llama
from tests.zoo.decoders import CASES, EXPERTS, LLAMA3, QWEN2_MOE, SIZES, YARN
from tests.zoo.test_decoders import close, randomise, tensor
from zoo import auto, published
from zoo.config import Fields
from zoo.deepseek import TINY as MLA
from zoo.deepseek import DeepseekForCausalLM
from zoo.gemma import TINY_3, Gemma3Config
from zoo.llama import TINY, LlamaForCausalLM
from zoo.load import gguf_config, load_gguf
from zoo.nomic_bert import TINY as NOMIC
from zoo.nomic_bert import NomicBertModel

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IDS = np.random.default_rng(3).integers(3, 90, 40).tolist()  # beyond windows, and the original contexts of 16
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [1.5, 2.5, 3.5, 4.5]}
ORIGINAL = {"original_max_position_embeddings": 16}
NO = {"rope_parameters": ...}  # a field that is not there


def of(old, **beside):
    """Rotary positions in the spelling of transformers before 5."""
    return {**NO, "rope_theta": 777.0, "rope_scaling": old, **beside}


def kinds(**changes):
    """Gemma 3's rotary positions of both kinds of layers."""
    both = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
    both["sliding_attention"] = {"rope_type": "default", "rope_theta": 1e4}
    return {"rope_parameters": {kind: fields | changes.get(kind, {}) for kind, fields in both.items()}}


WINDOW = {"use_sliding_window": True, "sliding_window": 5}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
# name -> (model_type, fields)
ROWS = {
    "theta": ("llama", of(None)),
    "linear": ("llama", of({"type": "linear", "factor": 4.0})),
    "dynamic": ("llama", of({"type": "dynamic", "factor": 4.0})),
    "yarn": ("llama", of({"type": "yarn", "factor": 4.0, **ORIGINAL})),
    "yarn of the context": ("qwen2", of({"type": "yarn", "factor": 4.0})),
    "yarn beside": ("qwen3", of({"rope_type": "yarn", "factor": 4.0}, **ORIGINAL)),
    "yarn attention": ("llama", of({"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7, **ORIGINAL})),
    "yarn mscale": ("llama", of({"type": "yarn", "factor": 4.0, "mscale": 0.8, "mscale_all_dim": 0.5, **ORIGINAL})),
    "yarn betas": ("llama", of({"type": "yarn", "factor": 4.0, "beta_fast": 4, "beta_slow": 2, **ORIGINAL})),
    "llama3": ("llama", of(LLAMA3)),
    "longrope": ("llama", of({**LONGROPE, **ORIGINAL})),
    "longrope factor": ("llama", of({**LONGROPE, **ORIGINAL, "factor": 3.0})),
    "longrope attention": ("llama", of({**LONGROPE, "attention_factor": 0.6}, **ORIGINAL)),
    "phi3 beside": ("phi3", of({**LONGROPE, "original_max_position_embeddings": 48}, **ORIGINAL)),
    "phi3 part": (
        "phi3",
        of({**LONGROPE, "short_factor": [1.0, 1.2], "long_factor": [1.5, 2.5]}, **ORIGINAL, partial_rotary_factor=0.5),
    ),
    "phi part": ("phi", of({"type": "yarn", "factor": 4.0, **ORIGINAL}, partial_rotary_factor=0.25)),
    "neox": ("gpt_neox", {**NO, "rotary_emb_base": 777, "rotary_pct": 0.5}),
    "gemma3 local": ("gemma3_text", kinds(sliding_attention={"rope_type": "linear", "factor": 4.0})),
    "gemma3 yarn": ("gemma3_text", kinds(full_attention=YARN)),
    "gemma3 dynamic": ("gemma3_text", kinds(full_attention={"rope_type": "dynamic", "factor": 4.0})),
    "gemma3 proportional": (
        "gemma3_text",
        kinds(full_attention={"rope_type": "proportional", "partial_rotary_factor": 0.5}),
    ),
    "gemma3 old": ("gemma3_text", of({"rope_type": "linear", "factor": 8.0}, rope_local_base_freq=55.0)),
    "smollm3 layers": ("smollm3", {**SLIDING, "use_sliding_window": ...}),
    "qwen2 layers": ("qwen2", {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
    "qwen2_moe window": ("qwen2_moe", {**QWEN2_MOE, **WINDOW, "num_hidden_layers": 4, "layer_types": ...}),
    "qwen2_moe below": (
        "qwen2_moe",
        {**QWEN2_MOE, **WINDOW, "num_hidden_layers": 4, "max_window_layers": 1, "layer_types": ...},
    ),
    "qwen2_moe no bias": ("qwen2_moe", {**QWEN2_MOE, "qkv_bias": False}),
    "qwen3_moe window": ("qwen3_moe", {**EXPERTS, **WINDOW}),
    "gemma silu": ("gemma", {"hidden_act": "silu"}),
    "gelu of old": ("llama", {"hidden_act": "gelu_python"}),
    "glm bias": ("glm", {"attention_bias": ...}),
    "gemma2 caps": ("gemma2", {"final_logit_softcapping": ..., "attn_logit_softcapping": ..., "head_dim": ...}),
    "gemma2 no caps": ("gemma2", {"final_logit_softcapping": None, "attn_logit_softcapping": None}),
    "griffin heads": ("recurrent_gemma", {"head_dim": 8, "num_attention_heads": 2}),
    "one head of keys": ("llama", {"num_key_value_heads": 1}),
    "all heads of keys": ("llama", {"num_key_value_heads": None}),
}


@pytest.mark.parametrize("name", ROWS)
def test_fields(name, tmp_path):
    """Logits of cached steps. transformers reads the same config.json, which is not one that it wrote itself."""
    kind, fields = ROWS[name]
    case = next(case for case in CASES if case.model_type == kind)
    values = transformers.AutoConfig.for_model(kind, **{**SIZES, **case.fields}).to_json_string(use_diff=False)
    values = {k: x for k, x in (json.loads(values) | fields).items() if x is not ... and k != "dtype"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copy(tmp_path / "theirs" / "model.safetensors", tmp_path)
    with torch.no_grad():
        want = theirs(torch.tensor([IDS]), use_cache=False).logits[0].numpy()
    for folder in (tmp_path, tmp_path / "theirs"):
        ours = auto.load(folder)[1]
        cache = ours.new_cache(48, "f32")
        with tensorlib.no_grad():
            parts = [ours(tensor(IDS[:37]), cache, last_only=False)]
            parts += [ours(tensor([token]), cache) for token in IDS[37:]]
        close(np.concatenate([part.numpy() for part in parts]), want)


OWN = "Yi", "based", "chatglm", "jina_bert", "mixformer-sequential", "new", "nvembed", "phi-msft"
OWN += "rwkv5", "rwkv6", "rwkv7"  # types that transformers does not have
NEEDED = {"deepseek_v2": {"num_experts_per_tok": 6}}


def turns(config):
    """The frequencies of a config instead of how they are given."""
    if getattr(config, "rope_scaling", None) is None:
        return config
    limit, width = config.max_position_embeddings, getattr(config, "qk_rope_head_dim", config.head_dim)
    return config._replace(rope_scaling=rope_frequencies(config.rope_scaling, width, config.rope_theta, limit, limit))


@pytest.mark.parametrize("kind", sorted(auto.MODELS.keys() - {*OWN}))
def test_what_a_config_does_not_say(kind):
    """A field that is missing counts as what transformers' class has for it, or is asked for."""
    logging.disable(logging.WARNING)
    theirs = transformers.AutoConfig.for_model(kind)
    logging.disable(logging.NOTSET)
    every = json.loads(theirs.to_json_string(use_diff=False)) | NEEDED.get(kind, {})
    made = auto.classes(kind, "", "")[1].from_hf

    def read(values):
        return turns(made(published.whole(Fields(values, "config.json"))))

    want, names = read(every), {field.name for field in dataclasses.fields(theirs)}
    assert published.MISSING.get(kind, {}).items() <= {**every, "rope_theta": theirs.default_theta}.items()
    for name in names & {name for name, value in every.items() if value is not None} - {"model_type", "architectures"}:
        try:
            assert read({key: value for key, value in every.items() if key != name}) == want, name
        except tensorlib.errors.FormatError as error:
            assert f"{error}".startswith("config.json: ") and "no such field" in f"{error}", name


# ---- GGUF ------------------------------------------------------------------------------------------------------------

SCALING = {
    "a factor alone": ({"scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "as it was called": ({"scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "a factor of 1": ({"scaling.factor": 1.0}, None),
    "none": ({"scaling.type": "none", "scaling.factor": 4.0}, None),
    "betas": (
        {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.yarn_beta_fast": 8.0, "scaling.yarn_beta_slow": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "beta_slow": 2.0},
    ),
    "attention": (
        {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.yarn_attn_factor": 0.7},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7},
    ),
}


def adding(metadata):
    """Function of a writer that adds metadata."""
    kinds = {float: "float32", str: "string", bool: "bool", int: "uint32", list: "array"}

    def add(writer):
        for key, value in metadata.items():
            getattr(writer, f"add_{kinds[type(value)]}")(key, value)

    return add


@pytest.mark.parametrize("name", SCALING)
def test_scaling_in_gguf(name, tmp_path):
    """What llama.cpp makes of a file, or what its converter had."""
    given, want = SCALING[name]
    more = adding({f"llama.rope.{key}": value for key, value in given.items()})
    path = write_llama(tmp_path / "a.gguf", more=more)
    found = turns(load_gguf(path)[1].config).rope_scaling
    limit = TINY.max_position_embeddings
    want = want and rope_frequencies(want, TINY.head_dim, TINY.rope_theta, limit, limit)
    if want is None:
        assert found is None
    else:
        np.testing.assert_allclose([*found[0], found[1]], [*want[0], want[1]], rtol=1e-6)


@pytest.mark.parametrize(
    "arch, key, value",
    [
        ("llama", "rope.scaling.yarn_ext_factor", 0.5),
        ("llama", "rope.scaling.attn_factor", 0.5),
        ("deepseek2", "attention.temperature_scale", 0.1),
        ("olmo2", "attention.sliding_window", 8),  # OLMo 3
        ("lfm2", "attention.sliding_window", 8),
        ("granite", "rope.scaling.finetuned", False),
        ("granitemoe", "expert_shared_feed_forward_length", 8),
        ("gemma3", "attention.sliding_window_pattern", [True, False]),
    ],
)
def test_refusals_of_gguf(arch, key, value, tmp_path):
    """What changes a model, and is not here."""
    path = write_llama(tmp_path / "a.gguf", arch=arch, more=adding({f"{arch}.{key}": value}))
    with pytest.raises(tensorlib.errors.FormatError, match=f"{arch}.{key}: got "):
        load_gguf(path)


def test_layers_that_predict_further_are_left_out(tmp_path):
    """Those are counted as blocks."""
    path = write_llama(tmp_path / "a.gguf", block_count=3, nextn_predict_layers=1)
    assert load_gguf(path)[1].config.num_hidden_layers == TINY.num_hidden_layers == 2


def test_windows_of_gemma3_in_gguf(tmp_path):
    """The pattern of a file, and no window where it has none."""
    for metadata, want in (({}, (0, 0, 0, 0)), ({"window": 8, "window_pattern": 2}, (8, 0, 8, 0))):
        more = {f"gemma3.attention.sliding_{key}": value for key, value in metadata.items()}
        config = TINY_3._replace(num_hidden_layers=4)
        path = write_llama(tmp_path / "a.gguf", config=config, arch="gemma3", more=adding(more))
        assert gguf_config(gguf.open(path), Gemma3Config).windows == want


def test_beyond_the_prepared_positions():
    """A ContextError, whatever a cache has room for: nothing is read behind the tables of rotary positions."""
    model = LlamaForCausalLM(TINY._replace(max_position_embeddings=8)).requires_grad_(False)
    with pytest.raises(ContextError, match="9 positions; expected at most 8"):
        model(tensor(IDS[:9]))
    cache = model.new_cache(32)
    model(tensor(IDS[:8]), cache)
    for _ in range(2):
        with pytest.raises(ContextError, match="9 positions; expected at most 8"):
            model(tensor(IDS[:1]), cache)
    model = DeepseekForCausalLM(MLA._replace(max_position_embeddings=8)).requires_grad_(False)
    with pytest.raises(ContextError, match="9 positions; expected at most 8"):
        model(tensor(IDS[:9]), model.new_cache(32))
    model = NomicBertModel(NOMIC._replace(max_position_embeddings=8)).requires_grad_(False)
    for ids in (IDS[:9], [IDS[:9], IDS[:9]]):
        with pytest.raises(ContextError, match="9 positions; expected at most 8"):
            model(tensor(ids))
