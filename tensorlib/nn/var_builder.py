"""Weights by name: finds them in a file, checks shapes, hands them to a module."""

from tensorlib.errors import FormatError
from tensorlib.nn import loading


class VarBuilder:
    """A view of a source of tensors: of any reader of tensorlib.io (`tensorlib.load(path)`), or of a mapping of names
    to Tensors.

    `rename` maps a parameter's path to the source's name for it: a function, a mapping, or pairs of a regular
    expression and its replacement (`loading.renamer`); None means that the source has none. `pp("layers").pp(3)`
    narrows the view to a prefix, as Candle's does. Floats are converted to `dtype`; integers and quantised weights stay
    as they are, the latter unless `dequantize`. All go to `device`.

    >>> import tensorlib
    >>> vb = VarBuilder({"blk.0.w": tensorlib.ones(4, 6)}, rename=[("layers", "blk")], dtype="f16")
    >>> w = vb.pp("layers").pp(0).get("w", (4, 6), shard=(1, 0, 2))
    >>> w.shape, w.dtype.name
    ((4, 3), 'f16')
    """

    def __init__(self, source, rename=None, prefix="", device=None, dtype=None, dequantize=False):
        self._weights = loading.Weights(source, dtype, device, dequantize)
        self._rename, self.prefix = loading.renamer(rename), prefix

    def pp(self, name):
        """The view below `name`."""
        below = VarBuilder.__new__(VarBuilder)
        below._weights, below._rename, below.prefix = self._weights, self._rename, f"{self.prefix}{name}."
        return below

    def _name(self, path):
        return self._rename(self.prefix + path)

    def __contains__(self, path):
        return self._name(path) in self._weights.tensors

    def get(self, path, shape=None, shard=None):
        """The tensor at `path`. FormatError if it is missing or is not of that shape.

        `shard=(dim, rank, world)`: the part of it that process `rank` of `world` has, cut along `dim`; `shape` is that
        of the whole. Of a mapped file only the bytes of the shard are read (a compressed member is read whole, and so
        are the columns of a big-endian tensor). ShapeError if it cannot be cut evenly, or would cut blocks.
        """
        name, weights = self._name(path), self._weights
        if name not in weights.tensors:
            fix = "is this the model's own file?"
            raise FormatError(weights.file, name, "no such tensor", f"{self.prefix}{path}", fix)
        if shape is not None and weights.shape(name) != tuple(shape):
            got, fix = f"shape {weights.shape(name)}", "config and weights differ"
            raise FormatError(weights.file, name, got, tuple(shape), fix)
        return weights.get(name, shard)

    def load(self, module, strict=False):
        """Loads every weight of `module` and returns it. One WeightsError, before anything is loaded, lists all that
        are missing or of another shape; with `strict` the source's names that are none of the module's are errors, too.
        """
        errors = ("missing", "unexpected") if strict else ("missing",)
        # renamed names say nothing of the prefix: then all that is left over is
        below = (lambda name: name.startswith(self.prefix)) if self._rename is loading.same else (lambda name: True)
        loading.load(module, self._weights, self._name, below, errors)
        return module
