"""Loading all weights of a module from a file or mapping, with everything that does not fit told at once."""

from tensorlib.device import Array
from tensorlib.errors import FormatError


def load_state_dict(module, source, strict=True, rename=None, prefix="", dtype=None, device="cpu"):
    """Gives every weight of `module` the tensor of its name; returns the names (missing, unexpected).

    `source`: a reader of tensorlib.io (anything with `.tensors` and `.tensor(name)`), or a mapping of names to Tensors.
    `rename` maps a path in the module to the source's name after `prefix` (None: it has none). Tensors of floats are
    cast to `dtype`, if given, and moved to `device`.

    One FormatError lists all that is missing, unexpected (below the prefix) or of another shape, before anything is
    loaded. With `strict=False` only other shapes are errors.

    >>> import tensorlib
    >>> from tensorlib import nn
    >>> load_state_dict(nn.Linear(3, 2), {"weight": tensorlib.ones(2, 3)})
    ([], [])
    >>> load_state_dict(nn.Linear(3, 2), {"w": tensorlib.ones(2, 3)})
    Traceback (most recent call last):
    tensorlib.errors.FormatError: state dict: weights: got missing: weight; unexpected: w; expected the weights of ...
    """
    tensors = getattr(source, "tensors", source)
    tensor = getattr(source, "tensor", None) or source.__getitem__
    found, missing, mismatched = {}, [], []
    for path, weight in list(module.named_parameters()):
        name = rename(path) if rename else path
        if name is None or prefix + name not in tensors:
            if not getattr(weight, "optional", False):
                missing.append(path if name is None else prefix + name)
            continue
        name = prefix + name
        found[path] = name
        got, expected = tuple(tensors[name].shape), tuple(weight.shape)
        if got != expected:
            mismatched.append(f"{name} {got} for {expected}")
    used = set(found.values())
    unexpected = [name for name in tensors if name.startswith(prefix) and name not in used]
    wrong = {"missing": missing, "unexpected": unexpected} if strict else {}
    wrong["of another shape"] = mismatched
    if any(wrong.values()):
        got = "; ".join(f"{what}: {', '.join(names)}" for what, names in wrong.items() if names)
        file = getattr(source, "path", "state dict")
        raise FormatError(file, "weights", got, f"the weights of {type(module).__name__}")
    for path, name in found.items():
        owner, _, last = path.rpartition(".")
        value = tensor(name)
        if dtype is not None and isinstance(value, Array) and value.dtype.kind == "f":
            value = value.to(dtype)
        setattr(module.get_submodule(owner), last, value.to(device))
    return missing, unexpected
