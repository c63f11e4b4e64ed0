"""Weights that are computed of others at each use: `torch.nn.utils.parametrizations`' names and state.

`nn.utils` has the same with torch's older names of weights (weight_g, weight_v, weight_orig), as many files have them.

>>> import tensorlib
>>> from tensorlib import nn
>>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
>>> list(layer.state_dict())
['bias', 'parametrizations.weight.original0', 'parametrizations.weight.original1']
>>> layer(tensorlib.ones(1, 3)).shape
(1, 2)
"""

from tensorlib.autograd import no_grad
from tensorlib.errors import ShapeError
from tensorlib.nn.conv import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from tensorlib.nn.module import Buffer, Module, Parameter
from tensorlib.ops import movement
from tensorlib.ops.loss import normalize


def weight_norm(module, name="weight", dim=0):
    """A weight as a length times a direction (arXiv:1602.07868): original0 * original1 / |original1|; the module.

    Lengths are of what is left without `dim`, or with dim None of the whole. ShapeError.
    """
    return attach(
        module, name, WeightNorm(f"parametrizations.{name}.original0", f"parametrizations.{name}.original1", dim)
    )


def spectral_norm(module, name="weight", n_power_iterations=1, eps=1e-12, dim=None):
    """A weight divided by its largest singular value (arXiv:1802.05957), which is approximated; the module.

    The weight counts as a matrix with `dim` first (1 for transposed convolutions, else 0). Each forward in training
    does so many iterations; 15 of them are done now. ShapeError for fewer than 2 dims.
    """
    own = f"parametrizations.{name}"
    made = SpectralNorm(f"{own}.original", f"{own}.0._u", f"{own}.0._v", n_power_iterations, eps, dim, u_first=True)
    attach(module, name, made)
    made.iterate(module, 15)
    return module


class WeightNorm:
    """A weight computed of its lengths and directions, which are at two paths below the module."""

    def __init__(self, lengths, directions, dim):
        self.lengths, self.directions, self.dim = lengths, directions, dim

    def split(self, module, weight):
        """Puts what the weight is made of into the module."""
        put(module, self.lengths, self._norm(weight), weight.requires_grad)
        put(module, self.directions, weight, weight.requires_grad)

    def _norm(self, weight):
        if self.dim is None:
            return weight.norm(2)
        dim = self.dim % weight.ndim
        return weight.norm(2, tuple(d for d in range(weight.ndim) if d != dim), True)

    def __call__(self, module):
        directions = find(module, self.directions)
        return directions * (find(module, self.lengths) / self._norm(directions))

    def before(self, module):
        """What is done before each forward."""

    paths = property(lambda self: (self.lengths, self.directions))


class SpectralNorm:
    """A weight divided by its largest singular value, with that one's vectors u and v as buffers."""

    def __init__(self, original, u, v, iterations, eps, dim, u_first):
        self.original, self.u, self.v, self.iterations, self.eps = original, u, v, iterations, eps
        self.dim, self.u_first = dim, u_first

    def split(self, module, weight):
        """Puts what the weight is made of into the module."""
        if weight.ndim < 2:
            raise ShapeError("spectral_norm", f"a weight of shape {weight.shape}", "at least 2 dims", "choose another")
        if self.dim is None:
            self.dim = int(isinstance(module, (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)))
        put(module, self.original, weight, weight.requires_grad)
        for path, n in zip((self.u, self.v), self._matrix(weight).shape):
            start = type(weight).empty((n,), weight.dtype, weight.device).normal_()
            put(module, path, normalize(start, dim=0, eps=self.eps), None)

    def _matrix(self, weight):
        return movement.movedim(weight, self.dim, 0).flatten(1)

    @no_grad()
    def iterate(self, module, count):
        """So many steps of the power method, written to u and v."""
        matrix = self._matrix(find(module, self.original).detach())
        u, v = find(module, self.u), find(module, self.v)
        for _ in range(count):
            steps = [(u, matrix, v), (v, matrix.T, u)]
            for out, a, b in steps if self.u_first else steps[::-1]:
                out.copy_(normalize(a @ b, dim=0, eps=self.eps))

    def before(self, module):
        """What is done before each forward."""
        if module.training:
            self.iterate(module, self.iterations)

    def __call__(self, module):
        weight = find(module, self.original)
        u, v = find(module, self.u).clone(), find(module, self.v).clone()  # the next forward writes to them
        return weight / (u * (self._matrix(weight) @ v)).sum()

    paths = property(lambda self: (self.original, self.u, self.v))


# ---- computed attributes ---------------------------------------------------------------------------------------------


def attach(module, name, made):
    """`module.name` is `made(module)` from now on. ShapeError if it is computed already."""
    if name in getattr(type(module), "computed", {}):
        got = f"{name!r}, which is computed already"
        raise ShapeError(type(made).__name__, got, "a weight of its own", "remove the other one first")
    weight = getattr(module, name)
    with no_grad():
        made.split(module, weight)
        delattr(module, name)
    _recast(module, {**getattr(type(module), "computed", {}), name: made})
    return module


def detach(module, name, kind):
    """The weight as it is now, as one of its own again; the module."""
    computed = dict(getattr(type(module), "computed", {}))
    if not isinstance(computed.get(name), kind):
        raise ShapeError(
            f"remove {kind.__name__}", f"{name!r}", f"one of {list(computed)}", "it is not computed by that"
        )
    made = computed.pop(name)
    with no_grad():
        weight = made(module)
    trained = find(module, made.paths[0]).requires_grad
    for path in made.paths:
        owner, _, attribute = path.rpartition(".")
        delattr(module.get_submodule(owner), attribute)
    _recast(module, computed)
    put(module, name, weight, trained)
    return module


def _recast(module, computed):
    """Gives the module a class of its own, with properties for what is computed."""
    plain = getattr(type(module), "plain", type(module))
    if not computed:
        object.__setattr__(module, "__class__", plain)
        return

    def forward(self, *args, **kwargs):
        for made in computed.values():
            made.before(self)
        return plain.forward(self, *args, **kwargs)

    fields = {name: property(made) for name, made in computed.items()}
    fields |= {"plain": plain, "computed": computed, "forward": forward, "__doc__": plain.__doc__}
    object.__setattr__(module, "__class__", type(f"Parametrized{plain.__name__}", (plain,), fields))


def find(module, path):
    """The weight at a dotted path."""
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def put(module, path, value, trained):
    """Makes a weight, or with `trained` None a buffer, at a dotted path; modules on the way are made."""
    *owners, name = path.split(".")
    for owner in owners:
        if owner not in dict(module.named_children()):
            setattr(module, owner, Module())
        module = getattr(module, owner)
    kind = Buffer if trained is None else Parameter
    setattr(module, name, kind(*value.shape, dtype=value.dtype))
    setattr(module, name, value.detach().clone().requires_grad_(bool(trained)))
