"""Small vocabularies as GGUF files, and slow encoders that say what is right."""

from itertools import pairwise

from tensorlib.io.vocabulary import LETTER_OF_BYTE
from tests.io import build, build_pieces

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def spell(text: str) -> str:
    """Text in GPT-2's alphabet."""
    return "".join(LETTER_OF_BYTE[byte] for byte in text.encode())


CORPUS = "the cat sat on the mat, then the rat ate that. The end of the tale! ein größerer Käse 日本語 日本 123 12345"


def learn(count=60):
    """Merges of byte pairs, the most frequent of the corpus first."""
    words = [list(spell(f" {word}")) for word in CORPUS.split()]
    merges = []
    for _ in range(count):
        pairs = {}
        for word in words:
            for pair in pairwise(word):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        words = [merge(word, best) for word in words]
    return merges


def merge(word, pair):
    out = []
    for letter in word:
        if out and (out[-1], letter) == pair:
            out[-1] += letter
        else:
            out.append(letter)
    return out


def settings(values):
    """Encoded pairs of a dict of `tokenizer.ggml.` keys."""
    kinds = {str: build.STRING, bool: build.BOOL, int: build.U32, tuple: build.ARRAY}
    return [build.pair(f"tokenizer.ggml.{key}", kinds[type(v)], v) for key, v in values.items() if v is not None]


MERGES = learn()
SPECIALS = {"<|endoftext|>": CONTROL, "<|im_start|>": CONTROL, "<|im_end|>": CONTROL, "<tool>": USER, "<tool>s": USER}
BYTE_TOKENS = [*SPECIALS, *LETTER_OF_BYTE, *("".join(pair) for pair in MERGES)]
BYTE_TYPES = [*SPECIALS.values(), *[NORMAL] * (len(BYTE_TOKENS) - len(SPECIALS))]

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "<tool>"]
PIECE_TYPES = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, USER]
# Longer pieces of the corpus first; the single letters last, so that most words come out of several merges.
_words = sorted({word[i:j] for word in f"▁{CORPUS}".replace(" ", "▁ ").replace("▁ ", " ▁").split() for i in range(9)
                 for j in range(i + 1, 10) if word[i:j]}, key=lambda w: (len(w) == 1, -len(w) % 3, w))  # fmt: skip
SCORED = [w for w in _words if w not in PIECES]


def byte_pairs(template=None, **changed):
    """Bytes of a GGUF file with a GPT-2-like vocabulary; `changed` replaces keys, None leaves one out."""
    values = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": (build.STRING, BYTE_TOKENS),
        "token_type": (build.I32, BYTE_TYPES),
        "merges": (build.STRING, [" ".join(pair) for pair in MERGES]),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    extra = [build.pair("tokenizer.chat_template", build.STRING, template)] if template is not None else []
    return build.file([build.ARCH, *settings(values | changed), *extra])


def sentence_pieces(**changed):
    """Bytes of a GGUF file with a Llama-like vocabulary."""
    values = {
        "model": "llama",
        "tokens": (build.STRING, [*PIECES, *SCORED]),
        "token_type": (build.I32, [*PIECE_TYPES, *[NORMAL] * len(SCORED)]),
        "scores": (build.F32, [*[0.0] * len(PIECES), *[-float(i // 2) for i in range(len(SCORED))]]),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return build.file([build.ARCH, *settings(values | changed)])


def unigram(**changed):
    """Bytes of a GGUF file with a T5-like vocabulary."""
    tokens, scores, types = zip(*build_pieces.PIECES)
    values = {
        "model": "t5",
        "tokens": (build.STRING, list(tokens)),
        "token_type": (build.I32, list(types)),
        "scores": (build.F32, list(scores)),
        "precompiled_charsmap": (build.U8, list(build_pieces.MAP)),
        "add_space_prefix": True,
        "remove_extra_whitespaces": True,
    }
    return build.file([build.ARCH, *settings(values | changed)])


def world(**changed):
    """Bytes of a GGUF file with an RWKV-like vocabulary."""
    tokens = [
        "<s>",
        *(repr(bytes([i]))[2:-1] for i in range(256)),
        "the",
        " cat",
        "\\n\\n",
        "\\xe6\\x97",
        "it's",
        "[PAD262]",
    ]
    values = {
        "model": "rwkv",
        "tokens": (build.STRING, tokens),
        "token_type": (build.I32, [CONTROL, *[NORMAL] * (len(tokens) - 2), UNUSED]),
        "eos_token_id": 0,
    }
    return build.file([build.ARCH, *settings(values | changed)])


def slow_byte_pairs(words):
    """Ids of pre-tokenised words: merge the pair of lowest rank, leftmost first, until there is none."""
    ids = {token: id for id, token in enumerate(BYTE_TOKENS)}
    ranks = {pair: rank for rank, pair in enumerate(MERGES)}
    out = []
    for word in words:
        parts = list(spell(word))
        while True:
            found = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
            if not found:
                break
            _, i = min(found)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        out += [ids[part] for part in parts]
    return out


def slow_pieces(text):
    """Ids of a text: merge the neighbours whose union scores best, leftmost first, until there is none."""
    ids = {token: id for id, token in enumerate([*PIECES, *SCORED])}
    score = {token: -float(i // 2) for i, token in enumerate(SCORED)} | dict.fromkeys(PIECES, 0.0)
    parts = list(f" {text}".replace(" ", "▁"))
    while True:
        found = [(-score[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in score]
        if not found:
            break
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [id for part in parts for id in ([ids[part]] if part in ids else [3 + byte for byte in part.encode()])]
