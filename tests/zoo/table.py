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
RWKV = [f"rwkv{i}" for i in (5, 6, 7)]
# architecture, the file with its tests, which of them show what
OTHERS = (("jina_bert", "test_jina_bert", ENCODERS), ("nvembed", "test_nv_embed", ENCODERS))
OTHERS += (("marian", "test_marian", SEQ2SEQ), ("t5", "test_t5", SEQ2SEQ), ("mt5", "test_t5", SEQ2SEQ))
OTHERS += (("based", "test_based", DECODERS), ("chatglm", "test_chatglm", DECODERS | {"GGUF": "test_gguf"}))
OTHERS += tuple((name, "test_rwkv", DECODERS) for name in RWKV)
OWN = ("based", "jina_bert", "nvembed", *RWKV)
NOTE = "\\* against a reference of our own, since transformers has no such model."


def shown(module, tests):
    """The columns whose test runs for every case of a module: it takes the fixture `pair`, or is the only one."""
    found = importlib.import_module(f"tests.zoo.{module}")
    names = {column: inspect.signature(getattr(found, name)).parameters for column, name in tests.items()}
    return {column for column, given in names.items() if "pair" in given or column == "GGUF"}


def simulated():
    """Architectures with a test on the simulated GPU."""
    from tests.sim import test_decoders as decoders
    from tests.sim import test_encoders as encoders

    found = {case.model_type for case in decoders.SIMULATED} | {*encoders.ENCODERS}
    others = (
        *((name, decoders) for name in ("based", "chatglm", "rwkv")),
        *((name, encoders) for name in encoders.OTHERS),
    )
    for name, module in others:
        if hasattr(module, f"test_{name}"):
            found |= set(RWKV) if name == "rwkv" else {name}
    return found


def rows():
    """{architecture: the columns that a test shows}."""
    from tests.zoo import test_encoders, test_encoders_gguf, test_rwkv

    found, columns = {}, shown("test_decoders", DECODERS)
    for case in CASES:
        found.setdefault(case.model_type, set()).update(columns, {"GGUF"} if case.gguf else ())
    for name in test_encoders.CASES:
        found.setdefault(name.split()[0], set()).update(shown("test_encoders", ENCODERS))
    for name, module, tests in OTHERS:
        found.setdefault(name, set()).update(shown(module, tests))
    for name in (*test_encoders_gguf.CASES, *test_encoders_gguf.OTHERS, *test_rwkv.IN_GGUF):
        found[name].add("GGUF")
    for name in simulated():
        found[name].add("GPU simulated")
    return found


def table():
    """The rows as Markdown."""
    lines = ["| architecture | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, columns in sorted(rows().items()):
        mark = " \\*" if name in OWN else ""
        lines.append(f"| `{name}`{mark} | " + " | ".join("yes" if c in columns else "" for c in COLUMNS) + " |")
    return "\n".join([*lines, "", NOTE])


if __name__ == "__main__":
    print(table())
