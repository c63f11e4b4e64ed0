"""Adapters as PEFT stores them: a folder with adapter_config.json and adapter_model.safetensors.

>>> import tempfile
>>> from tensorlib import nn
>>> from tensorlib.io import adapters
>>> model = nn.Sequential(nn.Linear(4, 2))
>>> _ = nn.lora.add_lora(model, r=2)
>>> folder = tempfile.mkdtemp()
>>> adapters.save(folder, model)
>>> adapters.load(nn.Sequential(nn.Linear(4, 2)), folder)
['0']
"""

import json
import os
import re

from tensorlib.autograd import no_grad
from tensorlib.errors import FormatError, WeightsError
from tensorlib.io import files
from tensorlib.io.atomic import writing
from tensorlib.nn import lora

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
MAX_CONFIG = 1 << 24
NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.(lora_[AB]\.weight|lora_embedding_[AB]|lora_magnitude_vector)")
REFUSED = (  # options of LoraConfig that change what is computed, and that nothing here computes
    "fan_in_fan_out", "modules_to_save", "layer_replication", "lora_bias", "use_qalora", "alora_invocation_tokens",
    "trainable_token_indices", "target_parameters", "arrow_config",
)  # fmt: skip


def save(folder, model, base=None):
    """Writes the adapters of a model; `base`: the name of the model on the Hub. The folder is made if need be.

    FormatError for a model without adapters, WriteError where files cannot be written.
    """
    found = lora.adapters(model)
    if not found:
        raise FormatError(folder, "model", "no adapters", "a model with them", "call nn.lora.add_lora first")
    os.makedirs(folder, exist_ok=True)
    files.save(os.path.join(folder, WEIGHTS[0]), lora.lora_state_dict(model))
    layers = list(found.values())
    config = {
        "peft_type": "LORA", "base_model_name_or_path": base, "task_type": None, "inference_mode": True,
        "r": layers[0].r, "lora_alpha": layers[0].alpha, "lora_dropout": layers[0].dropout, "bias": "none",
        "fan_in_fan_out": False, "use_rslora": layers[0].rslora,
        "use_dora": getattr(layers[0], "lora_magnitude_vector", None) is not None, "target_modules": list(found),
        "rank_pattern": {path: m.r for path, m in found.items() if m.r != layers[0].r},
        "alpha_pattern": {path: m.alpha for path, m in found.items() if m.alpha != layers[0].alpha},
    }  # fmt: skip
    with writing(os.path.join(folder, CONFIG)) as file:
        file.write(json.dumps(config, indent=2).encode())


def load(model, folder):
    """Puts the adapters of a folder into a model, whose weights are frozen by that; their paths.

    FormatError for what is no LoRA adapter, or one with options that are not computed here; WeightsError for weights
    that do not fit the model. In both cases the model is as it was.
    """
    config = _config(os.path.join(folder, CONFIG))
    path = next((p for name in WEIGHTS if os.path.exists(p := os.path.join(folder, name))), None)
    if path is None:
        raise FormatError(folder, "path", "no weights", " or ".join(WEIGHTS), "see what was downloaded")
    with files.load(path) as file, no_grad():
        parts = _parts(file)
        ranks = {where: _rank(file, config, where, kinds) for where, kinds in parts.items()}
        _check(model, file, parts)
        parts = {where: parts[where] for where, _ in model.named_modules() if where in parts}
        model.requires_grad_(False)
        plain = [where for where, kinds in parts.items() if "lora_magnitude_vector" not in kinds]
        options = {"dropout": config.get("lora_dropout") or 0.0, "rslora": bool(config.get("use_rslora"))}
        lora.wrap(model, plain, ranks, **options)
        lora.wrap(model, [where for where in parts if where not in plain], ranks, dora=True, **options)
        for where, kinds in parts.items():
            for kind, name in kinds.items():
                owner, _, attribute = f"{where}.{kind}".rpartition(".")
                getattr(model.get_submodule(owner), attribute).copy_(file.tensor(name))
    return list(parts)


def _config(path):
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(MAX_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(path, "config", str(error), "JSON", "is this a folder of PEFT's?") from None
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        got = found.get("peft_type") if isinstance(found, dict) else type(found).__name__
        raise FormatError(path, "peft_type", got, "LORA", "other methods are not there")
    for option in REFUSED:
        if found.get(option):
            raise FormatError(path, option, found[option], "none", "such adapters are not computed here")
    if found.get("bias", "none") != "none":
        raise FormatError(path, "bias", found["bias"], "none", "adapters with biases are not computed here")
    return found


def _parts(file):
    """{path in the model: {kind: name in the file}}."""
    found = {}
    for name in file.tensors:
        match = NAME.fullmatch(name)
        if match is None:
            expected = "PATH.lora_A.weight, PATH.lora_B.weight and their like"
            raise FormatError(file.path, name, "a tensor of no known part", expected, "is this a LoRA adapter?")
        found.setdefault(match[1], {})[match[2]] = name
    return found


def _rank(file, config, where, kinds):
    """(r, alpha) of an adapter."""
    pairs = [("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")]
    pair = next((pair for pair in pairs if all(kind in kinds for kind in pair)), None)
    if pair is None:
        raise FormatError(file.path, where, f"only {', '.join(kinds)}", "both lora_A and lora_B", "is the file whole?")
    shape = file.tensors[kinds[pair[0]]].shape
    if len(shape) != 2:
        raise FormatError(file.path, where, f"shape {shape}", "a matrix", "convolutions have no adapters here")
    alpha = config.get("lora_alpha")
    for key, value in (config.get("alpha_pattern") or {}).items():
        if where == key or re.fullmatch(rf"(.*\.)?({key})", where):
            alpha = value
            break
    if not isinstance(alpha, (int, float)):
        raise FormatError(file.path, where, f"lora_alpha {alpha!r}", "a number", "see adapter_config.json")
    return shape[0], alpha


def _check(model, file, parts):
    """WeightsError unless the model has plain layers of the right sizes where the file has adapters."""
    layers, missing, mismatched = dict(model.named_modules()), [], []
    for where, kinds in parts.items():
        layer = layers.get(where)
        linear = "lora_A.weight" in kinds
        if type(layer) is not (lora.Linear if linear else lora.Embedding):
            missing.append(where)
            continue
        r = file.tensors[kinds["lora_A.weight" if linear else "lora_embedding_A"]].shape[0]
        rows, width = layer.weight.shape
        wanted = {"lora_A.weight": (r, width), "lora_B.weight": (rows, r), "lora_magnitude_vector": (rows,)}
        wanted |= {"lora_embedding_A": (r, rows), "lora_embedding_B": (width, r)}
        for kind, name in kinds.items():
            shape = tuple(file.tensors[name].shape)
            if shape != wanted[kind]:
                mismatched.append((name, shape, wanted[kind]))
    if missing or mismatched:
        texts = [f"no plain layer at {', '.join(missing)}"] if missing else []
        texts += [f"{name} {a} for {b}" for name, a, b in mismatched]
        kind, fix = type(model).__name__, "is it an adapter for this model?"
        raise WeightsError(
            file.path, "adapters", "; ".join(texts), f"layers of {kind}", fix, unexpected=missing, mismatched=mismatched
        )
