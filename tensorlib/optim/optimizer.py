"""What optimisers share: groups of parameters with options, states, saving; one launch for all that step alike."""

from tensorlib import backend
from tensorlib.autograd import enable_grad, no_grad
from tensorlib.device import Array
from tensorlib.errors import GradError, ShapeError

HOST = ("step",)  # states that are plain numbers
NUMBERS = 9  # of a fused step, kernels_numba/optim.py


class Optimizer:
    """Base. `params`: tensors, (name, tensor) pairs, or dicts with "params" and options of a group of their own.

    A subclass has `defaults` from its constructor, and `update(group, parameters)`. GradError for what is no leaf that
    requires a gradient, ShapeError for no parameters at all.
    """

    def __init__(self, params, defaults):
        self.defaults, self.param_groups, self.state = defaults, [], {}
        params = list(params)
        if not params:
            raise ShapeError(type(self).__name__, "no parameters", "at least one", "give model.parameters()")
        for group in params if isinstance(params[0], dict) else [{"params": params}]:
            self.add_param_group(group)

    def add_param_group(self, group):
        """Adds a group: a dict of "params" and options that differ from the defaults."""
        given = group["params"]
        given = [given] if isinstance(given, Array) else list(given)
        named = [p if isinstance(p, tuple) else (None, p) for p in given]
        known = {id(p) for other in self.param_groups for p in other["params"]}
        for _, p in named:
            if not isinstance(p, Array) or not p.requires_grad or not p.is_leaf:
                got = type(p).__name__ if not isinstance(p, Array) else "a tensor that is no leaf or needs no gradient"
                raise GradError(type(self).__name__, got, "leaves that require gradients", "call .requires_grad_()")
            if id(p) in known:
                raise ShapeError(type(self).__name__, "a parameter twice", "each once", "leave it out of one group")
            known.add(id(p))
        options = {name: value for name, value in group.items() if name != "params"}
        unknown = options.keys() - self.defaults.keys() - {"initial_lr"}
        if unknown:
            got = f"options {', '.join(sorted(unknown))}"
            raise TypeError(f"{type(self).__name__}: got {got}; expected some of {', '.join(self.defaults)}")
        made = {"params": [p for _, p in named], **self.defaults, **options}
        if named[0][0] is not None:
            made["param_names"] = [name for name, _ in named]
        self.param_groups.append(made)

    def zero_grad(self, set_to_none=True):
        """Forgets all gradients, or fills them with 0."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none or p.grad is None:
                    p.grad = None
                else:
                    p.grad = p.grad.detach().clone().fill_(0.0)

    @no_grad()
    def step(self, closure=None, scale=1.0):
        """One step by the gradients there are (parameters without one are left alone), each times `scale` (what an
        `amp.GradScaler` or a clip gives). `closure`, if given, computes the loss anew, which is returned.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        for group in self.param_groups:
            found = [p for p in group["params"] if p.grad is not None]
            if found:
                self.update(group, found, -scale if group.get("maximize") else scale)
        return loss

    def update(self, group, parameters, scale):
        """Changes `parameters`, all with gradients, which count `scale` times."""
        raise NotImplementedError(f"{type(self).__name__}.update: not written")

    # ---- saving ------------------------------------------------------------------------------------------------------

    def state_dict(self):
        """{"state": {number of the parameter: its states}, "param_groups": options and numbers}, as torch's."""
        numbers = {id(p): i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        groups = [{**group, "params": [numbers[id(p)] for p in group["params"]]} for group in self.param_groups]
        state = {numbers[id(p)]: dict(values) for p, values in self.state.items() if id(p) in numbers}
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    @no_grad()
    def load_state_dict(self, state_dict):
        """Goes on from what `state_dict` gave, here or in torch. ShapeError where groups or shapes differ."""
        groups = state_dict["param_groups"]
        sizes = [len(group["params"]) for group in self.param_groups]
        if [len(group["params"]) for group in groups] != sizes:
            got = f"groups of {[len(group['params']) for group in groups]} parameters"
            raise ShapeError(f"{type(self).__name__}.load_state_dict", got, f"{sizes}", "make the same groups first")
        parameters = [p for group in self.param_groups for p in group["params"]]
        numbers = [i for group in groups for i in group["params"]]
        loaded = {}
        for p, i in zip(parameters, numbers):
            values = state_dict["state"].get(i, state_dict["state"].get(str(i)))
            values = {name: value for name, value in (values or {}).items() if value is not None}
            if values:  # torch's SGD keeps no step, and None where it has no momentum yet
                loaded[p] = {"step": 1} | {name: self._loaded(p, name, value) for name, value in values.items()}
        for mine, theirs in zip(self.param_groups, groups):
            mine.update({k: v for k, v in theirs.items() if k != "params" and (k in mine or k == "initial_lr")})
        self.state = loaded

    def _loaded(self, p, name, value):
        if name in HOST:
            return int(value.item() if isinstance(value, Array) else value)
        if not isinstance(value, Array):
            return value
        return value.detach().to(device=p.device).clone()

    def __repr__(self):
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            count = sum(p.numel() for p in group["params"])
            options = ", ".join(f"{k}={v}" for k, v in group.items() if k not in ("params", "param_names"))
            lines.append(f"  group {i}: {len(group['params'])} tensors of {count:,} elements; {options}")
        return "\n".join([*lines, ")"])


class Fused(Optimizer):
    """One whose step is a row of kernels_numba/optim.py: all parameters of a group in one launch (on a GPU one each).

    A subclass gives `row(group)`, the row's name; `names(row)`, torch's names of the row's states, in its order; and
    `numbers(group, step)`, (l2, decay, the row's own). States are f32, f64 for f64.
    """

    def update(self, group, parameters, scale):
        """See `Optimizer.update`."""
        alike = {}
        for p in parameters:
            state = self.state.setdefault(p, {"step": 0})
            state["step"] += 1
            alike.setdefault((p.dtype, p.device, state["step"]), []).append(p)
        row = self.row(group)
        for (dtype, device, step), those in alike.items():
            l2, decay, *rest = self.numbers(group, step)
            numbers = [scale, l2, decay, *rest]
            numbers += [0.0] * (NUMBERS - len(numbers))
            self._launch(row, those, [float(n) for n in numbers], dtype, device)

    def _launch(self, row, parameters, numbers, dtype, device):
        words, total, reads, writes, apart = [], 0, [], [], []
        names = self.names(row)
        for p in parameters:
            own = p if p.is_contiguous() else p.contiguous()
            if own is not p:
                apart.append((p, own))
            states = [self._state(p, name) for name in names]
            g = p.grad.contiguous()
            words += [p.numel(), own.ptr, g.ptr, *(s.ptr for s in states)]
            total += p.numel()
            reads.append(g)
            writes += [own, *states]
        if total:
            kernel = backend.kernel("optim", row, dtype.name, device=device.type)
            backend.launch(kernel, [len(parameters), total, *numbers, *words], total, reads, writes)
        for p, own in apart:
            p.copy_(own)

    def _state(self, p, name):
        state = self.state[p]
        if name not in state:
            dtype = p.dtype if p.dtype.name == "f64" else "f32"
            state[name] = type(p).empty(p.shape, dtype, p.device).fill_(0.0)
        return state[name]

    def _loaded(self, p, name, value):
        """A state as the kernel reads it: the parameter's shape, f32 (f64 for f64). ShapeError."""
        value = super()._loaded(p, name, value)
        if isinstance(value, Array):
            if tuple(value.shape) != tuple(p.shape):
                op, fix = f"{type(self).__name__}.load_state_dict", "is it the state of the same model?"
                raise ShapeError(op, f"{name} of shape {value.shape}", f"{p.shape}", fix)
            value = value.to("f64" if p.dtype.name == "f64" else "f32").contiguous()
        return value
