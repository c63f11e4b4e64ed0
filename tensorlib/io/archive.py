"""Zip files over a mapping, read strictly: what .npz and .pth files are inside.

Written after PKWARE's APPNOTE 6.3, with zip64. Only stored and deflated members; no member may overlap another, bear
another name in its own header than in the directory, or lead out of a folder.
"""

import struct
import zlib

from tensorlib.io.source import short

END, LOCATOR, END64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sIQI"), struct.Struct("<4sQ2H2I4Q")
ENTRY, LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
STORED, DEFLATED = 0, 8
ENCRYPTED = 1 | 1 << 6 | 1 << 13
INFLATED = 64 << 20, 100  # bytes that deflated members may come to: so many, and so many times the file's size


def plain(name: str) -> bool:
    """Whether a member's name stays inside the archive, wherever that is unpacked."""
    parts = name.removesuffix("/").split("/")
    return "\0" not in name and "\\" not in name and not any(part in ("", ".", "..") for part in parts)


class Member:
    """A file in the archive: `name`, `method`, `crc`, `packed` and `size` in bytes, `start` of its data."""

    __slots__ = ("checked", "crc", "header", "method", "name", "packed", "size", "start")

    def __init__(self, name, method, crc, packed, size, header):
        self.name, self.method, self.crc, self.packed, self.size = name, method, crc, packed, size
        self.header, self.start, self.checked = header, 0, False


class Archive:
    """The members of a zip file by name. `error` makes a FormatError; `limit` bounds what inflating may give."""

    def __init__(self, data, error, limit=None):
        self.data, self.error, self.members = data, error, {}
        start, end, count = self._directory()
        at = start
        while at < end:
            at = self._entry(at, end)
        if len(self.members) != count:
            raise error("zip directory", f"{len(self.members)} members", f"{count}, as its end says")
        reached = 0
        for member in sorted(self.members.values(), key=lambda m: m.header):
            if member.header < reached:
                raise error(f"member {short(member.name)}", "data inside another member", "members apart")
            reached = self._locate(member, start)
        inflated = sum(m.size for m in self.members.values() if m.method == DEFLATED)
        allowed = INFLATED[0] + INFLATED[1] * len(data) if limit is None else limit
        if inflated > allowed:
            got, fix = f"{inflated} bytes from {len(data)}", "if the file is trusted, open it with a higher limit"
            raise error("compressed members", got, f"at most {allowed} bytes", fix)

    def _directory(self):
        """Start, end and count of the central directory."""
        data, size = self.data, len(self.data)
        at = data.rfind(b"PK\5\6", max(0, size - END.size - 0xFFFF))
        if at < 0 or at + END.size > size:
            raise self.error("zip directory", "no end of one", "a whole zip file", "the file may be cut short")
        _, disk, first, _, count, length, start, comment = END.unpack_from(data, at)
        if at + END.size + comment != size or disk or first:
            raise self.error("zip directory", "an end that is not the file's", "a whole zip file on one disk")
        end = at
        if data[max(0, at - LOCATOR.size) : at][:4] == b"PK\6\7":
            end = LOCATOR.unpack_from(data, at - LOCATOR.size)[2]
            if end > at - LOCATOR.size - END64.size:
                raise self.error("zip directory", f"a zip64 end at {end}", "one before its locator")
            mark, *_, count, length, start = END64.unpack_from(data, end)
            if mark != b"PK\6\6":
                raise self.error("zip directory", f"mark {mark!r}", "a zip64 end")
        if start + length != end:
            got = f"{length} bytes from {start} on, with an end at {end}"
            raise self.error("zip directory", got, "a directory right before its end")
        return start, end, count

    def _entry(self, at, stop):
        """Reads one entry of the directory; returns where the next one starts."""
        if stop - at < ENTRY.size or self.data[at : at + 4] != b"PK\1\2":
            raise self.error(f"offset {at}", "no entry of a zip directory", "one")
        fields = ENTRY.unpack_from(self.data, at)
        _, _, _, flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment, disk, _, _, header = fields
        text = at + ENTRY.size
        end = text + n_name + n_extra + n_comment
        if end > stop:
            raise self.error(f"offset {at}", "an entry past the end of the directory", "entries inside it")
        name = self._name(self.data[text : text + n_name], at)
        extra = self.data[text + n_name : text + n_name + n_extra]
        size, packed, header = self._wide(name, extra, size, packed, header)
        if name in self.members:
            raise self.error(f"member {short(name)}", "it a second time", "names that differ")
        if flags & ENCRYPTED or method not in (STORED, DEFLATED) or disk not in (0, 0xFFFF):
            got = f"method {method}, flags {flags:#x}"
            raise self.error(f"member {short(name)}", got, "a stored or deflated member, not encrypted")
        if method == STORED and packed != size:
            raise self.error(f"member {short(name)}", f"{packed} bytes stored for {size}", "as many")
        self.members[name] = Member(name, method, crc, packed, size, header)
        return end

    def _name(self, raw, at):
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            name = raw.decode("cp437")
        if not plain(name):
            raise self.error(f"offset {at}", f"the name {short(name)}", "a plain path inside the archive")
        return name

    def _wide(self, name, extra, *sizes):
        """Sizes of 64 bits where the 32-bit ones say so."""
        sizes, at = list(sizes), 0
        wide = [i for i, n in enumerate(sizes) if n == 0xFFFFFFFF]
        while wide and at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            if kind == 1 and length >= 8 * len(wide) and at + 4 + length <= len(extra):
                for i, n in zip(wide, struct.unpack_from(f"<{len(wide)}Q", extra, at + 4), strict=True):
                    sizes[i] = n
                return sizes
            at += 4 + length
        if wide:
            raise self.error(f"member {short(name)}", "no sizes of 64 bits", "them in the extra field")
        return sizes

    def _locate(self, member, stop):
        """Finds the data behind the member's own header; returns where it ends."""
        where, at = f"member {short(member.name)}", member.header
        if at + LOCAL.size > stop or self.data[at : at + 4] != b"PK\3\4":
            raise self.error(where, f"no header at offset {at}", "one")
        _, _, flags, method, *_, n_name, n_extra = LOCAL.unpack_from(self.data, at)
        name = self.data[at + LOCAL.size : at + LOCAL.size + n_name]
        if (
            method != member.method
            or flags & ENCRYPTED
            or name
            not in (
                member.name.encode(),
                member.name.encode("cp437", "replace"),
            )
        ):
            raise self.error(where, f"a header for {short(name)}, method {method}", "what the directory says")
        member.start = at + LOCAL.size + n_name + n_extra
        end = member.start + member.packed
        if end > stop:
            got = f"{member.packed} bytes at offset {member.start}, with the directory at {stop}"
            raise self.error(where, got, "data before the directory")
        return end

    def head(self, member, most):
        """At most `most` bytes from the start of a member."""
        if member.method == STORED:
            return self.data[member.start : member.start + min(most, member.size)]
        packed = self.data[member.start : member.start + min(member.packed, most + 1024)]
        return self._inflate(zlib.decompressobj(-15), member, packed, most)

    def read(self, member):
        """All bytes of a member, with its CRC checked."""
        data = self.data[member.start : member.start + member.packed]
        if member.method == DEFLATED:
            inflater = zlib.decompressobj(-15)
            data = self._inflate(inflater, member, data, member.size + 1)
            if len(data) != member.size or not inflater.eof:
                raise self.error(f"member {short(member.name)}", f"{len(data)} bytes or more", f"{member.size}")
        self._compare(member, zlib.crc32(data))
        return data

    def check(self, member):
        """Compares a stored member with its CRC, once, without copying it."""
        if not member.checked:
            with memoryview(self.data)[member.start : member.start + member.packed] as view:
                self._compare(member, zlib.crc32(view))

    def _compare(self, member, crc):
        if crc != member.crc:
            got = f"a CRC of {crc:#010x}"
            raise self.error(f"member {short(member.name)}", got, f"{member.crc:#010x}", "the file is damaged")
        member.checked = True

    def _inflate(self, inflater, member, packed, most):
        try:
            return inflater.decompress(packed, most)
        except zlib.error as error:
            raise self.error(f"member {short(member.name)}", str(error), "deflated data") from None
