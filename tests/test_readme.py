"""The README's code runs as it stands there."""

import importlib
import pathlib
import re

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"


def test_its_table_of_models_is_that_of_the_tests():
    """`python -m tests.zoo.table` prints what belongs between the two comments."""
    table = importlib.import_module("tests.zoo.table")  # not imported above: its tables need transformers
    text = README.read_text(encoding="utf-8").partition("<!-- models -->")[2].partition("<!-- end of models -->")[0]
    assert text.strip() == table.table()


def test_its_code_runs(default_model, capsys):
    first, *more = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    scope = {"__name__": "readme"}
    exec(compile(first, str(README), "exec"), scope)
    assert "Paris" in capsys.readouterr().out
    assert len([line for line in first.splitlines() if line]) <= 10
    for code in more:
        exec(compile(code, str(README), "exec"), scope)
