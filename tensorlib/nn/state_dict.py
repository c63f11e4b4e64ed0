"""Loading all weights of a module from a file or mapping, with everything that does not fit told at once."""

from typing import NamedTuple

from tensorlib.nn import loading


class IncompatibleKeys(NamedTuple):
    """Names that a source lacks, and names that a module has no use for."""

    missing_keys: list
    unexpected_keys: list


def load_state_dict(module, source, strict=True, rename=None, prefix="", dtype=None, device=None, dequantize=False):
    """Gives every weight of `module` the tensor of its name; returns (missing_keys, unexpected_keys).

    `source`: a reader of tensorlib.io (anything with `.tensors` and `.tensor(name)`), or a mapping of names to Tensors.
    `rename` maps a path in the module to the source's name after `prefix` (None: it has none): a function, a mapping,
    or pairs of regular expressions and replacements. Floats are cast to `dtype`, if given; integers and quantised
    weights stay as they are, the latter unless `dequantize`. All go to `device` (None: where the weights are). A weight
    that is trained already is written to in place, unless dtype or device say otherwise: optimisers go on with it.

    One WeightsError lists all that is missing, unexpected (below the prefix) or of another shape, before anything is
    loaded. With `strict=False` only other shapes are errors, as in PyTorch. Weights that a module has at several paths
    need to be in the source at one of them.

    >>> import tensorlib
    >>> from tensorlib import nn
    >>> load_state_dict(nn.Linear(3, 2, bias=False), {"weight": tensorlib.ones(2, 3)})
    IncompatibleKeys(missing_keys=[], unexpected_keys=[])
    >>> load_state_dict(nn.Linear(3, 2, bias=False), {"w": tensorlib.ones(2, 3)})
    Traceback (most recent call last):
    tensorlib.errors.WeightsError: state dict: weights: got missing: weight; unexpected: w; expected the weights of ...
    """
    weights, renamed = loading.Weights(source, dtype, device, dequantize), loading.renamer(rename)

    def name_of(path):
        name = renamed(path)
        return name if name is None else prefix + name

    errors = ("missing", "unexpected") if strict else ()
    return IncompatibleKeys(*loading.load(module, weights, name_of, lambda name: name.startswith(prefix), errors))
