"""VarBuilder and load_state_dict over every format: names, shapes, dtypes, tied weights, and shards."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib import nn
from tensorlib.errors import FormatError, ShapeError, WeightsError
from tensorlib.io import gguf
from tensorlib.nn import loading
from tensorlib.quant import formats
from tensorlib.quant.tensor import from_bytes
from tests.io.weights import KINDS, sharded, tensors, written


class Model(nn.Module):
    """Two layers and a buffer of integers."""

    def __init__(self, wide=64):
        self.layers = nn.ModuleList([nn.Linear(wide, 8, bias=False) for _ in range(2)])
        self.count = nn.Buffer(4, dtype="i64")


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_through_one_interface(tmp_path, kind):
    """Whole modules, single tensors and shards; floats converted, integers kept."""
    with tensorlib.load(written(tmp_path, kind)) as file:
        model, wanted = Model(), tensors()
        assert nn.load_state_dict(model, file, dtype="f16") == ([], [])
        assert nn.VarBuilder(file, dtype="f16").load(Model(), strict=True).count.dtype.name == "i64"
        assert model.layers[1].weight.dtype.name == "f16" and model.count.dtype.name == "i64"
        for name, x in wanted.items():
            assert (model.state_dict()[name].to("f64").numpy() == x).all()
        vb = nn.VarBuilder(file)
        assert "0.weight" in vb.pp("layers") and "weight" in vb.pp("layers").pp(1) and "2.weight" not in vb.pp("layers")
        for dim in (0, 1, -1):
            parts = [vb.pp("layers").get("0.weight", (8, 64), shard=(dim, rank, 4)) for rank in range(4)]
            assert all(part.is_contiguous() for part in parts)
            assert (tensorlib.cat(parts, dim).numpy() == wanted["layers.0.weight"]).all()
        assert vb.get("count", shard=(0, 1, 2)).tolist() == wanted["count"][2:].tolist()
        with pytest.raises(FormatError, match="no such tensor"):
            vb.get("layers.7.weight")
        with pytest.raises(FormatError, match=r"shape \(8, 64\)"):
            vb.get("layers.0.weight", (8, 32))


def test_a_mapping_is_a_source():
    """Of Tensors or NumPy arrays."""
    wanted = tensors()
    for source in (wanted, {name: tensorlib.as_tensor(x) for name, x in wanted.items()}):
        assert nn.load_state_dict(Model(), source) == ([], [])
        part = nn.VarBuilder(source, dtype="f16").get("layers.0.weight", shard=(1, 1, 2))
        assert (part.numpy() == wanted["layers.0.weight"][:, 32:]).all() and part.dtype.name == "f16"


def test_folders(tmp_path):
    """The index or the only file of weights; PyTorch's own indices as well. FormatError for none and for a choice."""
    sharded(tmp_path)
    assert nn.load_state_dict(Model(), tensorlib.load(tmp_path)) == ([], [])
    found, torches = {name: torch.from_numpy(x) for name, x in tensors().items()}, tmp_path / "torch"
    torches.mkdir()
    with pytest.raises(FormatError, match="a folder without weights"):
        tensorlib.load(torches)
    for name in ("1.bin", "2.bin"):
        torch.save({k: x for k, x in found.items() if (k == "count") == (name == "1.bin")}, torches / name)
    with pytest.raises(FormatError, match=r"2 files of weights: 1\.bin, 2\.bin"):
        tensorlib.load(torches)
    index = {"weight_map": {name: "1.bin" if name == "count" else "2.bin" for name in found}}
    (torches / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert nn.load_state_dict(Model(), tensorlib.load(torches)) == ([], [])
    (torches / "q").mkdir()
    tensorlib.save(torches / "q.gguf", tensors())
    gguf.split(torches / "q.gguf", torches / "q" / "q", max_tensors=1)
    assert nn.load_state_dict(Model(), tensorlib.load(torches / "q")) == ([], [])


# ---- names and shapes ------------------------------------------------------------------------------------------------


def test_names_are_mapped_by_functions_mappings_and_patterns():
    sources = {f"blk.{i}.ffn": tensorlib.full((8, 64), i) for i in range(2)} | {"n": tensorlib.zeros(4, dtype="i64")}
    table = [(r"^layers\.(\d+)\.", r"blk.\1."), ("weight$", "ffn"), ("^count$", "n")]
    mapping = {"layers.0.weight": "blk.0.ffn", "layers.1.weight": "blk.1.ffn", "count": "n"}
    for rename in (table, mapping, mapping.get):
        model = nn.VarBuilder(sources, rename).load(Model(), strict=True)
        assert [layer.weight[0, 0].item() for layer in model.layers] == [0, 1]
        assert nn.load_state_dict(Model(), {f"m.{k}": v for k, v in sources.items()}, rename=rename, prefix="m.")
        assert nn.VarBuilder(sources, rename).pp("layers").pp(1).get("weight")[0, 0].item() == 1
    assert "count" not in nn.VarBuilder(sources, {"count": None})


def test_all_that_does_not_fit_is_listed_at_once(tmp_path):
    """Grouped and cut in the message, complete in the attributes; and nothing was loaded."""
    path = tmp_path / "x.safetensors"
    found = {f"old.{i}.w": tensorlib.ones(1) for i in range(300)} | {"3.weight": tensorlib.ones(2, 2)}
    found |= {f"odd-{name}": tensorlib.ones(1) for name in "abc"}
    tensorlib.save(path, found)
    module = nn.ModuleList([nn.Linear(3, 2) for _ in range(300)])
    for call in (nn.load_state_dict, lambda m, f: nn.VarBuilder(f).load(m)):
        with tensorlib.load(path) as file, pytest.raises(WeightsError) as caught:
            call(module, file)
        error, text = caught.value, str(caught.value)
        assert error.missing == [f"{i}.{w}" for i in range(300) for w in ("weight", "bias") if (i, w) != (3, "weight")]
        assert sorted(error.unexpected) == sorted(set(found) - {"3.weight"})
        assert error.mismatched == [("3.weight", (2, 2), (2, 3))]
        assert (
            "missing: {0-2,4-299}.weight, {0-299}.bias;" in text
            and "unexpected: odd-a, odd-b, odd-c, old.{0-299}.w" in text
        )
        assert "3.weight (2, 2) for (2, 3)" in text and "x.safetensors" in text and len(text) < 500
        copy = pickle.loads(pickle.dumps(error))
        assert (copy.missing, copy.mismatched, str(copy)) == (error.missing, error.mismatched, text)
    assert all("weight" not in vars(layer) for layer in module)


def test_shapes_of_all_layers_are_said_once():
    """A config of another size: what differs in the same way stands together."""
    with pytest.raises(WeightsError, match=r"of another shape: \{0-39\}\.weight \(8, 32\) for \(8, 64\);") as caught:
        wrong = {f"{i}.weight": tensorlib.zeros(8, 32) for i in range(40)}
        nn.load_state_dict(nn.ModuleList([nn.Linear(64, 8, bias=False) for _ in range(40)]), wrong)
    assert len(caught.value.mismatched) == 40


def test_a_message_of_very_many_names_is_cut():
    tensors = {f"{'x' * (i + 1)}": tensorlib.ones(1) for i in range(300)}
    with pytest.raises(WeightsError, match=r"xxx and 100 more \(the error's attributes list all\)") as caught:
        nn.load_state_dict(nn.Linear(3, 2), tensors)
    assert caught.value.unexpected == list(tensors)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a.{}.w", "b.{}", "{}", "c{}.w", "d.{}.e.{}"]), st.integers(0, 12)), max_size=40
    )
)
def test_folded_names_lose_none(picked):
    """What a folded list says, unfolded, is the list."""
    names = list(dict.fromkeys(pattern.format(n, n % 3) for pattern, n in picked))
    unfolded = []
    for text in loading.folded(names):
        head, brace, tail = text.partition("{")
        runs, _, tail = tail.partition("}")
        for run in runs.split(",") if brace else [""]:
            first, _, last = run.partition("-")
            numbers = range(int(first), int(last or first) + 1) if brace else [""]
            unfolded += [f"{head}{n}{tail}" for n in numbers]
    assert sorted(unfolded) == sorted(names)


def test_strict_is_that_of_pytorch():
    """Against torch itself: what is returned, what is an error, and what is loaded all the same."""
    ours, theirs = nn.Linear(3, 2), torch.nn.Linear(3, 2)
    source = {"weight": torch.ones(2, 3), "more": torch.ones(1)}
    given = {name: tensorlib.as_tensor(x.numpy()) for name, x in source.items()}
    expected = theirs.load_state_dict(source, strict=False)
    assert nn.load_state_dict(ours, given, strict=False) == tuple(expected)
    assert ours.weight.tolist() == [[1] * 3] * 2
    for module, state, error in ((theirs, source, RuntimeError), (nn.Linear(3, 2), given, WeightsError)):
        with pytest.raises(error):
            module.load_state_dict(state)
        state["weight"] = state["weight"][:1]
        with pytest.raises(error):
            module.load_state_dict(state, strict=False)


# ---- dtypes, quantised weights, trained and tied ones ----------------------------------------------------------------


def blocks(shape, format="q8_0"):
    """A QTensor of random blocks whose scales are sane."""
    row = formats.get(format)
    data = np.random.default_rng(1).integers(0, 60, (int(np.prod(shape)) // row.elements, row.nbytes), np.uint8)
    return from_bytes(data.tobytes(), shape, format)


def test_quantised_weights_stay_unless_asked():
    q = blocks((8, 64))
    for dtype, dequantize, expected in (("f16", False, None), (None, True, "f32"), ("bf16", True, "bf16")):
        model = nn.Linear(64, 8, bias=False)
        nn.load_state_dict(model, {"weight": q}, dtype=dtype, dequantize=dequantize)
        weight = nn.VarBuilder({"weight": q}, dtype=dtype, dequantize=dequantize).get("weight", (8, 64))
        for found in (weight, model.weight):
            assert getattr(getattr(found, "dtype", None), "name", None) == expected
            assert expected or found.format.name == "q8_0"


@pytest.mark.parametrize("format", ["q8_0", "q4_k", "mxfp4"])
def test_shards_of_blocks(tmp_path, format):
    """Rows, experts, and whole blocks of the last dim, equal bit for bit to parts of the whole."""
    row = formats.get(format)
    q = blocks((4, 6, 4 * row.elements), format)
    gguf.write(tmp_path / "q.gguf", {}, {"w": q})
    whole = q.dequantize().numpy()
    with tensorlib.load(tmp_path / "q.gguf") as file:
        for source in (file, {"w": q}):
            vb = nn.VarBuilder(source)
            for dim, world in ((0, 2), (1, 3), (2, 4), (-1, 2)):
                parts = [vb.get("w", q.shape, shard=(dim, rank, world)) for rank in range(world)]
                assert all(part.format.name == format for part in parts)
                found = np.concatenate([part.dequantize().numpy() for part in parts], dim)
                assert found.tobytes() == whole.tobytes()
    with pytest.raises(ShapeError, match="whole blocks"):
        vb.get("w", shard=(2, 0, 8))


@pytest.mark.parametrize("shard", [(0, 0, 3), (2, 0, 2), (0, 2, 2), (0, -1, 2), (-3, 0, 2)])
def test_shards_that_there_are_not(shard):
    with pytest.raises(ShapeError, match="shard of 'w'"):
        nn.VarBuilder({"w": tensorlib.ones(4, 6)}).get("w", shard=shard)


def test_trained_weights_are_written_to_in_place():
    """As in PyTorch: an optimiser made before goes on with them. Dtype and device may replace them."""
    model = nn.Linear(3, 2)
    (weight, bias), source = (
        model.parameters(),
        {"weight": tensorlib.ones(2, 3, dtype="f16"), "bias": tensorlib.ones(2)},
    )
    nn.load_state_dict(model, source)
    assert model.weight is weight and weight.tolist() == [[1] * 3] * 2 and weight.requires_grad and model.bias is bias
    source["bias"] += 1
    assert bias.tolist() == [1, 1]
    nn.load_state_dict(model, source, dtype="f64")
    assert model.weight.dtype.name == "f64" and model.weight.requires_grad and weight.dtype.name == "f32"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tied_weights_of_a_file_stay_tied(tmp_path, zipped):
    """Also when they are converted: one tensor, not two."""
    x = torch.arange(6.0).reshape(2, 3)
    path = tmp_path / "x.pth"
    torch.save({"a.weight": x, "b.weight": x, "c.weight": x + 1}, path, _use_new_zipfile_serialization=zipped)
    for dtype in (None, "f16"):
        module = nn.ModuleDict({name: nn.Linear(3, 2, bias=False) for name in "abc"})
        with tensorlib.load(path) as file:
            nn.load_state_dict(module, file, dtype=dtype)
        a, b, c = (module[name].weight for name in "abc")
        assert a.ptr == b.ptr != c.ptr and c.tolist() == (x + 1).tolist()


def test_tied_weights_of_a_module_need_one_name():
    """safetensors has no tied tensors: the second name is not in the file."""
    for name in ("a.weight", "b.weight"):
        module = nn.ModuleDict({name: nn.Linear(3, 2, bias=False) for name in "ab"})
        module["b"].weight = module["a"].weight
        assert nn.load_state_dict(module, {name: tensorlib.ones(2, 3)}) == ([], [])
        assert module["a"].weight is module["b"].weight and module["a"].weight.tolist() == [[1] * 3] * 2
    with pytest.raises(WeightsError) as caught:
        nn.load_state_dict(module, {})
    assert caught.value.missing == ["a.weight", "b.weight"]


# ---- what a shard reads ----------------------------------------------------------------------------------------------

TOUCH = """
import ctypes, mmap, sys
import tensorlib
from tensorlib import nn
protect = ctypes.CDLL(None, use_errno=True).mprotect
protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
PAGE, ROWS, WORLD = mmap.PAGESIZE, 8, 4

def forbid(start, stop):
    # no page that lies wholly in it may be read any more: that would be a segmentation fault
    start, stop = -(-start // PAGE) * PAGE, stop // PAGE * PAGE
    assert start < stop and protect(start, stop - start, 0) == 0

for path in sys.argv[1:]:
    for dim in (0, 1):
        file = tensorlib.load(path)
        info = file.tensors["w"]
        at, row = file.buffer.ptr, info.nbytes // ROWS
        data, end, part = at + info.offset, at + file.nbytes, row // WORLD
        if dim == 0:
            forbid(at, data + 2 * row)
            forbid(data + 4 * row, end)
        else:
            for start in range(data, data + info.nbytes, row):
                forbid(start, start + part)
                forbid(start + 2 * part, start + row)
        found = nn.VarBuilder(file).get("w", info.shape, shard=(dim, 1, WORLD))
        found = found.dequantize() if hasattr(found, "dequantize") else found
        print(float(found.sum()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="takes pages of a mapping away")
def test_a_shard_reads_no_other_byte(tmp_path, run_python):
    """All other pages of the file are taken away before it is asked for: a copy of the whole would crash."""
    rows, width, paths = (
        8,
        1 << 16,
        [tmp_path / name for name in ("x.safetensors", "x.gguf", "x.npz", "x.pth", "q.gguf")],
    )
    x = np.arange(rows * width, dtype="f4").reshape(rows, width) % 100
    q = blocks((rows, width))
    for path in paths[:3]:
        tensorlib.save(path, {"w": x})
    torch.save({"w": torch.from_numpy(x)}, paths[3])
    gguf.write(paths[4], {}, {"w": q})
    wholes = [x] * 4 + [q.dequantize().numpy()]
    expected = [float(part.sum()) for w in wholes for part in (w[2:4], w[:, width // 4 : width // 2])]
    found = [float(line) for line in run_python(TOUCH, *map(str, paths)).split()]
    assert found == pytest.approx(expected, rel=1e-5) and len(found) == 10
