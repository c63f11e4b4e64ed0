"""The notebooks' cells run, one after the other, and what stands last in each has something to show."""

import ast
import json
import pathlib

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "zoo" / "notebooks"


def run(name):
    """What the last expressions of a notebook's cells show, as Jupyter asks for it; None for what it shows itself."""
    scope, shown = {"__name__": "__main__"}, {}
    for cell in json.loads((FOLDER / name).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        body = ast.parse("".join(cell["source"]), name).body
        last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), name, "exec"), scope)
        value = eval(compile(last, name, "eval"), scope) if last is not None else None
        if hasattr(value, "_ipython_display_"):
            value._ipython_display_()
        elif value is not None:
            shown[cell["id"]] = value._repr_html_() if hasattr(value, "_repr_html_") else repr(value)
    return shown


def test_text(default_model, capsys):
    """Three lines from import to text."""
    source = json.loads((FOLDER / "text.ipynb").read_text(encoding="utf-8"))["cells"][1]["source"]
    assert len(list(filter(str.strip, source))) == 3 and "import" in source[0]
    shown = run("text.ipynb")
    assert capsys.readouterr().out.startswith(" Paris")
    assert "134,515,008 parameters" in shown["model"] and "0-29: LlamaDecoderLayer" in shown["model"]
    assert "272 tensors" in shown["file"] and "chat template" in shown["tokenizer"] and "8 f32, cpu" in shown["tensor"]


def test_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where no package of digits lies: they are drawn
    shown = run("train_mnist.ipynb")
    assert shown["data"] == "(2500, 500)" and "parameters" in shown["model"]
    accuracy = float(capsys.readouterr().out.split()[0])
    assert accuracy > 0.9
