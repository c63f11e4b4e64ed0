"""PTX text to a listing: instructions in order, with scopes resolved and calls of device functions inlined."""

import dataclasses
import re

from tests.sim.errors import Unsupported

IDENTIFIER = re.compile(r"(?<![\w%$.])[%$A-Za-z_][\w$]*(?:\.[xyz]\b)?")
LABEL = re.compile(r"([$%A-Za-z_][\w$]*):(?!:)\s*")
GUARD = re.compile(r"@(!?)([%$\w]+)\s+")


@dataclasses.dataclass
class Instruction:
    """One instruction: `parts` is its opcode split at the dots, `args` its operands as text."""

    text: str
    parts: tuple
    args: tuple
    guard: str = ""
    negated: bool = False
    line: int = 0

    def has(self, *names):
        return any(name in self.parts for name in names)


@dataclasses.dataclass
class Listing:
    """A kernel: parameters as (name, type, bytes), `types` of registers by name or prefix, `data` of module arrays."""

    name: str = ""
    params: list = dataclasses.field(default_factory=list)
    threads: int = 0
    types: dict = dataclasses.field(default_factory=dict)
    instructions: list = dataclasses.field(default_factory=list)
    labels: dict = dataclasses.field(default_factory=dict)
    data: dict = dataclasses.field(default_factory=dict)
    local: dict = dataclasses.field(default_factory=dict)  # name of a depot: (offset, bytes)
    local_bytes: int = 0


def split_operands(text):
    """Operands at the top level of commas: "{%r1, %r2}, [%rd1]" has two."""
    found, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char in "{[(") - (char in "}])")
        if char == "," and depth == 0:
            found.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return (*found, last) if last else tuple(found)


def instruction_of(text, line):
    text = " ".join(text.split())
    guard = GUARD.match(text)
    rest = text[guard.end() :] if guard else text
    opcode, _, operands = rest.partition(" ")
    negated, name = guard.groups() if guard else ("", "")
    return Instruction(text, tuple(opcode.split(".")), split_operands(operands), name, bool(negated), line)


class BodyParser:
    """Reads the body of one function into a listing; `prefix` keeps the names of an inlined call apart."""

    def __init__(self, listing, functions, prefix=""):
        self.listing, self.functions, self.prefix = listing, functions, prefix
        self.scopes, self.count, self.branches, self.calls = [(prefix, {})], 0, [], 0

    def parse(self, body, first_line):
        at, line = 0, first_line
        while at < len(body):
            char = body[at]
            if char == "\n":
                line += 1
            if char.isspace() or char == ";":
                at += 1
            elif char == "{":
                self.count += 1
                self.scopes.append((f"{self.prefix}s{self.count}$", {}))
                at += 1
            elif char == "}":
                self.scopes.pop()
                at += 1
            elif match := LABEL.match(body, at):
                self.listing.labels[self.scopes[-1][0] + match[1]] = len(self.listing.instructions)
                line += match[0].count("\n")
                at = match.end()
            elif body.startswith((".loc\t", ".loc ", ".file"), at):  # directives without a semicolon
                at = body.index("\n", at)
            else:
                end = body.index(";", at)
                self.statement(body[at:end], line)
                line += body.count("\n", at, end)
                at = end + 1
        self.resolve()

    def statement(self, text, line):
        if text.startswith(".reg"):
            self.registers(text)
        elif text.startswith(".local"):
            self.local(text)
        elif not text.startswith("."):  # .pragma, .param of a call
            instruction = instruction_of(IDENTIFIER.sub(self.rename, text), line)
            opcode = instruction.parts[0]
            if opcode == "call":
                self.call(instruction)
                return
            if opcode == "bra":
                self.branches.append((instruction, [scope for scope, _ in self.scopes]))
            self.listing.instructions.append(instruction)

    def registers(self, text):
        _, kind, names = text.split(None, 2)
        scope, known = self.scopes[-1]
        top = not self.prefix and len(self.scopes) == 1
        for name in names.split(","):
            name, _, count = name.strip().rstrip(">").partition("<")
            for one in [f"{name}{i}" for i in range(int(count))] if count else [name]:
                unique = one if top else f"%{scope}{one.lstrip('%')}"
                known[one] = unique
                self.listing.types[unique] = kind[1:]

    def local(self, text):
        match = re.match(r"\.local\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", text)
        align, size = int(match[1]), int(match[3])
        offset = -(-self.listing.local_bytes // align) * align
        self.listing.local[match[2]] = (offset, size)
        self.listing.local_bytes = offset + size

    def rename(self, match):
        for _, known in reversed(self.scopes):
            if match[0] in known:
                return known[match[0]]
        return match[0]

    def resolve(self):
        for instruction, scopes in self.branches:
            target = instruction.args[0]
            names = [scope + target for scope in reversed(scopes)]
            found = next((name for name in names if name in self.listing.labels), None)
            if found is None:
                raise Unsupported(f"unsupported branch to a label that is not there: {instruction.text}")
            instruction.args = (found,)

    def call(self, instruction):
        """Inlines a device function: its parameters become registers, its `ret` a branch behind the body."""
        args = [arg.strip("() ") for arg in instruction.args]
        name = next(arg for arg in args if arg in self.functions) if set(args) & set(self.functions) else None
        if name is None:
            instruction.parts = ("assertfail",) if "__assertfail" in args else ("call",)
            self.listing.instructions.append(instruction)
            return
        self.calls += 1
        function = self.functions[name]
        prefix = f"{self.prefix}c{self.calls}${name}$"
        before = args[: args.index(name)]
        given = [p.strip() for text in args[args.index(name) + 1 :] for p in text.split(",") if p.strip()]
        inner = BodyParser(self.listing, self.functions, prefix)
        start = len(self.listing.instructions)
        inner.parse(function.body, function.line)
        end = prefix + "$end"
        renames = dict(zip([*function.results, *function.params], [*before, *given]))
        for one in self.listing.instructions[start:]:
            if one.parts[0] == "ret":
                one.parts, one.args = ("bra", "uni"), (end,)
            elif len(one.parts) > 1 and one.parts[1] == "param":
                one.args = tuple(
                    f"[{renames.get(a.strip('[] '), a.strip('[] '))}]" if "[" in a else a for a in one.args
                )
        self.listing.labels[end] = len(self.listing.instructions)


@dataclasses.dataclass
class Function:
    results: list
    params: list
    body: str
    line: int


def closing(text, at):
    """Where the brace that opens at `at` closes."""
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, at):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.start()
    raise Unsupported("unsupported PTX: braces do not match")


def data_arrays(text):
    """Module-level arrays with initial values, by name."""
    found = {}
    for name, values in re.findall(
        r"\.(?:global|const)\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)\[\d*\]\s*=\s*\{([^}]*)\}", text
    ):
        found[name] = bytes(int(v) for v in values.split(","))
    for name, size in re.findall(r"\.(?:global|const)\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)\[(\d+)\]\s*=", text):
        if name in found:
            found[name] = found[name].ljust(int(size), b"\0")
    return found


def device_functions(text):
    found = {}
    pattern = re.compile(r"\.func\s*(?:\(([^)]*)\))?\s*([\w$]+)\s*\(([^)]*)\)\s*(;|\{)")
    for match in pattern.finditer(text):
        if match[4] == "{":
            names = [re.findall(r"[\w$]+(?=\s*(?:,|$))", part or "") for part in (match[1], match[3])]
            at = match.end() - 1
            body = text[at + 1 : closing(text, at)]
            found[match[2]] = Function(names[0], names[1], body, text.count("\n", 0, at))
    return found


PARAM = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+[^,]*?([\w$]+)(?:\[(\d+)\])?\s*(?:,|$)")


def parse(ptx):
    """The listing of the one kernel in a PTX module."""
    text = re.sub(r"//[^\n]*", "", ptx)
    entry = re.search(r"\.visible\s+\.entry\s+([\w$]+)\s*\(([^)]*)\)", text)
    if entry is None:
        raise Unsupported("unsupported PTX: there is no kernel in it")
    listing = Listing(entry[1])
    for kind, name, count in PARAM.findall(entry[2]):
        listing.params.append((name, kind, int(kind[1:]) // 8 * int(count or 1)))
    start = text.index("{", entry.end())
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", text[entry.end() : start])
    listing.threads = int(threads[1]) if threads else 0
    listing.data = data_arrays(text)
    body = text[start + 1 : closing(text, start)]
    BodyParser(listing, device_functions(text)).parse(body, text.count("\n", 0, start) + 1)
    return listing
