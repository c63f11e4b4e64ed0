"""A language model in safetensors, by every name that it may have: a repository, a folder, a file."""

import pytest

from tests.io import servers
from tests.io.conftest import cache  # noqa: F401 (a fixture)
from tests.zoo.decoders import SIZES
from zoo import cli
from zoo.generate import load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


@pytest.fixture(scope="module", params=[True, False], ids=["shards", "one file"])
def files(request, tmp_path_factory):
    """{name: bytes} of a repository with a tiny Llama."""
    folder = tmp_path_factory.mktemp("repository")
    words = {f"w{i}": i for i in range(SIZES["vocab_size"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    model.generation_config.eos_token_id = [4, 5]
    model.save_pretrained(folder, **({"max_shard_size": "20KB"} if request.param else {}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_repository(files, cache, monkeypatch, capsys):  # noqa: F811
    with servers.hub({**files, "README.md": b"", "onnx/model.onnx": b""}) as (base, behaviour):
        monkeypatch.setenv("HF_ENDPOINT", base)
        model = load("org/name")
        assert model.tokenizer.eos_ids == {4, 5} and model.tokenizer.chat_template == TEMPLATE
        assert not any(path.endswith(("README.md", ".onnx")) for path, _ in behaviour.log)
        ids = model.tokenizer.encode("w3 w7")
        text = model.tokenizer.decode(list(model.generate(ids, 4, stop_ids=model.tokenizer.eos_ids)))
        count = len(behaviour.requests)
        capsys.readouterr()
        assert cli.main(["generate", "-m", "org/name", "-n", "4", "w3 w7"]) == 0
        assert capsys.readouterr().out.split() == text.split()
        assert len(behaviour.requests) == count  # nobody is asked again


def test_files_of_a_folder(files, tmp_path):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    found = [load(str(path)) for path in (tmp_path, *tmp_path.glob("model*.safetensors*"))]
    assert len(found) > 1
    assert len({tuple(model.generate([3, 7], 4)) for model in found}) == 1
