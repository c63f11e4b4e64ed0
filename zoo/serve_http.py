"""What the server's answers travel in: bodies, JSON, server-sent events, and who may ask at all."""

import asyncio
import contextlib
import hmac
import json
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from zoo.serve import is_loopback
from zoo.serve_errors import ApiError

DISCARDED = 32 << 20  # bytes that are taken of a body that is too large
BODY_SECONDS = 30  # that a client may take to send its body
HEAD_SECONDS = 30  # that a connection may be without a request
STALL = 30  # seconds that a reader may take nothing of an answer


def made(content, status=200, headers=None):
    """A response of JSON; its letters are ASCII, so that whatever a client sent can be in it."""
    return Response(json.dumps(content).encode(), status, headers, "application/json")


def failed(error, headers=None):
    """A response for an ApiError."""
    headers = dict(headers or {}) | ({} if error.retry is None else {"retry-after": str(error.retry)})
    return made(error.body(), error.status, headers)


async def read(request, most):
    """A request's body. Of what is past the limit nothing is kept, but some is taken: to close a connection that has
    unread data would lose the answer.
    """
    found, count, given = bytearray(), 0, request.headers.get("content-length", "")
    size = int(given) if given.isdecimal() else 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            if size <= most + DISCARDED:
                async for chunk in request.stream():
                    count += len(chunk)
                    if count > most + DISCARDED:
                        break
                    if max(size, count) <= most:
                        found += chunk
    except TimeoutError:
        raise ApiError(408, f"The body took more than {BODY_SECONDS} s") from None
    except ClientDisconnect:
        raise ApiError(408, "The client has left") from None
    if max(size, count) > most:
        raise ApiError(413, f"The body has more than {most} bytes", code="body_too_large")
    return bytes(found)


async def discard(request):
    """Take a body that is not wanted, for the answer to arrive."""
    with contextlib.suppress(ApiError):
        await read(request, 0)


async def unless_left(receive, coroutine):
    """A coroutine's result, unless the client disconnects: then it is cancelled."""

    async def left():
        while (await receive())["type"] != "http.disconnect":
            pass

    work, leaving = asyncio.ensure_future(coroutine), asyncio.ensure_future(left())
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError(408, "The client has left")  # nobody sees this
        return work.result()
    finally:
        for task in (work, leaving):
            task.cancel()


class Events(Response):
    """Server-sent events of an Answer, for as long as the client reads them."""

    media_type = "text/event-stream"

    def __init__(self, answer):
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.answer = answer

    async def __call__(self, scope, receive, send):
        async def timely(message):
            async with asyncio.timeout(STALL):
                await send(message)

        async def all_of_it():
            await timely({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for chunk in self.answer.events():
                await timely({"type": "http.response.body", "body": chunk, "more_body": True})
            await timely({"type": "http.response.body", "body": b""})

        try:
            await unless_left(receive, all_of_it())
        except (ApiError, TimeoutError):
            pass  # the server closes a connection whose answer is not whole
        finally:
            self.answer.close()


class Connection(H11Protocol):
    """uvicorn's, less those that never end a request's head: it would keep them, and others would find no place."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_SECONDS, self._check, None)

    def connection_lost(self, error):
        self._timer.cancel()
        super().connection_lost(error)
        if hasattr(self.transport, "_read_ready_cb"):  # asyncio's own, which has itself
            self.transport._read_ready_cb = None

    def _check(self, last):
        """`last`: the request at the check before."""
        if self.cycle is last and (last is None or last.response_complete):
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._check, self.cycle)


class Guard:
    """Who may ask. With a key, who has it (`/health` is free). Without, this machine, but not pages of other sites that
    its browsers show: these can send requests here, and by a name that changes its address read the answers as well.
    """

    def __init__(self, app, key=None):
        self.app, self.key = app, key and key.encode()

    async def __call__(self, scope, receive, send):
        error = self._refused(scope) if scope["type"] == "http" else None
        if error is None:
            await self.app(scope, receive, send)
        else:
            await discard(Request(scope, receive))
            challenge = {"www-authenticate": "Bearer"} if error.status == 401 else None
            await failed(error, challenge)(scope, receive, send)

    def _refused(self, scope):
        headers = dict(scope["headers"])
        if self.key is not None:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            known = kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.key)
            message = "The header `Authorization: Bearer KEY` is missing, or its key is wrong"
            return None if known or scope["path"] == "/health" else ApiError(401, message, code="invalid_api_key")
        for name in (b"host", b"origin"):
            if name in headers and not is_loopback(_host(headers[name].decode("latin-1"))):
                return ApiError(403, f"The {name.decode()} is another machine's: start the server with a key")
        return None


def _host(text):
    try:
        return urlsplit(text if "//" in text else f"//{text}").hostname or ""
    except ValueError:
        return ""
