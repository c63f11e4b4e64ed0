"""Models by what their files call themselves: `model_type` of a config.json, `general.architecture` of a GGUF file."""

import importlib
import os

import tensorlib
from tensorlib.errors import FormatError
from tensorlib.nn import VarBuilder
from zoo import config

# Hugging Face's model_type -> (module of this package, class of the model, class of its config)
MODELS = {
    "llama": ("llama", "LlamaForCausalLM", "LlamaConfig"),
    "mistral": ("mistral", "MistralForCausalLM", "MistralConfig"),
}


def classes(model_type, path, where):
    """(class of the model, class of its config) of a row. FormatError that lists the known, for none."""
    if model_type not in MODELS:
        known = ", ".join(sorted(MODELS))
        raise FormatError(path, where, repr(model_type), f"one of {known}", "this architecture is not here yet")
    module, model, made = MODELS[model_type]
    module = importlib.import_module(f"zoo.{module}")
    return getattr(module, model), getattr(module, made)


def load(folder, context=None, device="cpu", dtype=None):
    """(file of weights, model) of a folder as Hugging Face has them: config.json and safetensors, or PyTorch's files.

    `context`: how many positions the model is prepared for, at most its own; `dtype`: what weights of floats are cast
    to. FormatError for a damaged file, an unknown architecture, or weights that are not the model's.
    """
    fields = config.read(folder)
    model, made = classes(fields("model_type", str), fields.path, "model_type")
    values = made.from_hf(fields)
    if context is not None and hasattr(values, "max_position_embeddings"):
        values = values._replace(max_position_embeddings=min(context, values.max_position_embeddings))
    file = tensorlib.load(folder)
    return file, VarBuilder(file, dtype=dtype, device=device).load(model(values))


def is_folder(path):
    """Whether a path is a model's folder."""
    return os.path.isdir(path)
