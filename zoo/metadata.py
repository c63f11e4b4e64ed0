"""Metadata from one format of tensor files to another: what has a place there, and how it is written.

GGUF's values have types, safetensors has text alone: there they stand as JSON under `gguf:KEY`, and come back as they
were. In PyTorch's files plain values stand beside the tensors, which is kept between such files alone: what loads a
state dict would call them unexpected keys. NumPy's have no place for any.
"""

import json

GGUF_KEY = "gguf:"


def metadata_for(writer, kind, file):
    """A file's metadata as the writer takes it, and the keys for which there is no place."""
    from tensorlib.errors import DTypeError
    from tensorlib.io.gguf_values import Metadata, typed

    if kind == "gguf":
        found = {key: file.metadata.typed(key) for key in file.metadata if not key.startswith("split.")}
    else:
        found = {key: value for key, value in file.metadata.items() if (kind, key) != ("safetensors", "total_size")}
    if writer == "npz" or (writer == "pth_write" and kind != "pth"):
        return {}, list(found)
    if writer == "pth_write":
        plain = {key: value for key, value in found.items() if type(value) in (str, int, float, bool, type(None))}
        return plain, [key for key in found if key not in plain]
    if writer == "safetensors":
        text = {f"{GGUF_KEY}{key}" if kind == "gguf" else key: _as_text(value) for key, value in found.items()}
        return text, []
    if isinstance(file.metadata, Metadata):
        return {key: file.metadata.encoded(key) for key in found}, []
    kept, lost = {}, []
    for key, value in found.items():
        try:
            marked = kind == "safetensors" and key.startswith(GGUF_KEY)
            kept[key.removeprefix(GGUF_KEY) if marked else key] = (
                _as_typed(json.loads(value)) if marked else typed(value)
            )
        except (DTypeError, ValueError, TypeError):
            lost.append(key)
    return kept, lost


def _as_text(value):
    """Text as it is, anything else as JSON, or where JSON has it not as Python writes it."""
    return value if type(value) is str else json.dumps(value, ensure_ascii=False, default=repr)


def _as_typed(value):
    """What `_as_text` made of a typed value of GGUF."""
    from tensorlib.io.gguf_values import Typed

    kind, content = value
    return Typed(kind, [_as_typed(each) for each in content] if kind == "array" else content)
