"""The README's code runs as it stands there."""

import pathlib
import re

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"


def test_its_code_runs(default_model, capsys):
    first, *more = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    scope = {"__name__": "readme"}
    exec(compile(first, str(README), "exec"), scope)
    assert "Paris" in capsys.readouterr().out
    assert len([line for line in first.splitlines() if line]) <= 10
    for code in more:
        exec(compile(code, str(README), "exec"), scope)
