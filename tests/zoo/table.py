"""`python -m tests.zoo.table`: what the tests of models show of every architecture, from their own tables, as Markdown.

README.md has it; a test holds it there.
"""

import importlib
import inspect

from tests.zoo.decoders import CASES

COLUMNS = ("safetensors", "GGUF", "batch", "cache", "training", "CPU", "GPU simulated")
DECODERS = {
    "safetensors": "test_prefill",
    "batch": "test_batch",
    "cache": "test_cached_steps",
    "training": "test_training_step",
    "CPU": "test_recorded_steps",
}
ENCODERS = {
    "safetensors": "test_hidden_states",
    "batch": "test_hidden_states",
    "training": "test_training_step",
    "CPU": "test_hidden_states",
}

SEQ2SEQ = dict.fromkeys(("safetensors", "batch", "cache", "CPU"), "test_logits") | {"training": "test_training_step"}
# architecture, the file with its tests, which of them show what
OTHERS = (("jina_bert", "test_jina_bert", ENCODERS), ("nvembed", "test_nv_embed", ENCODERS))
OTHERS += (("marian", "test_marian", SEQ2SEQ), ("t5", "test_t5", SEQ2SEQ), ("mt5", "test_t5", SEQ2SEQ))
OTHERS += (("based", "test_based", DECODERS), *((f"rwkv{i}", "test_rwkv", DECODERS) for i in (5, 6, 7)))


def shown(module, tests):
    """The columns whose test runs for every case of a module: it takes the fixture `pair`."""
    found = importlib.import_module(f"tests.zoo.{module}")
    return {column for column, name in tests.items() if "pair" in inspect.signature(getattr(found, name)).parameters}


def rows():
    """{architecture: the columns that a test shows}."""
    from tests.sim import test_encoders as simulated
    from tests.sim.test_decoders import FAMILIES
    from tests.zoo import test_encoders, test_encoders_gguf

    found, columns = {}, shown("test_decoders", DECODERS)
    for case in CASES:
        found.setdefault(case.model_type, set()).update(columns, {"GGUF"} if case.gguf else ())
        found[case.model_type] |= {"GPU simulated"} if case.id in FAMILIES else set()
    for name in test_encoders.CASES:
        found.setdefault(name.split()[0], set()).update(shown("test_encoders", ENCODERS))
    for name, module, tests in OTHERS:
        found.setdefault(name, set()).update(shown(module, tests))
    for name in (*test_encoders_gguf.CASES, *test_encoders_gguf.OTHERS, "rwkv6", "rwkv7"):
        found[name].add("GGUF")
    for name in (*simulated.ENCODERS, *simulated.OTHERS, "based"):
        found[name].add("GPU simulated")
    return found


def table():
    """The rows as Markdown."""
    lines = ["| architecture | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, columns in sorted(rows().items()):
        lines.append(f"| `{name}` | " + " | ".join("yes" if column in columns else "" for column in COLUMNS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
