"""Modules: trees of attributes whose paths are the names of the weights in checkpoints.

A weight is declared by its shape. It takes memory when a file gives it, or when it is first used: then it gets its
random beginning, the same numbers as if it had been made at once, since a declaration takes its draw of the generator.

>>> import tensorlib
>>> from tensorlib import nn
>>> class Block(nn.Module):
...     def __init__(self):
...         self.proj = nn.Linear(4, 4)
...         self.scale = nn.Parameter(tensorlib.ones(4))
...     def forward(self, x):
...         return self.proj(x).relu() * self.scale
>>> block = Block()
>>> [(name, p.shape) for name, p in block.named_parameters()]
[('scale', (4,)), ('proj.weight', (4, 4)), ('proj.bias', (4,))]
>>> block(tensorlib.zeros(2, 4)).shape, block.num_parameters()
((2, 4), 24)
"""

from tensorlib import dtype as _dtype
from tensorlib.device import Array, Device
from tensorlib.errors import DTypeError
from tensorlib.nn import init as _init
from tensorlib.ops.generator import default
from tensorlib.tensor import empty

DEVICE_TYPES = ("cpu", "cuda", "metal")


class Parameter:
    """A weight by its shape: `init(tensor, generator=)` fills it when it is first used, unless a file gave it before.

    `nn.Parameter(tensor)` is that tensor as a leaf that requires a gradient. An `optional` one may be missing in a
    file. `parts`: what a file may have in its place, for each matrix of a stack the paths of what lies in it one above
    the other, from the module on. One that is `dense` is dequantised when a file has blocks: more than products use it.
    """

    __slots__ = ("dense", "draw", "dtype", "init", "optional", "parts", "shape")
    trainable, persistent = True, True

    def __new__(cls, *shape, **options):
        if len(shape) == 1 and isinstance(shape[0], Array):
            return shape[0].detach().requires_grad_(cls.trainable)
        return super().__new__(cls)

    def __init__(self, *shape, init=_init.zeros_, dtype="f32", optional=False, parts=(), dense=False):
        self.parts, self.dense = parts, dense
        self.shape, self.init, self.dtype, self.optional = shape, init, _dtype.get(dtype), optional
        self.draw = default.take() if _init.is_random(init) else None

    def make(self):
        """The tensor, filled. MemoryError."""
        out = empty(self.shape, dtype=self.dtype)
        self.init(out, generator=self.draw)
        return out.requires_grad_() if self.trainable and self.dtype.kind == "f" else out

    def numel(self):
        """Number of elements."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    def __repr__(self):
        return f"{type(self).__name__}{self.shape}"


class Buffer(Parameter):
    """A tensor that is no weight, but belongs to the module: moved and saved with it (`persistent`), never trained."""

    __slots__ = ("persistent",)
    trainable = False

    def __init__(self, *shape, persistent=True, **options):
        super().__init__(*shape, **options)
        self.persistent = persistent


class Module:
    """Base of layers and models. Attributes that are Modules are its children; those declared by `Parameter` and
    `Buffer`, and tensors that require a gradient when they are assigned, its weights and buffers.
    """

    training = True

    def __setattr__(self, name, value):
        if isinstance(value, Parameter):
            self._declared[name] = value
            self.__dict__.pop(name, None)
            return
        if isinstance(value, Array) and value.requires_grad and name not in self._declared:
            self._declared[name] = Parameter(*value.shape, dtype=value.dtype)
        self.__dict__[name] = value

    def __getattr__(self, name):
        if name == "_declared":
            declared = self.__dict__["_declared"] = {}
            return declared
        declared = self.__dict__.get("_declared", {}).get(name)
        if declared is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        value = self.__dict__[name] = declared.make()
        return value

    def __delattr__(self, name):
        found = self.__dict__.pop(name, None) is not None
        if self._declared.pop(name, None) is None and not found:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    # ---- the tree ----------------------------------------------------------------------------------------------------

    def named_children(self):
        """(name, module) for every attribute that is a Module, in the order of assignment."""
        return [(name, value) for name, value in vars(self).items() if isinstance(value, Module)]

    def children(self):
        """The modules right below this one."""
        return [child for _, child in self.named_children()]

    def named_modules(self, prefix=""):
        """(path, module) for this module and all below it."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self):
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def get_submodule(self, path):
        """The module at a dotted path ("" is this one). AttributeError where there is none."""
        module = self
        for name in filter(None, path.split(".")):
            module = getattr(module, name)
        return module

    def apply(self, function):
        """Calls function(module) for all below this one and then for itself, which it returns."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    # ---- weights -----------------------------------------------------------------------------------------------------

    def named_weights(self):
        """(path, module, name, declaration) of every parameter and buffer, made or not."""
        for path, module in self.named_modules():
            for name, declared in list(module._declared.items()):
                if vars(module).get(name, declared) is not None:
                    yield (f"{path}.{name}" if path else name), module, name, declared

    def named_parameters(self):
        """(path, weight) for every weight; what nobody has used or loaded yet is still its declaration."""
        for path, module, name, declared in self.named_weights():
            if declared.trainable:
                yield path, vars(module).get(name, declared)

    def named_buffers(self):
        """(path, buffer) for every buffer; what nobody has used or loaded yet is still its declaration."""
        for path, module, name, declared in self.named_weights():
            if not declared.trainable:
                yield path, vars(module).get(name, declared)

    def parameters(self):
        """All weights as tensors, each once; those that have no values get them."""
        found = [getattr(module, name) for _, module, name, d in self.named_weights() if d.trainable]
        return list({id(p): p for p in found}.values())

    def buffers(self):
        """All buffers as tensors."""
        return [getattr(module, name) for _, module, name, d in self.named_weights() if not d.trainable]

    def num_parameters(self, trainable=False):
        """How many numbers the weights are; with `trainable`, only those that require a gradient (or would)."""
        seen = {id(p): p for _, p in self.named_parameters()}.values()
        return sum(p.numel() for p in seen if not trainable or getattr(p, "requires_grad", True))

    def requires_grad_(self, requires_grad=True):
        """Whether weights of floats are trained; itself. Those of a file get memory of their own."""
        for _, module, name, declared in list(self.named_weights()):
            value = getattr(module, name)
            if not declared.trainable or not isinstance(value, Array) or value.dtype.kind != "f":
                continue
            if requires_grad and not value.requires_grad:
                value = (value.clone() if value.buffer.readonly else value.detach()).requires_grad_()
            elif not requires_grad:
                value = value.detach()
            module.__dict__[name] = value
        return self

    def zero_grad(self):
        """Forgets the gradients of all weights."""
        for _, p in self.named_parameters():
            if getattr(p, "grad", None) is not None:
                p.grad = None

    def state_dict(self):
        """{path: tensor} of all weights and persistent buffers, sharing their memory."""
        kept = [(path, getattr(m, name)) for path, m, name, declared in self.named_weights() if declared.persistent]
        return {path: value.detach() if isinstance(value, Array) else value for path, value in kept}

    def load_state_dict(self, source, strict=True, **options):
        """See `tensorlib.nn.load_state_dict`."""
        from tensorlib.nn.state_dict import load_state_dict

        return load_state_dict(self, source, strict, **options)

    def to(self, *args, dtype=None, device=None):
        """Moves weights and buffers to a device, and casts those of floats to a dtype; itself: `model.to("cuda:0")`,
        `model.to("bf16")`.

        Optimisers made before go on with the old ones. DeviceError, MemoryError, DTypeError for a dtype of no floats.
        """
        for a in args:
            is_device = isinstance(a, Device) or (isinstance(a, str) and a.partition(":")[0] in DEVICE_TYPES)
            dtype, device = (dtype, a) if is_device else (a, device)
        if dtype is not None and _dtype.get(dtype).kind != "f":
            raise DTypeError("Module.to", f"dtype {dtype}", "a float dtype", "integers and quantised weights stay")
        places = {}  # of each value: tied weights stay tied
        for path, module, name, _ in self.named_weights():
            made = vars(module).get(name)
            places.setdefault(path if made is None else id(made), []).append((module, name))
        for (first, name), *others in places.values():
            first.__dict__[name] = value = _moved(getattr(first, name), device, dtype)
            for module, name in others:
                module.__dict__[name] = value
        return self

    def float(self):
        """Floats as f32; itself."""
        return self.to(dtype="f32")

    def half(self):
        """Floats as f16; itself."""
        return self.to(dtype="f16")

    def bfloat16(self):
        """Floats as bf16; itself."""
        return self.to(dtype="bf16")

    def double(self):
        """Floats as f64; itself."""
        return self.to(dtype="f64")

    def cpu(self):
        """All on the CPU; itself."""
        return self.to("cpu")

    def cuda(self, index=0):
        """All on a GPU; itself."""
        return self.to(f"cuda:{index}")

    # ---- use ---------------------------------------------------------------------------------------------------------

    def train(self, mode=True):
        """For training (dropout, statistics of the batch), or not; itself."""
        for module in self.modules():
            module.__dict__["training"] = mode
        return self

    def eval(self):
        """`train(False)`."""
        return self.train(False)

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def forward(self, *args, **kwargs):
        raise NotImplementedError(f"{type(self).__name__}.forward: not written yet")

    def extra_repr(self):
        """What stands in the parentheses of the repr."""
        return ""

    def __repr__(self):
        from tensorlib.nn.text import to_text  # with what it needs, not at every start

        return to_text(self)

    def _repr_html_(self):
        from tensorlib.nn.text import to_html

        return to_html(self)


def _moved(value, device, dtype):
    """A weight on `device` (None: where it is) and, if of floats, of `dtype` (None: its own); a leaf if it was one."""
    trained = isinstance(value, Array) and value.requires_grad
    moved = value.detach() if trained else value
    if dtype is not None and isinstance(moved, Array) and moved.dtype.kind == "f":
        moved = moved.to(dtype)
    if device is not None and hasattr(moved, "to"):
        moved = moved.to(device)
    return moved.requires_grad_() if trained else moved
