r"""How text is cut into words before byte-pair merging: one row per family, named as in GGUF's `tokenizer.ggml.pre`.

A row is a tuple of regular expressions, each published in the `tokenizer.json` of the models that use it. One after
another they cut every piece into its matches and what lies between. `WORDS` and `DIGITS` stand for GPT-2's expression
and for `\p{N}`, which the tokenizers library has built in.
"""

from __future__ import annotations

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGITS = r"\p{N}"

SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"

LLAMA3 = rf"{SUFFIX}|{LETTERS}|\p{{N}}{{1,3}}|{MARKS}|{SPACES}"
QWEN2 = rf"{SUFFIX}|{LETTERS}|\p{{N}}|{MARKS}|{SPACES}"
QWEN35 = rf"{SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
TEKKEN = rf"{CASED[0]}|{CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
GPT4O = rf"{CASED[0]}{SUFFIX}?|{CASED[1]}{SUFFIX}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
SEED = rf"{SUFFIX}|{LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}"
BAILING = rf"'(?i:[sdmt]|ll|ve|re)|{LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
MINICPM5 = rf"{SUFFIX}|{LETTERS}|\p{{N}}+|{MARKS}|{SPACES}"
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}"
)
# DeepSeek-LLM counts as letters the cased ones of the scripts that its authors listed.
CASED_LETTERS = "".join(
    r"-".join(f"\\x{{{end}}}" for end in span.split("-"))
    for span in (
        "41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c 38e-3a1 "
        "3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 "
        "1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe "
        "1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 "
        "2126 2128 212a-212d 212f-2134 2139 213c-213f 2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 "
        "a640-a66d a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a "
        "10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943 "
    ).split()
)
HAN = r"[\x{800}-\x{9fa5}\x{ac00}-\x{d7ff}]+"
POEM = r" ?[^(\s|.,!?…。，、।۔،)]+"

FAMILIES: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", "[0-9][0-9][0-9]"),
    "gpt-2": (WORDS,),
    "smollm": (DIGITS, WORDS),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", WORDS, "[0-9][0-9][0-9]"),
    "llama-bpe": (LLAMA3,),
    "qwen2": (QWEN2,),
    "qwen35": (QWEN35,),
    "tekken": (TEKKEN,),
    "gpt-4o": (GPT4O,),
    "deepseek-llm": (r"[\r\n]", rf"\s?[{CASED_LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", HAN, r"\p{N}+"),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN, DIGITS),
    "deepseek-v3": (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3),
    "bloom": (POEM,),
    "viking": (POEM, DIGITS),
    "bailingmoe": (BAILING,),
    "seed-coder": (SEED,),
    "minicpm5": (r"\p{N}{1,3}", MINICPM5),
}

ALIASES = {
    "gpt-2": "phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum exaone4 mpt olmo jais trillion "
    "granite-docling modern-bert jina-v1-en jina-v2-code roberta-bpe",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe glm4 chatglm-bpe",
    "qwen2": "deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
    "gpt-4o": "llama4 kanana2 talkie minimax-m2",
    "deepseek-v3": "hunyuan-dense joyai-llm hy_v4",
    "bloom": "poro-chat gpt3-finnish",
    "bailingmoe": "bailingmoe2 llada-moe",
}
FAMILY_OF = {alias: family for family, names in ALIASES.items() for alias in names.split()}
# Words that are whole tokens are not merged letter by letter; and, where the file does not say, a BOS comes first.
WHOLE_WORDS = frozenset("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano".split())
STARTS_WITH_BOS = WHOLE_WORDS | {"tekken"}
IGNORE_MERGES = WHOLE_WORDS | {"tekken", "minicpm5"}


def pieces(name: str) -> tuple[str, ...] | None:
    """The expressions of a pre-tokenizer, or None if it is not known.

    >>> pieces("starcoder") == (DIGITS, WORDS), pieces("of-tomorrow")
    (True, None)
    """
    return FAMILIES.get(FAMILY_OF.get(name, name))


ASCII = {
    "L": "A-Za-z",
    "N": "0-9",
    "Lu": "A-Z",
    "Ll": "a-z",
    "P": r"!-#%-*,-/:;?@\[-\]_{}",
    "S": r"$+<->^`|~",
    **dict.fromkeys(("Lt", "Lm", "Lo", "M"), ""),
}


def for_ascii(expression: str) -> str:
    r"""The expression for Python's `re`, which has no Unicode properties, to be used on ASCII text.

    >>> for_ascii(r" ?[^\s\p{L}]+|\p{N}{1,3}")
    ' ?[^\\sA-Za-z]+|[0-9]{1,3}'
    """
    import re

    out, inside = [], False
    for token in re.findall(r"\\[px]\{\w+\}|\\?.", expression, re.DOTALL):
        if token.startswith("\\p{"):
            letters = ASCII[token[3:-1]]
            token = letters if inside else f"[{letters}]"
        elif token.startswith("\\x{"):
            token = f"\\U{int(token[3:-1], 16):08x}"
        else:
            inside = token == "[" or (inside and token != "]")
        out.append(token)
    return "".join(out)


class _StandIns(dict):
    """Code point -> ASCII character that a `plain` pre-tokenizer treats alike; itself if that is not certain."""

    def __missing__(self, code):
        import unicodedata

        letter = chr(code)
        kind = unicodedata.category(letter)
        if code < 128 or kind in ("Cn", "Cs") or letter == "ſ":  # unknown to this Python; an "s" without case
            found = code
        elif letter.isspace():
            found = "\t"
        else:
            found = {"L": "x", "N": "0"}.get(kind[0], "!")  # "x" is in no contraction
        self[code] = found
        return found


_STAND_INS = _StandIns()


def plain(name: str) -> bool:
    """Whether a pre-tokenizer tells only letters, digits, white space and ASCII characters apart."""
    import re

    return all(e.isascii() and set(re.findall(r"\\[px]\{(\w+)\}", e)) <= {"L", "N"} for e in pieces(name))


def stand_in(text: str) -> str:
    """A text of the same length that a `plain` pre-tokenizer cuts at the same places: ASCII, but for what is uncertain.

    >>> stand_in("naïve “café”, 12½ ¿")
    'naxve !cafx!, 120 !'
    """
    return text if text.isascii() else text.translate(_STAND_INS)


def build(name: str):
    """The pre-tokenizer as an object of the tokenizers library, ending in GPT-2's spelling of bytes as letters."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    expressions = pieces(name)
    if expressions == (WORDS,):
        return ByteLevel(add_prefix_space=False)
    steps = []
    for i, expression in enumerate(expressions):
        if expression == DIGITS:
            steps.append(Digits(individual_digits=True))
        elif expression == WORDS and i == len(expressions) - 1:
            return Sequence([*steps, ByteLevel(add_prefix_space=False)])
        else:
            steps.append(Split(Regex(expression), "isolated"))
    return Sequence([*steps, ByteLevel(add_prefix_space=False, use_regex=False)])
