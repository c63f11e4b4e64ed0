"""Modules of modules: Sequential, ModuleList, ModuleDict."""

from tensorlib.nn.module import Module


class ModuleList(Module):
    """Modules by number: `layers[0]`, with "0" in the path of its weights.

    >>> from tensorlib import nn
    >>> layers = ModuleList(nn.Linear(2, 2) for _ in range(3))
    >>> len(layers), [name for name, _ in layers[1:].named_parameters()][:2]
    (3, ['0.weight', '0.bias'])
    """

    def __init__(self, modules=()):
        self.extend(modules)

    def append(self, module):
        """Adds one at the end; itself."""
        setattr(self, str(len(self)), module)
        return self

    def extend(self, modules):
        """Adds several at the end; itself."""
        for module in modules:
            self.append(module)
        return self

    def __len__(self):
        return len(self.named_children())

    def __iter__(self):
        return iter(self.children())

    def __getitem__(self, i):
        found = self.children()[i]
        return type(self)(found) if isinstance(i, slice) else found

    def __setitem__(self, i, module):
        setattr(self, self.named_children()[i][0], module)


class ModuleDict(Module):
    """Modules by name.

    >>> from tensorlib import nn
    >>> heads = ModuleDict({"a": nn.Identity()})
    >>> "a" in heads, list(heads), heads["a"]
    (True, ['a'], Identity())
    """

    def __init__(self, modules=None):
        for name, module in dict(modules or {}).items():
            self[name] = module

    def __setitem__(self, name, module):
        setattr(self, name, module)

    def __getitem__(self, name):
        return dict(self.named_children())[name]

    def __len__(self):
        return len(self.named_children())

    def __iter__(self):
        return iter(self.keys())

    def __contains__(self, name):
        return name in self.keys()

    def keys(self):
        """The names."""
        return [name for name, _ in self.named_children()]

    def values(self):
        """The modules."""
        return self.children()

    def items(self):
        """Names and modules."""
        return self.named_children()


class Sequential(ModuleList):
    """Modules one after the other: Sequential(a, b)(x) is b(a(x)). A dict gives them names.

    >>> import tensorlib
    >>> from tensorlib import nn
    >>> model = Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> model(tensorlib.zeros(3, 4)).shape
    (3, 2)
    """

    def __init__(self, *modules):
        if len(modules) == 1 and isinstance(modules[0], dict):
            for name, module in modules[0].items():
                setattr(self, name, module)
        else:
            self.extend(modules[0] if len(modules) == 1 and isinstance(modules[0], (list, tuple)) else modules)

    def forward(self, x):
        for module in self:
            x = module(x)
        return x
