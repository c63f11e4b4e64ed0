"""Chat templates: Jinja2 from inside a model file, so code of a stranger's, run in Jinja's sandbox with limits of ours.

The sandbox keeps a template from Python's internals, but not from `'x' * 10**10` or endless loops. Here every value
that passes through an operator, filter, call or output is bounded in size, operations that multiply sizes are computed
only if their result is, and all has a budget of processor time. `ChatTemplate.render` raises FormatError for all of it.
"""

from __future__ import annotations

import json
import re
import sys
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
MAX_SIZE = 1 << 22  # characters of any value, and of the rendered text: above every context's worth of text
ELEMENT = 64  # what an element of a list or dict counts for in that
MAX_SECONDS = 0.5  # processor time of one rendering; real ones take a few milliseconds
MAX_DIGITS = 10_000

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
WIDE = re.compile(r"\d{4,}|\*|\{[^{}]*\{")  # a width of thousands, or one taken from an argument


class LimitError(ValueError):
    """A template asked for too much."""


class ChatTemplate:
    """A compiled template. `file` is named in errors; `variables` (bos_token, ...) are known to every rendering."""

    def __init__(self, source: str, file: str = "chat template", variables: dict | None = None):
        self.file, self.variables = file, variables or {}
        if len(source) > MAX_TEMPLATE:
            raise self._error(f"{len(source)} characters", f"at most {MAX_TEMPLATE}")
        self._environment = _environment()
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:
            raise self._error(_describe(error), "a template that compiles") from None

    def render(self, messages: list[dict], add_generation_prompt: bool = True, **variables) -> str:
        """The text of a conversation. Raises FormatError for whatever goes wrong inside the template."""
        values = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
        }
        values |= self.variables | variables
        start, before = thread_time(), sys.gettrace()
        deadline = start + MAX_SECONDS

        def watch(frame, event, arg):  # called at every call and every line of the template, and of Jinja's filters
            if thread_time() > deadline:
                raise LimitError(f"more than {MAX_SECONDS} s of processor time")
            return None if frame.f_code.co_filename == __file__ else watch

        try:
            sys.settrace(watch)
            return self._template.render(values)
        except Exception as error:
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


def _bounded(value):
    """`value` itself, if it is no larger than MAX_SIZE all in all; shared parts count as often as they would print."""
    room, stack = MAX_SIZE, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str | bytes | range):
            room -= len(item)
        elif isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            stack.extend(item)
        elif isinstance(item, int) and item.bit_length() > 4 * MAX_DIGITS:
            raise LimitError("an integer of over 10,000 digits")
        room -= ELEMENT
        if room < 0:
            raise LimitError(f"a value of over {MAX_SIZE} characters or {MAX_SIZE // ELEMENT} elements")
    return value


def _join(values, separator=""):
    pieces = [_bounded(value) if isinstance(value, str) else str(_bounded(value)) for value in values]
    if sum(map(len, pieces)) + len(separator) * len(pieces) > MAX_SIZE:
        raise LimitError(f"a text of over {MAX_SIZE} characters")
    return separator.join(pieces)


def _replace(text, old, new, count=None):
    text, old, new = str(text), str(old), str(new)
    if len(text) + text.count(old) * len(new) > MAX_SIZE:
        raise LimitError(f"a text of over {MAX_SIZE} characters")
    return text.replace(old, new, -1 if count is None else count)


def _format(text, *args, **kwargs):
    if WIDE.search(text):
        raise LimitError(f"the format {text[:40]!r}")
    return text % (kwargs or args)


def _indent(text, width=4, first=False, blank=False):
    text, step = str(text), width if isinstance(width, str) else " " * min(width, 64)
    lines = text.splitlines(keepends=True)
    if len(text) + len(lines) * len(step) > MAX_SIZE:
        raise LimitError(f"a text of over {MAX_SIZE} characters")
    return "".join(step + line if (i or first) and (blank or line.strip()) else line for i, line in enumerate(lines))


def _round(value, precision=0, method="common"):
    if method not in ("common", "ceil", "floor"):
        raise LimitError(f"rounding by {method!r}")
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
        if (
            isinstance(sequence, str | bytes | list | tuple)
            and isinstance(times, int)
            and len(sequence) * times > MAX_SIZE
        ):
            raise LimitError(f"a value of over {MAX_SIZE} characters")
    return left * right


def _power(left, right):
    if isinstance(left, int) and isinstance(right, int) and right * left.bit_length() > 4 * MAX_DIGITS:
        raise LimitError("an integer of over 10,000 digits")
    return left**right


def _modulo(left, right):
    if isinstance(left, str) and WIDE.search(left):
        raise LimitError(f"the format {left[:40]!r}")
    return left % right


def _guarded(function):
    """`function` with its arguments and its result bounded."""

    @wraps(function)
    def guarded(*args, **kwargs):
        for value in (*args, *kwargs.values()):
            _bounded(value)
        return _bounded(function(*args, **kwargs))

    return guarded


class Generator(CodeGenerator):
    """Compiles what builds a value from others, so that it is bounded: `~`, lists, tuples, dicts."""

    def visit_Concat(self, node, frame):
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node, frame):
        self._write_bounded(super().visit_List, node, frame)

    def visit_Dict(self, node, frame):
        self._write_bounded(super().visit_Dict, node, frame)

    def visit_Tuple(self, node, frame):
        write = super().visit_Tuple
        if node.ctx == "load":
            self._write_bounded(write, node, frame)
        else:
            write(node, frame)

    def _write_bounded(self, write, node, frame):
        self.write("environment.bounded(")
        write(node, frame)
        self.write(")")


class Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with operators, calls and attributes under the limits above."""

    code_generator_class = Generator
    concat = staticmethod(_join)
    bounded = staticmethod(_bounded)
    intercepted_binops = frozenset("+ * ** %".split())

    def call_binop(self, context, operator, left, right):
        return _bounded(self.binop_table[operator](_bounded(left), _bounded(right)))

    def call(__self, __context, __function, *args, **kwargs):
        function = __function
        if isinstance(function, BuiltinMethodType):
            owner, name = function.__self__, function.__name__
            if name not in METHODS:
                raise SecurityError(f"the method {name} of a {type(owner).__name__} is out of a template's reach")
            if isinstance(owner, str) and name in ("join", "replace"):
                function = partial(_replace, owner) if name == "replace" else partial(_join, separator=owner)
            _bounded(owner)
        return _guarded(partial(super().call, __context, function))(*args, **kwargs)

    def wrap_str_format(self, value):
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and WIDE.search(value.__self__):
            raise LimitError(f"the format {value.__self__[:40]!r}")
        return wrapped

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
    environment.filters = {name: _guarded(function) for name, function in table.items()}
    environment.globals = {"range": environment.globals["range"], "namespace": environment.globals["namespace"]}
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now, "dict": dict}
    return environment
