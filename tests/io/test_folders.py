"""Folders of text encoders out of a Hub: the files of the model, and of the modules that follow it."""

import json
import os

import pytest

from tensorlib.errors import DownloadError
from tensorlib.io import folders
from tests.io import servers

MODULES = [{"path": "", "type": "Transformer"}, {"path": "1_Pooling"}, {"path": "2_Dense_1024"}, {"path": "../x"}, 3]
FILES = {"config.json": b"{}", "tokenizer.json": b"{}", "modules.json": json.dumps(MODULES).encode()}
FILES |= {"1_Pooling/config.json": b"{}", "2_Dense_1024/config.json": b"{}", "2_Dense_1024/pytorch_model.bin": b"w"}
SHARDS = {f"model-0000{i}-of-00002.safetensors": b"shard" for i in (1, 2)}
INDEX = json.dumps({"weight_map": {"a": sorted(SHARDS)[0], "b": sorted(SHARDS)[1]}}).encode()
CASES = {
    "one": {"model.safetensors": b"w"},
    "shards": {"model.safetensors.index.json": INDEX, **SHARDS},
    "pytorch": {"pytorch_model.bin": b"w"},
}


@pytest.mark.parametrize("name", CASES)
def test_all_that_an_encoder_needs(cache, monkeypatch, name):
    files = {**FILES, **CASES[name]}
    with servers.hub(files) as (base, behaviour):
        monkeypatch.setenv("HF_ENDPOINT", base)
        found = folders.resolve("org/name")
        below = {os.path.relpath(os.path.join(p, n), found) for p, _, names in os.walk(found) for n in names}
        assert below == files.keys()
        count = len(behaviour.requests)
        assert folders.resolve("org/name", offline=True) == found
        assert len(behaviour.requests) == count


def test_a_tokenizer_of_old(cache, monkeypatch):
    """Where there is no tokenizer.json, its two files, and what adds tokens to them."""
    files = {**FILES, **CASES["one"]}
    wanted = {"vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"}
    files |= dict.fromkeys(wanted, b"{}")
    del files["tokenizer.json"]
    with servers.hub({**files, "vocab.bpe": b""}) as (base, _):
        monkeypatch.setenv("HF_ENDPOINT", base)
        names = set(os.listdir(folders.resolve("org/name")))
        assert names >= wanted and "vocab.bpe" not in names


def test_no_weights(cache, monkeypatch):
    with servers.hub(FILES) as (base, _):
        monkeypatch.setenv("HF_ENDPOINT", base)
        with pytest.raises(DownloadError, match="org/name without weights that are read here"):
            folders.resolve("org/name")


def test_a_broken_list_of_modules(cache, monkeypatch):
    """Its reader says what is wrong; the rest is fetched."""
    with servers.hub({**FILES, **CASES["one"], "modules.json": b"["}) as (base, _):
        monkeypatch.setenv("HF_ENDPOINT", base)
        assert os.path.exists(os.path.join(folders.resolve("org/name"), "model.safetensors"))
