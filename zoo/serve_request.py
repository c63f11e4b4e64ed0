"""What a request to the server may say: OpenAI's fields, their types and ranges, and the errors that others get.

A field is a name, a check and a default. A check gives the value, converted, or raises Wrong with what it expects;
null counts as not given. `top_k`, `min_p`, `repetition_penalty` and `ignore_eos` are llama.cpp's and vLLM's,
`prompt_name` is sentence-transformers': OpenAI does not have them. A field that is in no table is refused, as OpenAI
does: nobody should believe that it had an effect.

>>> fields({"max_tokens": 5, "user": "me"}, TEXT)["max_tokens"]
5
>>> fields({"temperature": "hot"}, TEXT)
Traceback (most recent call last):
zoo.serve_errors.ApiError: temperature: expected a number from 0 to 2, got "hot"
"""

from zoo.serve_checks import (
    MOST_CHOICES,
    Wrong,
    biases,
    include_usage,
    instance,
    integer,
    messages,
    number,
    one_of,
    prompts,
    schema,
    stops,
)
from zoo.serve_errors import ApiError, shown


def fields(body, table):
    """{name: value} of every field in a table; ApiError names the first that is wrong, or beyond this server."""
    for name in UNSUPPORTED:
        if body.get(name) not in UNSUPPORTED[name]:
            raise ApiError(400, f"{name} is not supported here", name, "unsupported_parameter")
    for name, value in body.items():
        if value is not None and name not in table and name not in UNSUPPORTED and name not in IGNORED:
            raise ApiError(400, f"There is no parameter {shown(name)} here", name[:60], "unknown_parameter")
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
            raise ApiError(400, f"{name}: expected {wrong}, got {wrong.got or shown(value)}", name, code) from None
    return found


# ---- tables ----------------------------------------------------------------------------------------------------------

REQUIRED = object()
FLAG = instance(bool, "true or false"), False
UNSUPPORTED = {
    "tools": (None, []), "tool_choice": (None, "none", "auto"), "functions": (None, []),
    "function_call": (None, "none", "auto"), "web_search_options": (None,), "prediction": (None,),
    "modalities": (None, ["text"]), "audio": (None,), "moderation": (None,),
    "reasoning_effort": (None,), "verbosity": (None, "medium"),
    "suffix": (None, ""), "echo": (None, False), "best_of": (None, 1),
}  # fmt: skip  # name -> the values that ask for nothing
IGNORED = frozenset(
    "user metadata store service_tier safety_identifier parallel_tool_calls "
    "prompt_cache_key prompt_cache_options prompt_cache_retention cache_prompt".split()
)  # which change no answer

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
