"""What a request to the server may say: OpenAI's fields, their types and ranges, and the errors that others get.

A field is a name, a check and a default. A check gives the value, converted, or raises Wrong with what it expects;
null counts as not given. `top_k`, `min_p`, `repetition_penalty` and `ignore_eos` are llama.cpp's and vLLM's,
`prompt_name` is sentence-transformers': OpenAI does not have them.

>>> fields({"max_tokens": 5, "surprise": 1}, TEXT)["max_tokens"]
5
>>> fields({"temperature": "hot"}, TEXT)
Traceback (most recent call last):
zoo.serve_errors.ApiError: temperature: expected a number from 0 to 2, got 'hot'
"""

from zoo.serve_errors import ApiError, shown

MOST_CHOICES, MOST_TEXTS = 128, 2048  # OpenAI's limits


class Wrong(Exception):
    """A value that is not what the text of this says."""


def fields(body, table):
    """{name: value} of every field in a table; ApiError names the first that is wrong, or beyond this server."""
    for name in UNSUPPORTED:
        if body.get(name) not in UNSUPPORTED[name]:
            raise ApiError(400, f"{name} is not supported here", name, "unsupported_parameter")
    found = {}
    for name, (check, default) in table.items():
        value = body.get(name)
        if value is None and default is not REQUIRED:
            found[name] = default
            continue
        try:
            found[name] = check(value)
        except Wrong as wrong:
            code = "missing_required_parameter" if name not in body else "invalid_value"
            raise ApiError(400, f"{name}: expected {wrong}, got {shown(value)}", name, code) from None
    return found


# ---- checks ----------------------------------------------------------------------------------------------------------


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
        raise Wrong('messages, such as {"role": "user", "content": "Hello"}')
    content = value.get("content")
    if isinstance(content, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
            raise Wrong('parts of a content that are {"type": "text", "text": "..."}')
        content = "".join(part["text"] for part in content)
    if content is None and value["role"] == "assistant":
        content = ""
    if not isinstance(content, str):
        raise Wrong("messages whose content is a text")
    return value | {"content": content}


def include_usage(value):
    """`stream_options` as whether it asks for a chunk of counts."""
    return bool(instance(dict, "an object")(value).get("include_usage"))


# ---- tables ----------------------------------------------------------------------------------------------------------

REQUIRED = object()
FLAG = instance(bool, "true or false"), False
UNSUPPORTED = {
    "tools": (None, []), "functions": (None, []), "modalities": (None, ["text"]), "web_search_options": (None,),
    "audio": (None,), "prediction": (None,), "suffix": (None, ""), "echo": (None, False), "best_of": (None, 1),
}  # fmt: skip  # name -> the values that ask for nothing

TEXT = {
    "model": (instance(str, "a text"), None),
    "max_tokens": (integer(1), None),
    "temperature": (number(0, 2), 1.0),
    "top_p": (number(0, 1), 1.0),
    "top_k": (integer(0), 0),
    "min_p": (number(0, 1), 0.0),
    "repetition_penalty": (number(0.01, 100), 1.0),
    "seed": (integer(-(2**63), 2**63 - 1), None),
    "n": (integer(1, MOST_CHOICES), 1),
    "stop": (stops, []),
    "logit_bias": (biases, {}),
    "presence_penalty": (number(-2, 2), 0.0),
    "frequency_penalty": (number(-2, 2), 0.0),
    "response_format": (schema, None),
    "ignore_eos": FLAG,
    "stream": FLAG,
    "stream_options": (include_usage, False),
}
COMPLETION = TEXT | {"prompt": (prompts, REQUIRED), "logprobs": (integer(0, 5), None), "max_tokens": (integer(1), 16)}
CHAT = TEXT | {
    "messages": (messages, REQUIRED),
    "max_completion_tokens": (integer(1), None),
    "logprobs": FLAG,
    "top_logprobs": (integer(0, 20), 0),
}
EMBEDDING = {
    "model": TEXT["model"],
    "input": (prompts, REQUIRED),
    "encoding_format": (one_of("float", "base64"), "float"),
    "dimensions": (integer(1), None),
    "prompt_name": (instance(str, "a text"), None),
}
