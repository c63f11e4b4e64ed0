"""Weights that go to a GPU as they are loaded: dtypes, blocks, shards, and weights that are trained there already."""

import numpy as np

import tensorlib
from tensorlib import nn
from tensorlib.quant.tensor import from_bytes

W, Q = np.arange(24, dtype="f4").reshape(4, 6), from_bytes(bytes(range(34)) * 8, (4, 64), "q8_0")


def test_weights_go_to_a_device(tmp_path):
    tensorlib.save(tmp_path / "x.gguf", {"w": W, "q": Q, "i": np.arange(3)})
    with tensorlib.load(tmp_path / "x.gguf") as file:
        vb = nn.VarBuilder(file, device="cuda:0", dtype="f16")
        w, q, i = vb.get("w", (4, 6)), vb.get("q"), vb.get("i")
        assert [str(x.device) for x in (w, q, i)] == ["cuda:0"] * 3
        assert (w.dtype.name, q.format.name, i.dtype.name) == ("f16", "q8_0", "i64") and w.tolist() == W.tolist()
        assert q.dequantize().cpu().tolist() == Q.dequantize().tolist()
        assert vb.get("w", shard=(1, 1, 2)).tolist() == W[:, 3:].tolist()
        part = nn.VarBuilder(file, device="cuda:0", dequantize=True).get("q", shard=(1, 1, 2))
        assert part.cpu().tolist() == Q.dequantize()[:, 32:].tolist()


def test_weights_that_are_there_stay_there():
    """Trained ones are written to in place, others replaced on their device; `device` moves them."""
    linear, source = nn.Linear(6, 4, bias=False).to("cuda:0"), {"weight": W}
    weight = linear.weight
    nn.load_state_dict(linear, source)
    assert linear.weight is weight and weight.tolist() == W.tolist()
    linear.requires_grad_(False)
    nn.load_state_dict(linear, {"weight": W + 1})
    assert str(linear.weight.device) == "cuda:0" and linear.weight.tolist() == (W + 1).tolist()
    nn.load_state_dict(linear, source, device="cpu")
    assert str(linear.weight.device) == "cpu"
