"""llama.cpp's side of bench.architectures: what it makes of ids, or of texts, through llama-cpp-python's ctypes API.

One thread, a cache of f32, no flash attention: what is left of a difference is the order of sums, and GELU, which
llama.cpp looks up in a table of half-precision numbers.
"""

import json
import pathlib

import common
import llama_cpp as L
import numpy

said = []


@L.llama_log_callback
def keep(level, text, data):
    if level >= 3:
        said.append(text.decode("utf-8", "replace"))


def batch(ids):
    """A llama_batch of one sequence, with the results of all tokens."""
    made = L.llama_batch_init(64, 0, 1)
    made.n_tokens = len(ids)
    for i, id in enumerate(ids):
        made.token[i], made.pos[i], made.n_seq_id[i], made.seq_id[i][0], made.logits[i] = int(id), i, 1, 0, 1
    return made


def opened(path, **changed):
    """The model of a file, or what llama.cpp says of it."""
    said.clear()
    params = L.llama_model_default_params()
    for name, value in changed.items():
        setattr(params, name, value)
    return L.llama_model_load_from_file(str(path).encode(), params) or "".join(said)[-300:]


def results(model, sizes, ids, answer=None, embeddings=False):
    """[T, V] of a decoder, or of an encoder's answer; hidden states [T, D] of an encoder."""
    params = L.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 64
    params.n_threads, params.type_k, params.type_v, params.flash_attn_type = 1, 0, 0, 0
    params.embeddings, params.pooling_type = embeddings, 0
    context = L.llama_init_from_model(model, params)
    encoded = embeddings or answer is not None
    failed = encoded and L.llama_encode(context, batch(ids))
    if not failed and not embeddings:
        failed = L.llama_decode(context, batch(ids if answer is None else answer))
    get = L.llama_get_embeddings_ith if embeddings else L.llama_get_logits_ith
    if failed:
        raise SystemExit(f"llama.cpp fails: {''.join(said)[-300:]}")
    return numpy.stack([numpy.ctypeslib.as_array(get(context, i), (sizes[1],)).copy() for i in range(sizes[0])])


def logits(job):
    """{name: largest difference, relative to the largest result, or what llama.cpp says} of the folder's files."""
    L.llama_log_set(keep, None)
    found = {}
    for path in sorted(pathlib.Path(job["folder"]).glob("*.gguf")):
        model, case = opened(path), dict(numpy.load(path.with_suffix(".npz")))
        if isinstance(model, str):
            found[path.stem] = model
            continue
        ours, embeddings = case["ours"], bool(case["embeddings"])
        theirs = results(model, ours.shape, case["ids"], case.get("answer"), embeddings) * float(case["scale"])
        found[path.stem] = float(numpy.abs(theirs - ours).max() / numpy.abs(ours).max())
    return {"found": found}


def tokens(job):
    """{name: how many of its texts have other ids} of the folder's vocabularies."""
    L.llama_log_set(keep, None)
    found = {}
    for path in sorted(pathlib.Path(job["folder"]).glob("*.json")):
        model, case = opened(path.with_suffix(".gguf"), vocab_only=True), json.loads(path.read_text(encoding="utf-8"))
        if isinstance(model, str):
            found[path.stem] = model
            continue
        found[path.stem] = sum(ids != cut(model, text) for text, ids in zip(case["texts"], case["ids"]))
    return {"found": found}


def cut(model, text):
    """Ids of a text with special tokens, those that it spells among them."""
    data = text.encode()
    ids = (L.llama_token * (2 * len(data) + 16))()
    count = L.llama_tokenize(L.llama_model_get_vocab(model), data, len(data), ids, len(ids), True, True)
    return list(ids[:count])


if __name__ == "__main__":
    L.llama_backend_init()
    common.main({"logits": logits, "tokens": tokens})
