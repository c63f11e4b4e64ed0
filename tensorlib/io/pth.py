"""PyTorch's files (.pth, .pt, .bin, .ckpt), zip archives and legacy pickles, mapped: no code of theirs is ever run.

Their pickles go through the machine of tensorlib.io.pickles with the table below. Tensors are views of the file's
storages, strides and offsets as they are, and tied weights share memory. Names of nested containers are joined by dots.
"""

from __future__ import annotations

from tensorlib import dtype as _dtype
from tensorlib.io.archive import DEFLATED, Archive
from tensorlib.io.pickles import SCALARS, STEPS, Constructor, Machine, Name, Record
from tensorlib.io.pth_table import TORCH, Kind, Ref, Storage, sizes_of
from tensorlib.io.source import Source, TensorInfo, elements, map_private, opened, part_of, short, uncollected
from tensorlib.layout import Layout

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the legacy format
MAX_DEPTH = 64
MAX_PICKLE = 1 << 26  # bytes; it is read as a whole, and those of the largest models have one megabyte
ZIP = (b"PK\3\4", b"PK\5\6")


def open(path, limit=None, steps=STEPS, mapped=True) -> Source:
    """Maps what `torch.save` (or `torch.jit.save`: its weights) wrote. Raises FormatError.

    `limit`: bytes that compressed members may come to, as in npz.open; `steps`: opcodes that a pickle may have;
    `mapped=False`: the file is read into memory instead, all at once.
    """
    name, data = map_private(path, 4, "a file of torch.save", mapped)
    if data[:4] in ZIP:
        return opened(ZipFile, name, data, steps, limit)
    return opened(LegacyFile, name, data, steps)


# ---- the files -------------------------------------------------------------------------------------------------------


class PthInfo(TensorInfo):
    """A TensorInfo with `strides`; `nbytes` is that of its elements, `offset` None where the file compresses them."""

    __slots__ = ("ref", "strides")

    def __init__(self, name, ref, offset):
        kind = ref.kind
        super().__init__(name, ref.shape, kind.name, kind.dtype, offset, elements(ref.shape) * kind.itemsize)
        self.ref, self.strides = ref, ref.strides


class PthFile(Source):
    """An open file; see `Source`. `metadata` has what is neither tensor nor container, by the same dotted names;
    `object()` gives all of it, as torch.load does. A file that is one tensor alone names it "".
    """

    swapped = False

    def __init__(self, path, data, steps):
        super().__init__(path, data)
        self._storages, self._buffers, self.metadata = {}, {}, {}
        with uncollected():
            self._root, used = self._load(steps)
            self._left = 2 * used + 1000  # what is visited more than once comes from a reference to a reference
            self._flatten("", self._root, 0)

    def _machine(self, data, what, steps, at=0):
        return Machine(data, self.error, TORCH, self._persistent, what, at, steps)

    def _persistent(self, m, found):
        """A storage by its persistent id: ("storage", class, key, location, count), in legacy files with a view."""
        if type(found) is not tuple or len(found) < 5 or found[0] != "storage":
            if type(found) is tuple and len(found) > 1 and found[0] == "module":
                return found[1]
            raise m.error(f"the persistent id {short(found)}", "a storage")
        kind, key, count = m.expect(found[1], Name).value, found[2], found[4]
        if type(kind) is not Kind:
            raise m.error(found[1].name, "the class of a storage")
        if type(key) is not str or not 0 < len(key) < 256:
            raise m.error(f"the key {short(key)}", "the key of a storage")
        (count,) = sizes_of(m, (count,), f"count of storage {short(key)}")
        storage = self._storage(m, key, count * kind.itemsize)
        storage.itemsizes.add(kind.itemsize)
        if len(found) > 5 and found[5] is not None:
            storage = self._view(m, storage, kind, found[5])
        return storage, kind

    def _storage(self, m, key, nbytes, root=None, start=0):
        found = self._storages.get(key)
        if found is None:
            found = self._storages[key] = Storage(key, nbytes, root, start)
            if root is None:
                self._locate(m, found)
        if (found.nbytes, found.root, found.root and found.start) != (nbytes, root, root and start):
            raise m.error(f"storage {short(key)} of {nbytes} bytes", f"{found.nbytes}, as it had before")
        return found

    def _view(self, m, storage, kind, view):
        if type(view) is not tuple or len(view) != 3 or type(view[0]) is not str or storage.root is not None:
            raise m.error(f"the view {short(view)}", "a key, an offset and a size")
        start, nbytes = (n * kind.itemsize for n in sizes_of(m, view[1:], "view"))
        if start + nbytes > storage.nbytes:
            raise m.error(f"a view of bytes {start} to {start + nbytes}", f"one inside {storage.nbytes} bytes")
        return self._storage(m, view[0], nbytes, storage, start)

    def _locate(self, m, storage):
        """Called for every new storage."""

    def _flatten(self, name, value, depth):
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            raise self.error(f"object {short(name)}", "containers without end", f"a depth of at most {MAX_DEPTH}")
        if type(value) is Ref:
            if name in self.tensors:
                raise self.error(f"tensor {short(name)}", "two of that name", "names that differ")
            self.tensors[name] = PthInfo(name, value, self._offset(value))
        elif (items := _items(value)) is None:
            self.metadata[name] = _leaf(value)
        else:
            for key, item in items:
                if type(key) is Name:
                    key = key.name
                self._flatten(f"{name}.{short_key(key)}" if depth else short_key(key), item, depth + 1)

    def object(self):
        """Everything in the file, as torch.load gives it: dicts, lists, tuples, numbers, Tensors; objects of
        TorchScript as dicts. FormatError for a tensor whose dtype cannot be computed with.
        """
        tensors = {id(info.ref): name for name, info in self.tensors.items()}

        def made(value):
            if type(value) is Ref:
                return self.tensor(tensors[id(value)])
            if type(value) is Record:
                value = value.attributes
            if hasattr(value, "items"):
                return type(value)((_leaf(key), made(item)) for key, item in value.items())
            return type(value)(map(made, value)) if type(value) in (list, tuple) else _leaf(value)

        return made(self._root)

    def _offset(self, ref):
        storage = ref.storage
        start = (storage.root or storage).start + (storage.start if storage.root else 0)
        return start + ref.offset * ref.kind.itemsize

    def tensor(self, name=""):
        """The tensor of that name: a view of its storage, which all tensors on it share. FormatError."""
        info = self.computable(name)
        from tensorlib.tensor import Tensor

        ref = info.ref
        buffer = self._bytes_of(ref.storage, ref.kind.itemsize)
        return Tensor(buffer, Layout(ref.shape, ref.strides, ref.offset), ref.kind.dtype)

    def rows(self, name, start, stop):
        self.span(self.info(name), start, stop)
        return self.tensor(name)[start:stop]

    def raw(self, name=""):
        """The bytes of a tensor's whole storage as the file has them: u8, one dim."""
        storage = self.info(name).ref.storage
        from tensorlib.layout import contiguous
        from tensorlib.tensor import Tensor

        return Tensor(self._part(storage, 1), contiguous((storage.nbytes,)), _dtype.u8)

    def stored(self, name=""):
        """The tensor as the writers take it (a Raw), also one that cannot be computed with."""
        info = self.info(name)
        if info.dtype is not None:
            return super().stored(name)
        from tensorlib.io.stored import Raw

        return Raw(info.format, info.shape, lambda: self._gathered(info))

    def _gathered(self, info):
        """The bytes of the elements of a tensor of any dtype, row-major."""
        import numpy as np

        ref = info.ref
        width = ref.kind.itemsize
        if self.swapped and width > 1:
            raise self.error(f"tensor {short(info.name)}", f"big-endian {info.format}", "little-endian")
        whole = self.raw(info.name).numpy().view(f"V{width}")[ref.offset :]
        view = np.lib.stride_tricks.as_strided(whole, ref.shape, [width * stride for stride in ref.strides])
        return np.ascontiguousarray(view).view(np.uint8).reshape(-1)

    def _bytes_of(self, storage, itemsize):
        """The Buffer of a storage, made once: tied weights share it."""
        buffer, copied = self.buffer, (storage.key, itemsize)
        found = self._buffers.get(storage.key) or self._buffers.get(copied)
        if found is None:
            found = self._part(storage, itemsize)
            own = found.owner is not buffer  # a copy, for this width alone
            self._buffers[copied if own else storage.key] = found
        return found

    def _part(self, storage, itemsize):
        root = storage.root or storage
        start = root.start + (storage.start if storage.root else 0)
        return part_of(self.buffer, start, storage.nbytes, itemsize, self.swapped)


def short_key(key):
    """A key as a part of a dotted name."""
    return key if type(key) is str else repr(key)[:80]


def _items(value):
    """(key, value) of a container; None for a leaf, which a list of numbers is as well."""
    if type(value) is Record:
        return value.attributes.items()
    if hasattr(value, "items"):
        return value.items()
    if type(value) in (list, tuple) and any(type(item) not in SCALARS for item in value):
        return enumerate(value)
    return None


def _leaf(value):
    """A value for the outside: dtypes as ours, what has no meaning here as its name."""
    if type(value) is Name:
        return (value.value.dtype if value.value else None) or value.name
    if type(value) is tuple and len(value) == 2 and type(value[0]) is Storage:
        return f"storage {value[0].key}"
    return f"<{value.name}>" if type(value) in (Constructor, Kind) else value


class ZipFile(PthFile):
    """What torch.save writes since PyTorch 1.6: an archive of one pickle and a member for each storage."""

    def __init__(self, path, data, steps, limit):
        self._limit = limit
        super().__init__(path, data, steps)

    def _load(self, steps):
        self._archive = archive = Archive(self._data, self.error, self._limit)
        pickles = [n for n in archive.members if n.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise self.error("data.pkl", f"{len(pickles)} members of that name", "one", "is this a file of torch.save?")
        self._folder = pickles[0].removesuffix("data.pkl")
        order = archive.members.get(f"{self._folder}byteorder")
        order = archive.head(order, 16) if order else b"little"
        if order not in (b"little", b"big"):
            raise self.error("byteorder", repr(order), "little or big")
        self.swapped = order == b"big"
        if archive.members[pickles[0]].size > MAX_PICKLE:
            raise self.error("data.pkl", f"{archive.members[pickles[0]].size} bytes", f"at most {MAX_PICKLE}")
        pickle = archive.read(archive.members[pickles[0]])
        machine = self._machine(pickle, pickles[0], steps)
        root = machine.run()
        if machine.at != len(pickle):
            raise machine.error(f"{len(pickle) - machine.at} bytes after the end of the pickle", "none")
        return root, machine.used

    def _locate(self, m, storage):
        member = self._archive.members.get(f"{self._folder}data/{storage.key}")
        if member is None:
            raise m.error(f"storage {short(storage.key)}, of which there is no member", "one in data/")
        if member.size != storage.nbytes:
            raise m.error(f"storage {short(storage.key)} of {member.size} bytes", f"{storage.nbytes}")
        storage.start = member.start

    def _offset(self, ref):
        return None if self._member(ref.storage).method == DEFLATED else super()._offset(ref)

    def _member(self, storage):
        return self._archive.members[f"{self._folder}data/{(storage.root or storage).key}"]

    def _part(self, storage, itemsize):
        member = self._member(storage)
        if member.method != DEFLATED:
            return super()._part(storage, itemsize)
        from tensorlib.device import Buffer

        inflated = Buffer.of(bytearray(self._archive.read(member)))
        at = storage.start if storage.root else 0
        return part_of(inflated, at, storage.nbytes, itemsize, self.swapped)


class LegacyFile(PthFile):
    """What torch.save wrote before, and writes with `_use_new_zipfile_serialization=False`: five pickles, and the
    storages after them, always little-endian.
    """

    def _load(self, steps):
        at, used, found = 0, 0, []
        for what in ("magic", "protocol", "system", "object", "storage keys"):
            machine = self._machine(self._data, f"the {what} pickle", steps - used, at)
            found.append(machine.run())
            at, used = machine.at, used + machine.used
            if found[0] != MAGIC or type(found[0]) is not int:
                raise self.error("offset 0", "no magic of torch.save", "it", "is this a file of torch.save?")
        if found[1] != PROTOCOL:
            raise self.error("protocol", short(found[1]), f"{PROTOCOL}")
        keys = machine.expect(found[4], list)
        for key in keys:
            at = self._place(machine, key, at)
        roots = [key for key, s in self._storages.items() if s.root is None]
        if len(set(keys)) != len(keys) or len(roots) != len(keys) or at != self.nbytes:
            got = f"{len(keys)} storages, {self.nbytes - at} bytes after them"
            raise self.error(f"offset {at}", got, f"the {len(roots)} that its tensors are in, each once, and no more")
        return found[3], used

    def _place(self, machine, key, at):
        """Finds the data of a storage: its count of 8 bytes, then its elements."""
        storage = self._storages.get(machine.key(key))
        if storage is None or storage.root is not None:
            raise self.error(f"offset {at}", f"storage {short(key)}", "one that a tensor is in")
        count = int.from_bytes(self._data[at : at + 8], "little")
        if self.nbytes - at - 8 < storage.nbytes or storage.nbytes not in (count * n for n in storage.itemsizes):
            got = f"a count of {count}, {max(self.nbytes - at - 8, 0)} bytes to the end"
            raise self.error(f"storage {short(key)} at offset {at}", got, f"{storage.nbytes} bytes")
        storage.start = at + 8
        return at + 8 + storage.nbytes
