"""Files that have the structure of their format and nonsense in it: a Hypothesis strategy for each reader."""

import json
import pickletools
import struct

from hypothesis import strategies as st

from tests.io import (
    build,
    build_ggml,
    build_imatrix,
    build_npz,
    build_pieces,
    build_pth,
    build_safetensors,
    targets,
    vocab,
)

SPECIAL = [0, 1, 2, 3, 4, 7, 8, 31, 32, 33, 64, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62]
SPECIAL += [2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]
numbers = st.sampled_from(SPECIAL)
few = st.integers(0, 3)
raw = st.binary(max_size=40)


def mostly(sound, other):
    """A strategy for three sound values to one other."""
    return st.sampled_from([sound] * 3 + [None]).flatmap(lambda found: other if found is None else found)


anything = st.recursive(
    st.none() | st.booleans() | numbers | st.integers(-3, 9) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


# ---- JSON ------------------------------------------------------------------------------------------------------------


def _places(tree):
    """(container, key) of everything in a tree."""
    if isinstance(tree, (dict, list)):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


@st.composite
def json_damage(draw, text):
    """JSON with one to three nodes replaced, dropped or put into the place of another."""
    tree = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        if not places:
            break
        container, key = places[draw(st.integers(0, len(places) - 1))]
        how = draw(few)
        if how == 0:
            del container[key]
        elif how == 1:
            other, place = places[draw(st.integers(0, len(places) - 1))]
            container[key] = json.loads(json.dumps(other[place]))
        else:
            container[key] = draw(anything)
    return json.dumps(tree).encode()


@st.composite
def safetensors(draw):
    header = {"t": build_safetensors.F4, "u": build_safetensors.U4, "__metadata__": {"format": "pt"}}
    length = draw(mostly(st.none(), numbers))
    return build_safetensors.file(draw(json_damage(json.dumps(header))), draw(mostly(st.just(bytes(32)), raw)), length)


# ---- zip, .npy -------------------------------------------------------------------------------------------------------

RECORDS = {  # where the fields of each record are, and how wide
    b"PK\3\4": [(4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)],
    b"PK\1\2": [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4)],
    b"PK\5\6": [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)],
}


@st.composite
def zip_damage(draw, archives):
    """An archive of which one to three fields have other numbers, or those of another field."""
    data = bytearray(draw(archives))
    fields = []
    for mark, places in RECORDS.items():
        at = data.find(mark)
        while at >= 0:
            fields += [(at + offset, size) for offset, size in places]
            at = data.find(mark, at + 4)
    for _ in range(draw(few)):
        at, size = draw(st.sampled_from(fields))
        if draw(st.booleans()):
            value = draw(numbers | st.integers(0, len(data)))
        else:
            place, width = draw(st.sampled_from(fields))
            value = int.from_bytes(data[place : place + width], "little")
        data[at : at + size] = (value % 256**size).to_bytes(size, "little")
    return bytes(data)


@st.composite
def npy(draw):
    """A header and data that are mostly right, one by one."""

    def pick(sound, *others):
        return draw(mostly(st.just(sound), st.one_of(*others)))

    descr = pick("'<f4'", st.sampled_from("'>f8' '|b1' '<i2' '<c16' '|O' '<U3' [('a','<i4')] 4".split()))
    sizes = draw(mostly(st.just([2, 3]), st.lists(numbers | st.integers(-1, 6) | st.floats(), max_size=4)))
    shape = pick(repr(tuple(sizes)), st.just(repr(sizes)), anything.map(repr))
    order = pick("False", st.sampled_from(["True", "0", "None"]))
    entries = [f"'descr': {descr}", f"'fortran_order': {order}", f"'shape': {shape}"]
    entries = pick(entries, st.permutations(entries), st.lists(st.sampled_from(entries), max_size=4))
    text = "{" + ", ".join(entries) + pick(", }", st.sampled_from(["}", "", "} "]))
    version = pick((1, 0), st.sampled_from([(2, 0), (3, 0), (1, 1), (4, 0)]))
    length = draw(mostly(st.none(), st.integers(0, 65535)))
    return build_npz.npy(text.encode("ascii", "replace").decode(), pick(build_npz.DATA, raw), version, length)


@st.composite
def archives(draw):
    names = draw(st.lists(st.sampled_from(["a.npy", "b.npy", "c/d.npy", "../e.npy", "f"]), min_size=1, max_size=3))
    members = [(name, draw(npy() | st.just(build_npz.npy()))) for name in names]
    return build_npz.archive(*members, method=draw(st.sampled_from([0, 8])))


# ---- pickles ---------------------------------------------------------------------------------------------------------


def pieces(data):
    """A pickle, opcode by opcode."""
    starts = [at for _, _, at in pickletools.genops(data)]
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


_TWO = b"\x80\x02}" + build_pth.text("w") + build_pth.tensor() + b"s" + build_pth.text("v") + build_pth.tensor() + b"s."
SOUND = pieces(_TWO)
OTHERS = [
    *(bytes([op]) for op in b"0123()]}.NRQabdeltsu\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94"),
    *(b"h" + bytes([i]) for i in range(3)), *(b"q" + bytes([i]) for i in range(3)),
    *(build_pth.integer(n) for n in (-1, 0, 1, 6, 7, 2**31, 2**62, 2**63, 2**64)),
    *(build_pth.name("torch._utils", f"_rebuild_{name}") for name in ("tensor", "tensor_v3", "parameter")),
    *(build_pth.name("torch", name) for name in ("Size", "float32", "DoubleStorage", "UntypedStorage", "Tensor")),
    *(build_pth.name("builtins", name) for name in ("set", "dict", "bytearray", "complex")),
    build_pth.name("collections", "Counter"), build_pth.name("__torch__.x", "Y"), build_pth.name("os", "system"),
    build_pth.name("_codecs", "encode"), build_pth.name("torch._tensor", "_rebuild_from_type_v2"),
    build_pth.text("view"), build_pth.text(""), build_pth.text("0"), build_pth.storage(), build_pth.tensor(),
]  # fmt: skip


@st.composite
def pickle(draw):
    """The opcodes of a sound pickle, some of them dropped, doubled, exchanged or followed by others."""
    ops = list(SOUND)
    for _ in range(draw(st.integers(1, 5))):
        at, how = draw(st.integers(0, len(ops) - 1)), draw(few)
        if how == 0 and len(ops) > 1:
            del ops[at]
        elif how == 1:
            other = draw(st.integers(0, len(ops) - 1))
            ops[at], ops[other] = ops[other], ops[at]
        elif how == 2:
            ops[at] = draw(st.sampled_from(OTHERS) | st.sampled_from(SOUND))
        else:
            ops[at:at] = draw(st.lists(st.sampled_from(OTHERS), min_size=1, max_size=4))
    return b"".join(ops)


@st.composite
def legacy(draw):
    keys = draw(
        st.just(["0"]) | st.just(["0"]) | st.lists(st.sampled_from(["0", "1", "view"]), max_size=3) | st.just({"0": 1})
    )
    data = draw(
        st.just(None) | st.just(None) | raw | st.builds(lambda n, more: struct.pack("<Q", n) + more, numbers, raw)
    )
    protocol = draw(mostly(st.just(1001), st.sampled_from([1000, "1001", None, [1001]])))
    return build_pth.legacy(draw(pickle() | st.just(None)), keys, data, protocol=protocol)


# ---- GGUF, GGML, importance matrices ---------------------------------------------------------------------------------

keys = st.sampled_from(
    ["a", "b", "general.alignment", "general.type", "split.count", "split.no", "", "k" * 70000, "\0"]
)


def _count(draw, sound):
    """A count or a length: mostly the right one."""
    return draw(st.just(sound) | st.just(sound) | numbers) % 2 ** (64 if build.FORM[1] == "Q" else 32)


@st.composite
def gguf_pair(draw):
    type = draw(st.integers(0, 13))
    if type == build.STRING:
        text = draw(raw)
        payload = build.text(text, _count(draw, len(text)))
    elif type == build.ARRAY:
        element, items = draw(st.integers(0, 13)), draw(st.lists(raw, max_size=3))
        payload = build.pack("IL", element, _count(draw, len(items))) + b"".join(
            build.text(item) if element == build.STRING else item for item in items
        )
    else:
        payload = build.pack("Q", draw(numbers))[: struct.calcsize(build.CODES.get(type, "Q"))]
    return build.raw_pair(draw(keys), type, payload)


@st.composite
def gguf(draw):
    version, order, code = draw(st.sampled_from([(1, "<", "I"), (2, "<", "Q"), (3, "<", "Q"), (3, ">", "Q")]))
    with build.form(order, code):
        pairs = draw(st.lists(gguf_pair(), max_size=3))
        infos = []
        for _ in range(draw(few)):
            dims = [_count(draw, draw(st.sampled_from([1, 4, 32]))) for _ in range(draw(st.integers(0, 5)))]
            n_dims = draw(st.none() | st.integers(0, 5) | st.just(2**32 - 1))
            name, type = (
                draw(st.sampled_from(["t", "u", "v", "", "n" * 70])),
                draw(st.sampled_from([0, 1, 8, 12, 4, 99])),
            )
            infos.append(build.info(name, dims, type, draw(st.sampled_from([0, 16, 32, 64]) | numbers), n_dims))
        counts = {"n_pairs": _count(draw, len(pairs)), "n_infos": _count(draw, len(infos))}
        return build.file(pairs, infos, bytes(draw(st.sampled_from([0, 16, 96, 200]))), version=version, **counts)


@st.composite
def ggml(draw):
    small = st.sampled_from([0, 1, 3, 4, 32, 256, 2**16, 2**31, 2**32 - 1])
    kind, tokens = (
        draw(st.sampled_from(list(build_ggml.KINDS))),
        draw(st.lists(st.tuples(raw, st.floats(width=32)), max_size=3)),
    )
    hyper = [draw(st.just(len(tokens)) | st.just(len(tokens)) | small), *build_ggml.HYPER[1:]]
    tensors = []
    for _ in range(draw(few)):
        dims = draw(st.lists(small, max_size=5))
        n_dims, length = draw(st.none() | small), draw(st.none() | small)
        name, type = draw(st.sampled_from(["t", "u", "", "\0"]) | raw), draw(st.sampled_from([0, 1, 2, 8]))
        tensors.append(build_ggml.tensor(name, dims, type, draw(raw | st.just(bytes(128))), n_dims, length))
    version = draw(st.none() | st.sampled_from([0, 1, 2, 3, 4]))
    return build_ggml.file(kind, tensors, tokens, hyper, version)


@st.composite
def imatrix(draw):
    small = st.integers(-2, 5) | st.sampled_from([2**31 - 1, -(2**31)])
    names, sums = (
        mostly(st.sampled_from("abc"), st.text(max_size=3)),
        mostly(st.floats(0, width=32), st.floats(width=32)),
    )
    parts = st.builds(build_imatrix.entry, names, mostly(st.integers(0, 5), small),
                      st.lists(sums, min_size=1, max_size=3), mostly(st.none(), small))  # fmt: skip
    entries = draw(st.lists(parts, min_size=1, max_size=3))
    tail = draw(st.just(b"") | st.just(build_imatrix.TAIL) | raw)
    return build_imatrix.binary(*entries, count=draw(mostly(st.none(), small)), tail=tail)


# ---- vocabularies, templates -----------------------------------------------------------------------------------------

_tokens = st.lists(st.sampled_from(["a", "b", "ab", "Ġ", "▁", "<s>", "<0x41>", "<0xZZ>", "", "🙂", "\n"]), max_size=6)
_merges = st.lists(st.sampled_from(["a b", "ab", "a  b", "", " ", "a b c", "Ġ a", "x y"]), max_size=4)
_ids = st.lists(st.integers(-2, 9) | st.just(2**31 - 1), max_size=400)
_value = (
    st.text(max_size=4) | st.booleans() | st.sampled_from([0, 1, 5, 261, 2**32 - 1])
    | _tokens.map(lambda v: (build.STRING, v)) | _merges.map(lambda v: (build.STRING, v))
    | _ids.map(lambda v: (build.I32, v)) | st.lists(st.floats(width=32), max_size=400).map(lambda v: (build.F32, v))
)  # fmt: skip
_names = (
    "model pre tokens token_type merges scores bos_token_id eos_token_id unknown_token_id add_bos_token add_eos_token"
)
_names = [*_names.split(), "add_space_prefix", "eot_token_id"]
_pre = st.sampled_from(["gpt-2", "llama-bpe", "qwen2", "default", "smollm", "no such"])


@st.composite
def vocabulary(draw):
    changed = draw(st.dictionaries(st.sampled_from(_names), st.none() | _value, max_size=3))
    if draw(st.booleans()):
        changed["pre"] = draw(_pre)
    return draw(st.sampled_from([vocab.byte_pairs, vocab.sentence_pieces, vocab.unigram, vocab.world]))(**changed)


_field = st.tuples(st.integers(0, 50), st.integers(0, 2**64 - 1) | st.floats(width=32) | st.binary(max_size=8))


@st.composite
def pieces(draw):
    """A SentencePiece file with fields that no trainer writes, its map of characters damaged."""
    changed = bytearray(build_pieces.MAP)
    for _ in range(draw(few)):
        changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    more = {name: tuple(draw(st.lists(_field, max_size=2))) for name in ("trainer", "normal")}
    rows = st.tuples(st.text(max_size=6), st.floats(width=32), st.integers(0, 7))
    rows = st.lists(st.sampled_from(build_pieces.PIECES) | rows, max_size=20)
    return build_pieces.model(draw(rows), draw(st.integers(0, 4)), bytes(changed), **more)


def lines(text):
    """Lines of a text, some left out, turned round or of something else."""
    found = text.decode().splitlines(keepends=True)
    other = st.text(max_size=12) | st.sampled_from(["9 'x' 1\n", "1 b'\\xff' 1\n", "300 [1] 1\n", "1 x 1\n", "\n"])
    place = st.integers(0, len(found))
    return st.tuples(place, place, other).map(lambda t: "".join([*found[: t[0]], t[2], *found[t[1] :]]).encode())


_FRAGMENTS = """
    {{ }} {% %} {%- -%} {# #} for in messages endfor if elif else endif set endset = macro endmacro call endcall filter
    endfilter m f ( ) [ ] { } : , . ~ + - * / // % ** == < and or not is defined | trim list join map tojson length
    'a' "b" 1 -1 10000000000 2.5 none true namespace range loop loop.index .content .role ['role'] [1:] [::-1] .x.y
    generation endgeneration break continue raise_exception recursive 'x'*9999999 ._ __class__ caller() block endblock
    include 'f' import as extends do with endwith raw endraw autoescape endautoescape trans endtrans \U0001f642
""".split()
template = (
    st.lists(st.sampled_from(_FRAGMENTS), max_size=30).map(" ".join)
    | st.lists(st.sampled_from(_FRAGMENTS), max_size=12).map(lambda words: "{{ " + " ".join(words) + " }}")
    | st.lists(st.sampled_from(_FRAGMENTS), max_size=8).map(
        lambda words: "{% set x = " + " ".join(words) + " %}{{ x }}"
    )
).map(str.encode)


STRUCTURES = {
    "safetensors": safetensors(),
    "index": json_damage(build_safetensors.index({"t": "a.safetensors", "u": "a.safetensors"}, metadata={"n": 32})),
    "npy": npy(),
    "npz": zip_damage(archives()),
    "pth": zip_damage(pickle().map(build_pth.archive)),
    "pth_legacy": legacy(),
    "pickle": pickle(),
    "gguf": gguf(),
    "ggml": ggml(),
    "imatrix": imatrix(),
    "vocabulary": vocabulary(),
    "tokenizer_json": json_damage(targets.tokenizer_json()),
    "pieces": pieces(),
    "words": json_damage(build_pieces.WORDS),
    "pairs": json_damage(targets.VOCAB),
    "merges": lines(targets.MERGES),
    "added": json_damage(targets.ADDED),
    "list": lines(targets.TARGETS["list"].seeds[0]),
    "world": lines(build_pieces.world()),
    "template": template,
}
