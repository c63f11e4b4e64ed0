"""A pickle machine that can only make data: numbers, text, containers, and what a fixed table of constructors makes.

Nothing is ever imported or looked up: a reference to a global is a key of the table that the caller gives, or an error.
The opcodes are those of protocols 0 to 5 that binary pickles have (Python's `pickletools` documents them); steps, depth
and copies are bounded, so that a small file costs little.
"""

import codecs
import struct
from collections import Counter, OrderedDict

from tensorlib.io.source import short

STEPS = 1_000_000  # opcodes; half a second, and 100 MB where each makes an object
MAX_LONG = 255  # bytes of an integer
MAX_KEY = (1 << 61) - 1  # integers from here on share hashes
SCALARS = (str, int, float, bool, bytes, complex, type(None))


class Name:
    """A global that stands for nothing but itself: a dtype, a class of tensors."""

    __slots__ = ("name", "value")

    def __init__(self, name, value=None):
        self.name, self.value = name, value


class Constructor:
    """A row of the table: `make(machine, *args)`, for as many arguments as `least` to `most`."""

    __slots__ = ("least", "make", "most", "name")

    def __init__(self, name, make, least, most):
        self.name, self.make, self.least, self.most = name, make, least, most


class Record:
    """An object of a class that is not ours: its attributes are data."""

    __slots__ = ("attributes", "name")

    def __init__(self, name):
        self.name, self.attributes = name, {}


class _Mark:
    __slots__ = ()


class Machine:
    """Reads one pickle from `data` at offset `at`; then `at` is where it ended.

    `table`: (module, name) to Name or Constructor. `persistent(machine, id)`: what a persistent id stands for.
    `error(where, got, expected, fix)` makes the exception; `what` names the pickle in it.
    """

    def __init__(self, data, error, table, persistent, what="pickle", at=0, steps=STEPS):
        self.data, self.at, self.what, self.table, self.persistent = data, at, what, table, persistent
        self._error, self._left, self._end = error, steps, len(data)
        self.stack, self.marks, self.memo, self.used = [], [], {}, 0

    def error(self, got, expected, fix=""):
        return self._error(f"{self.what} at byte {self.at}", got, expected, fix)

    def run(self):
        """The object that the pickle makes."""
        data, end, step_of = self.data, self._end, OPCODES.get
        while True:
            if self.at >= end:
                raise self.error("its end", "the opcode STOP before it", "the file is cut short")
            op = data[self.at]
            self.at += 1
            self.used += 1
            if self.used > self._left:
                raise self.error(f"more than {self._left} opcodes", "fewer", "if trusted, open it with more steps")
            if op == 0x2E:  # STOP
                if len(self.stack) != 1 or self.marks:
                    raise self.error(f"{len(self.stack)} objects at the end", "one")
                return self.stack.pop()
            step = step_of(op)
            if step is None:
                fix = "save the state dict: plain tensors, containers and numbers"
                raise self.error(f"opcode 0x{op:02x}", "an opcode that makes data", fix)
            step(self)

    def take(self, count):
        if count > self._end - self.at or count < 0:
            raise self.error(
                f"{self._end - self.at} bytes to the end", f"{short(count)} bytes", "the file is cut short"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def line(self):
        end = self.data.find(b"\n", self.at, min(self.at + 1024, self._end))
        if end < 0:
            raise self.error("no end of line", "a line of at most 1024 bytes")
        found, self.at = self.data[self.at : end], end + 1
        return found

    def pop(self, kind=object):
        """The top of the stack above the last mark, which must be of exactly this type."""
        if not self.stack:
            raise self.error("an empty stack", "an object on it")
        return self.expect(self.stack.pop(), kind)

    def top(self, kind=object):
        found = self.pop(kind)
        self.stack.append(found)
        return found

    def expect(self, value, kind):
        if kind is not object and type(value) is not kind:
            raise self.error(short(value), f"a {kind.__name__}")
        return value

    def above_mark(self):
        """What lies above the last mark, taken off with it."""
        if not self.marks:
            raise self.error("no mark on the stack", "one")
        found, self.stack = self.stack, self.marks.pop()
        return found

    def key(self, value):
        """A value that may be a key: hashing it takes a bounded time."""
        if type(value) is tuple and len(value) <= 16 and all(type(v) in SCALARS for v in value):
            return value
        if type(value) not in SCALARS and type(value) is not Name:
            raise self.error(f"{short(value)} as a key", "text or a number")
        if type(value) is int and abs(value) >= MAX_KEY:
            raise self.error(f"{short(value)} as a key", "an integer below 2**61 - 1")
        return value

    def copied(self, items, weight=1):
        """Counts items that a constructor copies, `weight` to a step: copies of copies could multiply without end."""
        self.used += len(items) // weight
        if self.used > self._left:
            raise self.error(f"more than {self._left} steps", "fewer")
        return items

    def text(self, raw):
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise self.error("text that is no UTF-8", "UTF-8") from None

    # ---- what opcodes do -----------------------------------------------------------------------------------------

    def find(self, module, name):
        found = self.table.get((module, name))
        if found is None and module.startswith("__torch__"):  # classes of TorchScript: data with attributes
            return Constructor(name, lambda machine, *_: Record(name), 0, 0)
        if found is None:
            got = f"a reference to {short(f'{module}.{name}')}"
            fix = "it may be code; save the state dict: plain tensors, containers and numbers"
            raise self.error(got, f"one of the {len(self.table)} names of tensor files", fix)
        return found

    def reduce(self):
        args, callee = self.pop(tuple), self.pop(Constructor)
        self.stack.append(self.call(callee, args))

    def call(self, callee, args):
        if not callee.least <= len(args) <= callee.most:
            raise self.error(f"{len(args)} arguments for {callee.name}", f"{callee.least} to {callee.most}")
        return callee.make(self, *args)

    def build(self):
        """State of an object. Of an OrderedDict it is the `_metadata` of a state dict, of a tensor its attributes: both
        are dropped.
        """
        state = self.pop()
        target = self.top()
        if type(target) is Record:
            self.expect(state, dict)
            target.attributes.update((self.expect(k, str), v) for k, v in self.copied(state).items())
        elif type(target) is not OrderedDict and not hasattr(target, "storage"):
            raise self.error(f"state for {short(target)}", "state for an OrderedDict or a tensor")

    def set_items(self, flat):
        target = self.top()
        if type(target) not in (dict, OrderedDict, Counter) or len(flat) % 2:
            raise self.error(f"{len(flat)} keys and values for {short(target)}", "pairs for a dict")
        for i in range(0, len(flat), 2):
            target[self.key(flat[i])] = flat[i + 1]

    def append(self, items):
        self.top(list).extend(items)

    def add(self, items):
        self.top(set).update(map(self.key, items))

    def put(self, index):
        self.memo[index] = self.top()

    def get(self, index):
        if index not in self.memo:
            raise self.error(f"memo entry {index}", "one that was put there")
        self.stack.append(self.memo[index])

    def mark(self):
        if len(self.marks) >= 1000:
            raise self.error("1000 marks on the stack", "fewer")
        self.marks.append(self.stack)
        self.stack = []

    def protocol(self, version):
        if version > 5:
            raise self.error(f"pickle protocol {version}", "0 to 5")

    def tuple(self, count):
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def integer(self, digits):
        """The text of an integer, as INT and LONG have it; INT also spells False and True."""
        digits = digits.removesuffix(b"L")
        if digits in (b"00", b"01"):
            return digits == b"01"
        if len(digits) > MAX_LONG or not digits.removeprefix(b"-").isdigit():
            raise self.error("text that is no integer", "an integer")
        return int(digits)

    def long(self, raw):
        if len(raw) > MAX_LONG:
            raise self.error(f"an integer of {len(raw)} bytes", f"at most {MAX_LONG}")
        return int.from_bytes(raw, "little", signed=True)

    def stack_global(self):
        name, module = self.pop(str), self.pop(str)
        self.stack.append(self.find(module, name))

    def new(self):
        args, callee = self.pop(tuple), self.pop(Constructor)
        self.stack.append(self.call(callee, args))

    def push(self, value):
        self.stack.append(value)


def _packed(code, then):
    form = struct.Struct(code)
    return lambda m: then(m, form.unpack(m.take(form.size))[0])


def _counted(code, then):
    """A length, then as many bytes."""
    return _packed(code, lambda m, count: m.push(then(m, m.take(count))))


def _constant(make):
    return lambda m: m.stack.append(make())


def _text_two(m, raw):  # strings of Python 2
    return raw.decode("utf-8") if raw.isascii() else raw


def _empty_set(m):
    m.copied("   ")  # it takes as much memory as four other objects
    m.push(set())


OPCODES = {
    b"\x80": _packed("<B", Machine.protocol), b"\x95": lambda m: m.take(8), b"(": Machine.mark,
    b"N": _constant(lambda: None), b"\x88": _constant(lambda: True), b"\x89": _constant(lambda: False),
    b"]": _constant(list), b"}": _constant(dict), b")": _constant(tuple), b"\x8f": _empty_set,
    b"K": _packed("<B", Machine.push), b"M": _packed("<H", Machine.push), b"J": _packed("<i", Machine.push),
    b"G": _packed(">d", Machine.push), b"\x8a": _counted("<B", Machine.long), b"\x8b": _counted("<i", Machine.long),
    b"I": lambda m: m.push(m.integer(m.line())), b"L": lambda m: m.push(m.integer(m.line())),
    b"X": _counted("<I", Machine.text), b"\x8c": _counted("<B", Machine.text), b"\x8d": _counted("<Q", Machine.text),
    b"U": _counted("<B", _text_two), b"T": _counted("<i", _text_two),
    b"C": _counted("<B", lambda m, raw: raw), b"B": _counted("<I", lambda m, raw: raw),
    b"\x8e": _counted("<Q", lambda m, raw: raw), b"\x96": _counted("<Q", lambda m, raw: bytearray(raw)),
    b"\x85": lambda m: m.tuple(1), b"\x86": lambda m: m.tuple(2), b"\x87": lambda m: m.tuple(3),
    b"t": lambda m: m.push(tuple(m.above_mark())), b"l": lambda m: m.push(m.above_mark()),
    b"d": lambda m: (lambda items: (m.push({}), m.set_items(items)))(m.above_mark()),
    b"a": lambda m: m.append([m.pop()]), b"e": lambda m: m.append(m.above_mark()),
    b"s": lambda m: m.set_items([m.pop(), m.pop()][::-1]), b"u": lambda m: m.set_items(m.above_mark()),
    b"\x90": lambda m: m.add(m.above_mark()), b"\x91": lambda m: m.push(frozenset(map(m.key, m.above_mark()))),
    b"q": _packed("<B", Machine.put), b"r": _packed("<I", Machine.put), b"\x94": lambda m: m.put(len(m.memo)),
    b"h": _packed("<B", Machine.get), b"j": _packed("<I", Machine.get),
    b"0": lambda m: m.pop(), b"1": lambda m: m.above_mark(), b"2": lambda m: m.push(m.top()),
    b"c": lambda m: m.push(m.find(m.text(m.line()), m.text(m.line()))), b"\x93": Machine.stack_global,
    b"R": Machine.reduce, b"\x81": Machine.new, b"b": Machine.build,
    b"Q": lambda m: m.push(m.persistent(m, m.pop())),
}  # fmt: skip
OPCODES = {op[0]: step for op, step in OPCODES.items()}


# ---- constructors of Python's own data -------------------------------------------------------------------------------


def _ordered(m, pairs=()):
    found = OrderedDict()
    for pair in m.copied(pairs if type(pairs) in (list, tuple) else m.expect(pairs, list)):
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise m.error(short(pair), "a key and a value")
        found[m.key(pair[0])] = pair[1]
    return found


def _set(make):
    return lambda m, items=(): make(map(m.key, m.copied(items if type(items) is tuple else m.expect(items, list))))


def _counter(m, counts=None):
    return Counter(m.copied({} if counts is None else m.expect(counts, dict)))


def _encoded(m, text, encoding="latin1"):
    """`_codecs.encode`: how protocol 2 spells bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise m.error(f"encoding {short(encoding)}", "latin1")
    try:
        return codecs.latin_1_encode(m.copied(m.expect(text, str), 32))[0]
    except UnicodeEncodeError:
        raise m.error("text that is not latin1", "latin1") from None


def _bytearray(m, content=b"", encoding="latin1"):
    return bytearray(_encoded(m, content, encoding) if type(content) is str else m.copied(m.expect(content, bytes), 32))


def _complex(m, real, imaginary):
    return complex(m.expect(real, float), m.expect(imaginary, float))


BUILTINS = {
    "set": (_set(set), 0, 1), "frozenset": (_set(frozenset), 0, 1), "bytearray": (_bytearray, 0, 2),
    "complex": (_complex, 2, 2), "bytes": (lambda m: b"", 0, 0), "dict": (lambda m: {}, 0, 0),
}  # fmt: skip
TABLE = {
    ("collections", "OrderedDict"): Constructor("OrderedDict", _ordered, 0, 1),
    ("collections", "Counter"): Constructor("Counter", _counter, 0, 1),
    ("_codecs", "encode"): Constructor("encode", _encoded, 1, 2),
    **{(module, n): Constructor(n, *row) for n, row in BUILTINS.items() for module in ("builtins", "__builtin__")},
}
