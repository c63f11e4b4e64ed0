"""Bars while weights load: where somebody looks on, after a while; silence everywhere else."""

import sys
import types

import pytest

import tensorlib
from tensorlib import bar, nn
from tensorlib.io import fetch


@pytest.fixture
def kernel(monkeypatch):
    """Function: as if this were a Jupyter kernel, or plain IPython."""

    def pretend(*apps):
        shell = types.SimpleNamespace(config={app: {} for app in apps})
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))

    return pretend


def load():
    """Three tensors into two layers."""
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1, bias=False))
    nn.VarBuilder({name: tensorlib.zeros(*x.shape) for name, x in module.named_parameters()}).load(module)


def test_a_terminal_and_a_notebook_show_a_bar(monkeypatch, capsys, kernel):
    monkeypatch.setattr(bar, "DELAY", 0)
    load()
    kernel()  # IPython in a script: nobody looks on
    load()
    assert capsys.readouterr().err == ""
    kernel("IPKernelApp")
    load()
    assert "loading weights" in capsys.readouterr().err
    kernel()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load()
    assert "tensors" in capsys.readouterr().err


def test_what_is_done_at_once_shows_none(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load()
    monkeypatch.setattr(sys, "stderr", None)
    load()
    with bar.Bar("x", 1, delay=0) as shown:
        shown.add(1)
    monkeypatch.undo()
    assert capsys.readouterr().err == "" and shown.done == 1


@pytest.mark.parametrize("widgets", [False, True])
def test_a_notebook_with_and_without_widgets(widgets, monkeypatch, capsys, kernel):
    """Where there are none a line of text is drawn, and nobody is told to install them."""
    kernel("IPKernelApp")
    found = types.ModuleType("tqdm.notebook")
    found.tqdm = lambda **options: types.SimpleNamespace(close=lambda: print("closed", options["desc"]))
    monkeypatch.setitem(sys.modules, "tqdm.notebook", found)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: widgets or None)
    with bar.Bar("parts", 2, delay=0) as shown:
        shown.add(1)
    said = capsys.readouterr()
    assert said.out == ("closed parts\n" if widgets else "") and ("parts" in said.err) is not widgets


def test_a_line_gives_way_to_the_next(monkeypatch, capsys, kernel):
    line = bar.Line()
    line.show("nobody sees it")
    line.clear()
    assert capsys.readouterr().err == ""
    kernel("IPKernelApp")
    for text in ("a long one", "short", "x" * 100):
        line.show(text)
    line.clear()
    line.clear()
    assert capsys.readouterr().err == f"a long one\rshort     \r{'x' * 79}\r{' ' * 79}\r"


def test_downloads_show_a_bar_in_notebooks(capsys, kernel):
    kernel("IPKernelApp")
    progress = fetch.Progress("a model", 1000)
    progress.add(1000)
    progress.close()
    err = capsys.readouterr().err
    assert "a model" in err and "fetching" not in err
