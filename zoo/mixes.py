"""Which type each weight of a model gets: llama.cpp's rules, as rows.

A mix (q4_k_m) has a type for most weights and others for those that matter more. A weight whose rows are not whole
blocks of its type gets the nearest type of blocks of 32, or f16.
"""

import re

MIXES = {  # name: (type of most weights, general.file_type, rows of MORE)
    "q2_k": ("q2_k", 10, ("v q4_k if grouped", "v q3_k", "down q3_k", "out q3_k")),
    "q3_k_s": ("q3_k", 11, ()),
    "q3_k_m": ("q3_k", 12, ("v q5_k first2", "v q4_k", "down q5_k sixteenth", "down q4_k", "out q4_k", "qkv q4_k")),
    "q3_k_l": ("q3_k", 13, ("v q5_k", "down q5_k", "out q5_k", "qkv q4_k")),
    "q4_k_s": ("q4_k", 14, ("v q5_k first4", "down q5_k eighth")),
    "q4_k_m": ("q4_k", 15, ("v q6_k more", "down q6_k more", "qkv q5_k")),
    "q5_k_s": ("q5_k", 16, ()),
    "q5_k_m": ("q5_k", 17, ("v q6_k more", "down q6_k more", "qkv q6_k")),
}
FILE_TYPES = {  # 1024: it has no number, guess
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 11, "q4_k": 14,
    "q5_k": 16, "q6_k": 18, "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23, "iq1_s": 24, "iq4_nl": 25, "iq3_s": 26,
    "iq2_s": 28, "iq4_xs": 30, "iq1_m": 31, "bf16": 32, "tq1_0": 36, "tq2_0": 37, "mxfp4": 38, "nvfp4": 39, "q1_0": 40,
    "q2_0": 1024,
}  # fmt: skip
WHEN = {  # which of the n weights of a kind, counted by i
    "first2": lambda i, n: i < 2,
    "first4": lambda i, n: i < 4,
    "eighth": lambda i, n: i < n // 8,
    "sixteenth": lambda i, n: i < n // 16,
    "more": lambda i, n: i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2,
    "": lambda i, n: True,
}
KINDS = {  # GGUF's names, and the usual ones of other files
    "output": r"(^|\.)(output|lm_head)\.weight$",
    "embedding": r"(^|\.)(token_embd|embed_tokens|wte|word_embeddings)\.weight$",
    "v": r"\b(attn_v|v_proj)\.weight$",
    "qkv": r"\b(attn_qkv|qkv_proj|query_key_value)\.weight$",
    "down": r"\b(ffn_down(_exps)?|down_proj)\.weight$",
    "out": r"\b(attn_output|o_proj)\.weight$",
}
# what is no matrix of a product, or small and sensitive: llama.cpp leaves these alone as well
KEPT = re.compile(
    r"norm|\bln_|ffn_gate_inp|mlp\.gate\.weight|position_embd|token_types|position_embeddings|token_type_embeddings|"
    r"ssm_conv1d|shortconv|time_mix_(first|w0|w1|w2|v0|v1|v2|a0|a1|a2|g1|g2|decay|lerp)|attn_rel_b|altup|laurel|"
    r"per_layer_model_proj|\.conv1d\b"
)
FALLBACK = {
    **dict.fromkeys(("tq1_0", "tq2_0"), "q4_0"),
    **dict.fromkeys("iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s q2_k q3_k iq4_xs".split(), "iq4_nl"),
    "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "q1_0": "q4_0", "q2_0": "q4_0", "nvfp4": "mxfp4",
}  # fmt: skip


def types():
    """Names that `--type` takes: mixes, and types that every weight gets alike."""
    return [*MIXES, *(name for name in FILE_TYPES if name not in MIXES)]


def file_type(name):
    """GGUF's general.file_type of a mix or type."""
    return MIXES[name][1] if name in MIXES else FILE_TYPES[name]


def kind_of(name):
    """The kind of a weight (a key of KINDS), "" for any other."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "")


def is_weight(name, shape):
    """Whether a tensor is quantised at all: matrices, also stacked ones of experts, that are named weights.

    >>> is_weight("blk.0.attn_q.weight", (8, 8)), is_weight("blk.0.attn_norm.weight", (8,)), is_weight("x.bias", (8, 8))
    (True, False, False)
    """
    return len(shape) in (2, 3) and name.endswith("weight") and not KEPT.search(name)


def chosen(spec, names, grouped=False):
    """{name: type} of these weights, in their order: that of a mix, or `spec` for all of them. `grouped`: whether at
    least four heads share a key and a value.

    >>> chosen("q4_k_m", ["output.weight", "blk.0.attn_v.weight", "blk.0.ffn_up.weight"])
    {'output.weight': 'q6_k', 'blk.0.attn_v.weight': 'q6_k', 'blk.0.ffn_up.weight': 'q4_k'}
    """
    if spec not in MIXES:
        return dict.fromkeys(names, spec)
    base, _, rules = MIXES[spec]
    kinds = {name: kind_of(name) for name in names}
    counts, seen = {kind: list(kinds.values()).count(kind) for kind in KINDS}, dict.fromkeys(KINDS, 0)
    last = "output" if counts["output"] else "embedding"  # a tied table is the output's as well
    found = {}
    for name, kind in kinds.items():
        found[name] = "q6_k" if kind == last else base
        if not kind:
            continue
        for kind_, type, *when in map(str.split, rules):
            usual = when != ["if", "grouped"]
            if kind_ == kind and (WHEN["".join(when)](seen[kind], counts[kind]) if usual else grouped):
                found[name] = type
                break
        seen[kind] += 1
    return found


def fitting(type, width, formats):
    """The type that rows of `width` weights can have: itself, its fallback, or f16."""
    while type != "f16" and width % formats.get(type).elements:
        type = FALLBACK.get(type, "f16")
    return type
