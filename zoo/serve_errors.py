"""What the server answers when it does not answer: OpenAI's shape of errors.

>>> ApiError(400, "n: expected an integer", "n").body()["error"]["type"]
'invalid_request_error'
"""

import json

from tensorlib.errors import ContextError

KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error, in OpenAI's shape. `retry`: seconds after which it may be another."""

    def __init__(self, status, message, param=None, code=None, retry=None):
        super().__init__(message)
        self.status, self.param, self.code, self.retry = status, param, code, retry

    def body(self):
        """The JSON of it."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else KINDS[400])
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def api_error(error):
    """Any exception as one: what is not the client's fault says nothing of our insides."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextError):
        return ApiError(400, str(error), "messages", "context_length_exceeded")
    return ApiError(500, "The server failed to answer; its log says why", code="internal_error")


def parsed(body):
    """The JSON object that a request's bytes are."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is no JSON: {str(error)[:200]}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError(400, f"The body must be a JSON object, got {shown(found)}", code="invalid_json")
    return found


def busy():
    """The error for a full queue."""
    return ApiError(429, "Too many requests are waiting; try again", code="queue_full", retry=2)


def over():
    """The error for a request that takes too long."""
    return ApiError(503, "The server's time limit is over", code="time_limit", retry=10)


def shown(value):
    """A value of a client's, for a message: in short.

    >>> shown(None), shown([]), shown({"a": 1}), shown("a")
    ('null', 'an empty list', 'an object', '"a"')
    """
    if isinstance(value, (list, dict)):
        return ("a list" if value else "an empty list") if isinstance(value, list) else "an object"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
