"""`/v1/embeddings`: vectors of texts, OpenAI's shapes around zoo/embed.py."""

import asyncio
import base64
import traceback
from concurrent.futures import ThreadPoolExecutor

from zoo.serve_errors import ApiError, busy
from zoo.serve_request import EMBEDDING, fields


async def embeddings(service, body):
    """The answer to a request."""
    asked = fields(body, EMBEDDING)
    encoder = service.vectors.encoder
    rows = await service.prepared(_rows, encoder, asked["input"])
    found = await service.vectors.of(rows)
    if asked["dimensions"] not in (None, found.shape[1]):
        raise ApiError(400, f"dimensions: this model makes {found.shape[1]}", "dimensions", "invalid_value")
    if asked["encoding_format"] == "base64":
        shown = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in found]
    else:
        shown = found.tolist()
    count = sum(map(len, rows))
    return {
        "object": "list",
        "model": service.names["embed"],
        "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(shown)],
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def _rows(encoder, inputs):
    """Lists of ids; texts are cut to the model's length as sentence-transformers does, ids that do not fit refused."""
    known = encoder.tokenizer.n_vocab
    for each in inputs:
        if not isinstance(each, str):
            if len(each) > encoder.max_length:
                got = f"{len(each)} tokens; the model takes {encoder.max_length}"
                raise ApiError(400, f"input: {got}", "input", "context_length_exceeded")
            if not 0 <= min(each) <= max(each) < known:
                raise ApiError(400, f"input: token ids are from 0 to {known - 1}", "input", "invalid_value")
    return [encoder.tokenizer.encode(each) if isinstance(each, str) else each for each in inputs]


class Vectors:
    """Requests for embeddings, those that come together in one batch, on a thread of their own."""

    def __init__(self, encoder, limit):
        self.encoder, self.limit = encoder, limit
        self._waiting, self._task, self._thread = [], None, ThreadPoolExecutor(1, "encoder")

    async def of(self, rows):
        """float32 NumPy [B, D] of lists of ids."""
        if self._waiting and sum(len(other) for other, _ in self._waiting) + len(rows) > self.limit:
            raise busy()
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self):
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch = [(rows, future) for rows, future in self._waiting if not future.done()]
                self._waiting = []
                if not batch:
                    continue
                try:
                    found = await loop.run_in_executor(
                        self._thread, self._embed, [r for rows, _ in batch for r in rows]
                    )
                except Exception as error:
                    traceback.print_exc()
                    found = error
                for rows, future in batch:
                    if not future.done():
                        future.set_exception(found) if isinstance(found, Exception) else future.set_result(
                            found[: len(rows)]
                        )
                    found = found if isinstance(found, Exception) else found[len(rows) :]
        finally:
            self._task = None

    def _embed(self, rows):
        return self.encoder.embed(rows).cpu().numpy().copy()

    def close(self):
        self._thread.shutdown()
