"""Tensors as text, by PyTorch's rules: one format for all elements, four digits, long tensors summarised.

>>> import tensorlib
>>> print(tensorlib.tensor([[1.0, -2.5], [1000.0, 0.125]]))
tensor([[ 1.0000e+00, -2.5000e+00],
        [ 1.0000e+03,  1.2500e-01]])
>>> tensorlib.arange(2000, dtype="i32")
tensor([   0,    1,    2,  ..., 1997, 1998, 1999], dtype=i32)
"""

import math

from tensorlib.ops import movement
from tensorlib.ops.exchange import flat_values, tolist

PRECISION, THRESHOLD, EDGE_ITEMS, LINE_WIDTH = 4, 1000, 3, 80
_IMPLIED = ("f32", "i64", "bool")  # dtypes that literals give, so they need no saying


def to_text(x):
    """What `repr` shows."""
    suffixes = [f"device='{x.device}'"] if x.device.type != "cpu" else []
    if not x.numel():
        body = "[]"
        suffixes += [f"size={x.shape}"] if x.ndim != 1 else []
        suffixes += [f"dtype={x.dtype}"] if x.dtype.name != "f32" else []
    else:
        shown = _edges(x) if x.numel() > THRESHOLD else x
        text, width = _format(flat_values(shown), x.dtype.kind)
        body = _nested(tolist(shown), x.shape, text, width, len("tensor("))
        suffixes += [f"dtype={x.dtype}"] if x.dtype.name not in _IMPLIED else []
    suffixes += _gradient(x)
    result = "tensor(" + body
    width = len(result) - result.rfind("\n") + 1
    for suffix in suffixes:
        fits = width + len(suffix) + 2 <= LINE_WIDTH
        result += (", " if fits else ",\n       ") + suffix
        width = (width + 2 if fits else 7) + len(suffix)
    return result + ")"


def to_html(x):
    """What notebooks show: what the tensor is, and its values."""
    from html import escape  # with its tables of entities, not at every start

    shape = " \u00d7 ".join(map(str, x.shape)) or "scalar"
    facts = [f"{shape} {x.dtype}", str(x.device), f"{x.nbytes:,} bytes", *_gradient(x)]
    return f"<div><small>{escape(', '.join(facts))}</small><pre>{escape(to_text(x))}</pre></div>"


def _gradient(x):
    """How gradients come to it, if they do: PyTorch's words."""
    if not x.requires_grad:
        return []
    return ["requires_grad=True"] if x.grad_fn is None else [f"grad_fn=<{x.grad_fn.name}>"]


def _edges(x):
    """Only the first and last elements of long dims."""
    for d, n in enumerate(x.shape):
        if n > 2 * EDGE_ITEMS:
            x = movement.cat(
                [movement.narrow(x, d, 0, EDGE_ITEMS), movement.narrow(x, d, n - EDGE_ITEMS, EDGE_ITEMS)], d
            )
    return x


def _format(values, kind):
    """(function from element to text, width). Only finite numbers other than 0 count for the format and its width."""
    if kind != "f":
        text, counted = str, values
    else:
        counted = [v for v in values if math.isfinite(v) and v != 0]
        low, high = (min(map(abs, counted)), max(map(abs, counted))) if counted else (1.0, 1.0)
        if high / low > 1000 or high > 1e8 or low < 1e-4:
            text = f"{{:.{PRECISION}e}}".format
        elif all(v == math.ceil(v) for v in counted):
            text = _whole
        else:
            text = f"{{:.{PRECISION}f}}".format
    width = max((len(text(v)) for v in counted), default=1)
    return (lambda v: text(v).rjust(width)), width


def _whole(v):
    return f"{v:.0f}." if math.isfinite(v) else str(v)


def _nested(values, shape, text, width, indent):
    """`values` are nested lists; where one is shorter than its dim in `shape`, it is the edges of the dim."""
    if not shape:
        return text(values)
    if len(shape) == 1:
        parts, dots, line = [text(v) for v in values], " ...", max(1, (LINE_WIDTH - indent) // (width + 2))
    else:
        parts = [_nested(v, shape[1:], text, width, indent + 1) for v in values]
        dots, line = "...", 1
    if len(values) < shape[0]:
        parts.insert(EDGE_ITEMS, dots)
    lines = [", ".join(parts[i : i + line]) for i in range(0, len(parts), line)]
    return "[" + ("," + "\n" * max(1, len(shape) - 1) + " " * (indent + 1)).join(lines) + "]"
