"""The HTTP side of `tensorlib serve`: who may ask what, bodies and errors, as a Starlette application.

POST /v1/completions, /v1/chat/completions, /v1/embeddings; GET /v1/models, /v1/models/NAME, /health.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from zoo.serve_answer import Answer, told
from zoo.serve_embed import Vectors, embeddings
from zoo.serve_errors import ApiError, busy, over, parsed
from zoo.serve_http import Events, Guard, discard, failed, made, read, unless_left


class Service:
    """What is served. `names`: {"text" and "embed", those that there are: the model's name}."""

    def __init__(self, names, tokenizer=None, runner=None, encoder=None, max_body=2 << 20, time_limit=600.0):
        self.names, self.tokenizer, self.runner = names, tokenizer, runner
        self.max_body, self.time_limit, self.preparing = max_body, time_limit, 0
        self.limit = runner.limit if runner else 128
        self.vectors = encoder and Vectors(encoder, 16 * self.limit)
        self._thread = ThreadPoolExecutor(1, "prepare")  # one, for tokenizers and grammars are not for several
        if runner:
            self.context = runner.engine.context
            longest = max(len(tokenizer.piece(i)) for i in range(tokenizer.n_vocab))
            self.most_bytes = self.context * longest

    def name(self, kind, asked):
        """The name of the model of a kind; ApiError if there is none, or the client asked for another."""
        name = self.names.get(kind)
        if name is None or asked not in (None, name):
            wanted = "" if asked is None else f" {asked!r}"
            message = f"There is no model{wanted} for this; GET /v1/models lists those that there are"
            raise ApiError(404, message, "model", "model_not_found")
        return name

    async def prepared(self, function, *arguments):
        """What a function gives, on the one thread for this."""
        if self.preparing >= self.limit or (self.runner and self.runner.count >= self.limit):
            raise busy()
        self.preparing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
        finally:
            self.preparing -= 1

    def close(self):
        """End the threads."""
        self._thread.shutdown()
        for part in (self.runner, self.vectors):
            if part:
                part.close()


def application(service, key=None):
    """The ASGI application; `key`: what clients must have."""

    async def completions(request):
        return await text(request, False)

    async def chat(request):
        return await text(request, True)

    async def text(request, chat):
        answer = Answer(service, await body(request), chat)
        await answer.start()
        if answer.asked["stream"]:
            return Events(answer)
        try:
            return made(await unless_left(request.receive, answer.whole()))
        finally:
            answer.close()

    async def body(request):
        return parsed(await read(request, service.max_body))

    async def embed(request):
        asked = await body(request)
        service.name("embed", asked.get("model"))
        try:
            async with asyncio.timeout(service.time_limit):
                return made(await unless_left(request.receive, embeddings(service, asked)))
        except TimeoutError:
            raise over() from None

    async def models(request):
        found = [{"id": n, "object": "model", "created": 0, "owned_by": "tensorlib"} for n in service.names.values()]
        name = request.path_params.get("name")
        if name is None:
            return made({"object": "list", "data": found})
        if name not in service.names.values():
            raise ApiError(404, f"There is no model {name!r}", "model", "model_not_found")
        return made(next(model for model in found if model["id"] == name))

    async def health(request):
        runner = service.runner
        well = runner is None or (runner.alive and runner.healthy)
        counts = {"status": "ok" if well else "failing", "answers": runner.count if runner else 0}
        return made(counts, 200 if well else 503)

    posts = {"/v1/completions": completions, "/v1/chat/completions": chat, "/v1/embeddings": embed}
    gets = {"/v1/models": models, "/v1/models/{name:path}": models, "/health": health}
    routes = [Route(path, f, methods=["POST"]) for path, f in posts.items()]
    routes += [Route(path, f, methods=["GET"]) for path, f in gets.items()]

    handlers = {HTTPException: _no_such, Exception: _failed, ApiError: _failed}
    return Starlette(routes=routes, middleware=[Middleware(Guard, key=key)], exception_handlers=handlers)


async def _no_such(request, error):
    """Paths that there are not, and methods that a path does not take."""
    await discard(request)
    path, allowed = request.url.path, (error.headers or {}).get("Allow")
    if error.status_code == 405:
        return failed(ApiError(405, f"{path} takes {allowed} alone", code="method_not_allowed"), error.headers)
    there = ", ".join(dict.fromkeys(route.path.partition("{")[0].rstrip("/") for route in request.app.routes))
    return failed(ApiError(error.status_code, f"There is no {path} here, but {there}", code="unknown_url"))


async def _failed(request, error):
    return failed(told(error))
