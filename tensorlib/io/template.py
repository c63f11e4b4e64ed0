"""Chat templates: Jinja2 from inside a model file, so code of a stranger's, run in Jinja's sandbox with limits of ours.

The sandbox keeps a template from Python's internals, but not from `'x' * 10**10` or endless loops. Here every value
that passes through an operator, filter, call or output is bounded in size, operations that multiply sizes are computed
only if their result is, and a rendering has a budget of steps, of depth, of characters that it makes, and of processor
time. `ChatTemplate.render` raises FormatError for all of it.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from datetime import datetime
from functools import partial, wraps
from time import thread_time
from types import BuiltinMethodType

from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tensorlib.errors import FormatError

MAX_TEMPLATE = 1 << 16  # characters; the longest published templates (tools, documents) have about 20,000
MAX_TOKENS = 20_000  # of Jinja's in a template; those have a third of it
MAX_SIZE = 1 << 22  # characters of any value, and of the rendered text: above every context's worth of text
MAX_MADE = 1 << 25  # characters of all the values that a rendering makes, kept or not, above 32 times its messages
ELEMENT = 64  # what an element of a list or dict counts for in both
MAX_STEPS = 400_000  # lines and calls of the template and of Jinja's filters: 0.4 s; most real ones: 100 a message
MAX_DEPTH = 64  # macros, blocks and recursive loops inside each other
MAX_SECONDS = 0.5  # processor time of one rendering; real ones take a few milliseconds
LONGER = 20  # how many times as many steps and seconds long conversations may have: their messages squared, over 50
MAX_BITS = 64  # of an integer

FILTERS = frozenset(
    "abs attr capitalize count d default dictsort e escape first float format groupby indent int items join last "
    "length list lower map max min reject rejectattr replace reverse round safe select selectattr sort string title "
    "tojson trim truncate unique upper wordcount".split()
)
METHODS = frozenset(
    "capitalize casefold copy count endswith find format get index isalnum isalpha isascii isdecimal isdigit islower "
    "isnumeric isspace istitle isupper items join keys lower lstrip partition removeprefix removesuffix replace rfind "
    "rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper values".split()
)
BY_ELEMENT = frozenset("groupby join list map reject select sort unique".split())  # filters that take a text apart
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
WIDE = re.compile(r"\d{4,}|\*|\{[^{}]*\{")  # a width of thousands, or one taken from an argument


class LimitError(BaseException):
    """A template asked for too much. No Exception, for filters like `int` take those for a bad number and go on."""


class _Rendering(threading.local):
    room = MAX_MADE  # what this thread's rendering may still make


_rendering = _Rendering()


class ChatTemplate:
    """A compiled template. `file` is named in errors; `variables` (bos_token, ...) are known to every rendering."""

    def __init__(self, source: str, file: str = "chat template", variables: dict | None = None):
        self.file, self.variables = file, variables or {}
        if len(source) > MAX_TEMPLATE:
            raise self._error(f"{len(source)} characters", f"at most {MAX_TEMPLATE}")
        self._environment = _environment()
        try:
            if sum(1 for _ in zip(self._environment.lex(source), range(MAX_TOKENS + 1), strict=False)) > MAX_TOKENS:
                raise LimitError(f"more than {MAX_TOKENS} tokens")
            self._template = self._environment.from_string(source)
        except (Exception, LimitError) as error:
            raise self._error(_describe(error), "a template that compiles") from None

    def render(self, messages: list[dict], add_generation_prompt: bool = True, **variables) -> str:
        """The text of a conversation. Raises FormatError for whatever goes wrong inside the template."""
        values = {"tools": None, "documents": None, **self.variables, **variables}
        values |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        before = sys.gettrace()
        try:  # some real templates go through all messages for each of them, or copy the text so far
            _rendering.room = MAX_MADE + 32 * _size(messages)
            share = 1 + min(LONGER - 1, (len(messages) / 50) ** 2)
            sys.settrace(_watch(round(share * MAX_STEPS), thread_time() + share * MAX_SECONDS))
            return self._template.render(values)
        except (Exception, LimitError) as error:
            raise self._error(_describe(error), "a template that renders these messages") from None
        finally:
            sys.settrace(before)

    def _error(self, got, expected):
        return FormatError(
            self.file, "tokenizer.chat_template", got, expected, "use another template or plain `generate`"
        )


def _describe(error: Exception) -> str:
    text = str(error).strip().replace("\n", " ")
    kind = type(error).__name__
    return (f"{kind}: {text}" if text else kind)[:400]


def _watch(most, deadline):
    """A trace function, called at every call and every line of the template and of Jinja's filters, that ends it."""
    steps, depth = 0, 0

    def watch(frame, event, arg):
        nonlocal steps, depth
        steps += 1
        if steps > most:
            raise LimitError(f"more than {most} steps")
        if thread_time() > deadline:
            raise LimitError(
                f"more than {MAX_SECONDS} s of processor time, or a few times that for a long conversation"
            )
        if frame.f_code.co_filename == __file__:
            return None
        if event in ("call", "return") and frame.f_code.co_filename == "<template>":
            depth += 1 if event == "call" else -1
            if depth > MAX_DEPTH:
                raise LimitError(f"macros, blocks or loops more than {MAX_DEPTH} deep")
        return watch

    return watch


def _size(value) -> int:
    """Characters of a value, all in all; shared parts count as often as they would print. LimitError over MAX_SIZE."""
    size, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str | bytes | range):
            size += len(item)
        elif isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            stack.extend(item)
        elif isinstance(item, int) and item.bit_length() > MAX_BITS:
            raise LimitError(f"an integer of over {MAX_BITS} bits")
        size += ELEMENT
        if size > MAX_SIZE:
            raise LimitError(f"a value of over {MAX_SIZE} characters or {MAX_SIZE // ELEMENT} elements")
    return size


def _bounded(value):
    """`value` itself, if it is no larger than MAX_SIZE."""
    _size(value)
    return value


def _made(value):
    """`value` itself, which the template has made, if it is no larger than MAX_SIZE, and all of them than MAX_MADE."""
    return _paid(value, _size(value))


def _collected(value):
    """`_made` for a list, dict, tuple or slice of what was there before."""
    _size(value)
    return _paid(value, len(value) * (1 if isinstance(value, str) else ELEMENT))


def _paid(value, size):
    _rendering.room -= size
    if _rendering.room < 0:
        raise LimitError(f"values of over {MAX_MADE} characters together")
    return value


def _fits(length):
    if length > MAX_SIZE:
        raise LimitError(f"a text of over {MAX_SIZE} characters")


def _join(values, separator=""):
    joined, pieces, length = [], [], 0
    for value in values:
        piece = value if isinstance(value, str) else str(_bounded(value))
        length += len(piece) + len(separator)
        _fits(length)
        pieces.append(piece)
        if len(pieces) == 1024:  # a piece of one letter would take 80 bytes
            joined.append(separator.join(pieces))
            pieces = []
    return _made(separator.join([*joined, separator.join(pieces)] if pieces else joined))


def _replace(text, old, new, count=None):
    text, old, new = str(text), str(old), str(new)
    _fits(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _formatted(text, mark, values):
    """`text`, if it may be filled in: widths are small, and the values fit, should each place take all of them."""
    if WIDE.search(text):
        raise LimitError(f"the format {text[:40]!r}")
    _fits(len(text) + text.count(mark) * _size(values))
    return text


def _format(text, *args, **kwargs):
    return _formatted(str(text), "%", [args, kwargs]) % (kwargs or args)


def _split(method, text, sep=None, maxsplit=-1):
    most = MAX_SIZE // ELEMENT  # one more part, and the result is refused
    return method(text, sep, most if maxsplit < 0 else min(maxsplit, most))


def _splitlines(text, keepends=False):
    _fits(ELEMENT * sum(map(text.count, LINE_ENDS)))
    return text.splitlines(keepends)


TEXT_METHODS = {  # those that multiply sizes or take a text apart
    "join": lambda text, values: _join(values, text),
    "replace": _replace,
    "rsplit": partial(_split, str.rsplit),
    "split": partial(_split, str.split),
    "splitlines": _splitlines,
}


def _indent(text, width=4, first=False, blank=False):
    text, step = str(text), width if isinstance(width, str) else " " * min(width, 64)
    lines = _splitlines(text, True)
    _fits(len(text) + len(lines) * len(step))
    return "".join(step + line if (i or first) and (blank or line.strip()) else line for i, line in enumerate(lines))


def _round(value, precision=0, method="common"):
    if method not in ("common", "ceil", "floor"):
        raise SecurityError(f"rounding by {method!r}")
    scale = 10.0 ** max(-16, min(precision, 16))
    if method == "common":
        return round(float(value) * scale) / scale
    whole = int(value * scale // 1)
    return (whole if method == "floor" or whole == value * scale else whole + 1) / scale


def _filter_join(values, d="", attribute=None):
    return _join((value[attribute] for value in values) if attribute else values, str(d))


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    if indent is not None:
        indent = min(int(indent), 16)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _multiply(left, right):
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | bytes | list | tuple) and isinstance(times, int):
            _fits(len(sequence) * times)
    return left * right


def _power(left, right):
    if isinstance(left, int) and isinstance(right, int) and right * (left.bit_length() - 1) > MAX_BITS:
        raise LimitError(f"an integer of over {MAX_BITS} bits")
    return left**right


def _modulo(left, right):
    return (_formatted(left, "%", right) if isinstance(left, str) else left) % right


def _guarded(function, by_element=False):
    """`function` with its arguments and its result bounded; a text is so many elements where it is taken apart."""

    @wraps(function)
    def guarded(*args, **kwargs):
        for value in (*args, *kwargs.values()):
            _bounded(value)
            if by_element and isinstance(value, str):
                _fits(len(value) * ELEMENT)
        return _made(function(*args, **kwargs))

    return guarded


class Generator(CodeGenerator):
    """Compiles what builds a value from others, so that it is bounded: `~`, lists, tuples, dicts, slices."""

    def visit_Concat(self, node, frame):
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node, frame):
        self._write_collected(super().visit_List, node, frame)

    def visit_Dict(self, node, frame):
        self._write_collected(super().visit_Dict, node, frame)

    def visit_Tuple(self, node, frame):
        write = super().visit_Tuple
        if node.ctx == "load":
            self._write_collected(write, node, frame)
        else:
            write(node, frame)

    def visit_Getitem(self, node, frame):
        write = super().visit_Getitem
        if isinstance(node.arg, nodes.Slice):
            self._write_collected(write, node, frame)
        else:
            write(node, frame)

    def signature(self, node, frame, extra_kwargs=None):
        if node.dyn_args or node.dyn_kwargs:
            self.fail("arguments by * and ** are out of a template's reach", node.lineno)
        super().signature(node, frame, extra_kwargs)

    def _write_collected(self, write, node, frame):
        self.write("environment.collected(")
        write(node, frame)
        self.write(")")


class Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with operators, calls and attributes under the limits above."""

    code_generator_class = Generator
    concat = staticmethod(_join)
    collected = staticmethod(_collected)
    intercepted_binops = frozenset("+ * ** %".split())

    def call_binop(self, context, operator, left, right):
        return _made(self.binop_table[operator](_bounded(left), _bounded(right)))

    def call(__self, __context, __function, *args, **kwargs):
        function = __function
        if isinstance(function, BuiltinMethodType):
            owner, name = function.__self__, function.__name__
            if name not in METHODS:
                raise SecurityError(f"the method {name} of a {type(owner).__name__} is out of a template's reach")
            if isinstance(owner, str) and name in TEXT_METHODS:
                function = partial(TEXT_METHODS[name], owner)
            _bounded(owner)
        return _guarded(partial(super().call, __context, function))(*args, **kwargs)

    def wrap_str_format(self, value):
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def formatted(*args, **kwargs):
            _formatted(value.__self__, "{", [args, kwargs])
            return wrapped(*args, **kwargs)

        return formatted

    def unsafe_undefined(self, obj, attribute):
        raise SecurityError(f"the attribute {attribute!r} of a {type(obj).__name__} is out of a template's reach")


class Generation(Extension):
    """`{% generation %}`, with which Transformers marks the assistant's words: here, its body."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def raise_exception(message):
    raise TemplateError(str(message))


def strftime_now(pattern):
    return datetime.now().strftime(_bounded(str(pattern)[:200]))


def _environment() -> Environment:
    """The sandbox, set as Transformers sets it, with our filters."""
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[loopcontrols, Generation], finalize=_bounded
    )
    environment.binop_table.update({"*": _multiply, "**": _power, "%": _modulo})
    ours = {"format": _format, "indent": _indent, "join": _filter_join, "replace": _replace, "round": _round}
    ours["tojson"] = _tojson
    table = {name: function for name, function in environment.filters.items() if name in FILTERS} | ours
    environment.filters = {name: _guarded(table[name], name in BY_ELEMENT) for name in table}
    environment.globals = {"range": environment.globals["range"], "namespace": environment.globals["namespace"]}
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now, "dict": dict}
    return environment
