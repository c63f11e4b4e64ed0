"""What a Tensor has to do with gradients: PyTorch's attributes and methods.

>>> import tensorlib
>>> w = tensorlib.ones(2, requires_grad=True)
>>> loss = (w * 3).sum()
>>> loss.backward()
>>> w.grad, w.is_leaf, loss.grad_fn
(tensor([3., 3.]), True, <sum, f32 ()>)
"""

from tensorlib import tape
from tensorlib.autograd import engine
from tensorlib.errors import GradError


class Variable:
    """The part of Tensor that talks to the tape."""

    __slots__ = ()

    @property
    def requires_grad(self):
        """Whether ops on it are recorded. Set it, on a float leaf, to begin or to stop."""
        return tape.node_of(self) is not None

    @requires_grad.setter
    def requires_grad(self, value):
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad=True):
        """Makes a float tensor a leaf that gradients are collected for in `.grad`; itself. GradError for others."""
        if not self.is_leaf and not requires_grad:
            raise GradError("requires_grad_", "a result of recorded ops", "a leaf", "use .detach()")
        if requires_grad and self.dtype.kind != "f":
            raise GradError("requires_grad_", f"dtype {self.dtype}", "a float dtype", "convert it with .to('f32')")
        if not requires_grad:
            self.node = None
        elif not self.requires_grad:
            tape.leaf(self)
        return self

    @property
    def is_leaf(self):
        """Whether no recorded op made it."""
        node = tape.node_of(self)
        return node is None or not node.inputs

    @property
    def grad_fn(self):
        """The Node of the op that made it, or None."""
        return None if self.is_leaf else self.node

    @property
    def grad(self):
        """The sum of the gradients that reached this leaf (or a tensor after `retain_grad`), or None."""
        return None if self.node is None else self.node.grad

    @grad.setter
    def grad(self, value):
        if value is not None and (not self.requires_grad or value.shape != self.shape or value.dtype is not self.dtype):
            got = f"{value.dtype} {value.shape} for {self.dtype} {self.shape}"
            raise GradError("grad", got, "the tensor's shape and dtype, on one that requires_grad", "convert it")
        if self.node is not None:
            self.node.grad = value

    def backward(self, gradient=None, retain_graph=None, create_graph=False, inputs=None):
        """See `tensorlib.autograd.backward`."""
        engine.backward(self, gradient, retain_graph, create_graph, inputs)

    def retain_grad(self):
        """Keeps the gradient that passes through this tensor in `.grad`."""
        if not self.requires_grad:
            raise GradError("retain_grad", "a tensor that requires no gradient", "one that does", "make a leaf of it")
        self.node.retains = True

    def register_hook(self, hook):
        """Calls hook(gradient) when this tensor's gradient is complete; what it returns, unless None, takes its place.

        Returns a handle with `remove()`.
        """
        if not self.requires_grad:
            raise GradError("register_hook", "a tensor that requires no gradient", "one that does", "make a leaf of it")
        return tape.Hook(self.node, hook)
