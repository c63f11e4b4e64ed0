"""What files and tokenizers look like in Python, and in notebooks."""

import numpy as np
import pytest

import tensorlib
from tensorlib.io import gguf
from tensorlib.io.tokenizer import Tokenizer
from tests.io import build, vocab


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.gguf", "x.pth"])
def test_files(name, tmp_path):
    path = tmp_path / name
    tensorlib.save(path, {"a<b>": tensorlib.zeros(2, 3), "c": tensorlib.zeros(4)})
    file = tensorlib.load(path)
    assert repr(file).endswith(f"{name}', 2 tensors, 10 parameters, 40 bytes)")
    html = file._repr_html_()
    assert "2 \u00d7 3" in html and ">24 bytes<" in html and "a&lt;b&gt;" in html and "<b>" not in html


def test_metadata(tmp_path):
    """Long arrays by their length, other values as they are, cut; what is no text is told."""
    path = tmp_path / "x.gguf"
    pairs = [build.ARCH, build.pair("a.long", build.ARRAY, (build.F32, [1.0] * 100))]
    pairs.append(build.pair("a.text", build.STRING, "<i>" + "x" * 200))
    path.write_bytes(build.file(pairs, [], b""))
    html = gguf.open(path)._repr_html_()
    assert ">100 \u00d7 f32<" in html and "3 keys of metadata" in html and "'llama'" in html.replace("&#x27;", "'")
    assert "&lt;i&gt;xxx" in html and "(205 letters)" in html and "<i>" not in html


def test_many_tensors(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **{f"t{i}": np.zeros(1, np.float32) for i in range(1003)})
    html = tensorlib.load(path)._repr_html_()
    assert "and 3 more" in html and ">t999<" in html and ">t1000<" not in html


def test_tokenizers(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(vocab.byte_pairs(template="{{ '<b>' }}"))
    made = Tokenizer.from_gguf(gguf.open(path))
    assert repr(made).startswith(f"Tokenizer(BytePairs, {made.n_vocab:,} tokens, bos '<|im_start|>'")
    assert "a chat template" in repr(made)
    html = made._repr_html_()
    assert "&lt;|im_start|&gt;" in html and "<pre>{{ &#x27;&lt;b&gt;" in html
    made.chat_template = None
    assert "template" not in repr(made) and made._repr_html_().startswith("<div>Tokenizer(")
