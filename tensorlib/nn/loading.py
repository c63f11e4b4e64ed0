"""What `VarBuilder` and `load_state_dict` share: names, shards, dtype and device, and all that does not fit at once."""

import re

from tensorlib import dtype
from tensorlib.autograd import no_grad
from tensorlib.bar import Bar
from tensorlib.device import Array, Buffer
from tensorlib.errors import DeviceError, FormatError, ShapeError, WeightsError
from tensorlib.layout import contiguous
from tensorlib.tensor import Tensor, as_tensor, empty


def same(path):
    """The path itself."""
    return path


def renamer(rename):
    """A function from paths to the names of a source (None: it has none).

    `rename`: such a function; a mapping of whole paths, in which what is missing keeps its name; or pairs of a regular
    expression and what is put in its place, each applied to what the one before gave.

    >>> renamer([(r"^model\\.layers\\.(\\d+)\\.", r"blk.\\1."), ("self_attn.q_proj", "attn_q")])(
    ...     "model.layers.3.self_attn.q_proj.weight"
    ... )
    'blk.3.attn_q.weight'
    """
    if rename is None:
        return same
    if callable(rename):
        return rename
    if hasattr(rename, "keys"):
        return lambda path: rename.get(path, path)
    table = [(re.compile(pattern), text) for pattern, text in rename]

    def through(path):
        for pattern, text in table:
            path = pattern.sub(text, path)
        return path

    return through


class Weights:
    """A source of tensors as loading needs it: a reader of tensorlib.io, or a mapping of names to Tensors (also NumPy
    arrays). `dtype`: that of floats once they are loaded; integers keep theirs, and so do blocks (QTensors) unless
    `dequantize`. `device`: where they go (None: where what they replace is, else the CPU).
    """

    def __init__(self, source, dtype=None, device=None, dequantize=False):
        self.source, self.dtype, self.device, self.dequantize = source, dtype, device, dequantize
        self.tensors = getattr(source, "tensors", source)
        self.file = getattr(source, "path", "state dict")
        self._read = getattr(source, "tensor", None) or source.__getitem__
        self.stacks, self.parts = {}, set()  # name -> the names of its parts, matrix by matrix; all such names

    def __contains__(self, name):
        return name in self.tensors or name in self.stacks

    def shape(self, name):
        if name in self.stacks:
            return self._shape_of_stack(self.stacks[name])
        found = self.tensors[name]
        return tuple(getattr(found, "shape", found))

    def _shape_of_stack(self, stack):
        """Shapes of the parts that do not fit, unless all are matrices of one width, in the same order everywhere."""
        shapes = [[self.shape(name) for name in names] for names in stack]
        first = shapes[0]
        wrong = [row for row in shapes if row != first or any(len(s) != 2 or s[1] != first[0][-1] for s in row)]
        return tuple(wrong[0]) if wrong else (len(stack), sum(shape[0] for shape in first), first[0][1])

    def gather(self, name, parts, name_of):
        """Makes a name one of the source's if it has all of its parts (paths); those that it lacks, if any is there."""
        names = [[name_of(path) for path in row] for row in parts]
        flat = [part for row in names for part in row]
        lacking = [part for part in flat if part not in self.tensors]
        if not lacking:
            self.stacks[name] = names
        if len(lacking) == len(flat):
            return []
        self.parts.update(flat)
        return lacking

    def stored(self, name, shard=None):
        """The tensor as the source has it, or a shard of it: no other byte of a mapped file is read."""
        if name in self.stacks:
            return stacked([[self.stored(part) for part in row] for row in self.stacks[name]], self.file, name)
        x = self._read(name) if shard is None else self._shard(name, *shard)
        if hasattr(x, "dequantize"):
            return x
        return x.detach() if isinstance(x, Array) else as_tensor(x)

    def converted(self, x, device, dense=False):
        if hasattr(x, "dequantize"):
            if self.dequantize or dense:
                x = x.dequantize("f32" if self.dtype is None else self.dtype)
        elif self.dtype is not None and x.dtype.kind == "f":
            x = x.to(self.dtype)
        return x.to(device)

    def get(self, name, shard=None):
        """The tensor of that name, or its shard (dim, rank, world), of the wanted dtype on the wanted device."""
        with no_grad():
            return self.converted(self.stored(name, shard), self.device or "cpu")

    def _shard(self, name, dim, rank, world):
        shape, where = self.shape(name), f"shard of {name!r}"
        if not -len(shape) <= dim < len(shape) or not 0 <= rank < world:
            raise ShapeError(where, f"dim {dim}, rank {rank} of {world}", f"a dim of {shape}, a rank below the world's")
        dim, rows = dim % len(shape), getattr(self.source, "rows", None)
        if shape[dim] % world:
            raise ShapeError(where, f"{world} shards of dim {dim} of {shape}", "equal ones", "choose another dim")
        size = shape[dim] // world
        start = rank * size
        if rows is None:
            x = self._read(name)
            return narrow(x if isinstance(x, Array) or hasattr(x, "dequantize") else as_tensor(x), dim, start, size)
        if dim == 0:
            x = rows(name, start, start + size)
            return x if hasattr(x, "dequantize") else x.contiguous()
        return narrow(rows(name, 0, shape[0]), dim, start, size)  # a view still; nothing checks all of its bytes


def narrow(x, dim, start, size):
    """`size` elements from `start` on along a dim, contiguous: a copy of just those, or a view where they lie together.

    Of a QTensor whole blocks. ShapeError.
    """
    if not hasattr(x, "dequantize"):
        return x.detach().narrow(dim, start, size).contiguous()
    if x.planes is not None:
        raise DeviceError("shard", f"blocks on {x.device}", "blocks on the CPU", "take the shard before moving it")
    shape, blocks = list(x.shape), x.format
    shape[dim] = size
    if dim == x.ndim - 1:
        if start % blocks.elements or size % blocks.elements:
            got, fix = f"shards of {size} along the last dim of {x.shape}", "use fewer shards, or another dim"
            raise ShapeError("shard", got, f"whole blocks of {blocks.elements} ({blocks.name})", fix)
        start, size = (n // blocks.elements * blocks.nbytes for n in (start, size))
    raw = _bytes_of(x).narrow(dim, start, size).contiguous()
    return type(x)(raw.buffer, raw.ptr - raw.buffer.ptr, shape, blocks)


def _bytes_of(x):
    """A QTensor's blocks: u8 [..., bytes of a row]."""
    layout = contiguous((*x.shape[:-1], x.format.row_bytes(x.shape[-1])))
    return Tensor(Buffer(x.ptr, x.nbytes, x.buffer), layout, dtype.u8)


def stacked(rows, file, name):
    """Rows of matrices [N_i, K] as [len(rows), sum of N_i, K], in new memory. FormatError for several formats."""
    first, kinds = rows[0][0], {str(getattr(x, "format", None) or x.dtype) for row in rows for x in row}
    if len(kinds) > 1:
        raise FormatError(file, name, f"parts of {', '.join(sorted(kinds))}", "one format", "convert them to one")
    blocks = hasattr(first, "dequantize")
    parts = [[_bytes_of(x) if blocks else x for x in row] for row in rows]
    shape = len(rows), sum(x.shape[0] for x in parts[0]), parts[0][0].shape[1]
    out = empty(shape, dtype=parts[0][0].dtype)
    for e, row in enumerate(parts):
        at = 0
        for x in row:
            out[e].narrow(0, at, x.shape[0])[...] = x
            at += x.shape[0]
    if not blocks:
        return out
    return type(first)(out.buffer, out.ptr - out.buffer.ptr, (*shape[:2], first.shape[1]), first.format)


# ---- a whole module --------------------------------------------------------------------------------------------------


def load(module, weights, name_of, below, errors):
    """Gives the weights and persistent buffers of `module` their tensors; the names that are missing and unexpected.

    `name_of` maps paths to names of the source (None: it has none), `below` says which of its names are the module's,
    `errors` what of "missing" and "unexpected" is one. WeightsError, before anything is loaded; also for other shapes.
    """
    found, groups, mismatched, missing = {}, {}, [], []
    for path, owner, attribute, declared in module.named_weights():
        if not declared.persistent:
            continue
        name, shape = name_of(path), tuple(declared.shape)
        # a value that stands at several paths needs to be in the source once
        name, lacking = _gathered(weights, path, name, declared.parts, name_of)
        missing += lacking
        optional = declared.optional or bool(lacking)
        groups.setdefault(id(vars(owner).get(attribute, declared)), []).append((path, name, optional))
        found[path] = owner, attribute, name
        if name in weights and weights.shape(name) != shape:
            mismatched.append((name, weights.shape(name), shape))
    used = {name for *_, name in found.values()} | weights.parts
    for group in groups.values():
        there = [name for _, name, _ in group if name in weights]
        for path, name, optional in group:
            if name in weights:
                continue
            owner, attribute, _ = found.pop(path)
            if there:
                found[path] = owner, attribute, there[0]
            elif not optional:
                missing.append(path if name is None else name)
    unexpected = [name for name in weights.tensors if below(name) and name not in used]
    lists = {"missing": missing, "unexpected": unexpected, "mismatched": mismatched}
    if mismatched or any(lists[kind] for kind in errors):
        raise _error(weights.file, type(module).__name__, lists)
    _assign(found, weights)
    return missing, unexpected


def _gathered(weights, path, name, parts, name_of):
    """(the name of a weight, which parts of it the source lacks), after looking for parts if the whole is not there."""
    if not parts or name in weights.tensors:
        return name, []
    below, name = path.rpartition(".")[0], path if name is None else name
    return name, weights.gather(name, [[f"{below}.{part}".lstrip(".") for part in row] for row in parts], name_of)


def _assign(found, weights):
    """Tensors to their places. What shares memory in the source does so in the module; trained weights are written to
    where they are, since optimisers hold them.
    """
    made = {}
    with no_grad(), Bar("loading weights", len(found), unit="tensors") as bar:
        for owner, attribute, name in found.values():
            now = vars(owner).get(attribute)
            now = now if isinstance(now, Array) else None
            device = weights.device or (now.device if now is not None else "cpu")
            x, dense = weights.stored(name), owner._declared[attribute].dense
            kind = str(getattr(x, "format", None) or x.dtype)
            key = x.ptr, x.shape, getattr(x, "strides", None), kind, str(device), dense
            if key not in made:
                made[key] = x, weights.converted(x, device, dense)  # x is kept, so that nothing else gets its address
            value = made[key][1]
            if now is None or not now.requires_grad or not isinstance(value, Array):
                setattr(owner, attribute, value)
            elif weights.dtype is None and weights.device is None:
                now.copy_(value)
            else:
                setattr(owner, attribute, value.clone().requires_grad_())
            bar.add(1)


MOST = 200  # entries of each list that a message repeats


def _error(file, module, lists):
    alike = {}
    for name, *shapes in lists["mismatched"]:
        alike.setdefault(tuple(shapes), []).append(name)
    shapes = [f"{name} {a} for {b}" for (a, b), names in alike.items() for name in folded(names)]
    texts = {"missing": folded(lists["missing"]), "of another shape": shapes, "unexpected": folded(lists["unexpected"])}
    parts = []
    for what, names in texts.items():
        more = f" and {len(names) - MOST} more (the error's attributes list all)" if len(names) > MOST else ""
        if names:
            parts.append(f"{what}: {', '.join(names[:MOST])}{more}")
    fix = "give `rename` or `prefix` if names differ"
    return WeightsError(file, "weights", "; ".join(parts), f"the weights of {module}", fix, **lists)


def folded(names):
    """Names in which one number counts up, as one: layers of a model have the same weights.

    >>> folded([f"layers.{i}.weight" for i in (0, 1, 2, 4)] + ["norm.weight"])
    ['layers.{0-2,4}.weight', 'norm.weight']
    """
    groups = {}
    for name in names:
        parts = re.split(r"(?<![^.])(\d{1,6})(?![^.])", str(name))  # whole components alone
        groups.setdefault(tuple(parts[::2]), []).append((tuple(map(int, parts[1::2])), str(name)))
    found = []
    for texts, members in groups.items():
        counts = [sorted(set(numbers)) for numbers in zip(*(numbers for numbers, _ in members))]
        vary = [i for i, each in enumerate(counts) if len(each) > 1]
        if len(vary) != 1 or len(counts[vary[0]]) != len(members) or len(members) < 3:
            found += [name for _, name in members]
            continue
        shown = [str(numbers) for numbers in members[0][0]]
        shown[vary[0]] = "{" + _ranges(counts[vary[0]]) + "}"
        found.append("".join(text + number for text, number in zip(texts, [*shown, ""])))
    return found


def _ranges(numbers):
    runs = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
