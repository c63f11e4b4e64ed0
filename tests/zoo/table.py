"""`python -m tests.zoo.table`: what the tests of decoders show of every architecture, from their own table."""

import inspect

from tests.zoo.decoders import CASES

COLUMNS = ("safetensors", "GGUF", "batch", "cache", "training")
TESTS = {
    "safetensors": "test_prefill",
    "batch": "test_batch",
    "cache": "test_cached_steps",
    "training": "test_training_step",
}


def rows():
    """{architecture: the columns that a test shows}. Every case runs every test of test_decoders.py."""
    from tests.zoo import test_decoders

    shown = {
        column for column, name in TESTS.items() if "pair" in inspect.signature(getattr(test_decoders, name)).parameters
    }
    found = {}
    for case in CASES:
        found.setdefault(case.model_type, set()).update(shown, {"GGUF"} if case.gguf else ())
    return found


def table():
    """The rows as Markdown."""
    lines = ["| architecture | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, shown in sorted(rows().items()):
        lines.append(f"| `{name}` | " + " | ".join("yes" if column in shown else "" for column in COLUMNS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
