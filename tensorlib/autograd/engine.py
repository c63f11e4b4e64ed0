"""Reverse mode: gradients of what was recorded, and the modes in which it is.

>>> import tensorlib
>>> x = tensorlib.tensor([1.0, 2.0, 3.0], requires_grad=True)
>>> (x * x).sum().backward()
>>> x.grad
tensor([2., 4., 6.])
>>> (slope,) = tensorlib.autograd.grad((x**3).sum(), [x], create_graph=True)
>>> tensorlib.autograd.grad(slope.sum(), [x])  # the second derivative
(tensor([ 6., 12., 18.]),)
"""

import contextlib
import heapq
import sys

from tensorlib import tape
from tensorlib.errors import GradError, ShapeError
from tensorlib.ops import elementwise, movement, reduce

# ---- modes -----------------------------------------------------------------------------------------------------------


class _Recording(contextlib.ContextDecorator):
    """Context manager and decorator; nests."""

    def __init__(self, on):
        self._on, self._before = on, []

    def __enter__(self):
        self._before.append(tape.mode.recording)
        tape.mode.recording = self._on
        return self

    def __exit__(self, *error):
        tape.mode.recording = self._before.pop()


def no_grad():
    """Within it, or within the function that it decorates, nothing is recorded in this thread.

    >>> import tensorlib
    >>> x = tensorlib.ones(2, requires_grad=True)
    >>> with tensorlib.no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    """
    return _Recording(False)


def enable_grad():
    """Undoes `no_grad` within it."""
    return _Recording(True)


class set_grad_enabled(_Recording):
    """`no_grad` or `enable_grad`, at once and, as a context manager, until its end."""

    def __init__(self, mode):
        super().__init__(bool(mode))
        self._outer, tape.mode.recording = tape.mode.recording, bool(mode)

    def __enter__(self):
        self._before.append(self._outer)
        tape.mode.recording = self._on
        return self


def is_grad_enabled():
    """Whether ops are recorded in this thread."""
    return tape.mode.recording


# ---- the engine ------------------------------------------------------------------------------------------------------


def _fit(g, node):
    """A gradient in the shape and dtype of what it belongs to: broadcast dims are summed."""
    shape = node.shape
    if g.shape != shape:
        g = _sum_to(g, shape, node.name)
    return g if g.dtype is node.dtype else elementwise.cast(g, node.dtype)


def _sum_to(g, shape, name):
    if len(g.shape) < len(shape):  # a value that had more dims, all of size 1 in front
        return movement.reshape(g, shape)
    lead = g.ndim - len(shape)
    dims = [d for d, n in enumerate(g.shape) if d < lead or (shape[d - lead] == 1 and n != 1)]
    g = reduce.sum(g, tuple(dims), keepdim=True) if dims else g
    g = movement.reshape(g, g.shape[lead:]) if lead else g
    if g.shape != shape:
        raise ShapeError(f"gradient of {name}", f"shape {g.shape}", f"shape {shape}", "mend the vjp of the op's row")
    return g


class _Pending:
    """Gradients on their way: a sum per node (per result, for the node of an op of several), the latest node first."""

    def __init__(self):
        self._heap, self._sums, self._owned = [], {}, set()

    def add(self, node, g, index=None):
        """Adds g, which fits, to what the node has; `index`: of the op's results."""
        if node not in self._sums:
            self._sums[node] = {}
            heapq.heappush(self._heap, (-node.order, id(node), node))
        slots = self._sums[node]
        before = slots.get(index)
        if before is None:
            slots[index] = g
        elif (node, index) in self._owned and not tape.mode.recording:
            elementwise.add(before, g, out=before)
        else:
            slots[index] = before + g
            self._owned.add((node, index))

    def __iter__(self):
        while self._heap:
            _, _, node = heapq.heappop(self._heap)
            slots = self._sums.pop(node)
            yield node, slots[None] if None in slots else tuple(slots.get(i) for i in range(max(slots) + 1))


def _run(roots, inputs, retain, create):
    """Sends (node, gradient) pairs back. With `inputs` (Nodes), only along the ways to them; gives {node: gradient}."""
    pending, found = _Pending(), {}
    ways = _ways_to([n for n, _ in roots], set(inputs)) if inputs is not None else None
    before, tape.mode.recording = tape.mode.recording, create
    try:
        for node, g in roots:
            pending.add(node, g)
        for node, g in pending:
            if type(g) is not tuple:
                g = _finish(node, g, inputs, found, create)
            if type(node) is tape.Pick:
                pending.add(node.inputs[0], g, node.index)
                continue
            if not node.inputs:
                continue
            if node.backward is None:
                fix = "pass retain_graph=True to the first backward"
                raise GradError("backward", f"{node.name}, whose saved values are gone", "a graph used once", fix)
            pairs = node.backward(node, g, ways)
            if tape.mode.watching is not None:
                tape.mode.watching(f"{node.name}, backward", tuple(gradient for _, gradient in pairs))
            for source, gradient in pairs:
                if gradient is not None and (ways is None or source in ways):
                    pending.add(source, _fit(gradient, source))
            if not retain:
                node.backward = None
    finally:
        tape.mode.recording = before
    return found


def _finish(node, g, inputs, found, create):
    """The whole gradient of a node: through its hooks, to who asked for it, and into .grad."""
    for hook in list(node.hooks.values()) if node.hooks else ():
        changed = hook(g)
        g = g if changed is None else _fit(changed, node)
    if inputs is not None:
        if node in inputs:
            found[node] = g
    elif node.retains or not node.inputs:
        _accumulate(node, g, create)
    return g


def _accumulate(node, g, create):
    if node.grad is not None:
        node.grad = node.grad + g
    elif create:
        node.grad = g
    else:  # memory that somebody else holds, or that elements share, is not the leaf's own
        alone = sys.getrefcount(g.buffer) <= 2 and g.is_contiguous()
        node.grad = g.handle() if alone else movement.clone(g)


def _ways_to(roots, inputs):
    """The nodes from which one of `inputs` can be reached; without recursion, since graphs are deep."""
    on_way, seen, stack = set(inputs), set(), [(root, False) for root in roots]
    while stack:
        node, done = stack.pop()
        if done:
            if any(n in on_way for n in node.inputs):
                on_way.add(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(n, False) for n in node.inputs]
    return on_way


def _root(op, tensor, g):
    node = tape.node_of(tensor) if tape.is_array(tensor) else None  # blocks of a quantised weight have none
    if node is None:
        fix = "make an operand with requires_grad=True, outside of no_grad()"
        raise GradError(op, "a tensor that requires no gradient", "one that was computed from a leaf that does", fix)
    if g is None:
        if tensor.numel() != 1:
            fix = "reduce it with .sum(), or pass a gradient of its shape"
            raise ShapeError(op, f"a tensor of shape {tensor.shape} and no gradient", "one element", fix)
        g = type(tensor).empty(tensor.shape, tensor.dtype, tensor.device)
        with no_grad():
            g.fill_(1)
    if g.shape != tensor.shape:
        raise ShapeError(
            op, f"a gradient of shape {g.shape}", f"shape {tensor.shape}", "give one of the result's shape"
        )
    weight = g.handle()
    weight.node = tape.node_of(g)  # the result depends on it too, for who differentiates that
    return node, weight


def backward(tensor, gradient=None, retain_graph=None, create_graph=False, inputs=None):
    """Adds d(tensor)/d(leaf), weighted with `gradient` (ones for one element), to `.grad` of every leaf.

    tensor: a Tensor or a list of them (gradient then is a list, or None). `inputs`: only these tensors. The graph is
    given up unless `retain_graph` (by default create_graph). Raises GradError, ShapeError.
    """
    tensors = list(tensor) if isinstance(tensor, (list, tuple)) else [tensor]
    gradients = list(gradient) if isinstance(gradient, (list, tuple)) else [gradient] * len(tensors)
    roots = [_root("backward", t, g) for t, g in zip(tensors, gradients, strict=True)]
    retain = create_graph if retain_graph is None else retain_graph
    if inputs is None:
        _run(roots, None, retain, create_graph)
        return
    nodes = [_root("backward", x, x)[0] for x in ([inputs] if tape.is_array(inputs) else inputs)]
    for node, g in _run(roots, nodes, retain, create_graph).items():
        _accumulate(node, g, create_graph)


def grad(outputs, inputs, grad_outputs=None, retain_graph=None, create_graph=False, allow_unused=False):
    """d(outputs)/d(inputs) as a tuple, as torch.autograd.grad: nothing is added to `.grad`.

    outputs, inputs: a Tensor or a list. With create_graph the results can be differentiated again. An input that the
    outputs do not depend on raises GradError, or gives None if `allow_unused`.

    >>> import tensorlib
    >>> x = tensorlib.tensor(3.0, requires_grad=True)
    >>> tensorlib.autograd.grad(x.square(), x)
    (tensor(6.),)
    """
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    inputs = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    given = [None] * len(outputs) if grad_outputs is None else grad_outputs
    given = list(given) if isinstance(given, (list, tuple)) else [given]
    roots = [_root("grad", t, g) for t, g in zip(outputs, given, strict=True)]
    nodes = [_root("grad", x, x)[0] for x in inputs]
    retain = create_graph if retain_graph is None else retain_graph
    found = _run(roots, nodes, retain, create_graph)
    missing = [i for i, node in enumerate(nodes) if node not in found]
    if missing and not allow_unused:
        fix = "leave them out, or pass allow_unused=True"
        raise GradError("grad", f"inputs {missing}, on which no output depends", "inputs that were used", fix)
    return tuple(found.get(node) for node in nodes)
