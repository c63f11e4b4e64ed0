"""The README's code runs as it stands there."""

import pathlib
import re

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"


def test_first_screen_runs(default_model, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, str(README), "exec"), {"__name__": "readme"})
    assert "Paris" in capsys.readouterr().out
    assert len([line for line in code.splitlines() if line]) <= 10
