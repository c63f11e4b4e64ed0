"""The tape: which op made a tensor out of what, kept only while somebody asks for gradients.

Ops are wrapped by `recorded` where their row is registered. Until a tensor of this process requires a gradient, the
wrapper costs one comparison. After that, an op with such an operand gives a result with a `Node`, which keeps what the
row's vjp names: `vjp={"x": lambda g, y: mul(g, y)}` saves y alone. A vjp's parameters are called

    g            the gradient of the result (a tuple of them, zeros where none arrived, for ops of several results)
    out          the result
    needs        the set of operand names that need a gradient
    NAME         an argument of the op, by the name in its signature
    NAME_shape   the shape of that operand, without keeping it

and its result is the gradient of the operand that its key names (of each, in a tuple, if the key is a tuple of names).
It may have any shape that broadcasting made out of the operand's, and any dtype: the engine sums and casts.

What reads a tensor that requires a gradient outside of a recorded op raises: no gradient is lost in silence.
"""

import itertools
import threading

from tensorlib.errors import GradError

used = False  # whether a tensor of this process ever required a gradient
_order = itertools.count()


class _Mode(threading.local):
    recording = True
    watching = None  # called with (where, what an op gave), see autograd/anomaly.py
    casting = None  # called with (op, args, kwargs), whose new args and kwargs the op gets, see amp.py


mode = _Mode()


class Node:
    """Where a value came from: the op's name, the nodes of its operands, and the function that sends gradients there.

    `backward(node, g, ways)` gives [(input node, gradient or None)], of the inputs in `ways` alone unless that is None.
    `order` rises with time: inputs come before what is made of them. A leaf has no inputs, and accumulates `grad`.
    """

    __slots__ = ("backward", "device", "dtype", "grad", "hooks", "inputs", "name", "order", "retains", "shape")

    def __init__(self, name, inputs, backward, array):
        self.name, self.inputs, self.backward = name, inputs, backward
        self.shape, self.dtype, self.device = array.shape, array.dtype, array.device
        self.order, self.grad, self.hooks, self.retains = next(_order), None, None, False

    def __repr__(self):
        return f"<{self.name}, {self.dtype} {self.shape}>"


class Pick(Node):
    """Result `index` of an op that has several; its one input is the op's Node."""

    __slots__ = ("index",)

    def __init__(self, parent, index, array):
        super().__init__(parent.name, (parent,), None, array)
        self.index = index


class Hook:
    """A function that a node's gradient goes through; `remove` takes it away."""

    __slots__ = ("_node",)

    def __init__(self, node, function):
        self._node = node
        node.hooks = {**(node.hooks or {}), self: function}

    def remove(self):
        """The function is not called any more."""
        self._node.hooks.pop(self, None)


class Origin:
    """How a view was made: view functions applied one after the other to the tensor `root`, whose node was `seen`."""

    __slots__ = ("chain", "root", "seen")

    def __init__(self, root, chain):
        self.root, self.chain, self.seen = root, chain, root.node

    def replay(self, x):
        """The same view of another tensor of the root's shape."""
        for function, args, kwargs in self.chain:
            x = function(x, *args, **kwargs)
        return x


def leaf(array):
    """Makes `array` require a gradient: a Node without inputs."""
    global used
    used = True
    array.node = Node("leaf", (), None, array)


def node_of(array):
    """The Node of an Array, or None; that of a view follows what was written in place to the tensor that it views."""
    origin = array.origin
    if origin is not None and origin.root.node is not origin.seen:
        before, mode.recording = mode.recording, True
        try:
            array.node = origin.replay(origin.root).node
        finally:
            mode.recording = before
        origin.seen = origin.root.node
    return array.node


def live(x):
    """Whether what is computed from x is to be recorded: x, or what it views, came from something with a gradient."""
    origin = getattr(x, "origin", None)
    return getattr(x, "node", None) is not None or (origin is not None and origin.root.node is not None)


def guard(name, arrays):
    """Raises if an array that requires a gradient is read where nothing records it."""
    for x in arrays:
        if getattr(x, "node", None) is not None:
            fix = "call it under tensorlib.no_grad() or on x.detach(), or give its row a vjp"
            raise GradError(name, f"a tensor that requires a gradient ({x.node.name})", "an op that records", fix)


def recorded(op, function, writes=False, quick=None):
    """`function` as the op of row `op` that takes part in differentiation; `writes`: into its first argument.

    `quick()` gives what to call in its place while recording, where that is faster.
    """
    names = parameters(function)

    def wrapped(*args, **kwargs):
        if used:
            if mode.casting is not None:
                args, kwargs = mode.casting(op, args, kwargs)
            if mode.recording:
                return record(op, quick() if quick else function, names, args, kwargs, writes)
        return function(*args, **kwargs)

    for attribute in ("__name__", "__qualname__", "__doc__", "__module__"):
        setattr(wrapped, attribute, getattr(function, attribute))
    wrapped.__wrapped__ = function
    return wrapped


def parameters(function):
    """(names, defaults, name of *args or None) of a function's parameters."""
    code = function.__code__
    count = code.co_argcount + code.co_kwonlyargcount
    names, defaults = code.co_varnames[:count], function.__defaults__ or ()
    known = dict(zip(names[code.co_argcount - len(defaults) : code.co_argcount], defaults))
    known.update(function.__kwdefaults__ or {})
    return names[: code.co_argcount], known, code.co_varnames[count] if code.co_flags & 4 else None


def _bind(signature, args, kwargs):
    names, defaults, rest = signature
    bound = {**defaults, **dict(zip(names, args)), **kwargs}
    if rest:
        bound[rest] = args[len(names) :]
    return bound


def is_array(x):
    """Whether x is a handle that may carry a Node."""
    return hasattr(x, "origin")


def record(op, function, signature, args, kwargs, writes=False):
    """Runs an op with recording off, and gives its result the Node that its operands ask for."""
    bound = _bind(signature, args, kwargs)
    out_argument = bound.pop("out", None)
    target = args[0] if writes or (args and out_argument is args[0]) else None
    operands = {}
    for name, value in bound.items():
        if is_array(value):
            operands[name] = node_of(value)
        elif type(value) in (list, tuple) and value and any(map(is_array, value)):
            operands[name] = [node_of(v) if is_array(v) else None for v in value]
    live = {k: n for k, n in operands.items() if (any(n) if type(n) is list else n is not None)}
    if out_argument is not None and target is None and (live or node_of(out_argument) is not None):
        raise GradError(op.name, "out= with operands that require a gradient", "no out=", "use the op's result")
    if target is not None:
        return _write(op, function, bound, args, kwargs, target, live)
    versions = _versions(bound) if live else None
    out = _run(function, args, kwargs)
    if mode.watching is not None:
        mode.watching(op.name, out)
    if is_array(out):
        first = args[0] if args else None
        if is_array(first) and out is not first and out.buffer is first.buffer:
            mark_view(out, first, op, args[1:], kwargs)
        if live and _differentiable(out) and not any(out is v for v in bound.values()):
            out.node = Node(op.name, _flat(live.values()), Pullback(op, bound, live, out, versions), out)
            if out.origin is not None:
                out.origin.seen = out.origin.root.node
    elif live and type(out) is not bool and isinstance(out, tuple) and any(map(_differentiable, out)):
        parent = Node(op.name, _flat(live.values()), None, next(o for o in out if _differentiable(o)))
        parent.backward = Pullback(op, bound, live, out, versions)
        for i, o in enumerate(out):
            if _differentiable(o):
                o.node = Pick(parent, i, o)
    return out


def _run(function, args, kwargs):
    mode.recording = False
    try:
        return function(*args, **kwargs)
    finally:
        mode.recording = True


def _differentiable(x):
    return is_array(x) and x.dtype.kind == "f"


def _flat(nodes):
    return tuple(n for entry in nodes for n in (entry if type(entry) is list else (entry,)) if n is not None)


def mark_view(out, x, op, args, kwargs):
    """Remembers how a view was made, so that a write to it or to what it views reaches the other's gradient."""
    step = (FUNCTIONS[op.name], args, kwargs)
    root, chain = (x, ()) if x.origin is None else (x.origin.root, x.origin.chain)
    out.origin = Origin(root, (*chain, step))


FUNCTIONS = {}  # the recorded function of every row that can give a view


def _versions(bound):
    """Versions of the operands' buffers before the op ran."""
    return {k: v.buffer.version for k, v in bound.items() if is_array(v)}


def _write(op, function, bound, args, kwargs, target, live):
    """An op that writes to its first operand, in place; the operand's Node changes, and that of what it views."""
    old = node_of(target)
    if not live:
        return _run(function, args, kwargs)
    origin = target.origin
    owner = target if origin is None else origin.root
    if owner.node is not None and not owner.node.inputs:
        fix = "write under tensorlib.no_grad(), or to a clone"
        raise GradError(op.name, "a leaf that requires a gradient", "a tensor that may change in place", fix)
    if target.dtype.kind != "f":
        raise GradError(op.name, f"a write to {target.dtype}", "a float tensor", "convert it with .to('f32')")
    before = target.handle()
    before.node = old
    first = next(k for k, v in bound.items() if v is target)
    versions = _versions(bound)
    out = _run(function, args, kwargs)
    bound = {**bound, first: before}
    node = Node(op.name, _flat(live.values()), Pullback(op, bound, live, target, versions), target)
    if origin is None:
        target.node = node
    else:
        _write_through(origin, node)
    return out


def _write_through(origin, written):
    """The root of a view that was written to gets a Node: gradients go to the write there, elsewhere to before it."""
    root, before = origin.root, origin.root.node

    def backward(node, g, ways=None):
        inside = origin.replay(g)
        pairs = [(written, inside)]
        if before is not None:
            pairs.append((before, FUNCTIONS["zero_view"](g, origin)))
        return pairs

    root.node = Node(f"write to a view by {written.name}", tuple(n for n in (before, written) if n), backward, root)


class Pullback:
    """Turns the gradient of an op's result into those of its operands; keeps what the vjps name, and nothing else."""

    __slots__ = ("live", "op", "results", "rules", "saved", "versions")

    def __init__(self, op, bound, live, out, versions):
        self.op, self.live = op, live
        self.rules, wanted = _plan(op, tuple(live))
        self.saved = {name: _keep(op, name, bound, out) for name in wanted}
        self.versions = {name: versions[name] for name in wanted if name in versions}
        self.results = tuple(_kind(o) for o in out) if isinstance(out, tuple) else ()
        if "out" in wanted and is_array(out):
            self.versions["out"] = out.buffer.version

    def __call__(self, node, g, ways=None):
        live = self.live if ways is None else {k: n for k, n in self.live.items() if _on_way(n, ways)}
        if type(g) is tuple:
            g += (None,) * (len(self.results) - len(g))
            g = tuple(FUNCTIONS["zeros_of"](*of) if x is None and of else x for x, of in zip(g, self.results))
        values = {**self.saved, "g": g, "needs": live.keys()}
        for name, version in self.versions.items():
            if self.saved[name].buffer.version != version:
                _changed(self.op, name, version, self.saved[name].buffer.version)
        if "out" in values:
            values["out"] = _attached(values["out"], node)
        pairs = []
        for names, rule, parameters in self.rules:
            if not any(n in live for n in (names if type(names) is tuple else (names,))):
                continue
            found = rule(*(values[n] for n in parameters))
            for name, gradient in zip(names, found) if type(names) is tuple else ((names, found),):
                pairs += _pairs(live.get(name), gradient)
        return pairs


def _on_way(node, ways):
    return any(n in ways for n in node) if type(node) is list else node in ways


def _attached(out, node):
    """The saved result, as what the node made: gradients of gradients pass through it."""
    if is_array(out):
        out = out.handle()
        out.node = node
        return out
    found = tuple(o.handle() if is_array(o) else o for o in out)
    for i, o in enumerate(found):
        if _differentiable(o):
            o.node = Pick(node, i, o)
    return found


def _kind(x):
    return (type(x), x.shape, x.dtype, x.device) if _differentiable(x) else None


_plans = {}


def _plan(op, live):
    """([(operand name or names, vjp, names of its parameters)], names of what they read) for operands `live`."""
    plan = _plans.get((op, live))
    if plan is None:
        rules = _rules(op, live)
        rules = [(names, rule, rule.__code__.co_varnames[: rule.__code__.co_argcount]) for names, rule in rules.items()]
        wanted = sorted({name for _, _, names in rules for name in names} - {"g", "needs"})
        plan = _plans[op, live] = rules, wanted
    return plan


def _keep(op, name, bound, out):
    if name == "out":
        return out.handle() if is_array(out) else tuple(o.handle() if is_array(o) else o for o in out)
    if name in bound:
        return bound[name]
    operand = bound.get(name.removesuffix("_shape"), bound)
    if operand is bound or not name.endswith("_shape"):
        raise TypeError(f"{op.name}: its vjp names {name!r}; expected one of out, needs, {', '.join(bound)}")
    if type(operand) in (list, tuple):
        return [x.shape for x in operand]
    return getattr(operand, "shape", ())


def _rules(op, live):
    """The entries of a row's vjp that the operands with a gradient need; refusals for operands that have none."""
    rules, known = {}, set()
    for names, rule in (op.vjp or {}).items():
        own = names if type(names) is tuple else (names,)
        known.update(own)
        if any(n in live for n in own):
            rules[names] = rule
    return rules | {name: _refuse(op, name) for name in live if name not in known}


def _refuse(op, name):
    def rule(g):
        fix = "detach the operand, or write a tensorlib.autograd.Function"
        raise GradError(op.name, f"a gradient asked for with respect to {name}", "an op that has one", fix)

    return rule


def _pairs(node, gradient):
    if type(node) is list:
        return [(n, g) for n, g in zip(node, gradient) if n is not None]
    return [] if node is None else [(node, gradient)]


def _changed(op, name, before, now):
    got = f"{name} was changed in place after it was used (version {now}, used at {before})"
    raise GradError(
        op.name, got, "operands as they were", "change a clone of it, or use x = x + ... in place of x += ..."
    )
