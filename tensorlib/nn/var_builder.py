"""Weights by name: finds them in a file, checks shapes, hands them to a module."""

from tensorlib.errors import FormatError
from tensorlib.nn.module import Parameter


class VarBuilder:
    """A view of a source of tensors (anything with `.tensors`, a mapping of names, and `.tensor(name)`).

    `rename` maps a parameter's path to the source's name for it (None: it has none). `pp("layers").pp(3)` narrows the
    view to a prefix, as Candle's does. Tensors are moved to `device`.
    """

    def __init__(self, source, rename=None, prefix="", device="cpu"):
        self._source, self._rename, self.prefix = source, rename or (lambda name: name), prefix
        self._device = device

    def pp(self, name):
        """The view below `name`."""
        return VarBuilder(self._source, self._rename, f"{self.prefix}{name}.", self._device)

    def _name(self, path):
        return self._rename(self.prefix + path)

    def __contains__(self, path):
        return self._name(path) in self._source.tensors

    def get(self, path, shape=None):
        """The tensor at `path`; FormatError if it is missing or is not of that shape."""
        name = self._name(path)
        if name not in self._source.tensors:
            raise FormatError(
                self._file, name, "no such tensor", f"{self.prefix}{path}", "is this the model's own file?"
            )
        found = self._source.tensor(name)
        if shape is not None and tuple(found.shape) != tuple(shape):
            raise FormatError(
                self._file, name, f"shape {tuple(found.shape)}", tuple(shape), "config and weights differ"
            )
        return found.to(self._device)

    @property
    def _file(self):
        return getattr(self._source, "path", "weights")

    def load(self, module):
        """Loads every Parameter of `module`; one FormatError lists all that are missing. Returns the module."""
        missing = []
        for path, spec in list(module.named_parameters()):
            if not isinstance(spec, Parameter):
                continue
            if path in self:
                owner, _, name = path.rpartition(".")
                setattr(module.get_submodule(owner), name, self.get(path, spec.shape))
            elif not spec.optional:
                missing.append(str(self._name(path)))
        if missing:
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            got = f"no {', '.join(missing[:8])}{more}"
            raise FormatError(
                self._file, "tensors", got, f"all weights of {type(module).__name__}", "is the file whole?"
            )
        return module
