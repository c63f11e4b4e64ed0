"""Modules: declarations that become tensors when used, trees, moving, casting, copies, text."""

import copy

import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import DTypeError


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))


def test_weights_begin_when_used_as_if_made_at_once():
    tensorlib.manual_seed(3)
    a = model()
    late = [a[2].weight.clone(), a[0].weight.clone()]
    tensorlib.manual_seed(3)
    b = model()
    assert all((x == y).all() for x, y in zip(late, (b[2].weight, b[0].weight)))
    assert a[0].weight.requires_grad and a[0].weight.is_leaf
    bound = 3**-0.5
    assert a[0].weight.abs().max().item() <= bound and not (a[0].weight == a[0].weight[0, 0]).all()


def test_declarations_are_not_made_by_looking():
    module = model()
    assert module.num_parameters() == 3 * 4 + 4 + 4 + 4 + 4 * 2
    assert repr(module) and module._repr_html_()
    assert all(isinstance(p, nn.Parameter) for _, p in module.named_parameters())
    assert all(isinstance(p, tensorlib.Tensor) for p in module.parameters())
    assert all(isinstance(p, tensorlib.Tensor) for _, p in module.named_parameters())


def test_tensors_as_parameters_and_buffers():
    class Scale(nn.Module):
        def __init__(self):
            self.scale = nn.Parameter(tensorlib.ones(2))
            self.count = nn.Buffer(dtype="i64")
            self.scratch = nn.Buffer(2, persistent=False)
            self.constant = tensorlib.ones(2)

    module = Scale()
    assert [name for name, _ in module.named_parameters()] == ["scale"]
    assert [name for name, _ in module.named_buffers()] == ["count", "scratch"]
    assert list(module.state_dict()) == ["scale", "count"]
    assert not module.count.requires_grad and module.count.dtype is tensorlib.i64
    del module.scale
    assert not module.parameters()
    with pytest.raises(AttributeError, match="Scale has no attribute 'scale'"):
        module.scale  # noqa: B018


def test_gradients_reach_weights_and_are_forgotten():
    module = model()
    module(tensorlib.ones(2, 3)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    module.zero_grad()
    assert all(p.grad is None for p in module.parameters())


def test_moving_and_casting_keep_leaves():
    module = model().to("f64")
    assert all(p.dtype is tensorlib.f64 and p.is_leaf and p.requires_grad for p in module.parameters())
    assert module.half()[0].weight.dtype is tensorlib.f16 and module.to("cpu").float()[0].weight.dtype is tensorlib.f32
    with pytest.raises(DTypeError, match="float dtype"):
        module.to("i32")
    module.requires_grad_(False)
    assert not any(p.requires_grad for p in module.parameters())
    assert module.num_parameters(trainable=True) == 0


def test_weights_of_a_file_get_memory_of_their_own_when_trained(tmp_path):
    tensorlib.save(tmp_path / "x.safetensors", model().state_dict())
    module = model()
    module.load_state_dict(tensorlib.load(tmp_path / "x.safetensors"))
    assert not module[0].weight.requires_grad
    module.requires_grad_()
    with tensorlib.no_grad():
        module[0].weight.add_(1.0)
    assert module[0].weight.requires_grad


def test_copies_are_apart():
    module = model()
    other = copy.deepcopy(module)
    with tensorlib.no_grad():
        other[0].weight.add_(1.0)
    assert other[0].weight.is_leaf and other[0].weight.requires_grad
    assert not (other[0].weight == module[0].weight).any()


def test_train_and_eval_reach_all():
    module = model().eval()
    assert not any(m.training for m in module.modules())
    assert all(m.training for m in module.train().modules())


def test_containers():
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Identity()])
    layers[1] = nn.Linear(2, 3)
    assert [name for name, _ in layers.named_children()] == ["0", "1"] and layers[-1].out_features == 3
    assert isinstance(layers[:1], nn.ModuleList) and len(layers) == 2
    heads = nn.ModuleDict({"a": nn.Linear(2, 2)})
    heads["b"] = nn.Identity()
    assert heads.keys() == ["a", "b"] and [n for n, _ in heads.named_parameters()] == ["a.weight", "a.bias"]
    named = nn.Sequential({"first": nn.Linear(2, 3), "second": nn.ReLU() if hasattr(nn, "ReLU") else nn.Identity()})
    assert named(tensorlib.ones(1, 2)).shape == (1, 3)


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    model[1].weight = model[0].weight
    for change in ("f16", "cpu", "f32"):
        model.to(change)
        assert model[1].weight is model[0].weight and model.num_parameters() == 25
    assert model[1].weight.requires_grad


def test_text_says_shapes_and_counts():
    text = repr(nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)), nn.Flatten()))
    assert "(0-2): Linear(in_features=2, out_features=2, bias=True)" in text
    assert text.endswith("# 18 parameters, 72 bytes")
    html = nn.Sequential(nn.Linear(2, 3))._repr_html_()
    assert "3 × 2" in html and "9 parameters" in html


def test_the_tree_of_a_notebook():
    """Layers that look the same stand together, tied weights count once, and what a text says is escaped."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), nn.Linear(4, 5))
    model[2].weight = model[0].weight
    model.half()
    model[1][0].extra_repr = lambda: "<b>"
    html = model._repr_html_()
    assert html.startswith("<details open><summary>Sequential(): 85 parameters, 170 bytes</summary>")
    assert "<summary>1: Sequential(): 60 parameters, 120 bytes</summary>" in html
    assert "0: Linear(&lt;b&gt;): 20 parameters" in html and "1-2: Linear(in_features=4" in html and "<b>" not in html
    assert html.count("<table>") == 4 and ">f16<" in html and ">cpu<" in html
    assert nn.ReLU()._repr_html_() == "<div>ReLU()</div>"
