"""Checks of what a request to the server says: functions that give a value, converted, or raise Wrong."""

from zoo.serve_errors import ApiError, shown

MOST_CHOICES, MOST_TEXTS = 128, 2048  # OpenAI's limits


class Wrong(Exception):
    """A value that is not what the text of this says. `got`: what of it is not, where that is more than the value."""

    def __init__(self, expected, got=None):
        super().__init__(expected)
        self.got = got


def number(low, high, kinds=(int, float)):
    """A check for numbers in a range; NaN is in none."""
    name = "an integer" if kinds == (int,) else "a number"

    def check(value):
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            raise Wrong(f"{name} from {low} to {high}")
        return value

    return check


def integer(low, high=2**31 - 1):
    """A check for integers."""
    return number(low, high, (int,))


def instance(kind, name):
    """A check for a type of JSON's."""

    def check(value):
        if not isinstance(value, kind):
            raise Wrong(name)
        return value

    return check


def one_of(*values):
    """A check for some texts."""

    def check(value):
        if value not in values:
            raise Wrong(" or ".join(values))
        return value

    return check


def stops(value):
    """`stop`: a text, or up to four."""
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or len(value) > 4 or not all(isinstance(s, str) and s for s in value):
        raise Wrong("a text, or up to 4")
    return value


def biases(value):
    """`logit_bias`: {id: -100 to 100}, where JSON makes the ids texts."""
    expected = Wrong("an object of token ids and numbers from -100 to 100")
    if not isinstance(value, dict):
        raise expected
    number_of = number(-100, 100)
    try:
        return {int(key): float(number_of(bias)) for key, bias in value.items()}
    except (ValueError, Wrong):
        raise expected from None


def prompts(value):
    """A text, a list of ids, or a list of either: a list of texts and lists of ids."""
    value = [value] if isinstance(value, str) or is_ids(value) else value
    if not isinstance(value, list) or not 0 < len(value) <= MOST_TEXTS:
        raise Wrong(f"a text, token ids, or up to {MOST_TEXTS} of either")
    if not all(isinstance(v, str) or is_ids(v) for v in value):
        raise Wrong("texts or lists of token ids")
    return value


def is_ids(value):
    """Whether a value is a list of integers, at least one."""
    return isinstance(value, list) and bool(value) and all(type(i) is int for i in value)


def schema(value):
    """`response_format` as the JSON schema that it asks for, None for any text."""
    if not isinstance(value, dict) or value.get("type") not in ("text", "json_object", "json_schema"):
        raise Wrong("an object with the type text, json_object or json_schema")
    if value["type"] != "json_schema":
        return {"type": "object"} if value["type"] == "json_object" else None
    named = value.get("json_schema")
    if not isinstance(named, dict) or not isinstance(named.get("schema"), dict):
        raise Wrong('{"type": "json_schema", "json_schema": {"schema": {...}}}')
    return named["schema"]


def messages(value):
    """A conversation; a content's parts become one text."""
    if not isinstance(value, list) or not value:
        raise Wrong("a list of messages")
    return [_message(each) for each in value]


def _message(value):
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        got = "a message without a role" if isinstance(value, dict) else shown(value)
        raise Wrong('messages, such as {"role": "user", "content": "Hello"}', got)
    for name in ("tool_calls", "function_call", "audio"):
        if value.get(name) not in (None, []):
            raise ApiError(400, f"messages: {name} is not supported here", "messages", "unsupported_parameter")
    content = value.get("content")
    if isinstance(content, list):
        content = "".join(map(_part, content))
    if content is None and value["role"] == "assistant":
        content = ""
    if not isinstance(content, str):
        raise Wrong("messages whose content is a text", f"{shown(content)} as content")
    return value | {"content": content}


def _part(value):
    expected, isnt = 'parts of a content that are {"type": "text", "text": "..."}', shown(value)
    if isinstance(value, dict):
        if value.get("type") == "text" and isinstance(value.get("text"), str):
            return value["text"]
        found = shown(value.get("text"))
        isnt = f"{found} as text" if value.get("type") == "text" else f"a part of type {shown(value.get('type'))}"
    raise Wrong(expected, isnt)


def include_usage(value):
    """`stream_options` as whether it asks for a chunk of counts."""
    return bool(instance(dict, "an object")(value).get("include_usage"))
