"""What is computed again in the backward pass, and ops that users write.

>>> import tensorlib
>>> x = tensorlib.tensor([1.0, 2.0], requires_grad=True)
>>> checkpoint(lambda t: (t.exp() * t).sum(), x).backward()
>>> x.grad
tensor([ 5.4366, 22.1672])
"""

from tensorlib import random, tape
from tensorlib.autograd.engine import backward, enable_grad, no_grad
from tensorlib.errors import GradError
from tensorlib.ops import create


def checkpoint(function, *args, **kwargs):
    """function(*args, **kwargs) without keeping what happens inside: it runs again backwards (arXiv:1604.06174).

    Random numbers are the same both times. Gradients reach the arguments and every leaf that the function uses; they
    cannot be differentiated again.

    >>> import tensorlib
    >>> x = tensorlib.tensor([1.0, 2.0], requires_grad=True)
    >>> checkpoint(lambda t: (t.exp() * t).sum(), x).backward()
    >>> x.grad
    tensor([ 5.4366, 22.1672])
    """
    if not tape.mode.recording:
        return function(*args, **kwargs)
    state = random.get_rng_state()
    with no_grad():
        out = function(*args, **kwargs)
    outputs = out if isinstance(out, (tuple, list)) else (out,)
    live = {i: tape.node_of(a) for i, a in enumerate(args) if tape.is_array(a) and tape.node_of(a) is not None}

    def again(node, g, ways=None):
        if tape.mode.recording:
            raise GradError("checkpoint", "create_graph=True", "a first derivative", "call the function directly")
        after = random.get_rng_state()
        random.set_rng_state(state)
        inside = [a.handle().requires_grad_() if i in live else a for i, a in enumerate(args)]
        with enable_grad():
            result = function(*inside, **kwargs)
        random.set_rng_state(after)
        results = result if isinstance(result, (tuple, list)) else (result,)
        given = g if type(g) is tuple else (g,)
        pairs = [(r, h) for r, h in zip(results, given) if h is not None and tape.node_of(r) is not None]
        backward([r for r, _ in pairs], [h for _, h in pairs])
        return [(n, inside[i].grad) for i, n in live.items()]

    _attach("checkpoint", outputs, tuple(live.values()) or (tape.Node("checkpointed", (), None, outputs[0]),), again)
    return out


def _attach(name, outputs, inputs, run):
    """Makes `run(node, g)` the gradient of fresh results."""
    tape.used = True
    floats = [o for o in outputs if tape.is_array(o) and o.dtype.kind == "f"]
    if len(outputs) == 1 and floats:
        floats[0].node = tape.Node(name, inputs, run, floats[0])
    elif floats:
        parent = tape.Node(name, inputs, run, floats[0])
        for i, o in enumerate(outputs):
            if tape.is_array(o) and o.dtype.kind == "f":
                o.node = tape.Pick(parent, i, o)


class Context:
    """What `forward` leaves for `backward`: attributes, and tensors through `save_for_backward`."""

    def __init__(self, needs):
        self.needs_input_grad, self._saved, self.not_differentiable = needs, (), ()

    def save_for_backward(self, *tensors):
        """Keeps tensors; one that is changed in place later makes the gradient an error."""
        self._saved = [(t, t.buffer.version if tape.is_array(t) else None) for t in tensors]

    @property
    def saved_tensors(self):
        """What was saved. GradError if it was changed in place since."""
        for t, version in self._saved:
            if version is not None and t.buffer.version != version:
                fix = "save a clone, or do not change it"
                raise GradError("saved_tensors", "a tensor that was changed in place", "values as saved", fix)
        return tuple(t for t, _ in self._saved)

    def mark_non_differentiable(self, *tensors):
        """Results without a gradient."""
        self.not_differentiable = tensors


class Function:
    """An op of one's own, as torch.autograd.Function: static `forward(ctx, *args)` and `backward(ctx, *gradients)`.

    forward runs unrecorded, on the tensors as they are; backward gives one gradient (or None) per argument and, written
    in differentiable ops, can be differentiated itself.

    >>> import tensorlib
    >>> class Cube(Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         ctx.save_for_backward(x)
    ...         return x * x * x
    ...
    ...     @staticmethod
    ...     def backward(ctx, g):
    ...         (x,) = ctx.saved_tensors
    ...         return 3 * x * x * g
    >>> x = tensorlib.tensor(2.0, requires_grad=True)
    >>> Cube.apply(x).backward()
    >>> x.grad
    tensor(12.)
    """

    @staticmethod
    def forward(ctx, *args):
        raise NotImplementedError("Function.forward: not written; define it as a static method")

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError("Function.backward: not written; define it as a static method")

    @classmethod
    def apply(cls, *args):
        """Runs forward, and records backward if an argument requires a gradient."""
        nodes = [tape.node_of(a) if tape.is_array(a) else None for a in args]
        live = tape.mode.recording and any(n is not None for n in nodes)
        ctx = Context(tuple(n is not None for n in nodes))
        with no_grad():
            out = cls.forward(ctx, *args)
        if not live:
            return out
        single = not isinstance(out, tuple)
        outputs = tuple(o.handle() if any(o is a for a in args) else o for o in ((out,) if single else out))

        def run(node, g, ways=None):
            gradients = g if type(g) is tuple else (g,)
            gradients += (None,) * (len(outputs) - len(gradients))
            found = cls.backward(ctx, *map(_or_zeros, gradients, outputs))
            found = found if isinstance(found, tuple) else (found,)
            if len(found) != len(args):
                fix = "return one gradient or None per argument of forward"
                raise GradError(cls.__name__, f"{len(found)} gradients", f"{len(args)} of them", fix)
            return [(n, h) for n, h in zip(nodes, found) if n is not None]

        recorded = tuple(None if any(o is d for d in ctx.not_differentiable) else o for o in outputs)
        _attach(cls.__name__, recorded, tuple(n for n in nodes if n is not None), run)
        return outputs[0] if single else outputs


def _or_zeros(g, out):
    """Zeros for a result that no gradient reached, as torch gives them."""
    if g is not None or not tape.is_array(out):
        return g
    return create.zeros(type(out), out.shape, dtype=out.dtype, device=out.device)
