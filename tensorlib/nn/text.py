"""Modules as text and, in notebooks, as a tree that unfolds: what they are made of, shapes, numbers of weights."""

from html import escape

from tensorlib.rich import details, sized, table


def to_text(module):
    """What `repr` shows: PyTorch's form, with the number of weights and their bytes behind what has children."""
    children = module.named_children()
    if not children:
        return f"{type(module).__name__}({module.extra_repr()})"
    lines = []
    for names, child in _runs((name, repr(child)) for name, child in children):
        lines.append(f"({names}): {child}".replace("\n", "\n  "))
    head = module.extra_repr()
    lines = [head, *lines] if head else lines
    return f"{type(module).__name__}(\n  " + "\n  ".join(lines) + f"\n)  # {weight(module)}"


def weight(module):
    """How many numbers the weights are, and how many bytes; what nobody has used yet counts as it was declared."""
    return f"{module.num_parameters():,} parameters, {sized(nbytes(module))}"


def nbytes(module):
    """Bytes of all weights and buffers; memory that several share counts once for each, tied weights once."""
    found = {id(x): x for _, owner, name, declared in module.named_weights() for x in [vars(owner).get(name, declared)]}
    return sum(x.nbytes if hasattr(x, "nbytes") else x.numel() * x.dtype.itemsize for x in found.values())


def _runs(children):
    """(name or "first-last", shown) of (name, shown); numbered ones that are shown alike stand together."""
    runs = []
    for name, shown in children:
        if runs and name.isdigit() and runs[-1][0][-1].isdigit() and runs[-1][1] == shown:
            runs[-1][0].append(name)
        else:
            runs.append(([name], shown))
    return [(f"{names[0]}-{names[-1]}" if len(names) > 1 else names[0], shown) for names, shown in runs]


def to_html(module):
    """The tree of modules, each with a table of its own weights and buffers: shape, dtype, device."""
    title, body = _shown(module)
    return details(title, body, open=True) if body else f"<div>{escape(title)}</div>"


def _shown(module):
    """(title, HTML of what unfolds) of a module."""
    title = f"{type(module).__name__}({module.extra_repr()})"
    title += f": {weight(module)}" if any(True for _ in module.named_weights()) else ""
    parts = []
    if rows := [_row(module, name, declared) for name, declared in module._declared.items()]:
        parts.append(table(("weight", "shape", "dtype", "", "device"), [row for row in rows if row]))
    for names, (title_of, body) in _runs((name, _shown(child)) for name, child in module.named_children()):
        title_of = f"{names}: {title_of}"
        parts.append(details(title_of, body) if body else f"<div>{escape(title_of)}</div>")
    return title, "".join(parts)


def _row(owner, name, declared):
    """Cells of a weight; None for one that is left out."""
    value = vars(owner).get(name, declared)
    if value is None:
        return None
    dtype = getattr(value, "dtype", None) or value.format.name
    trained = getattr(value, "requires_grad", True)
    kind = "buffer" if not declared.trainable else "trained" if trained else "fixed"
    return name, " \u00d7 ".join(map(str, value.shape)), dtype, kind, getattr(value, "device", "not made yet")
