"""The table of names: every name is there, in tensorlib and in PyTorch, and the printed table is what is kept."""

import functools
import pathlib

import pytest
import torch
import torch.nn.attention.varlen

import tensorlib
from tensorlib import names
from tensorlib.registry import OPS

PLACE = pathlib.Path(names.__file__).parent / "NAMES.md"


@pytest.mark.parametrize("ours, theirs", sorted({(o, t) for _, o, t in names.rows()}))
def test_every_name_is_there(ours, theirs):
    if ours.isidentifier() or "." in ours:
        start = tensorlib.ones(1) if ours.startswith("Tensor.") else tensorlib  # some are an instance's own
        assert functools.reduce(getattr, ours.removeprefix("Tensor.").split("."), start) is not None
    if theirs != "-" and (theirs.isidentifier() or "." in theirs):
        assert functools.reduce(getattr, theirs.split("."), torch) is not None


def test_every_row_is_a_function_of_the_package():
    names.own_rows()
    private = {"cast", "copy_", "setitem", "getitem", "to_device"}  # x.to, x.copy_, x[...]
    private |= {f"{name}_backward" for name in ("relu", "silu", "gelu", "gelu_tanh")}  # gradients of those
    private |= {"channel_norm"}  # batch_norm in training, with its statistics
    private |= {"cross_entropy_rows"}  # cross_entropy of a matrix, on GPUs
    for name in OPS:
        if name.endswith("_") or name in private or ":" in name:
            continue
        assert getattr(tensorlib, name, None) or getattr(tensorlib.Tensor, name, None), name


def test_the_table_is_kept_current():
    assert PLACE.read_text(encoding="utf-8") == names.markdown(), "run: python -m tensorlib.names > tensorlib/NAMES.md"
