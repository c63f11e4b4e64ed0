"""Modules as text and, in notebooks, as a table: what they are made of, shapes, numbers of weights."""

from html import escape


def to_text(module):
    """What `repr` shows: PyTorch's form, with the number of weights behind what has children."""
    children = module.named_children()
    if not children:
        return f"{type(module).__name__}({module.extra_repr()})"
    lines = []
    for names, child in _runs(children):
        lines.append(f"({names}): {child!r}".replace("\n", "\n  "))
    head = module.extra_repr()
    lines = [head, *lines] if head else lines
    return f"{type(module).__name__}(\n  " + "\n  ".join(lines) + f"\n)  # {module.num_parameters():,} parameters"


def _runs(children):
    """(name or "first-last", module) of children; numbered ones that look the same stand together."""
    runs = []
    for name, child in children:
        shown = repr(child)
        if runs and name.isdigit() and runs[-1][0][-1].isdigit() and runs[-1][1] == shown:
            runs[-1][0].append(name)
        else:
            runs.append(([name], shown, child))
    return [(f"{names[0]}-{names[-1]}" if len(names) > 1 else names[0], child) for names, _, child in runs]


def to_html(module):
    """A table: path, kind, shape, dtype, device of every weight and buffer, and the sum."""
    rows = []
    for path, owner, name, declared in module.named_weights():
        value = vars(owner).get(name, declared)
        dtype = getattr(value, "dtype", None) or value.format
        kind = "buffer" if not declared.trainable else "trained" if _trained(value) else "fixed"
        where = getattr(value, "device", "not made yet")
        cells = (path, type(owner).__name__, " \u00d7 ".join(map(str, value.shape)), dtype, kind, where)
        rows.append("".join(f"<td>{escape(str(cell))}</td>" for cell in cells))
    head = "".join(f"<th>{name}</th>" for name in ("weight", "layer", "shape", "dtype", "", "device"))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    title = f"{type(module).__name__}: {module.num_parameters():,} parameters"
    return f"<details open><summary>{escape(title)}</summary><table><tr>{head}</tr>{body}</table></details>"


def _trained(value):
    return getattr(value, "requires_grad", True)
