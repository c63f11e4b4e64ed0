"""What the pickles of PyTorch's files may refer to: storages, dtypes, functions that rebuild tensors. All of it data.

Names and arguments are those of `torch/_utils.py` and `torch/serialization.py`.
"""

from tensorlib import dtype as _dtype
from tensorlib.io.pickles import TABLE, Constructor, Name
from tensorlib.io.source import LIMIT, elements, short

MAX_DIMS = 64
REPEATED = 1 << 24  # elements that a view with strides of 0 may have, where its storage has fewer

ITEMSIZES = {d.torch: d.itemsize for d in _dtype.ALL} | {
    "complex32": 4, "complex64": 8, "complex128": 16, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1, "bits8": 1, "bits16": 2, "bits1x8": 1, "bits2x4": 1, "bits4x2": 1,
    **{f"{sign}int{bits}": 1 for sign in ("", "u") for bits in range(1, 8)},
}  # fmt: skip
STORAGES = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Byte": "uint8",
    "Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}  # fmt: skip


class Kind:
    """A dtype, and the class of a storage that has it (None: bytes)."""

    __slots__ = ("dtype", "itemsize", "name")

    def __init__(self, name):
        self.name = name or "bytes"
        self.itemsize = ITEMSIZES[name] if name else 1
        self.dtype = _dtype.DTYPES.get(name) if name else None


class Storage:
    """Bytes that tensors share: `nbytes` from `start` on in the file, or in the storage `root`."""

    __slots__ = ("itemsizes", "key", "nbytes", "root", "start")

    def __init__(self, key, nbytes, root=None, start=0):
        self.key, self.nbytes, self.root, self.start, self.itemsizes = key, nbytes, root, start, {1}


class Ref:
    """A tensor before anybody asks for it: `storage`, `kind`, `offset`, `shape` and `strides` in elements."""

    __slots__ = ("kind", "offset", "shape", "storage", "strides")

    def __init__(self, storage, kind, offset, shape, strides):
        self.storage, self.kind, self.offset, self.shape, self.strides = storage, kind, offset, shape, strides


def sizes_of(m, value, what):
    if type(value) not in (tuple, list) or len(value) > MAX_DIMS:
        raise m.error(f"{what} {short(value)}", f"a tuple of at most {MAX_DIMS} integers")
    for n in value:
        if type(n) is not int or not 0 <= n < LIMIT:
            raise m.error(f"{short(n)} in {what}", "integers from 0 to 2**63 - 1")
    return tuple(value)


def _tensor(m, storage, offset, size, stride, *_, kind=None, metadata=None):
    if type(storage) is not tuple or len(storage) != 2 or type(storage[0]) is not Storage:
        raise m.error(short(storage), "a storage")
    storage, kind = storage[0], kind or storage[1]
    (offset,), shape, strides = (
        sizes_of(m, (offset,), "offset"),
        sizes_of(m, size, "size"),
        sizes_of(m, stride, "stride"),
    )
    if len(shape) != len(strides):
        raise m.error(f"{len(shape)} sizes and {len(strides)} strides", "as many of both")
    if metadata and any(m.expect(metadata, dict).values()):
        raise m.error("a tensor with its conj or neg bit set", "one without", "save x.resolve_conj().resolve_neg()")
    count, held = elements(shape), storage.nbytes // kind.itemsize
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1 if count else 0
    if last > held or count == LIMIT:
        raise m.error(f"a view of {short(last)} elements", f"one inside its storage of {held}")
    if count > max(held, REPEATED):
        raise m.error(f"{count} elements on a storage of {held}", f"at most {REPEATED} where they repeat")
    return Ref(storage, kind, offset if count else 0, shape, strides)


def _tensor_v2(m, storage, offset, size, stride, grad, hooks, metadata=None):
    return _tensor(m, storage, offset, size, stride, metadata=metadata)


def _tensor_v3(m, storage, offset, size, stride, grad, hooks, dtype, metadata=None):
    kind = m.expect(dtype, Name).value
    if type(kind) is not Kind:
        raise m.error(dtype.name, "a dtype")
    return _tensor(m, storage, offset, size, stride, kind=kind, metadata=metadata)


def _from_type(m, constructor, kind, args, state):
    return m.call(m.expect(constructor, Constructor), m.expect(args, tuple))


def _device(m, name, index=None):
    return m.expect(name, str) if index is None else f"{m.expect(name, str)}:{m.expect(index, int)}"


def _list(m, items):
    return list(m.copied(m.expect(items, list)))


_REBUILD = {
    "_rebuild_tensor": (_tensor, 4, 4), "_rebuild_tensor_v2": (_tensor_v2, 6, 7),
    "_rebuild_tensor_v3": (_tensor_v3, 7, 8),
    "_rebuild_parameter": (lambda m, data, *_: data, 3, 3),
    "_rebuild_parameter_with_state": (lambda m, data, *_: data, 4, 4),
    "_rebuild_device_tensor_from_cpu_tensor": (lambda m, data, *_: data, 4, 4),
}  # fmt: skip
_SCRIPT = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
_TYPES = (
    ("torch", "Tensor"), ("torch.nn.parameter", "Parameter"), ("torch.nn.parameter", "Buffer"),
    *(("torch", f"{name}Tensor") for name in STORAGES),
)  # fmt: skip
TORCH = {
    **TABLE,
    **{("torch._utils", name): Constructor(name, *row) for name, row in _REBUILD.items()},
    ("torch._tensor", "_rebuild_from_type_v2"): Constructor("_rebuild_from_type_v2", _from_type, 4, 4),
    ("torch", "Size"): Constructor("Size", lambda m, sizes=(): m.expect(sizes, tuple), 0, 1),
    ("torch", "device"): Constructor("device", _device, 1, 2),
    ("torch.serialization", "_get_layout"): Constructor("_get_layout", lambda m, name: m.expect(name, str), 1, 1),
    **{("torch.jit._pickle", name): Constructor(name, _list, 1, 1) for name in _SCRIPT},
    ("torch.jit._pickle", "restore_type_tag"): Constructor("restore_type_tag", lambda m, value, tag: value, 2, 2),
    **{("torch", name): Name(f"torch.{name}", Kind(name)) for name in ITEMSIZES},
    **{
        (module, f"{name}Storage"): Name(f"{module}.{name}Storage", Kind(dtype))
        for name, dtype in STORAGES.items()
        for module in ("torch", "torch.cuda")
    },
    **{(module, "UntypedStorage"): Name("UntypedStorage", Kind(None)) for module in ("torch", "torch.storage")},
    **{key: Name(".".join(key)) for key in _TYPES},
}
