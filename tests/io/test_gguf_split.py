"""GGUF models in several files: opened as one, split, merged, and every way in which parts may not fit together."""

import gc
import os
import shutil

import numpy as np
import pytest

from tensorlib.errors import FormatError, WriteError
from tensorlib.io import gguf
from tensorlib.io.gguf_split import SplitFile, part_names
from tensorlib.io.gguf_values import Typed
from tests.io import build


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(build.sound())
    return path


@pytest.fixture
def parts(whole):
    """Three parts: f; q; h and z."""
    return gguf.split(whole, max_bytes=128)


def content(path):
    with open(path, "rb") as file:
        return file.read()


def test_split_and_merge(whole, parts, tmp_path):
    assert parts == part_names(str(tmp_path / "m"), 3)
    one = gguf.open(whole)
    for path in parts:  # through any part
        file = gguf.open(path)
        assert isinstance(file, SplitFile) and len(file.parts) == 3 and list(file.tensors) == list(one.tensors)
        assert {k: file.metadata[k] for k in one.metadata} == dict(one.metadata)
        assert file.metadata["split.tensors.count"] == 4 and file.require("v.4", int) == 2**32 - 1
        for name in one.tensors:
            assert file.bytes(name) == one.bytes(name) and file.tensor(name).shape == one.tensor(name).shape
        assert file.rows("q", 1, 2).shape == (1, 32) and file.raw("h").numel() == 2
        assert file.nbytes == sum(map(os.path.getsize, parts))
        file.close()
    assert [list(gguf.open(p, parts=False).tensors) for p in parts] == [["f"], ["q"], ["h", "z"]]
    assert gguf.open(parts[1], parts=False).metadata.typed("split.no") == Typed("u16", 1)
    out = tmp_path / "merged.gguf"
    gguf.merge(parts[2], out)
    gguf.write(tmp_path / "copy.gguf", one.metadata, {name: one.stored(name) for name in one.tensors})
    assert content(out) == content(tmp_path / "copy.gguf")
    with pytest.raises(FormatError, match="in one file"):
        gguf.merge(out, tmp_path / "x.gguf")


@pytest.mark.parametrize("options, counts", [({}, [4]), ({"max_tensors": 3}, [3, 1]), ({"max_tensors": 1}, [1] * 4),
                                             ({"max_bytes": 1}, [1] * 4), ({"max_bytes": 160}, [2, 2])])  # fmt: skip
def test_sizes_of_parts(whole, tmp_path, options, counts):
    paths = gguf.split(whole, tmp_path / "p", **options)
    assert [len(gguf.open(path, parts=False).tensors) for path in paths] == counts
    assert len(gguf.open(paths[0]).tensors) == 4


def test_split_by_gguf_py(tmp_path):
    """Parts that gguf-py's writer makes, and ours read by its reader."""
    from gguf import GGUFReader, GGUFWriter

    writer = GGUFWriter(tmp_path / "theirs.gguf", "llama", split_max_tensors=2)
    w = {f"t{i}": np.full((2, 4), i, np.float32) for i in range(5)}
    for name in w:
        writer.add_tensor(name, w[name])
    writer.write_header_to_file(tmp_path / "theirs.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = gguf.open(tmp_path / "theirs-00001-of-00003.gguf")
    for name in w:
        np.testing.assert_array_equal(file.tensor(name).numpy(), w[name])
    out = tmp_path / "one.gguf"
    gguf.merge(tmp_path / "theirs-00002-of-00003.gguf", out)
    ours = gguf.split(out, tmp_path / "ours", max_tensors=2)
    for path in ours:
        theirs = path.replace("ours", "theirs")
        split = [
            {k: f.contents() for k, f in GGUFReader(p).fields.items() if k[:6] == "split."} for p in (path, theirs)
        ]
        assert split[0] == split[1] and len(split[0]) == 3
        assert [t.name for t in GGUFReader(path).tensors] == [t.name for t in GGUFReader(theirs).tensors]


def rewrite(path, changes=None, tensors=None):
    file = gguf.open(path, parts=False)
    metadata = {key: file.metadata.encoded(key) for key in file.metadata} | (changes or {})
    found = {name: file.stored(name) for name in file.tensors} if tensors is None else tensors
    gguf.write(path, {k: v for k, v in metadata.items() if v is not None}, found)


@pytest.mark.parametrize(
    "damage, match",
    [
        (lambda p: os.unlink(p[2]), "No such file"),
        (lambda p: os.rename(p[0], p[0] + "x"), "No such file"),
        (lambda p: shutil.copy(p[0], p[1]), "split.no"),
        (lambda p: rewrite(p[1], {"split.count": Typed("u16", 2)}), "split.count"),
        (lambda p: rewrite(p[1], {"split.no": None}), "split.no"),
        (lambda p: rewrite(p[1], {"split.count": None}), "split.count"),
        (lambda p: rewrite(p[1], {"split.count": "3"}), "split.count"),
        (lambda p: rewrite(p[0], {"split.tensors.count": Typed("i32", 5)}), "split.tensors.count"),
        (lambda p: rewrite(p[0], {"split.tensors.count": None}), "split.tensors.count"),
        (lambda p: rewrite(p[1], tensors={}), "the 3 tensors"),
        (lambda p: rewrite(p[1], tensors={"f": gguf.open(p[0], parts=False).stored("f")}), "'f'"),
        (lambda p: os.truncate(p[1], 100), "00002-of"),
    ],
)
def test_parts_that_do_not_fit(parts, damage, match):
    damage(parts)
    with pytest.raises(FormatError, match=match):
        gguf.open(parts[0] if os.path.exists(parts[0]) else parts[1])
    gc.collect()
    with open("/proc/self/maps") as maps:
        assert not any("/m-0000" in line for line in maps)  # nothing left open


def test_names_of_parts(parts, tmp_path):
    other = tmp_path / "other.gguf"
    shutil.copy(parts[0], other)
    with pytest.raises(FormatError, match="00001-of-00003"):
        gguf.open(other)
    zero = tmp_path / "m-00000-of-00000.gguf"
    shutil.copy(parts[0], zero)
    with pytest.raises(FormatError, match="0 parts"):
        gguf.open(zero)


def test_an_interrupted_split_leaves_nothing(whole, tmp_path):
    def stop(nbytes):
        if len(os.listdir(tmp_path)) == 4 and nbytes == 2:  # in the last part
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gguf.split(whole, max_bytes=128, progress=stop)
    assert os.listdir(tmp_path) == ["m.gguf"]
    with pytest.raises(WriteError):
        gguf.split(whole, tmp_path / "none" / "p", max_bytes=128)
    with pytest.raises(FormatError, match="max_bytes"):
        gguf.split(whole, max_bytes=0)
    assert os.listdir(tmp_path) == ["m.gguf"]
