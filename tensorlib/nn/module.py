"""Modules: trees of attributes whose paths are the names of the weights in checkpoints."""


class Parameter:
    """A weight that is still to be loaded: its shape. Loading replaces it, in its module, by a Tensor or QTensor."""

    __slots__ = ("optional", "shape")

    def __init__(self, *shape, optional=False):
        self.shape, self.optional = shape, optional

    def __repr__(self):
        return f"Parameter{self.shape}"


class Module:
    """Base of layers and models. Attributes that are Modules are its children; Parameters and weights its parameters.

    >>> class Block(Module):
    ...     def __init__(self):
    ...         self.weight = Parameter(2, 3)
    >>> [(name, p.shape) for name, p in ModuleList([Block(), Block()]).named_parameters()]
    [('0.weight', (2, 3)), ('1.weight', (2, 3))]
    """

    def named_children(self):
        """(name, module) for every attribute that is a Module, in the order of assignment."""
        return [(name, value) for name, value in vars(self).items() if isinstance(value, Module)]

    def named_modules(self, prefix=""):
        """(path, module) for this module and all below it."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self):
        """(path, weight) for every weight, loaded or not; what is not a module and has a `shape` is a weight."""
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if not isinstance(value, Module) and hasattr(value, "shape") and not name.startswith("_"):
                    yield (f"{path}.{name}" if path else name), value

    def get_submodule(self, path):
        """The module at a dotted path ("" is this one). AttributeError where there is none."""
        module = self
        for name in filter(None, path.split(".")):
            module = getattr(module, name)
        return module

    def to(self, device):
        """Moves every weight to a device, one after the other; itself. DeviceError, MemoryError."""
        for _, module in self.named_modules():
            for name, value in list(vars(module).items()):
                weight = not isinstance(value, Module) and hasattr(value, "shape") and hasattr(value, "to")
                if weight and not name.startswith("_"):
                    setattr(module, name, value.to(device))
        return self

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def forward(self, *args, **kwargs):
        raise NotImplementedError(f"{type(self).__name__}.forward: not written yet")

    def extra_repr(self):
        """What stands in the parentheses of the repr."""
        return ""

    def __repr__(self):
        children = self.named_children()
        if not children:
            return f"{type(self).__name__}({self.extra_repr()})"
        lines = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in children]
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"


class ModuleList(Module):
    """Modules by number: `layers[0]`, with "0" in the path of its weights."""

    def __init__(self, modules):
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __len__(self):
        return len(vars(self))

    def __iter__(self):
        return iter(vars(self).values())

    def __getitem__(self, i):
        return list(vars(self).values())[i]
